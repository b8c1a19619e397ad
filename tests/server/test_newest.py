"""The record that is kept in memory is always the one that a fresh reading gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crucible.kitchen.v1.event_pb2 import RUN_STATE_FAILED, RUN_STATE_RUNNING, CheckpointSaved, RunEvent
from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.store import RunRecord, Store
from crucible_kitchen.store.newest import NewestRecords
from tests.server.fakes import checkpoint, log_event, record, state_event


async def fresh(path: Path, run_id: str = "run-1") -> RunRecord:
    """The run as a store that was just opened reads it."""
    store = await Store.open(path / "kitchen.db")
    try:
        return await store.get_run(run_id)
    finally:
        await store.close()


async def test_every_kind_of_change_is_seen_at_once(store: Store, tmp_path: Path) -> None:
    await store.create_run(record(), [log_event()])
    assert await store.get_run("run-1") == await fresh(tmp_path)
    await store.append("run-1", [state_event(RUN_STATE_RUNNING)], changes={"state": RUN_STATE_RUNNING, "attempt": 1})
    assert await store.get_run("run-1") == await fresh(tmp_path)
    await store.append("run-1", [], changes={"pause_requested": True})
    assert await store.get_run("run-1") == await fresh(tmp_path)
    saved = RunEvent(checkpoint_saved=CheckpointSaved(), step=3)
    await store.append("run-1", [saved], changes={"step": 3}, checkpoint=checkpoint(3))
    assert (await store.get_run("run-1")).latest_checkpoint is not None
    assert await store.get_run("run-1") == await fresh(tmp_path)
    with pytest.raises(FailedPreconditionError):
        await store.append("run-1", [], changes={"state": RUN_STATE_FAILED}, expect=[RUN_STATE_FAILED])
    assert await store.get_run("run-1") == await fresh(tmp_path)


async def test_a_checkpoint_in_the_record_is_a_copy(store: Store) -> None:
    """The run goes on with the lists that its position was made of."""
    await store.create_run(record(), [log_event()])
    position = {"path": [{"index": 1, "iteration": 2}], "values": {}}
    saved = RunEvent(checkpoint_saved=CheckpointSaved())
    await store.append("run-1", [saved], checkpoint=checkpoint(3, position=position))
    position["path"].append({"index": 0, "iteration": 0})
    latest = (await store.get_run("run-1")).latest_checkpoint
    assert latest is not None
    assert latest.position == {"path": [{"index": 1, "iteration": 2}], "values": {}}


async def test_readers_beside_writers_never_go_back(store: Store, tmp_path: Path) -> None:
    for number in range(4):
        await store.create_run(record(f"run-{number}"), [log_event()])

    async def write(run_id: str) -> None:
        for step in range(40):
            written = await store.append(run_id, [log_event()], changes={"step": step})
            assert (await store.get_run(run_id)).last_sequence >= written.last_sequence

    async def read(run_id: str) -> None:
        last = 0
        while last < 41:
            run = await store.get_run(run_id)
            assert run.last_sequence >= last
            assert run.step == max(0, run.last_sequence - 2)
            last = run.last_sequence
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write(f"run-{number}"))
            group.create_task(read(f"run-{number}"))
    for number in range(4):
        assert await store.get_run(f"run-{number}") == await fresh(tmp_path, f"run-{number}")


def test_what_was_read_while_something_was_committed_is_not_kept() -> None:
    newest = NewestRecords()
    changes = newest.changes
    newest.committed(record(last_sequence=2))
    newest.was_read(record(last_sequence=1), changes)
    kept = newest.get("run-1")
    assert kept is not None
    assert kept.last_sequence == 2
    changes = newest.changes
    newest.forget("run-1")
    newest.was_read(record(last_sequence=2), changes)
    assert newest.get("run-1") is None


def test_only_so_many_are_kept() -> None:
    newest = NewestRecords()
    for number in range(2000):
        newest.committed(record(f"run-{number}"))
    assert newest.get("run-0") is None
    assert newest.get("run-1999") is not None
    assert sum(newest.get(f"run-{number}") is not None for number in range(2000)) == 1024
