"""The items of one collection, and exact search among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.struct_pb2 import Struct

from crucible.port.vector.v1 import vector_pb2
from crucible.type.v1 import tensor_pb2
from crucible_adapters.fakes.vector_filter import Matches
from crucible_kit.errors import InvalidArgumentError, field_error
from crucible_kit.tensors import from_tensor

MAX_DIMENSION = 65536


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        vector_D: float32.
        metadata: as it came.
        values: the metadata as a dict, for filters.
    """

    id: str
    vector_D: np.ndarray
    document: str
    metadata: Struct
    values: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes on the wire, roughly."""
        return len(self.id) + len(self.document.encode()) + self.metadata.ByteSize()


class Hit(NamedTuple):
    """An item and its distance from a query, float32."""

    distance: float
    item: Item


class Items:
    """Attributes:
    collection: its description; num_items is kept up to date.
    """

    def __init__(self, collection: vector_pb2.Collection) -> None:
        self.collection = collection
        self._items: dict[str, Item] = {}

    def upsert(self, items: list[Item]) -> tuple[int, int]:
        """Adds or replaces items; returns how many were added and replaced."""
        before = len(self._items)
        self._items.update({each.id: each for each in items})
        added = len(self._items) - before
        self.collection.num_items = len(self._items)
        return added, len(items) - added

    def choose(self, ids: Iterable[str], matches: Matches | None) -> list[Item]:
        """The items of these ids (none: of all) that match, sorted by id."""
        wanted = set(ids)
        names = wanted & self._items.keys() if wanted else self._items
        chosen = [self._items[name] for name in sorted(names)]
        return [each for each in chosen if matches is None or matches(each.values)]

    def delete(self, items: list[Item]) -> None:
        """Removes items."""
        for each in items:
            del self._items[each.id]
        self.collection.num_items = len(self._items)

    def read_vectors(self, tensor: tensor_pb2.Tensor) -> np.ndarray:
        """The vectors of a request, float32 of shape [n, d].

        Raises:
            InvalidArgumentError: FIELD_INVALID, TENSOR_SIZE_MISMATCH, DIMENSION_MISMATCH.
        """
        if tensor.dtype != tensor_pb2.D_TYPE_FLOAT32:
            raise field_error("vectors.dtype", "must be D_TYPE_FLOAT32")
        vectors_ND = from_tensor(tensor, field="vectors")
        if vectors_ND.ndim != 2 or not 1 <= vectors_ND.shape[1] <= MAX_DIMENSION:
            shape = list(vectors_ND.shape)
            raise field_error("vectors.shape", f"is {shape}; it must be [n, d] with d from 1 to {MAX_DIMENSION}")
        if not np.isfinite(vectors_ND).all():
            raise field_error("vectors", "holds an infinity or NaN")
        dimension = self.collection.dimension
        if dimension and vectors_ND.shape[1] != dimension:
            raise InvalidArgumentError(
                f"vectors: have {vectors_ND.shape[1]} numbers, those of {self.collection.name!r} have {dimension}",
                reason="DIMENSION_MISMATCH",
                metadata={"field": "vectors", "expected": dimension, "actual": vectors_ND.shape[1]},
            )
        return vectors_ND


class Search:
    """Exact search among items, which are sorted by id."""

    def __init__(self, items: list[Item], metric: int) -> None:
        self._items = items
        self._metric = metric
        self._items_ND = np.stack([each.vector_D for each in items]).astype(np.float64) if items else np.zeros((0, 1))
        self._lengths_N = np.linalg.norm(self._items_ND, axis=1)

    def nearest(self, query_D: np.ndarray, count: int) -> list[Hit]:
        """The nearest items, equal distances by id."""
        if not self._items:
            return []
        # What is equal on the wire is equal for the order too.
        distances_N = self._distances(query_D.astype(np.float64)).astype(np.float32)
        order = np.argsort(distances_N, kind="stable")[:count]
        return [Hit(float(distances_N[place]), self._items[place]) for place in order]

    def _distances(self, query_D: np.ndarray) -> np.ndarray:
        match self._metric:
            case vector_pb2.METRIC_L2:
                return np.square(self._items_ND - query_D).sum(axis=1)
            case vector_pb2.METRIC_INNER_PRODUCT:
                return 1 - self._items_ND @ query_D
        lengths_N = self._lengths_N * np.linalg.norm(query_D)
        cosines_N = np.divide(self._items_ND @ query_D, lengths_N, out=np.zeros_like(lengths_N), where=lengths_N > 0)
        return np.clip(1 - cosines_N, 0, 2)
