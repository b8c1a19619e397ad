"""Rows with other names for their fields."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.dataset.rows import RowSource, field_missing, row_digest, stack_digests
from crucible_kit.errors import field_error

_BATCH_ROWS = 1024


def composed_mapping(transforms: Iterable[dataset_pb2.DatasetTransform]) -> dict[str, str] | None:
    """Name of a field in the source by its name after all field mappings; None without any.

    Raises:
        InvalidArgumentError: FIELD_INVALID when a mapping names a field that the one before it has dropped.
    """
    composed: dict[str, str] | None = None
    for number, each in enumerate(transforms):
        if each.WhichOneof("transform") != "fields":
            continue
        given = dict(each.fields.source_by_name)
        missing = sorted(set(given.values()) - set(composed)) if composed is not None else []
        if missing:
            raise field_error(
                f"transforms[{number}].fields.source_by_name",
                f"names {missing[0]!r}, but the mapping before leaves only {', '.join(sorted(composed or ()))}",
            )
        composed = given if composed is None else {name: composed[source] for name, source in given.items()}
    return composed


class MappedRows:
    """Chosen rows with chosen fields.

    Args:
        name: what errors call the dataset.
        order: numbers of the source's rows, shape [num_rows], int64.
        source_by_name: name of a field in the source by its name here.
    """

    def __init__(self, name: str, rows: RowSource, order: np.ndarray, source_by_name: Mapping[str, str]) -> None:
        """Raises INVALID_ARGUMENT DATASET_MALFORMED naming a row that lacks a field. Reads every row once."""
        self._name = name
        self._rows = rows
        self._order = order
        self._source_by_name = dict(source_by_name)
        self.num_rows = len(order)
        digests: list[bytes] = []
        for start in range(0, self.num_rows, _BATCH_ROWS):
            chosen = np.arange(start, min(start + _BATCH_ROWS, self.num_rows))
            digests.extend(row_digest(row) for row in self._objects(chosen))
        self.digests = stack_digests(digests)

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """These rows, whole."""
        return [json.dumps(row, ensure_ascii=False) for row in self._objects(indices)]

    def _objects(self, indices: np.ndarray) -> list[dict[str, Any]]:
        numbers = self._order[indices]
        texts = self._rows.read(numbers, frozenset(self._source_by_name.values()))
        return [self._mapped(json.loads(text), int(number)) for text, number in zip(texts, numbers, strict=True)]

    def _mapped(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            return {name: row[source] for name, source in self._source_by_name.items()}
        except KeyError as error:
            raise field_missing(self._name, number, error.args[0], row) from error
