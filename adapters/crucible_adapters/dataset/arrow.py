"""Rows in Arrow tables, as JSON objects."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from crucible_adapters.dataset.rows import field_missing, row_digest, stack_digests
from crucible_kit.errors import InvalidArgumentError

Converter = Callable[[Any], Any]
Columns = TypeVar("Columns", pa.RecordBatch, pa.Table)


class ArrowRows:
    """The rows of Arrow stream files that nobody changes, mapped into memory and read by number.

    Args:
        name: what errors call them.
        digests: of each row, shape [num_rows, 16], uint8; None: made from the rows when they are asked for.
    """

    def __init__(self, name: str, files: Sequence[Path], digests: np.ndarray | None = None) -> None:
        """Raises pa.ArrowException or OSError for what are no such files."""
        self._name = name
        self._batches: list[pa.RecordBatch] = []
        for file in files:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                self._batches.extend(batch for batch in stream if batch.num_rows)
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._digests = digests
        self.num_rows = int(self._ends[-1]) if len(self._ends) else 0

    @property
    def schemas(self) -> list[pa.Schema]:
        """The columns of each piece of the rows."""
        return [batch.schema for batch in self._batches]

    @property
    def digests(self) -> np.ndarray:
        """Of each row, shape [num_rows, 16], uint8. Raises DATASET_MALFORMED for a column without a form in JSON."""
        if self._digests is None:
            made = []
            for batch in self._batches:
                for row in batch_objects(batch, self._name):
                    made.append(checked_digest(row, self._name, len(made)))
            self._digests = stack_digests(made)
        return self._digests

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """These rows, with all fields or with those of `fields`."""
        in_batch = np.searchsorted(self._ends, indices, side="right")
        rows: list[str] = [""] * len(indices)
        for number in np.unique(in_batch):
            batch = self._batches[int(number)]
            places = np.flatnonzero(in_batch == number)
            first = self._ends[number] - batch.num_rows
            taken = select_columns(batch, fields, self._name, int(first)).take(pa.array(indices[places] - first))
            for place, row in zip(places, batch_objects(taken, self._name), strict=True):
                rows[place] = json.dumps(row, ensure_ascii=False)
        return rows


def select_columns(table: Columns, fields: Collection[str] | None, name: str, first: int) -> Columns:
    """The columns of these names; all without. Raises DATASET_MALFORMED naming a missing one and the row `first`."""
    if fields is None:
        return table
    missing = sorted(set(fields) - set(table.schema.names))
    if missing:
        raise field_missing(name, first, missing[0], table.schema.names)
    return table.select(sorted(fields))


def checked_digest(row: dict[str, Any], name: str, number: int) -> bytes:
    """The row's digest. Raises DATASET_MALFORMED naming the row, which counts from 0."""
    try:
        return row_digest(row)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{name}, row {number + 1}: {error}",
            reason="DATASET_MALFORMED",
            metadata={"dataset": name, "row": number + 1},
        ) from error


def batch_objects(batch: pa.RecordBatch | pa.Table, name: str) -> list[dict[str, Any]]:
    """Rows as what JSON has. Raises DATASET_MALFORMED naming the first column that has no form in JSON."""
    converters = {field.name: _column_converter(field, name) for field in batch.schema}
    return [{column: converters[column](value) for column, value in row.items()} for row in batch.to_pylist()]


def unreadable_columns(schema: pa.Schema) -> list[str]:
    """Columns that have no form in JSON, such as images and sound."""
    return [field.name for field in schema if _converter(field.type) is None]


def _column_converter(field: pa.Field, name: str) -> Converter:
    converter = _converter(field.type)
    if converter is None:
        raise InvalidArgumentError(
            f"{name}: the column {field.name!r} holds {field.type}, which has no form in JSON: leave it out with a "
            "field mapping",
            reason="DATASET_MALFORMED",
            metadata={"dataset": name, "column": field.name},
        )
    return converter


def _converter(kind: pa.DataType) -> Converter | None:
    """Makes values of an Arrow type values of JSON; None: they hold bytes, or something that is none of JSON's."""
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else to_json_value(json.loads(value))
    if isinstance(kind, pa.BaseExtensionType):
        return _converter(kind.storage_type)
    if isinstance(kind, pa.StructType):
        members = {field.name: _converter(field.type) for field in kind}
        if None in members.values():
            return None
        return lambda value: value and {key: members[key](each) for key, each in value.items()}  # type: ignore[misc]
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType):
        member = _converter(kind.value_type)
        if member is None:
            return None
        return lambda value: value and [member(each) for each in value]
    if isinstance(kind, pa.MapType):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        if key is None or item is None:
            return None
        return lambda value: value and [[key(k), item(v)] for k, v in value]
    if isinstance(kind, pa.DictionaryType):
        return _converter(kind.value_type)
    plain = (
        pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind))
    )
    return to_json_value if plain else None


def to_json_value(value: Any) -> Any:
    """A value as JSON has it: times in ISO 8601, durations in seconds, decimals as text, bytes as base64, NaN and
    infinities as null.

    Raises ValueError for anything else.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): to_json_value(each) for key, each in value.items()}
        case list() | tuple():
            return [to_json_value(each) for each in value]
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            raise ValueError(f"holds a {type(value).__name__}, which has no form in JSON: leave that column out")
