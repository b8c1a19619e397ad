"""Calls of a vector store, as short as tests want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible_kit.tensors import to_tensor


class NoDeadline:
    """What an adapter asks of a call's context."""

    def time_remaining(self) -> float | None:
        return None


CALL = NoDeadline()


async def create(store: Any, name: str = "things", **fields: Any) -> pb.Collection:
    request = pb.CreateCollectionRequest(collection=pb.Collection(name=name, **fields))
    return (await store.CreateCollection(request, CALL)).collection


async def upsert(
    store: Any, ids: Sequence[str], vectors: Any, *, metadatas: Sequence[dict[str, Any]] = (), **fields: Any
) -> tuple[int, int]:
    request = pb.UpsertItemsRequest(
        **{"collection": "things", **fields},
        ids=ids,
        vectors=to_tensor(np.asarray(vectors, np.float32)),
        metadatas=[ParseDict(each, Struct()) for each in metadatas],
    )
    response = await store.UpsertItems(request, CALL)
    return response.num_added, response.num_replaced


async def query(store: Any, vectors: Any, **fields: Any) -> list[pb.QueryResult]:
    tensor = to_tensor(np.asarray(vectors, np.float32))
    request = pb.QueryItemsRequest(**{"collection": "things", **fields}, vectors=tensor)
    return list((await store.QueryItems(request, CALL)).results)


async def count(store: Any, name: str = "things") -> int:
    return (await store.GetCollection(pb.GetCollectionRequest(name=name), CALL)).collection.num_items


async def items(store: Any, **fields: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Documents and metadata by id."""
    response = await store.ListItems(pb.ListItemsRequest(**{"collection": "things", "page_size": 500, **fields}), CALL)
    plain = [MessageToDict(each) for each in response.metadatas]
    return dict(zip(response.ids, zip(response.documents, plain, strict=True), strict=True))


def condition(key: str, operator: str, value: Any) -> pb.Filter:
    compared = ParseDict(value, Value())
    return pb.Filter(condition=pb.MetadataCondition(key=key, operator=f"OPERATOR_{operator}", value=compared))
