"""A vector store in memory that looks at every item."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct
from pydantic import Field

from crucible.port.vector.v1 import vector_pb2, vector_pb2_grpc
from crucible_adapters.fakes.listing import page
from crucible_adapters.fakes.seeded import content_of, digest
from crucible_adapters.fakes.vector_filter import Matches, compiled, metadata_of
from crucible_adapters.fakes.vector_items import Hit, Item, Items, Search
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import AlreadyExistsError, NotFoundError, ResourceExhaustedError, field_error
from crucible_kit.tensors import pack_floats, to_tensor

_DEFAULT_RESULTS = 10
_MAX_RESULT_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024


class FakeVectorStoreOptions(AdapterOptions):
    """As all fakes have them."""

    seed: int = Field(default=0, description="Without effect: nothing is drawn.")


class FakeVectorStore(vector_pb2_grpc.VectorStoreServiceServicer):
    """Collections in memory; search is exact."""

    description = AdapterDescription(name="fake-vector", port="vector", options=FakeVectorStoreOptions)

    def __init__(self, options: FakeVectorStoreOptions, context: AdapterContext) -> None:
        self._collections: dict[str, Items] = {}
        # One thread: calls don't meet.
        self._threads = Threads("fake-vector", 1)

    async def close(self) -> None:
        """Ends the thread and forgets everything."""
        await self._threads.close()
        self._collections.clear()

    async def CreateCollection(
        self, request: vector_pb2.CreateCollectionRequest, context: Any
    ) -> vector_pb2.CreateCollectionResponse:
        return await self._threads.run(self._create, request)

    def _create(self, request: vector_pb2.CreateCollectionRequest) -> vector_pb2.CreateCollectionResponse:
        wanted = vector_pb2.Collection()
        wanted.CopyFrom(request.collection)
        if wanted.num_items:
            raise field_error("collection.num_items", "is the store's to set: leave it out")
        wanted.metric = wanted.metric or vector_pb2.METRIC_COSINE
        items = self._collections.get(wanted.name)
        if items is None:
            items = self._collections[wanted.name] = Items(wanted)
        elif not _same(items.collection, wanted):
            raise AlreadyExistsError(
                f"the collection {wanted.name!r} exists with another metric, dimension or metadata: take another name",
                reason="COLLECTION_EXISTS",
                metadata={"collection": wanted.name},
            )
        return vector_pb2.CreateCollectionResponse(collection=items.collection)

    async def GetCollection(
        self, request: vector_pb2.GetCollectionRequest, context: Any
    ) -> vector_pb2.GetCollectionResponse:
        items = await self._threads.run(self._items, request.name)
        return vector_pb2.GetCollectionResponse(collection=items.collection)

    async def ListCollections(
        self, request: vector_pb2.ListCollectionsRequest, context: Any
    ) -> vector_pb2.ListCollectionsResponse:
        found = [self._collections[name].collection for name in sorted(self._collections)]
        shown, token = page(found, lambda each: each.name, request, "ListCollections")
        return vector_pb2.ListCollectionsResponse(collections=shown, next_page_token=token)

    async def DeleteCollection(
        self, request: vector_pb2.DeleteCollectionRequest, context: Any
    ) -> vector_pb2.DeleteCollectionResponse:
        if request.name not in self._collections and not request.allow_missing:
            raise _not_found(request.name)
        self._collections.pop(request.name, None)
        return vector_pb2.DeleteCollectionResponse()

    async def UpsertItems(self, request: vector_pb2.UpsertItemsRequest, context: Any) -> vector_pb2.UpsertItemsResponse:
        return await self._threads.run(self._upsert, request)

    def _upsert(self, request: vector_pb2.UpsertItemsRequest) -> vector_pb2.UpsertItemsResponse:
        items = self._items(request.collection)
        fresh = _read_items(request, items)
        items.collection.dimension = len(fresh[0].vector_D)
        added, replaced = items.upsert(fresh)
        return vector_pb2.UpsertItemsResponse(num_added=added, num_replaced=replaced)

    async def QueryItems(self, request: vector_pb2.QueryItemsRequest, context: Any) -> vector_pb2.QueryItemsResponse:
        return await self._threads.run(self._query, request)

    def _query(self, request: vector_pb2.QueryItemsRequest) -> vector_pb2.QueryItemsResponse:
        items = self._items(request.collection)
        queries_QD = items.read_vectors(request.vectors)
        search = Search(items.choose((), _matches(request)), items.collection.metric)
        response = vector_pb2.QueryItemsResponse()
        room = _MAX_RESULT_BYTES
        for query_D in queries_QD:
            hits = search.nearest(query_D, request.num_results or _DEFAULT_RESULTS)
            room -= sum(hit.item.size for hit in hits)
            if room < 0:
                raise ResourceExhaustedError(
                    "the items found don't fit into a message: ask for fewer results, or with fewer queries",
                    reason="RESULT_TOO_LARGE",
                    metadata={"limit_bytes": _MAX_RESULT_BYTES},
                )
            response.results.append(_result(hits))
        return response

    async def ListItems(self, request: vector_pb2.ListItemsRequest, context: Any) -> vector_pb2.ListItemsResponse:
        return await self._threads.run(self._list, request)

    def _list(self, request: vector_pb2.ListItemsRequest) -> vector_pb2.ListItemsResponse:
        items = self._items(request.collection)
        asked = digest(request.include_vectors, content_of(request.filter).hex(), *request.ids)
        vector_bytes = items.collection.dimension * 4 if request.include_vectors else 0
        shown, token = page(
            items.choose(request.ids, _matches(request)),
            lambda each: each.id,
            request,
            "ListItems",
            request.collection,
            asked,
            size_of=lambda each: each.size + vector_bytes,
        )
        response = vector_pb2.ListItemsResponse(
            ids=[each.id for each in shown],
            documents=[each.document for each in shown],
            metadatas=[each.metadata for each in shown],
            next_page_token=token,
        )
        if shown and request.include_vectors:
            response.vectors.CopyFrom(to_tensor(np.stack([each.vector_D for each in shown])))
        return response

    async def DeleteItems(self, request: vector_pb2.DeleteItemsRequest, context: Any) -> vector_pb2.DeleteItemsResponse:
        return await self._threads.run(self._delete, request)

    def _delete(self, request: vector_pb2.DeleteItemsRequest) -> vector_pb2.DeleteItemsResponse:
        items = self._items(request.collection)
        if not request.ids and not request.HasField("filter"):
            raise field_error("ids", "are missing, and so is a filter: to remove all items delete the collection")
        chosen = items.choose(request.ids, _matches(request))
        items.delete(chosen)
        return vector_pb2.DeleteItemsResponse(num_deleted=len(chosen))

    def _items(self, name: str) -> Items:
        if name not in self._collections:
            raise _not_found(name)
        return self._collections[name]


def _same(present: vector_pb2.Collection, wanted: vector_pb2.Collection) -> bool:
    """Whether a description asks for what is there; a dimension that is left open fits any."""
    return (
        present.metric == wanted.metric
        and wanted.dimension in (0, present.dimension)
        and present.metadata == wanted.metadata
    )


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no collection {name!r}: create it first",
        reason="COLLECTION_NOT_FOUND",
        metadata={"collection": name},
    )


def _matches(request: Any) -> Matches | None:
    return compiled(request.filter) if request.HasField("filter") else None


def _read_items(request: vector_pb2.UpsertItemsRequest, items: Items) -> list[Item]:
    vectors_ND = items.read_vectors(request.vectors)
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


def _result(hits: list[Hit]) -> vector_pb2.QueryResult:
    return vector_pb2.QueryResult(
        ids=[hit.item.id for hit in hits],
        documents=[hit.item.document for hit in hits],
        metadatas=[hit.item.metadata for hit in hits],
        distances_float32=pack_floats([hit.distance for hit in hits]),
    )
