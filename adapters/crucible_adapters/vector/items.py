"""Items of a vector store: how a request's are checked, and their distances from a query."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.struct_pb2 import Struct

from crucible.port.vector.v1 import vector_pb2
from crucible.type.v1 import tensor_pb2
from crucible_adapters.vector.filters import metadata_of
from crucible_kit.errors import InvalidArgumentError, UnavailableError, field_error
from crucible_kit.tensors import from_tensor

MAX_DIMENSION = 65536
_BLOCK_ITEMS = 4096
_BLOCK_QUERIES = 32


class Near(NamedTuple):
    """An item's distance from a query, float32, and its id; sorts as results do."""

    distance: float
    id: str


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes:
        vector_D: float32; without numbers when it was not read.
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
        """Bytes on the wire, roughly, without the vector."""
        return len(self.id) + len(self.document.encode()) + self.metadata.ByteSize()


def read_items(request: vector_pb2.UpsertItemsRequest, dimension: int) -> list[Item]:
    """The items of a request.

    Args:
        dimension: length of the collection's vectors; 0: any.

    Raises:
        InvalidArgumentError: FIELD_INVALID, TENSOR_SIZE_MISMATCH, DIMENSION_MISMATCH.
    """
    vectors_ND = read_vectors(request.vectors, dimension, request.collection)
    count = len(request.ids)
    for field, length in {
        "vectors": len(vectors_ND),
        "documents": len(request.documents) or count,
        "metadatas": len(request.metadatas) or count,
    }.items():
        if length != count:
            raise field_error(field, f"has {length} entries, but there are {count} ids")
    seen: set[str] = set()
    for number, each in enumerate(request.ids):
        if not each or each in seen:
            raise field_error(f"ids[{number}]", f"{each!r} is there twice" if each else "is empty")
        seen.add(each)
    return [_item(request, number, vector_D.copy()) for number, vector_D in enumerate(vectors_ND)]


def _item(request: vector_pb2.UpsertItemsRequest, number: int, vector_D: np.ndarray) -> Item:
    metadata = Struct()
    if request.metadatas:
        metadata.CopyFrom(request.metadatas[number])
    return Item(
        id=request.ids[number],
        vector_D=vector_D,
        document=request.documents[number] if request.documents else "",
        metadata=metadata,
        values=metadata_of(metadata, field=f"metadatas[{number}]"),
    )


def read_vectors(tensor: tensor_pb2.Tensor, dimension: int, collection: str) -> np.ndarray:
    """The vectors of a request, float32 of shape [n, d]. Arguments and errors as those of read_items."""
    if tensor.dtype != tensor_pb2.D_TYPE_FLOAT32:
        raise field_error("vectors.dtype", "must be D_TYPE_FLOAT32")
    vectors_ND = from_tensor(tensor, field="vectors")
    if vectors_ND.ndim != 2 or not 1 <= vectors_ND.shape[1] <= MAX_DIMENSION:
        shape = list(vectors_ND.shape)
        raise field_error("vectors.shape", f"is {shape}; it must be [n, d] with d from 1 to {MAX_DIMENSION}")
    if not np.isfinite(vectors_ND).all():
        raise field_error("vectors", "holds an infinity or NaN")
    if dimension and vectors_ND.shape[1] != dimension:
        raise InvalidArgumentError(
            f"vectors: have {vectors_ND.shape[1]} numbers, those of {collection!r} have {dimension}",
            reason="DIMENSION_MISMATCH",
            metadata={"field": "vectors", "expected": dimension, "actual": vectors_ND.shape[1]},
        )
    return vectors_ND


def distances(items_ND: np.ndarray, queries_QD: np.ndarray, metric: int) -> np.ndarray:
    """Distances of vectors from queries by a Metric, of shape [q, n].

    They are computed in float64 and told as float32: what is equal on the wire is equal for the order too.
    """
    wide_ND, wide_QD = items_ND.astype(np.float64), queries_QD.astype(np.float64)
    match metric:
        case vector_pb2.METRIC_L2:
            # Not |a|^2 - 2ab + |b|^2: near vectors would cancel out.
            found_QN = np.stack([np.square(wide_ND - query_D).sum(axis=1) for query_D in wide_QD])
        case vector_pb2.METRIC_INNER_PRODUCT:
            found_QN = 1 - wide_QD @ wide_ND.T
        case _:
            lengths_QN = np.linalg.norm(wide_QD, axis=1)[:, np.newaxis] * np.linalg.norm(wide_ND, axis=1)
            dots_QN = wide_QD @ wide_ND.T
            found_QN = 1 - np.divide(dots_QN, lengths_QN, out=np.zeros_like(dots_QN), where=lengths_QN > 0)
            found_QN = np.clip(found_QN, 0, 2)
    # Products of huge numbers are beyond float32.
    with np.errstate(over="ignore"):
        return found_QN.astype(np.float32)


def check_waited_for(left: threading.Event) -> None:
    """Raises UNAVAILABLE SEARCH_STOPPED when nobody waits for a search any more."""
    if left.is_set():
        raise UnavailableError("the search was stopped: its caller has left", reason="SEARCH_STOPPED")


def nearest(
    ids: Sequence[str],
    vectors_ND: np.ndarray,
    queries_QD: np.ndarray,
    metric: int,
    count: int,
    left: threading.Event,
) -> list[list[Near]]:
    """The nearest of the vectors for each query, equal distances by id. `ids` are the vectors', sorted.

    Raises:
        UnavailableError: SEARCH_STOPPED, `left` was set: nobody waits for it.
    """
    found: list[list[Near]] = []
    for first in range(0, len(queries_QD), _BLOCK_QUERIES):
        check_waited_for(left)
        some_QD = queries_QD[first : first + _BLOCK_QUERIES]
        # In blocks: their float64 copies stay small.
        found_QN = np.concatenate(
            [
                distances(vectors_ND[start : start + _BLOCK_ITEMS], some_QD, metric)
                for start in range(0, len(ids), _BLOCK_ITEMS)
            ],
            axis=1,
        )
        found += [_first(ids, found_N, count) for found_N in found_QN]
    return found


def _first(ids: Sequence[str], found_N: np.ndarray, count: int) -> list[Near]:
    places_N = np.arange(len(ids))
    if count < len(ids):
        places_N = np.flatnonzero(found_N <= np.partition(found_N, count - 1)[count - 1])
    order = places_N[np.argsort(found_N[places_N], kind="stable")][:count]
    return [Near(float(found_N[place]), ids[int(place)]) for place in order]
