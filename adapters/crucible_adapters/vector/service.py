"""The port's calls, the same for every store: check, look up, page, and keep answers within a message."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar

import numpy as np

from crucible.port.vector.v1 import vector_pb2, vector_pb2_grpc
from crucible_adapters.threads import Threads, retrieve
from crucible_adapters.vector.filters import compiled
from crucible_adapters.vector.items import Item, Near, read_items, read_vectors
from crucible_kit import paging
from crucible_kit.adapter import AdapterDescription
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import AlreadyExistsError, NotFoundError, ResourceExhaustedError, field_error
from crucible_kit.tensors import pack_floats, to_tensor

P = ParamSpec("P")
T = TypeVar("T")
_DEFAULT_RESULTS = 10
_MAX_RESULT_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
_LEAST_RESULT_BYTES = 8
_MAX_PAGE_BYTES = 8 * 1024 * 1024


class Stored(Protocol):
    """A collection of a store, as it is while one call looks at it."""

    @property
    def dimension(self) -> int:
        """Length of its vectors; 0: not fixed yet."""
        ...

    def describe(self) -> vector_pb2.Collection:
        """Its description and size."""
        ...

    def upsert(self, items: list[Item]) -> tuple[int, int]:
        """Adds or replaces checked items, all or none; how many were added and replaced."""
        ...

    def ids(self, wanted: Iterable[str], filter_: vector_pb2.Filter | None) -> list[str]:
        """The ids among the wanted ones (none: all) of items that match, sorted."""
        ...

    def read(self, ids: Sequence[str], *, with_vectors: bool) -> Iterator[Item]:
        """The items of these ids, in order; those that are not there are left out."""
        ...

    def nearest(
        self, queries_QD: np.ndarray, count: int, filter_: vector_pb2.Filter | None, left: threading.Event
    ) -> list[list[Near]]:
        """The nearest items of each query, sorted."""
        ...

    def delete(self, ids: list[str]) -> None:
        """Removes items, which are there."""
        ...


class Store(Protocol):
    """Where collections are kept. Its methods block; one at a time changes something."""

    def names(self) -> list[str]:
        """All collections."""
        ...

    def open(self, name: str) -> Stored | None:
        """A collection; None: it is not there."""
        ...

    def create(self, collection: vector_pb2.Collection) -> Stored:
        """Makes a collection that is not there."""
        ...

    def drop(self, name: str) -> None:
        """Removes a collection that is there."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class VectorStoreAdapter(vector_pb2_grpc.VectorStoreServiceServicer):
    """The VectorStore port over a store.

    Args:
        threads: how many calls it works on at the same time.
    """

    description: ClassVar[AdapterDescription]

    def __init__(self, store: Store, *, threads: int = 1) -> None:
        self._store = store
        self._threads = Threads(self.description.name, threads)
        self._changing = threading.Lock()
        # Set for those that nobody waits for any more.
        self._searches: set[threading.Event] = set()

    async def close(self) -> None:
        """Ends the threads and closes the store."""
        for left in self._searches:
            left.set()
        if not self._threads.closed:
            await self._threads.close()
            self._store.close()

    async def _run(self, context: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs what a call needs of the store in a thread."""
        return await self._threads.run(function, *args, **kwargs)

    async def CreateCollection(
        self, request: vector_pb2.CreateCollectionRequest, context: Any
    ) -> vector_pb2.CreateCollectionResponse:
        return await self._run(context, self._create, request)

    def _create(self, request: vector_pb2.CreateCollectionRequest) -> vector_pb2.CreateCollectionResponse:
        wanted = vector_pb2.Collection()
        wanted.CopyFrom(request.collection)
        if wanted.num_items:
            raise field_error("collection.num_items", "is the store's to set: leave it out")
        wanted.metric = wanted.metric or vector_pb2.METRIC_COSINE
        with self._changing:
            present = self._store.open(wanted.name)
            if present is None:
                return vector_pb2.CreateCollectionResponse(collection=self._store.create(wanted).describe())
        found = present.describe()
        if not _same(found, wanted):
            raise collection_exists(wanted.name)
        return vector_pb2.CreateCollectionResponse(collection=found)

    async def GetCollection(
        self, request: vector_pb2.GetCollectionRequest, context: Any
    ) -> vector_pb2.GetCollectionResponse:
        return await self._run(context, self._get, request)

    def _get(self, request: vector_pb2.GetCollectionRequest) -> vector_pb2.GetCollectionResponse:
        return vector_pb2.GetCollectionResponse(collection=self._opened(request.name).describe())

    async def ListCollections(
        self, request: vector_pb2.ListCollectionsRequest, context: Any
    ) -> vector_pb2.ListCollectionsResponse:
        return await self._run(context, self._list_collections, request)

    def _list_collections(self, request: vector_pb2.ListCollectionsRequest) -> vector_pb2.ListCollectionsResponse:
        names, more = _after(sorted(self._store.names()), request, "ListCollections")
        found = [stored.describe() for name in names if (stored := self._store.open(name)) is not None]
        token = paging.encode([names[-1]], "ListCollections") if more else ""
        return vector_pb2.ListCollectionsResponse(collections=found, next_page_token=token)

    async def DeleteCollection(
        self, request: vector_pb2.DeleteCollectionRequest, context: Any
    ) -> vector_pb2.DeleteCollectionResponse:
        return await self._run(context, self._drop, request)

    def _drop(self, request: vector_pb2.DeleteCollectionRequest) -> vector_pb2.DeleteCollectionResponse:
        with self._changing:
            if self._store.open(request.name) is not None:
                self._store.drop(request.name)
            elif not request.allow_missing:
                raise collection_not_found(request.name)
        return vector_pb2.DeleteCollectionResponse()

    async def UpsertItems(self, request: vector_pb2.UpsertItemsRequest, context: Any) -> vector_pb2.UpsertItemsResponse:
        return await self._run(context, self._upsert, request)

    def _upsert(self, request: vector_pb2.UpsertItemsRequest) -> vector_pb2.UpsertItemsResponse:
        with self._changing:
            stored = self._opened(request.collection)
            added, replaced = stored.upsert(read_items(request, stored.dimension))
        return vector_pb2.UpsertItemsResponse(num_added=added, num_replaced=replaced)

    async def QueryItems(self, request: vector_pb2.QueryItemsRequest, context: Any) -> vector_pb2.QueryItemsResponse:
        left = threading.Event()
        work = asyncio.ensure_future(self._run(context, self._query, request, left))
        self._searches.add(left)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A search may take minutes, and others wait for its thread.
            left.set()
            await asyncio.wait([work])
            retrieve(work)
            raise
        finally:
            self._searches.discard(left)

    def _query(self, request: vector_pb2.QueryItemsRequest, left: threading.Event) -> vector_pb2.QueryItemsResponse:
        stored = self._opened(request.collection)
        queries_QD = read_vectors(request.vectors, stored.dimension, request.collection)
        filter_ = _checked_filter(request)
        response = vector_pb2.QueryItemsResponse()
        room = _MAX_RESULT_BYTES
        wanted = request.num_results or _DEFAULT_RESULTS
        # Before a search of minutes: each result has a distance and an id, each query a message.
        if len(queries_QD) * (1 + min(wanted, stored.describe().num_items)) * _LEAST_RESULT_BYTES > room:
            raise _result_too_large()
        for found in stored.nearest(queries_QD, wanted, filter_, left):
            distances = {each.id: each.distance for each in found}
            items: list[Item] = []
            for item in stored.read(list(distances), with_vectors=False):
                room -= item.size
                if room < 0:
                    raise _result_too_large()
                items.append(item)
            response.results.add(
                ids=[each.id for each in items],
                documents=[each.document for each in items],
                metadatas=[each.metadata for each in items],
                distances_float32=pack_floats([distances[each.id] for each in items]),
            )
        return response

    async def ListItems(self, request: vector_pb2.ListItemsRequest, context: Any) -> vector_pb2.ListItemsResponse:
        return await self._run(context, self._list, request)

    def _list(self, request: vector_pb2.ListItemsRequest) -> vector_pb2.ListItemsResponse:
        stored = self._opened(request.collection)
        filter_ = _checked_filter(request)
        asked = vector_pb2.ListItemsRequest(
            collection=request.collection, ids=request.ids, filter=filter_, include_vectors=request.include_vectors
        )
        scope = f"ListItems\0{asked.SerializeToString(deterministic=True).hex()}"
        ids, more = _after(stored.ids(request.ids, filter_), request, scope)
        shown: list[Item] = []
        room = _MAX_PAGE_BYTES
        for item in stored.read(ids, with_vectors=request.include_vectors):
            room -= item.size + item.vector_D.nbytes * request.include_vectors
            if shown and room < 0:
                more = True
                break
            shown.append(item)
        response = vector_pb2.ListItemsResponse(
            ids=[each.id for each in shown],
            documents=[each.document for each in shown],
            metadatas=[each.metadata for each in shown],
            next_page_token=paging.encode([shown[-1].id], scope) if more and shown else "",
        )
        if shown and request.include_vectors:
            response.vectors.CopyFrom(to_tensor(np.stack([each.vector_D for each in shown])))
        return response

    async def DeleteItems(self, request: vector_pb2.DeleteItemsRequest, context: Any) -> vector_pb2.DeleteItemsResponse:
        return await self._run(context, self._delete, request)

    def _delete(self, request: vector_pb2.DeleteItemsRequest) -> vector_pb2.DeleteItemsResponse:
        with self._changing:
            stored = self._opened(request.collection)
            if not request.ids and not request.HasField("filter"):
                raise field_error("ids", "are missing, and so is a filter: to remove all items delete the collection")
            chosen = stored.ids(request.ids, _checked_filter(request))
            if chosen:
                stored.delete(chosen)
        return vector_pb2.DeleteItemsResponse(num_deleted=len(chosen))

    def _opened(self, name: str) -> Stored:
        stored = self._store.open(name)
        if stored is None:
            raise collection_not_found(name)
        return stored


def _result_too_large() -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "the items found don't fit into a message: ask for fewer results, or with fewer queries",
        reason="RESULT_TOO_LARGE",
        metadata={"limit_bytes": _MAX_RESULT_BYTES},
    )


def collection_not_found(name: str) -> NotFoundError:
    """The error of a collection that is not there."""
    return NotFoundError(
        f"there is no collection {name!r}: create it first",
        reason="COLLECTION_NOT_FOUND",
        metadata={"collection": name},
    )


def collection_exists(name: str) -> AlreadyExistsError:
    """The error of a name that another collection has."""
    return AlreadyExistsError(
        f"the collection {name!r} exists with another metric, dimension or metadata: take another name",
        reason="COLLECTION_EXISTS",
        metadata={"collection": name},
    )


def _same(present: vector_pb2.Collection, wanted: vector_pb2.Collection) -> bool:
    """Whether a description asks for what is there; a dimension that is left open fits any."""
    return (
        present.metric == wanted.metric
        and wanted.dimension in (0, present.dimension)
        and present.metadata == wanted.metadata
    )


def _checked_filter(request: Any) -> vector_pb2.Filter | None:
    if not request.HasField("filter"):
        return None
    compiled(request.filter)
    return request.filter


def _after(keys: list[str], request: Any, scope: str) -> tuple[list[str], bool]:
    """The sorted keys of the page that a request asks for, and whether more follow."""
    position = paging.decode(request.page_token, scope)
    rest = [each for each in keys if not position or each > position[0]]
    size = paging.page_size(request.page_size)
    return rest[:size], len(rest) > size
