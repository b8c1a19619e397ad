"""10,000 vectors of 384 numbers: exact in memory, and in Chroma what Chroma itself finds, which is nearly exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible_adapters.vector.chroma import ChromaOptions, ChromaVectorStore
from crucible_adapters.vector.memory import MemoryOptions, MemoryVectorStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.tensors import from_tensor, unpack_floats
from tests.vector.collections import CALL, create, query, upsert

ITEMS, DIMENSION, QUERIES, RESULTS = 10_000, 384, 50, 10
IDS = [f"item-{number:05}" for number in range(ITEMS)]


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Items and queries around 200 centres, as embeddings of texts are around subjects."""
    generator = np.random.default_rng(11)
    centres = generator.normal(size=(200, DIMENSION))

    def around(count: int) -> np.ndarray:
        noise = 0.7 * generator.normal(size=(count, DIMENSION))
        return (centres[generator.integers(200, size=count)] + noise).astype(np.float32)

    return around(ITEMS), around(QUERIES)


def exact(items_ND: np.ndarray, queries_QD: np.ndarray) -> tuple[list[list[str]], np.ndarray]:
    """The nearest by cosine, straight from the definition."""
    wide_ND, wide_QD = items_ND.astype(np.float64), queries_QD.astype(np.float64)
    lengths_QN = np.linalg.norm(wide_QD, axis=1)[:, None] * np.linalg.norm(wide_ND, axis=1)
    distances_QN = 1 - wide_QD @ wide_ND.T / lengths_QN
    order_QK = np.argsort(distances_QN, axis=1)[:, :RESULTS]
    return [[IDS[place] for place in row] for row in order_QK], np.take_along_axis(distances_QN, order_QK, axis=1)


async def fill(store: Any, items_ND: np.ndarray) -> None:
    await create(store)
    assert await upsert(store, IDS, items_ND) == (ITEMS, 0)


async def test_memory_equals_numpy(tmp_path: Path) -> None:
    items_ND, queries_QD = drawn()
    store = MemoryVectorStore(MemoryOptions(), AdapterContext(data_dir=tmp_path))
    await fill(store, items_ND)
    results = await query(store, queries_QD, num_results=RESULTS)
    ids, distances_QK = exact(items_ND, queries_QD)
    assert [list(each.ids) for each in results] == ids
    for result, distances_K in zip(results, distances_QK, strict=True):
        assert np.array_equal(unpack_floats(result.distances_float32), distances_K.astype(np.float32))
    await store.close()


async def test_chroma_equals_its_own_client_and_nearly_numpy(tmp_path: Path) -> None:
    chromadb = pytest.importorskip("chromadb")
    items_ND, queries_QD = drawn()
    # A graph worse than the default one, made in a third of the time.
    options = ChromaOptions(ef_construction=40, max_neighbors=16)
    store = ChromaVectorStore(options, AdapterContext(data_dir=tmp_path))
    await fill(store, items_ND)
    results = await query(store, queries_QD, num_results=RESULTS)
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings)
    direct = client.get_collection("things", embedding_function=None).query(queries_QD, n_results=RESULTS)
    for result, names, distances in zip(results, direct["ids"], direct["distances"], strict=True):
        told = dict(zip(names, distances, strict=True))
        # In the same order but for those whose distances float32 can't tell apart: the port computes in float64.
        assert set(result.ids) == set(names)
        assert np.allclose([told[name] for name in result.ids], distances, atol=1e-6)
        assert np.allclose(unpack_floats(result.distances_float32), distances, atol=1e-6)
    listed = await store.ListItems(pb.ListItemsRequest(collection="things", include_vectors=True, page_size=500), CALL)
    assert np.array_equal(from_tensor(listed.vectors), items_ND[:500])
    ids, _ = exact(items_ND, queries_QD)
    found = sum(len(set(row) & set(result.ids)) for row, result in zip(ids, results, strict=True))
    assert found / (QUERIES * RESULTS) >= 0.95
    client.close()
    await store.close()
