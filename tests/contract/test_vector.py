"""VectorStore: exact distances, filters that mean what they say, and upserts that happen as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_adapters.fakes.vector import FakeVectorStore, FakeVectorStoreOptions
from crucible_adapters.vector.memory import MemoryOptions, MemoryVectorStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from crucible_kit.tensors import from_tensor, to_tensor, unpack_floats
from tests.contract.conftest import BINDINGS, Binding
from tests.contract.listing import all_pages, assert_pages
from tests.contract.refusals import refused

IDS = ["a", "b", "c", "d"]
VECTORS = np.array([[1, 0], [0, 2], [-1, 0], [3, 0]], np.float32)
METADATAS: list[dict[str, Any]] = [{"n": 1, "kind": "x"}, {"n": 2, "kind": "y"}, {"n": 3, "ok": True}, {}]


# The fake over every binding: those are of no matter to what stands behind it. Chroma is held to its conformance suite.
KINDS = [*(("fake", binding) for binding in BINDINGS), ("memory", "serialise")]


@pytest.fixture(params=KINDS, ids="-".join)
async def stub(request: pytest.FixtureRequest, context: AdapterContext) -> AsyncIterator[Any]:
    kind, name = request.param
    if kind == "fake":
        adapter: Any = FakeVectorStore(FakeVectorStoreOptions(), context)
    else:
        adapter = MemoryVectorStore(MemoryOptions(), context)
    binding = Binding(name)
    yield await binding.stub(adapter)
    await binding.stop()


def struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


def condition(key: str, operator: str, value: Any) -> pb.Filter:
    compared = ParseDict(value, Value())
    return pb.Filter(condition=pb.MetadataCondition(key=key, operator=f"OPERATOR_{operator}", value=compared))


async def create(stub: Any, name: str = "things", **fields: Any) -> pb.Collection:
    request = pb.CreateCollectionRequest(collection=pb.Collection(name=name, **fields))
    return (await stub.CreateCollection(request)).collection


async def upsert(stub: Any, ids: list[str], vectors: Any, **fields: Any) -> pb.UpsertItemsResponse:
    tensor = vectors if isinstance(vectors, tensor_pb2.Tensor) else to_tensor(np.asarray(vectors, np.float32))
    return await stub.UpsertItems(pb.UpsertItemsRequest(collection="things", ids=ids, vectors=tensor, **fields))


async def filled(stub: Any, metric: Any = pb.METRIC_L2) -> None:
    await create(stub, metric=metric)
    documents = [f"document {name}" for name in IDS]
    await upsert(stub, IDS, VECTORS, documents=documents, metadatas=[struct(each) for each in METADATAS])


async def query(stub: Any, *vectors: list[float], **fields: Any) -> list[pb.QueryResult]:
    tensor = to_tensor(np.array(vectors, np.float32))
    request = pb.QueryItemsRequest(collection="things", vectors=tensor, **fields)
    return list((await stub.QueryItems(request)).results)


async def listed(stub: Any, **fields: Any) -> list[str]:
    return list((await stub.ListItems(pb.ListItemsRequest(collection="things", **fields))).ids)


async def test_a_collection_is_made_once(stub: Any) -> None:
    made = await create(stub, metadata=struct({"a": 1}))
    assert (made.metric, made.dimension, made.num_items) == (pb.METRIC_COSINE, 0, 0)
    assert await create(stub, metadata=struct({"a": 1}), metric=pb.METRIC_COSINE) == made
    for fields in ({"metric": pb.METRIC_L2}, {"dimension": 3}, {"metadata": struct({"a": 2})}):
        with refused(AlreadyExistsError, "COLLECTION_EXISTS"):
            await create(stub, **{"metadata": struct({"a": 1}), **fields})
    await upsert(stub, IDS, VECTORS)
    now = (await stub.GetCollection(pb.GetCollectionRequest(name="things"))).collection
    assert (now.dimension, now.num_items) == (2, 4)
    # Left open it fits what the first upsert has fixed.
    assert await create(stub, metadata=struct({"a": 1})) == now


async def test_names_of_collections_are_checked(stub: Any) -> None:
    for name in ("", "ab", "-ab", "ab-", "Abc", "a b", "a" * 64):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="collection.name"):
            await create(stub, name)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="collection.num_items"):
        await create(stub, num_items=3)


async def test_collections_page_by_name_and_go(stub: Any) -> None:
    for name in ("ccc", "aaa", "bbb"):
        await create(stub, name)
    await assert_pages(stub.ListCollections, pb.ListCollectionsRequest(), "collections")
    found = (await stub.ListCollections(pb.ListCollectionsRequest())).collections
    assert [each.name for each in found] == ["aaa", "bbb", "ccc"]
    await stub.DeleteCollection(pb.DeleteCollectionRequest(name="bbb"))
    with refused(NotFoundError, "COLLECTION_NOT_FOUND", says="'bbb'"):
        await stub.DeleteCollection(pb.DeleteCollectionRequest(name="bbb"))
    await stub.DeleteCollection(pb.DeleteCollectionRequest(name="bbb", allow_missing=True))
    with refused(NotFoundError, "COLLECTION_NOT_FOUND"):
        await stub.GetCollection(pb.GetCollectionRequest(name="bbb"))


async def test_calls_on_no_collection_are_not_found(stub: Any) -> None:
    for call in (upsert(stub, IDS, VECTORS), query(stub, [1, 0]), listed(stub)):
        with refused(NotFoundError, "COLLECTION_NOT_FOUND", says="'things'"):
            await call
    with refused(NotFoundError, "COLLECTION_NOT_FOUND"):
        await stub.DeleteItems(pb.DeleteItemsRequest(collection="things", ids=["a"]))


DISTANCES = {
    pb.METRIC_L2: (["a", "d", "b", "c"], [1, 1, 8, 9]),
    pb.METRIC_INNER_PRODUCT: (["d", "a", "b", "c"], [-5, -1, 1, 3]),
    pb.METRIC_COSINE: (["a", "d", "b", "c"], [0, 0, 1, 2]),
}


@pytest.mark.parametrize("metric", DISTANCES)
async def test_distances_are_the_metric_s_nearest_first_equal_ones_by_id(stub: Any, metric: Any) -> None:
    await filled(stub, metric)
    (result,) = await query(stub, [2, 0])
    ids, distances = DISTANCES[metric]
    assert list(result.ids) == ids
    assert unpack_floats(result.distances_float32).tolist() == distances
    assert list(result.documents) == [f"document {name}" for name in ids]
    assert [MessageToDict(each) for each in result.metadatas] == [METADATAS[IDS.index(name)] for name in ids]


async def test_zeros_are_at_cosine_distance_one(stub: Any) -> None:
    await create(stub)
    await upsert(stub, ["zero", "one"], [[0, 0], [1, 0]])
    results = await query(stub, [1, 0], [0, 0])
    assert list(results[0].ids) == ["one", "zero"]
    assert unpack_floats(results[0].distances_float32).tolist() == [0, 1]
    assert unpack_floats(results[1].distances_float32).tolist() == [1, 1]


async def test_every_query_has_its_own_result(stub: Any) -> None:
    await filled(stub)
    results = await query(stub, [0, 2], [3, 0], num_results=2)
    assert [list(each.ids) for each in results] == [["b", "a"], ["d", "a"]]
    assert await query(stub, [3, 0], num_results=2) == results[1:]
    assert len((await query(stub, [0, 0]))[0].ids) == 4


async def test_search_equals_numpy(stub: Any) -> None:
    generator = np.random.default_rng(7)
    vectors_ND = generator.normal(size=(300, 16)).astype(np.float32)
    await create(stub)
    ids = [f"item-{number:03}" for number in range(300)]
    await upsert(stub, ids, vectors_ND)
    query_D = generator.normal(size=16).astype(np.float32)
    cosines_N = vectors_ND @ query_D / np.linalg.norm(vectors_ND, axis=1) / np.linalg.norm(query_D)
    (result,) = await query(stub, query_D.tolist(), num_results=20)
    assert list(result.ids) == [ids[place] for place in np.argsort(1 - cosines_N)[:20]]
    assert np.allclose(unpack_floats(result.distances_float32), np.sort(1 - cosines_N)[:20], atol=1e-6)
    assert len((await query(stub, query_D.tolist()))[0].ids) == 10


FILTERS: list[tuple[pb.Filter, list[str]]] = [
    (condition("kind", "EQUAL", "x"), ["a"]),
    (condition("kind", "NOT_EQUAL", "x"), ["b", "c", "d"]),
    (condition("n", "LESS", 2), ["a"]),
    (condition("n", "LESS_OR_EQUAL", 2), ["a", "b"]),
    (condition("n", "GREATER", 1), ["b", "c"]),
    (condition("n", "GREATER_OR_EQUAL", 3), ["c"]),
    (condition("n", "IN", [1, 3]), ["a", "c"]),
    (condition("n", "NOT_IN", [1, 3]), ["b", "d"]),
    # Different types are different: true is not 1.
    (condition("ok", "EQUAL", 1), []),
    (condition("n", "EQUAL", True), []),
    (condition("ok", "EQUAL", True), ["c"]),
    (condition("kind", "GREATER", 0), []),
    (pb.Filter(all=pb.FilterList(filters=[condition("n", "GREATER", 1), condition("kind", "EQUAL", "y")])), ["b"]),
    (pb.Filter(any=pb.FilterList(filters=[condition("n", "EQUAL", 1), condition("ok", "EQUAL", True)])), ["a", "c"]),
]


async def test_filters_choose_items(stub: Any) -> None:
    await filled(stub)
    for filter_, ids in FILTERS:
        assert await listed(stub, filter=filter_) == ids, filter_
        assert sorted((await query(stub, [0, 0], filter=filter_))[0].ids) == ids
    assert await listed(stub, ids=["c", "a", "nobody"], filter=condition("n", "GREATER", 1)) == ["c"]


async def test_bad_filters_name_their_place(stub: Any) -> None:
    await filled(stub)
    deep = condition("n", "EQUAL", 1)
    for _ in range(8):
        deep = pb.Filter(all=pb.FilterList(filters=[deep]))
    for filter_, field in (
        (pb.Filter(), "filter"),
        (condition("n", "LESS", "x"), "filter.condition.value"),
        (condition("n", "IN", 1), "filter.condition.value"),
        (condition("n", "IN", []), "filter.condition.value"),
        (condition("n", "EQUAL", {"a": 1}), "filter.condition.value"),
        (pb.Filter(any=pb.FilterList(filters=[pb.Filter()])), "filter.any.filters[0]"),
        (pb.Filter(any=pb.FilterList()), "filter.any.filters"),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await listed(stub, filter=filter_)
    with refused(InvalidArgumentError, "FIELD_INVALID", says="8"):
        await listed(stub, filter=deep)


async def test_an_upsert_replaces_whole_items(stub: Any) -> None:
    await filled(stub)
    response = await upsert(stub, ["d", "e"], [[5, 5], [6, 6]])
    assert (response.num_added, response.num_replaced) == (1, 1)
    request = pb.ListItemsRequest(collection="things", ids=["d", "a"], include_vectors=True)
    items = await stub.ListItems(request)
    assert list(items.ids) == ["a", "d"] and list(items.documents) == ["document a", ""]
    assert from_tensor(items.vectors).tolist() == [[1, 0], [5, 5]]
    assert not (await stub.ListItems(pb.ListItemsRequest(collection="things"))).HasField("vectors")


BAD_UPSERTS: dict[str, tuple[list[str], Any, dict[str, Any]]] = {
    "ids[1]": (["x", "x"], [[1, 1], [2, 2]], {}),
    "ids[0]": (["", "x"], [[1, 1], [2, 2]], {}),
    "vectors": (["x"], [[1, 1], [2, 2]], {}),
    "documents": (["x", "y"], [[1, 1], [2, 2]], {"documents": ["one"]}),
    "metadatas": (["x", "y"], [[1, 1], [2, 2]], {"metadatas": [struct({})]}),
    "metadatas[1].k": (["x", "y"], [[1, 1], [2, 2]], {"metadatas": [struct({}), struct({"k": [1]})]}),
    "metadatas[0].k": (["x"], [[1, 1]], {"metadatas": [struct({"k": None})]}),
    "vectors.shape": (["x"], [1, 1], {}),
    "vectors.dtype": (["x"], to_tensor(np.ones((1, 2), np.float64)), {}),
}


async def test_a_bad_upsert_changes_nothing(stub: Any) -> None:
    await filled(stub)
    before = await query(stub, [1, 1])
    for field, (ids, vectors, fields) in BAD_UPSERTS.items():
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await upsert(stub, ids, vectors, **fields)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="vectors", says="NaN"):
        await upsert(stub, ["x", "y"], [[1, 1], [np.nan, 0]])
    with refused(InvalidArgumentError, "TENSOR_SIZE_MISMATCH"):
        await upsert(stub, ["x"], tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[1, 2], dense=b"\0" * 7))
    with pytest.raises(InvalidArgumentError) as caught:
        await upsert(stub, ["x"], [[1, 2, 3]])
    error = caught.value
    assert (error.reason, error.metadata["expected"], error.metadata["actual"]) == ("DIMENSION_MISMATCH", "2", "3")
    with refused(InvalidArgumentError, "DIMENSION_MISMATCH"):
        await query(stub, [1, 2, 3])
    assert await query(stub, [1, 1]) == before


async def test_items_page_by_id(stub: Any) -> None:
    await filled(stub)
    request = pb.ListItemsRequest(collection="things")
    await assert_pages(stub.ListItems, request, "ids")
    narrowed = pb.ListItemsRequest(collection="things", filter=condition("n", "GREATER", 1))
    assert await all_pages(stub.ListItems, narrowed, "ids") == ["b", "c"]
    # A token belongs to its list.
    request = pb.ListItemsRequest(collection="things", page_size=1)
    token = (await stub.ListItems(request)).next_page_token
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID"):
        await stub.ListItems(pb.ListItemsRequest(collection="things", ids=["a"], page_token=token))


async def test_a_page_of_large_items_fits_into_a_message(stub: Any) -> None:
    await create(stub)
    for number in range(36):
        await upsert(stub, [f"item-{number:02}"], [[number, 1]], documents=["x" * 1_000_000])
    pages = await all_pages(stub.ListItems, pb.ListItemsRequest(collection="things"), "ids", size=500)
    assert pages == [f"item-{number:02}" for number in range(36)]
    with refused(ResourceExhaustedError, "RESULT_TOO_LARGE", says="fewer results"):
        await query(stub, [1, 1], num_results=100)
    assert len((await query(stub, [1, 1]))[0].ids) == 10


async def test_items_are_deleted_by_id_and_by_filter(stub: Any) -> None:
    await filled(stub)

    async def delete(**fields: Any) -> int:
        return (await stub.DeleteItems(pb.DeleteItemsRequest(collection="things", **fields))).num_deleted

    assert await delete(ids=["a", "nobody"]) == 1
    assert await delete(ids=["b", "c"], filter=condition("n", "EQUAL", 3)) == 1
    assert await listed(stub) == ["b", "d"]
    assert await delete(filter=condition("n", "NOT_EQUAL", 2)) == 1
    with refused(InvalidArgumentError, "FIELD_INVALID", field="ids"):
        await delete()
    collection = (await stub.GetCollection(pb.GetCollectionRequest(name="things"))).collection
    # Its dimension stays when its items are gone.
    assert (await delete(ids=["b"]), collection.num_items, collection.dimension) == (1, 1, 2)
    assert (await query(stub, [1, 1])) == [pb.QueryResult()]
