"""Filters of a vector store: checked once, then asked about each item's metadata."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from crucible.port.vector.v1 import vector_pb2
from crucible_kit.errors import field_error

# Metadata in, whether it matches out.
Matches = Callable[[Mapping[str, Any]], bool]
_Condition = vector_pb2.MetadataCondition
_MAX_DEPTH = 8
_ORDERS: dict[int, Callable[[float, float], bool]] = {
    _Condition.OPERATOR_LESS: operator.lt,
    _Condition.OPERATOR_LESS_OR_EQUAL: operator.le,
    _Condition.OPERATOR_GREATER: operator.gt,
    _Condition.OPERATOR_GREATER_OR_EQUAL: operator.ge,
}
_LISTS = (_Condition.OPERATOR_IN, _Condition.OPERATOR_NOT_IN)
_NEGATIVE = (_Condition.OPERATOR_NOT_EQUAL, _Condition.OPERATOR_NOT_IN)


def metadata_of(struct: Struct, *, field: str) -> dict[str, Any]:
    """Metadata as a dict of str, float and bool.

    Raises:
        InvalidArgumentError: FIELD_INVALID for another type of value.
    """
    return {key: _scalar(struct.fields[key], f"{field}.{key}") for key in sorted(struct.fields)}


def compiled(filter_: vector_pb2.Filter, *, field: str = "filter", depth: int = 1) -> Matches:
    """The filter as a function.

    Raises:
        InvalidArgumentError: FIELD_INVALID with the path of what is wrong.
    """
    if depth > _MAX_DEPTH:
        raise field_error(field, f"is nested deeper than {_MAX_DEPTH}")
    kind = filter_.WhichOneof("filter")
    if kind is None:
        raise field_error(field, "is empty: set condition, all or any")
    if kind == "condition":
        return _condition(filter_.condition, f"{field}.condition")
    inner = [
        compiled(each, field=f"{field}.{kind}.filters[{number}]", depth=depth + 1)
        for number, each in enumerate(getattr(filter_, kind).filters)
    ]
    combine = all if kind == "all" else any
    return lambda metadata: combine(matches(metadata) for matches in inner)


def _condition(condition: vector_pb2.MetadataCondition, field: str) -> Matches:
    key, how = condition.key, condition.operator
    if how in _ORDERS:
        bound = _scalar(condition.value, f"{field}.value")
        if not isinstance(bound, float):
            raise field_error(f"{field}.value", f"must be a number for {_Condition.Operator.Name(how)}")
        order = _ORDERS[how]
        return lambda metadata: isinstance(metadata.get(key), float) and order(metadata[key], bound)
    wanted = _values(condition.value, f"{field}.value") if how in _LISTS else None
    if wanted is None:
        wanted = [_scalar(condition.value, f"{field}.value")]
    negative = how in _NEGATIVE
    return lambda metadata: any(_same(metadata.get(key), each) for each in wanted) != negative


def _same(a: Any, b: Any) -> bool:
    # In Python True == 1.0.
    return type(a) is type(b) and a == b


def _values(value: Value, field: str) -> list[Any]:
    if value.WhichOneof("kind") != "list_value" or not value.list_value.values:
        raise field_error(field, "must be a list with at least one value")
    return [_scalar(each, f"{field}[{number}]") for number, each in enumerate(value.list_value.values)]


def _scalar(value: Value, field: str) -> str | float | bool:
    kind = value.WhichOneof("kind")
    if kind not in ("string_value", "number_value", "bool_value"):
        raise field_error(field, "must be a string, a finite number or a boolean")
    scalar = getattr(value, kind)
    if kind == "number_value" and not math.isfinite(scalar):
        raise field_error(field, f"is {scalar}; a finite number is required")
    return scalar
