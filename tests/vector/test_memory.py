"""The store in memory: what its file keeps."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.vector.v1 import vector_pb2 as pb
from crucible_adapters.vector import items as vector_items
from crucible_adapters.vector.memory import MemoryOptions, MemoryVectorStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import DataLossError, NotFoundError, ResourceExhaustedError, UnavailableError
from tests.contract.refusals import refused
from tests.vector.collections import CALL, count, create, items, query, upsert


def opened(folder: Path, *, persist: bool = True) -> MemoryVectorStore:
    return MemoryVectorStore(MemoryOptions(persist=persist), AdapterContext(data_dir=folder))


async def test_what_was_confirmed_is_there_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await create(store, metric=pb.METRIC_L2, metadata={"about": "tests"})
    await create(store, "gone")
    await upsert(store, ["a", "b", "c"], [[1, 2], [3, 4], [5, 6]], metadatas=[{"n": 1}, {"x": "y"}, {}])
    await upsert(store, ["b"], [[7, 8]], documents=["text"])
    await store.DeleteItems(pb.DeleteItemsRequest(collection="things", ids=["c"]), CALL)
    await upsert(store, ["z"], [[1]], collection="gone")
    await store.DeleteCollection(pb.DeleteCollectionRequest(name="gone"), CALL)
    before, found = await items(store), await query(store, [[1, 1]])
    await store.close()

    store = opened(tmp_path)
    assert await items(store) == before == {"a": ("", {"n": 1}), "b": ("text", {})}
    assert await query(store, [[1, 1]]) == found
    again = await create(store, metric=pb.METRIC_L2, metadata={"about": "tests"})
    assert (again.dimension, again.num_items) == (2, 2)
    # A collection of that name starts without the items of the one before.
    await create(store, "gone")
    assert await count(store, "gone") == 0
    await store.close()


async def test_nothing_is_kept_when_nothing_shall_be(tmp_path: Path) -> None:
    store = opened(tmp_path, persist=False)
    await create(store)
    await upsert(store, ["a"], [[1, 2]])
    await store.close()
    assert list(tmp_path.iterdir()) == []
    store = opened(tmp_path, persist=False)
    with refused(NotFoundError, "COLLECTION_NOT_FOUND"):
        await count(store)
    await store.close()


async def test_an_upsert_that_the_file_refuses_changes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await create(store)
    await upsert(store, ["a"], [[1, 2]])
    with sqlite3.connect(tmp_path / "vectors.db") as other:
        # The second row is refused, when the first is in.
        other.execute(
            "CREATE TRIGGER no BEFORE INSERT ON items WHEN NEW.id = 'c' BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    other.close()
    with pytest.raises(Exception, match="full"):
        await upsert(store, ["b", "c"], [[1, 2], [3, 4]])
    assert list(await items(store)) == ["a"]
    await store.close()
    store = opened(tmp_path)
    assert list(await items(store)) == ["a"]
    await store.close()


async def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "vectors.db").write_bytes(b"no database" * 1000)
    with refused(DataLossError, "STORE_CORRUPT", says="vectors.db"):
        opened(tmp_path)


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await store.close()
    with refused(UnavailableError, "ADAPTER_CLOSED"):
        await create(store)


async def test_a_search_that_nobody_waits_for_ends_between_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    await create(store)
    await upsert(store, ["a", "b"], [[1, 2], [3, 4]])
    entered, go, blocks = threading.Event(), threading.Event(), []
    plain = vector_items.distances

    def waits(*arguments: Any) -> np.ndarray:
        blocks.append(arguments)
        entered.set()
        assert go.wait(60)
        return plain(*arguments)

    monkeypatch.setattr(vector_items, "distances", waits)
    search = asyncio.create_task(query(store, [[1, 1]] * 1000))
    assert await asyncio.to_thread(entered.wait, 60)
    search.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert len(blocks) == 1
    assert len(await query(store, [[1, 1]])) == 1
    await store.close()


async def test_more_results_than_fit_into_a_message_are_refused_before_the_search(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await create(store)
    await upsert(store, ["a"], [[1]])
    with refused(ResourceExhaustedError, "RESULT_TOO_LARGE"):
        await query(store, np.ones((2_500_000, 1), np.float32))
    await store.close()
