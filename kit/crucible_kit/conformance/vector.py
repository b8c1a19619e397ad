"""Vector stores: collections and their items; what a call has confirmed, every later call sees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from numpy.typing import NDArray
from pydantic import Field

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import Page, all_keys
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.tensors import from_tensor, to_tensor

DIMENSION = 4


class VectorSettings(SuiteSettings):
    """Settings of the suite of vector stores."""

    absolute: float = Field(default=1e-4, gt=0, description="By how much distances may differ from exact ones.")


SUITE = Suite(port="vector", settings=VectorSettings)
Vectors = Context[VectorSettings]
Metadata = Mapping[str, Any]


async def create(context: Vectors, **fields: Any) -> pb.Collection:
    """A new collection, deleted after the check."""
    collection = pb.Collection(**{"name": context.name(), **fields})
    forget = pb.DeleteCollectionRequest(name=collection.name, allow_missing=True)
    context.defer(lambda: context.stub.DeleteCollection(forget))
    return (await context.stub.CreateCollection(pb.CreateCollectionRequest(collection=collection))).collection


async def get(context: Vectors, name: str) -> pb.Collection:
    """A collection now."""
    return (await context.stub.GetCollection(pb.GetCollectionRequest(name=name))).collection


async def upsert(
    context: Vectors,
    collection: str,
    ids: Sequence[str],
    vectors: Any,
    *,
    documents: Sequence[str] = (),
    metadatas: Sequence[Metadata] = (),
) -> tuple[int, int]:
    """Stores items; how many were added and replaced."""
    request = pb.UpsertItemsRequest(
        collection=collection,
        ids=ids,
        vectors=to_tensor(np.asarray(vectors, dtype=np.float32)),
        documents=documents,
        metadatas=[to_struct(each) for each in metadatas],
    )
    response = await context.stub.UpsertItems(request)
    return response.num_added, response.num_replaced


def pages(context: Vectors, collection: str, **fields: Any) -> Any:
    """What asks for a page of (id, document, metadata)."""

    async def page(size: int, token: str) -> Page:
        request = pb.ListItemsRequest(collection=collection, page_size=size, page_token=token, **fields)
        response = await context.stub.ListItems(request)
        counts = (len(response.ids), len(response.documents), len(response.metadatas))
        check_equal(set(counts), {counts[0]}, "the lengths of ids, documents and metadatas")
        plain = [_plain(each) for each in response.metadatas]
        return Page(list(zip(response.ids, response.documents, plain, strict=True)), response.next_page_token)

    return page


async def items(context: Vectors, collection: str, **fields: Any) -> list[Any]:
    """(id, document, metadata) of all items."""
    return await all_keys(pages(context, collection, **fields), 0)


async def ids(context: Vectors, collection: str, **fields: Any) -> list[str]:
    """The ids of all items."""
    return [each[0] for each in await items(context, collection, **fields)]


def _plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    return dict(struct.items())


async def query(context: Vectors, collection: str, vectors: Any, **fields: Any) -> list[pb.QueryResult]:
    """The nearest items of each query, the lengths of the columns looked at."""
    tensor = to_tensor(np.asarray(vectors, dtype=np.float32))
    request = pb.QueryItemsRequest(collection=collection, vectors=tensor, **fields)
    results = list((await context.stub.QueryItems(request)).results)
    check_equal(len(results), len(vectors), "the number of results, one for each query")
    for result in results:
        counts = {len(result.ids), len(result.documents), len(result.metadatas), len(distances(result))}
        check_equal(counts, {len(result.ids)}, "the lengths of ids, documents, metadatas and distances")
    return results


def distances(result: pb.QueryResult) -> NDArray[np.floating]:
    """The distances of a result, float32 of shape [n]."""
    return np.frombuffer(result.distances_float32, dtype="<f4")


def condition(key: str, operator: str, value: Any) -> pb.Filter:
    """A filter on one key."""
    return pb.Filter(
        condition=pb.MetadataCondition(
            key=key,
            operator=f"OPERATOR_{operator}",
            value=to_struct({"value": value}).fields["value"],
        )
    )


@SUITE.samples
async def _samples(context: Vectors) -> Samples:
    name = (await create(context)).name
    await upsert(context, name, ["a"], [[1, 0, 0, 0]], metadatas=[{"x": 1}])
    vectors = to_tensor(np.ones((1, DIMENSION), dtype=np.float32))
    matching = condition("x", "EQUAL", 1)
    fresh = context.name()
    forget = pb.DeleteCollectionRequest(name=fresh, allow_missing=True)
    context.defer(lambda: context.stub.DeleteCollection(forget))
    return {
        "CreateCollection": pb.CreateCollectionRequest(collection=pb.Collection(name=fresh)),
        "GetCollection": pb.GetCollectionRequest(name=name),
        "ListCollections": pb.ListCollectionsRequest(),
        "DeleteCollection": pb.DeleteCollectionRequest(name=f"no-{name}", allow_missing=True),
        "UpsertItems": pb.UpsertItemsRequest(collection=name, ids=["b"], vectors=vectors),
        "QueryItems": pb.QueryItemsRequest(collection=name, vectors=vectors, filter=matching),
        "ListItems": pb.ListItemsRequest(collection=name, ids=["a"], filter=matching),
        "DeleteItems": pb.DeleteItemsRequest(collection=name, ids=["c"], filter=matching),
    }


@SUITE.pings
async def _ping(context: Vectors) -> None:
    await context.stub.ListCollections(pb.ListCollectionsRequest(page_size=1))


@SUITE.requirement(
    "VEC-COLLECTION-01",
    "CreateCollection MUST be idempotent by description: the same again gets it, another one under its name is "
    "ALREADY_EXISTS "
    "COLLECTION_EXISTS.",
    quote="Idempotent: the same description again gets it; another one under its name is ALREADY_EXISTS "
    "COLLECTION_EXISTS.",
)
async def _creates(context: Vectors) -> None:
    metadata = to_struct({"about": "tests"})
    made = await create(context, metric=pb.METRIC_L2, dimension=DIMENSION, metadata=metadata)
    check_equal(
        (made.metric, made.dimension, made.num_items), (pb.METRIC_L2, DIMENSION, 0), "(metric, dimension, items)"
    )
    check_equal(made.metadata, metadata, "the collection's metadata")
    same = pb.Collection(name=made.name, metric=pb.METRIC_L2, dimension=DIMENSION, metadata=metadata)
    again = await context.stub.CreateCollection(pb.CreateCollectionRequest(collection=same))
    check_equal(again.collection, made, "the collection when created again")
    same.metric = pb.METRIC_COSINE
    call = context.stub.CreateCollection(pb.CreateCollectionRequest(collection=same))
    await check_refused(call, "ALREADY_EXISTS", "COLLECTION_EXISTS", what="the same name with another metric")
    check_equal((await create(context)).metric, pb.METRIC_COSINE, "the metric where none was given")
    named = pb.Collection(name=context.name(), num_items=1)
    call = context.stub.CreateCollection(pb.CreateCollectionRequest(collection=named))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="a given num_items")


@SUITE.requirement(
    "VEC-COLLECTION-02",
    "A collection that is not there MUST be NOT_FOUND COLLECTION_NOT_FOUND; a deleted one is gone with its items.",
    quote="NOT_FOUND COLLECTION_NOT_FOUND",
)
async def _missing(context: Vectors) -> None:
    name = (await create(context)).name
    await upsert(context, name, ["a"], [[1, 0, 0, 0]])
    await context.stub.DeleteCollection(pb.DeleteCollectionRequest(name=name))
    calls = {
        "GetCollection": get(context, name),
        "UpsertItems": upsert(context, name, ["a"], [[1, 0, 0, 0]]),
        "QueryItems": query(context, name, [[1, 0, 0, 0]]),
        "ListItems": items(context, name),
        "DeleteItems": context.stub.DeleteItems(pb.DeleteItemsRequest(collection=name, ids=["a"])),
        "DeleteCollection": context.stub.DeleteCollection(pb.DeleteCollectionRequest(name=name)),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "COLLECTION_NOT_FOUND", what=f"{what} of a deleted collection")
    await context.stub.DeleteCollection(pb.DeleteCollectionRequest(name=name, allow_missing=True))
    again = pb.CreateCollectionRequest(collection=pb.Collection(name=name))
    check_equal((await context.stub.CreateCollection(again)).collection.num_items, 0, "items of a new collection")


@SUITE.requirement(
    "VEC-COLLECTION-03",
    "ListCollections MUST list the collections by name, in pages of any size.",
    quote="ListCollections lists collections, sorted by name.",
)
async def _lists(context: Vectors) -> None:
    made = sorted([(await create(context)).name for _ in range(5)])

    async def page(size: int, token: str) -> Page:
        request = pb.ListCollectionsRequest(page_size=size, page_token=token)
        response = await context.stub.ListCollections(request)
        return Page([each.name for each in response.collections], response.next_page_token)

    for size in (1, 3, 0):
        found = [name for name in await all_keys(page, size) if name in made]
        check_equal(found, made, f"the new collections in pages of {size}")


@SUITE.requirement(
    "VEC-UPSERT-01",
    "UpsertItems MUST add items and replace whole ones, and count both; the collection counts its items.",
    quote="UpsertItems adds items; one whose id is there is replaced as a whole.",
)
async def _upserts(context: Vectors) -> None:
    name = (await create(context)).name
    first = {"documents": ["one", "two"], "metadatas": [{"x": 1, "t": "a"}, {"b": True}]}
    counts = await upsert(context, name, ["a", "b"], np.eye(2, DIMENSION), **first)
    check_equal(counts, (2, 0), "(num_added, num_replaced) of two new items")
    counts = await upsert(context, name, ["b", "c"], np.eye(2, DIMENSION, 1))
    check_equal(counts, (1, 1), "(num_added, num_replaced) of an old and a new item")
    expected = [("a", "one", {"x": 1.0, "t": "a"}), ("b", "", {}), ("c", "", {})]
    check_equal(await items(context, name), expected, "(id, document, metadata) of the items")
    collection = await get(context, name)
    check_equal((collection.num_items, collection.dimension), (3, DIMENSION), "(num_items, dimension)")


@SUITE.requirement(
    "VEC-UPSERT-02",
    "One bad item MUST refuse the whole call: an id twice, columns of other lengths, metadata that is not flat, "
    "numbers that "
    "are not finite.",
    quote="All or nothing.",
)
async def _all_or_nothing(context: Vectors) -> None:
    name = (await create(context)).name
    vectors = np.eye(2, DIMENSION)
    broken = vectors.copy()
    broken[1, 1] = np.nan
    calls = {
        "an id twice": upsert(context, name, ["a", "a"], vectors),
        "an empty id": upsert(context, name, ["a", ""], vectors),
        "fewer vectors than ids": upsert(context, name, ["a", "b"], vectors[:1]),
        "fewer documents than ids": upsert(context, name, ["a", "b"], vectors, documents=["x"]),
        "more metadata than ids": upsert(context, name, ["a", "b"], vectors, metadatas=[{}, {}, {}]),
        "metadata in metadata": upsert(context, name, ["a", "b"], vectors, metadatas=[{}, {"x": {"y": 1}}]),
        "a list in metadata": upsert(context, name, ["a", "b"], vectors, metadatas=[{}, {"x": [1]}]),
        "NaN": upsert(context, name, ["a", "b"], broken),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"UpsertItems with {what}")
    check_equal(await items(context, name), [], "the items after refused calls")


@SUITE.requirement(
    "VEC-UPSERT-03",
    "Vectors of another length than the collection's MUST be INVALID_ARGUMENT DIMENSION_MISMATCH, also in queries; "
    "its first "
    "upsert fixes the length of one that has none.",
    quote="INVALID_ARGUMENT DIMENSION_MISMATCH with both lengths",
)
async def _other_lengths(context: Vectors) -> None:
    open_one = (await create(context)).name
    await upsert(context, open_one, ["a"], np.eye(1, DIMENSION))
    fixed = (await create(context, dimension=DIMENSION)).name
    for name in (open_one, fixed):
        calls = {
            "UpsertItems": upsert(context, name, ["b"], np.eye(1, DIMENSION + 1)),
            "QueryItems": query(context, name, np.eye(1, DIMENSION - 1)),
        }
        for what, call in one_by_one(calls):
            await check_refused(call, "INVALID_ARGUMENT", "DIMENSION_MISMATCH", what=f"{what} of another length")
    short = to_tensor(np.eye(1, DIMENSION, dtype=np.float32))
    short.dense = short.dense[:-1]
    call = context.stub.UpsertItems(pb.UpsertItemsRequest(collection=fixed, ids=["b"], vectors=short))
    await check_refused(call, "INVALID_ARGUMENT", "TENSOR_SIZE_MISMATCH", what="a tensor with too few bytes")
    wide = to_tensor(np.eye(1, DIMENSION, dtype=np.float64))
    call = context.stub.UpsertItems(pb.UpsertItemsRequest(collection=fixed, ids=["b"], vectors=wide))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="vectors of float64")
    check_equal(await ids(context, fixed), [], "the items after refused calls")


@SUITE.requirement(
    "VEC-UPSERT-04",
    "Vectors MUST be kept as they are, subnormal numbers and signs of zero too.",
    quote="Their vectors, float32 of shape [n, d], dense, finite.",
)
async def _kept(context: Vectors) -> None:
    name = (await create(context)).name
    given = np.array([[0.1, -0.0, 1e-45, 3e38], [1, 2, 3, 4]], dtype=np.float32)
    await upsert(context, name, ["a", "b"], given)
    response = await context.stub.ListItems(pb.ListItemsRequest(collection=name, include_vectors=True))
    check_equal(response.vectors.dtype, tensor_pb2.D_TYPE_FLOAT32, "dtype of listed vectors")
    check_equal(from_tensor(response.vectors).tobytes().hex(), given.tobytes().hex(), "the bits of listed vectors")
    without = await context.stub.ListItems(pb.ListItemsRequest(collection=name))
    check(not without.HasField("vectors"), "no vectors where they were not asked for", "some")


@SUITE.requirement(
    "VEC-UPSERT-05",
    "Items that are upserted at a time MUST all be there.",
    quote="What a call has confirmed, every later call sees.",
)
async def _writers(context: Vectors) -> None:
    name = (await create(context, dimension=DIMENSION)).name
    written = [f"i{number:02}" for number in range(24)]
    await asyncio.gather(*(upsert(context, name, [each], np.eye(1, DIMENSION)) for each in written))
    check_equal(await ids(context, name), written, "the items of 24 calls at a time")
