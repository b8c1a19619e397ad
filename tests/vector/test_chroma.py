"""Chroma behind the port: where its ways differ from the contract, and what a crash or another program leaves."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible_adapters.vector.chroma import ChromaOptions, ChromaVectorStore
from crucible_adapters.vector.chroma_store import ChromaCollection
from crucible_adapters.vector.filters import compiled
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import run_suite, settings_of
from crucible_kit.errors import InvalidArgumentError, UnavailableError
from crucible_kit.tensors import from_tensor, unpack_floats
from tests.conformance.bindings import BINDINGS
from tests.conformance.test_builtin_adapters import passes
from tests.contract.refusals import refused
from tests.vector.chroma_server import ChromaServer
from tests.vector.collections import CALL, condition, count, create, items, query, upsert

chromadb: Any = pytest.importorskip("chromadb")


def opened(folder: Path, **options: Any) -> ChromaVectorStore:
    return ChromaVectorStore(ChromaOptions(**options), AdapterContext(data_dir=folder))


def direct(folder: Path) -> Any:
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    return chromadb.PersistentClient(str(folder / "chroma"), settings)


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    store = opened(tmp_path)
    made = await create(store, metric=pb.METRIC_INNER_PRODUCT, metadata={"nested": {"list": [1, "a", None]}})
    await create(store, "empty", dimension=7)
    await upsert(store, ["a", "b"], [[1, 2], [3, 4]], metadatas=[{"n": 1}, {}], documents=["text", ""])
    before = await items(store)
    await store.close()
    store = opened(tmp_path)
    assert await items(store) == before == {"a": ("text", {"n": 1}), "b": ("", {})}
    again = await create(store, metric=pb.METRIC_INNER_PRODUCT, metadata=made.metadata)
    assert (again.dimension, again.num_items) == (2, 2)
    with refused(InvalidArgumentError, "DIMENSION_MISMATCH"):
        await upsert(store, ["a"], [[1]], collection="empty")
    await store.close()


async def test_a_store_on_a_server_keeps_the_contract_too(tmp_path: Path) -> None:
    server = await asyncio.to_thread(ChromaServer, tmp_path / "server")
    try:
        store = opened(tmp_path, host="127.0.0.1", port=server.port)
        async with BINDINGS["serialised object"]({"vector": store}, {"vector": ()}) as channel:
            passes(await run_suite(channel, "vector", settings_of("vector", {"largest_message_bytes": 2**20})))
        await store.close()
    finally:
        await asyncio.to_thread(server.stop)


async def test_names_and_keys_that_chroma_keeps_for_itself(tmp_path: Path) -> None:
    store = opened(tmp_path)
    names = ["a..b", "127.0.0.1", "a.b-c_d", "things"]
    for name in names:
        await create(store, name)
    listed = (await store.ListCollections(pb.ListCollectionsRequest(), CALL)).collections
    assert [each.name for each in listed] == sorted(names)
    await store.DeleteCollection(pb.DeleteCollectionRequest(name="a..b"), CALL)
    metadata = dict.fromkeys(["", "$and", "#document", "chroma:document", "crucible:x", "crucible:", "ä"], "v")
    await upsert(store, ["a"], [[1]], metadatas=[metadata])
    assert (await items(store))["a"] == ("", metadata)
    for key in metadata:
        if key:  # a filter has to have one
            assert list(await items(store, filter=condition(key, "EQUAL", "v"))) == ["a"], key
    await store.close()


async def test_filters_mean_what_the_port_s_do(tmp_path: Path) -> None:
    chance = random.Random(5)
    values: list[Any] = ["", "a", "b", 0, 1, -1, 2.5, True, False]
    kept = {
        f"item-{number:02}": {key: chance.choice(values) for key in "xyz" if chance.random() < 0.7}
        for number in range(60)
    }
    store = opened(tmp_path)
    await create(store)
    await upsert(store, list(kept), np.ones((60, 2)), metadatas=list(kept.values()))

    def some(depth: int) -> pb.Filter:
        if depth and chance.random() < 0.5:
            inner = pb.FilterList(filters=[some(depth - 1) for _ in range(chance.randint(1, 3))])
            return pb.Filter(all=inner) if chance.random() < 0.5 else pb.Filter(any=inner)
        name = chance.choice(["EQUAL", "NOT_EQUAL", "IN", "NOT_IN", "LESS", "LESS_OR_EQUAL", "GREATER_OR_EQUAL"])
        if name in ("IN", "NOT_IN"):
            return condition(chance.choice("xyz"), name, chance.choices(values, k=chance.randint(1, 4)))
        return condition(chance.choice("xyz"), name, chance.choice(values if "EQUAL" in name[:9] else [0, 1, 2.5]))

    asked = 0
    while asked < 100:
        filter_ = some(3)
        try:
            matches = compiled(filter_)
        except InvalidArgumentError:
            continue  # an order among strings
        structs = {name: ParseDict(metadata, Struct()) for name, metadata in kept.items()}
        wanted = [name for name, metadata in structs.items() if matches(dict(metadata.items()))]
        assert list(await items(store, filter=filter_)) == wanted, filter_
        asked += 1
    with refused(InvalidArgumentError, "FIELD_INVALID", field="filter"):
        await items(store, filter=condition("x", "IN", list(range(10_001))))
    await store.close()


@pytest.mark.parametrize("metric", [pb.METRIC_COSINE, pb.METRIC_L2, pb.METRIC_INNER_PRODUCT])
async def test_equal_distances_come_by_id_however_many(tmp_path: Path, metric: Any) -> None:
    store = opened(tmp_path)
    await create(store, metric=metric)
    ids = [f"item-{number:03}" for number in range(200)]
    random.Random(1).shuffle(ids)
    await upsert(store, ids, [[1, 2, 2]] * 200)
    await upsert(store, ["nearest"], [[3, 3, 3]])
    for results in (3, 50, 201, 1000):
        (result,) = await query(store, [[3, 3, 3]], num_results=results)
        assert list(result.ids) == ["nearest", *sorted(ids)][:results]
    await store.close()


async def test_a_filter_s_few_are_all_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    store = opened(tmp_path, ef_search=10, max_neighbors=4, ef_construction=10)
    await create(store)
    ids = [f"item-{number:04}" for number in range(1500)]
    metadatas = [{"rare": number % 100 == 0} for number in range(1500)]
    await upsert(store, ids, generator.normal(size=(1500, 16)), metadatas=metadatas)
    rare = condition("rare", "EQUAL", True)
    for result in await query(store, generator.normal(size=(20, 16)), filter=rare, num_results=100):
        assert sorted(result.ids) == ids[::100]
        distances = unpack_floats(result.distances_float32).tolist()
        assert distances == sorted(distances)
    await store.DeleteItems(pb.DeleteItemsRequest(collection="things", ids=ids[100:]), CALL)
    (result,) = await query(store, generator.normal(size=(1, 16)), num_results=1000)
    assert sorted(result.ids) == ids[:100]
    await store.close()


async def test_a_large_upsert_that_fails_on_the_way_is_ended_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    await create(store)
    await upsert(store, ["00003"], [[9, 9]], documents=["old"])
    ids = [f"{number:05}" for number in range(10)]
    monkeypatch.setattr(chromadb.api.client.Client, "get_max_batch_size", lambda self: 6)
    steps: list[int] = []
    real = ChromaCollection._upsert

    def failing(self: ChromaCollection, some: Any) -> tuple[int, int]:
        steps.append(len(some))
        if len(steps) == 2:
            raise chromadb.errors.InternalError("disk")
        return real(self, some)

    monkeypatch.setattr(ChromaCollection, "_upsert", failing)
    with refused(UnavailableError, "STORE_UNAVAILABLE", says="disk"):
        await upsert(store, ids, np.ones((10, 2)))
    assert steps == [6, 4]
    # Another process after a crash.
    await store.close()
    store = opened(tmp_path)
    assert await count(store) == 10
    assert (await items(store, ids=["00003"]))["00003"] == ("", {})
    assert await upsert(store, ids, np.ones((10, 2))) == (0, 10)
    assert not list(tmp_path.glob("*.pending"))
    # The same process.
    del steps[:]
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await upsert(store, [f"new-{each}" for each in ids], np.ones((10, 2)))
    assert await count(store) == 20
    await store.close()


async def test_directions_of_any_length_are_found_and_vectors_keep_their_bits(tmp_path: Path) -> None:
    vectors = np.array([[3e38, 3e38], [1e-44, 0], [0.1, 0.7]], np.float32)
    store = opened(tmp_path)
    await create(store)
    await upsert(store, ["long", "short", "usual"], vectors, metadatas=[{"n": 1}, {}, {}])

    async def bits(store: ChromaVectorStore) -> list[list[float]]:
        request = pb.ListItemsRequest(collection="things", include_vectors=True)
        return from_tensor((await store.ListItems(request, CALL)).vectors).tolist()

    # By id: long, short, usual.
    assert await bits(store) == vectors.tolist()
    assert await items(store, filter=condition("n", "EQUAL", 1)) == {"long": ("", {"n": 1})}
    for query_D in ([1, 1], [1e-30, 1e-30], [2e38, 2e38]):
        (result,) = await query(store, [query_D])
        assert list(result.ids) == ["long", "usual", "short"]
        expected = [0, 1 - 0.8 / np.sqrt(2 * 0.5), 1 - np.sqrt(0.5)]
        assert np.allclose(unpack_floats(result.distances_float32), expected, atol=1e-6)
    # Another program replaces a vector, and knows nothing of the bits.
    await store.close()
    client = direct(tmp_path)
    client.get_collection("things", embedding_function=None).update(ids=["usual"], embeddings=[[0.1, 0.75]])
    client.close()
    store = opened(tmp_path, exact_vectors=False)
    assert np.allclose((await bits(store))[2], [0.1, 0.75], rtol=1e-6)
    await upsert(store, ["usual"], [[0.1, 0.7]])
    assert np.allclose((await bits(store))[2], vectors[2], rtol=1e-6)
    await store.close()
    client = direct(tmp_path)
    found = client.get_collection("things", embedding_function=None).get(include=["metadatas"])
    assert [sorted(each or {}) for each in found["metadatas"]] == [["crucible:vector", "n"], ["crucible:vector"], []]
    client.close()


async def test_a_collection_of_another_program_s(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    client = direct(tmp_path)
    made = client.create_collection("things", metadata={"about": "x", "n": 3}, embedding_function=None)
    made.add(
        ids=["b", "a"], embeddings=[[1, 2], [3, 4]], metadatas=[{"n": 1, "tags": ["x"]}, None], documents=["t", "u"]
    )
    client.create_collection("Not-A-Name", embedding_function=None)
    store = opened(tmp_path)
    (found,) = (await store.ListCollections(pb.ListCollectionsRequest(), CALL)).collections
    assert (found.name, found.metric, found.dimension, found.num_items) == ("things", pb.METRIC_L2, 2, 2)
    assert dict(found.metadata.items()) == {"about": "x", "n": 3}
    # A list is no metadata of the port's.
    assert await items(store) == {"a": ("u", {}), "b": ("t", {"n": 1})}
    assert list(await items(store, filter=condition("n", "EQUAL", 1))) == ["b"]
    await upsert(store, ["b"], [[5, 6]])
    assert made.get(ids=["b"], include=["metadatas", "documents"])["metadatas"] == [None]
    client.close()
    await store.close()
