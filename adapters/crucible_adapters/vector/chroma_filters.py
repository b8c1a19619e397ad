"""Metadata and filters in Chroma's form. Its filters mean what the port's do, but for keys that it keeps for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from crucible.port.vector.v1 import vector_pb2
from crucible_adapters.vector.chroma_vectors import BITS
from crucible_kit.errors import field_error

_Condition = vector_pb2.MetadataCondition
_OPERATORS = {
    _Condition.OPERATOR_EQUAL: "$eq",
    _Condition.OPERATOR_NOT_EQUAL: "$ne",
    _Condition.OPERATOR_LESS: "$lt",
    _Condition.OPERATOR_LESS_OR_EQUAL: "$lte",
    _Condition.OPERATOR_GREATER: "$gt",
    _Condition.OPERATOR_GREATER_OR_EQUAL: "$gte",
    _Condition.OPERATOR_IN: "$in",
    _Condition.OPERATOR_NOT_IN: "$nin",
}
_ESCAPE = "crucible:"
_RESERVED = re.compile(r"\Z|[$#]|chroma:|crucible:")
# SQLite takes 32,766 variables in a statement.
_MAX_VALUES = 10_000


def to_key(key: str) -> str:
    """A metadata key as Chroma takes it."""
    return _ESCAPE + key if _RESERVED.match(key) else key


def from_key(key: str) -> str:
    """The key that was stored."""
    return key.removeprefix(_ESCAPE)


def from_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str | float | bool]:
    """An item's metadata; what other programs have stored and the port lacks, such as lists, is left out."""
    return {
        from_key(key): float(value) if type(value) is int else value
        for key, value in sorted((metadata or {}).items())
        if key != BITS and isinstance(value, str | int | float | bool)
    }


def to_where(filter_: vector_pb2.Filter) -> dict[str, Any]:
    """A checked filter as a `where`.

    Raises:
        InvalidArgumentError: FIELD_INVALID, it has more values than Chroma takes.
    """
    where = _where(filter_)
    if _count(where) > _MAX_VALUES:
        raise field_error("filter", f"has more than {_MAX_VALUES} values, which Chroma does not take: send it in parts")
    return where


def _where(filter_: vector_pb2.Filter) -> dict[str, Any]:
    kind = filter_.WhichOneof("filter")
    if kind != "condition":
        return _joined(
            "$and" if kind == "all" else "$or", [_where(each) for each in getattr(filter_, str(kind)).filters]
        )
    condition = filter_.condition
    key, name = to_key(condition.key), _OPERATORS[condition.operator]
    value: Any = MessageToDict(condition.value)
    if not isinstance(value, list):
        return {key: {name: value}}
    # A list has values of one type.
    by_type: dict[type, list[Any]] = {}
    for each in value:
        by_type.setdefault(type(each), []).append(each)
    parts = [{key: {name: each}} for each in by_type.values()]
    return _joined("$or" if name == "$in" else "$and", parts)


def _joined(operator: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    # Of a single one Chroma wants no list.
    return {operator: parts} if len(parts) > 1 else parts[0]


def _count(where: Any) -> int:
    if isinstance(where, dict):
        return sum(_count(each) for each in where.values())
    return sum(_count(each) for each in where) if isinstance(where, list) else 1
