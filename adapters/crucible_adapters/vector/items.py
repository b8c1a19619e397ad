"""Items of a vector store: how a request's are checked, and their distances from a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct

from crucible.port.vector.v1 import vector_pb2
from crucible.type.v1 import tensor_pb2
from crucible_adapters.vector.filters import metadata_of
from crucible_kit.errors import InvalidArgumentError, field_error
from crucible_kit.tensors import from_tensor

MAX_DIMENSION = 65536


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


def distances(items_ND: np.ndarray, query_D: np.ndarray, metric: int) -> np.ndarray:
    """Distances of vectors from a query by a Metric, of shape [n].

    They are computed in float64 and told as float32: what is equal on the wire is equal for the order too.
    """
    wide_ND, query_D = items_ND.astype(np.float64, copy=False), query_D.astype(np.float64)
    match metric:
        case vector_pb2.METRIC_L2:
            found_N = np.square(wide_ND - query_D).sum(axis=1)
        case vector_pb2.METRIC_INNER_PRODUCT:
            found_N = 1 - wide_ND @ query_D
        case _:
            lengths_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND)) * np.linalg.norm(query_D)
            cosines_N = np.divide(wide_ND @ query_D, lengths_N, out=np.zeros_like(lengths_N), where=lengths_N > 0)
            found_N = np.clip(1 - cosines_N, 0, 2)
    # Products of huge numbers are beyond float32.
    with np.errstate(over="ignore"):
        return found_N.astype(np.float32)
