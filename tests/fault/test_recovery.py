"""Disks, clocks, checkpoints and adapters that fail while runs are at work; training and sampling are fakes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_client import fold
from crucible_kit import faults
from crucible_kit.errors import PermissionDeniedError, UnavailableError
from crucible_kitchen.runs import executor, journal, manager, summary
from crucible_kitchen.runs.metrics_feed import MetricsFeed
from crucible_kitchen.store import RunRecord, Store
from tests.fault.survive import assert_whole_log
from tests.workflow.kitchen import Kitchen, kitchen_on, payloads

COMPLETED, FAILED, PAUSED = event_pb2.RUN_STATE_COMPLETED, event_pb2.RUN_STATE_FAILED, event_pb2.RUN_STATE_PAUSED
LOST = UnavailableError("the engine is gone", reason="TEST")


async def assert_whole(kitchen: Kitchen, run: RunRecord) -> list[event_pb2.RunEvent]:
    events = await kitchen.events(run)
    assert_whole_log(events)
    return events


def final_bytes(kitchen: Kitchen, run: RunRecord) -> bytes:
    assert run.latest_checkpoint is not None and run.latest_checkpoint.final
    folder = kitchen.data / "blobs" / run.latest_checkpoint.key_prefix
    return (folder / "adapter_model.safetensors").read_bytes()


def at_step(number: int, action: Callable[[], None], *, times: int = 1) -> Callable[[int], None]:
    """Acts when the step is about to be taken, so many times."""
    left = [times]

    def before_step(step: int) -> None:
        if step == number and left[0]:
            left[0] -= 1
            action()

    return before_step


def lose() -> None:
    raise LOST


async def stopped_at(kitchen: Kitchen, step: int, /, **config: Any) -> RunRecord:
    """A run that has failed when it was about to take a step."""

    def refuse() -> None:
        raise PermissionDeniedError("not this one", reason="TEST")

    kitchen.training.before_step = at_step(step, refuse)
    run = await kitchen.run(**config)
    assert run.state == FAILED
    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "gone", "cut"])
async def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    kitchen: Kitchen, small: dict[str, Any], damage: Callable[[Path], None]
) -> None:
    undisturbed = await kitchen.run(**small)
    failed = await stopped_at(kitchen, 6, **small, save_every=2)
    assert failed.latest_checkpoint is not None and failed.latest_checkpoint.step == 4
    folder = kitchen.data / "blobs" / failed.latest_checkpoint.key_prefix
    saved = (folder / "optimizer.safetensors").read_bytes()
    damage(folder / "optimizer.safetensors")

    run = await kitchen.resume(failed)
    assert run.state == COMPLETED, run.failure
    events = await assert_whole(kitchen, run)
    [damaged] = payloads(events, "checkpoint_damaged")
    assert damaged.checkpoint.step == 4
    assert "optimizer.safetensors" in damaged.failure.status.message
    if damage is flip:
        for digest in (hashlib.sha256(saved), hashlib.sha256((folder / "optimizer.safetensors").read_bytes())):
            assert digest.hexdigest() in damaged.failure.status.message
    assert [each.from_checkpoint.step for each in payloads(events, "attempt_started")] == [0, 4, 2]
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)
    # What is left of it stays, and its step has been saved again.
    assert kitchen.folders(run) == [
        *("attempt-1/step-2", "attempt-1/step-4", "attempt-3/final", "attempt-3/step-4", "attempt-3/step-6")
    ]
    assert failed.latest_checkpoint.uri not in fold(events).checkpoints


async def test_when_all_but_the_first_are_damaged_the_first_is_used(kitchen: Kitchen, small: dict[str, Any]) -> None:
    undisturbed = await kitchen.run(**small)
    failed = await stopped_at(kitchen, 6, **small, save_every=1)
    for step in (3, 4, 5):
        flip(kitchen.data / "blobs/runs" / failed.run_id / f"attempt-1/step-{step}/adapter_model.safetensors")
    flip(kitchen.data / "blobs/runs" / failed.run_id / "attempt-1/step-2/crucible_manifest.json")
    run = await kitchen.resume(failed)
    assert run.state == COMPLETED, run.failure
    events = await assert_whole(kitchen, run)
    assert [each.checkpoint.step for each in payloads(events, "checkpoint_damaged")] == [5, 4, 3, 2]
    assert payloads(events, "attempt_started")[-1].from_checkpoint.step == 1
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


async def test_a_damaged_checkpoint_without_an_earlier_one_fails_the_run_until_it_is_restored(
    kitchen: Kitchen, small: dict[str, Any]
) -> None:
    undisturbed = await kitchen.run(**small)
    failed = await stopped_at(kitchen, 6, **small, save_every=2, keep_last=1)
    assert failed.latest_checkpoint is not None
    file = kitchen.data / "blobs" / failed.latest_checkpoint.key_prefix / "adapter_model.safetensors"
    flip(file)
    again = await kitchen.resume(failed)
    assert (again.state, again.latest_checkpoint) == (FAILED, failed.latest_checkpoint)
    assert again.failure is not None and again.failure.reason == "BLOB_CORRUPT"
    assert "adapter_model.safetensors" in again.failure.status.message
    assert not payloads(await kitchen.events(again), "checkpoint_damaged")
    flip(file)
    run = await kitchen.resume(again)
    assert run.state == COMPLETED
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


async def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(kitchen: Kitchen, small: dict[str, Any]) -> None:
    failed = await stopped_at(kitchen, 5, **small, save_every=1, keep_last=2)
    flip(kitchen.data / "blobs/runs" / failed.run_id / "attempt-1/step-4/adapter_model.safetensors")
    kept: list[list[str]] = []
    kitchen.training.before_step = lambda step: kept.append(kitchen.folders(failed))
    run = await kitchen.resume(failed)
    assert run.state == COMPLETED
    # Before steps 4, 5 and 6: two whole ones each time once there are two; the damaged one goes when it is too old.
    assert kept == [
        ["attempt-1/step-3", "attempt-1/step-4"],
        ["attempt-1/step-3", "attempt-1/step-4", "attempt-3/step-4"],
        ["attempt-3/step-4", "attempt-3/step-5"],
    ]


async def test_a_pause_that_meets_a_lost_engine_stands_at_a_checkpoint_and_says_so(
    kitchen: Kitchen, small: dict[str, Any]
) -> None:
    undisturbed = await kitchen.run(**small)
    created = await kitchen.create(**small, save_every=2)

    def pause_and_lose() -> None:
        kitchen.manager._executors[created.run_id].control.pause = True
        lose()

    kitchen.training.before_step = at_step(6, pause_and_lose)
    paused = await kitchen.stopped(created)
    assert paused.state == PAUSED
    assert paused.latest_checkpoint is not None
    assert paused.step == paused.latest_checkpoint.step == 4
    events = await assert_whole(kitchen, paused)
    assert events[-1].state_changed.reason.endswith("the run stands at step 4")
    view = fold(events)
    assert view.step == 4
    assert paused.summary is not None and paused.summary.steps == 4
    run = await kitchen.resume(paused)
    assert run.state == COMPLETED
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


async def test_a_batch_that_kills_the_engine_each_time_ends_the_run(kitchen: Kitchen, small: dict[str, Any]) -> None:
    undisturbed = await kitchen.run(**small)
    kitchen.training.before_step = at_step(5, lose, times=3)
    created = await kitchen.create(**small, save_every=2)
    failed = await kitchen.stopped(created)
    assert failed.failure is not None
    assert (failed.state, failed.attempt, failed.failure.reason) == (FAILED, 3, "ENGINE_CRASH_LOOP")
    assert "3 attempts" in failed.failure.status.message and str(LOST) in failed.failure.status.message
    await assert_whole(kitchen, failed)
    # Once the engine can take it, the run goes on from where it was.
    run = await kitchen.resume(failed)
    assert (run.state, run.attempt) == (COMPLETED, 4)
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


async def test_losses_with_checkpoints_between_end_nothing(kitchen: Kitchen, small: dict[str, Any]) -> None:
    lost: list[int] = []

    def before_step(step: int) -> None:
        if step not in lost:
            lost.append(step)
            lose()

    kitchen.training.before_step = before_step
    run = await kitchen.run(**small, save_every=1)
    assert (run.state, run.attempt, lost) == (COMPLETED, 7, [1, 2, 3, 4, 5, 6])


async def test_another_adapter_that_is_lost_is_not_called_the_engine(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> Any:
        raise UnavailableError("nobody there", reason="TEST")

    monkeypatch.setattr(kitchen.servicers["blob"], "WriteBlob", gone)
    failed = await kitchen.run(**small)
    assert failed.failure is not None
    assert (failed.attempt, failed.failure.reason) == (3, "ADAPTER_LOST")


async def test_a_full_disk_under_the_blobs_fails_the_run_and_leaves_nothing_half_saved(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await kitchen.run(**small)
    # The second file of the second checkpoint; a checkpoint has four.
    full = faults.Faults(faults.parse_faults("blob.rename.before:6=enospc"), None)
    monkeypatch.setattr(faults, "_faults", full)
    failed = await kitchen.run(**small, save_every=2)
    assert failed.failure is not None
    assert (failed.state, failed.failure.reason) == (FAILED, "DISK_FULL")
    assert kitchen.folders(failed) == ["attempt-1/step-2"]
    assert list(kitchen.training.checkpoints) == []
    assert not list((kitchen.data / "blobs/.meta/staging").iterdir())
    run = await kitchen.resume(failed)
    assert (run.state, run.attempt) == (COMPLETED, 2)
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)
    await assert_whole(kitchen, run)


@pytest.mark.parametrize("pragma", ["max_page_count = 1", "query_only = ON"], ids=["full", "read-only"])
async def test_a_run_waits_for_a_run_store_that_takes_no_writes(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pragma: str
) -> None:
    undisturbed = await kitchen.run(**small)
    created = await kitchen.create(**small, save_every=2)
    store, refusals = kitchen.store, []
    original = Store.append

    async def set_pragma(text: str) -> None:
        await store._writer.submit(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}").close())

    async def append(self: Store, run_id: str, events: Any, **parts: Any) -> RunRecord:
        saves = any(event.HasField("checkpoint_saved") for event in events)
        if saves and events[0].step == 4 and not refusals:
            await set_pragma(pragma)
        try:
            return await original(self, run_id, events, **parts)
        except UnavailableError as error:
            # A failed write opens the file anew, without the pragma: there is room again.
            refusals.append(error.reason)
            raise

    monkeypatch.setattr(journal, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(Store, "append", append)
    run = await kitchen.stopped(created)
    assert set(refusals) == {"STORE_WRITE_FAILED"}
    assert (run.state, run.attempt) == (COMPLETED, 1), "standing still costs no attempt"
    await assert_whole(kitchen, run)
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


async def test_a_draining_server_does_not_wait_for_the_run_store(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = asyncio.Event()
    original = Store.append

    async def append(self: Store, run_id: str, events: Any, **parts: Any) -> RunRecord:
        if refused.is_set() or any(event.step == 4 for event in events):
            refused.set()
            raise UnavailableError("the disk is full", reason="STORE_WRITE_FAILED")
        return await original(self, run_id, events, **parts)

    async with kitchen_on(tmp_path / "data") as first:
        created = await first.create(**small, save_every=2)
        with monkeypatch.context() as patched:
            patched.setattr(journal, "_FIRST_WAIT_SECONDS", 0.01)
            patched.setattr(Store, "append", append)
            await refused.wait()
            await first.manager.drain(10)
        left = await first.store.get_run(created.run_id)
        assert (left.state, left.step) == (event_pb2.RUN_STATE_RUNNING, 3)
    async with kitchen_on(tmp_path / "data") as second:
        await second.manager.start(recover=True)
        run = await second.stopped(left)
        assert (run.state, run.attempt) == (COMPLETED, 2)
        await assert_whole(second, run)


async def test_a_clock_that_goes_back_turns_nothing_around(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await kitchen.run(**small)
    offset = timedelta()

    class SteppingClock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + offset

    for module in (executor, manager, summary):
        monkeypatch.setattr(module, "datetime", SteppingClock)
    kitchen.store._clock = lambda: SteppingClock.now(UTC)

    def step_back() -> None:
        nonlocal offset
        offset -= timedelta(hours=1)

    kitchen.training.before_step = at_step(3, step_back)
    run = await kitchen.run(**small, save_every=2)
    assert run.state == COMPLETED
    await assert_whole(kitchen, run)
    assert run.start_time is not None and run.end_time is not None
    assert run.create_time <= run.start_time <= run.end_time
    assert run.summary is not None and run.summary.seconds >= 0
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)
    # A request is recognised whatever the clock says, and the next run is listed first.
    later = await kitchen.run(**small)
    assert later.state == COMPLETED


async def test_metrics_that_a_dying_server_did_not_hand_on_come_at_the_next_start(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: Any) -> None:
        raise UnavailableError("the server died before", reason="TEST")

    async with kitchen_on(tmp_path / "data") as first:
        with monkeypatch.context() as patched:
            patched.setattr(MetricsFeed, "catch_up", die)
            run = await first.run(**small)
            await first.manager.drain(10)
    async with kitchen_on(tmp_path / "data") as second:
        query = metrics_pb2.QueryMetricsRequest(run_id=run.run_id, name="train/loss")
        assert not (await second.servicers["metrics"].QueryMetrics(query, None)).points
        await second.manager.start(recover=True)
        assert second.manager._feeding is not None
        await second.manager._feeding
        points = (await second.servicers["metrics"].QueryMetrics(query, None)).points
        steps = [event for event in await second.events(run) if event.HasField("step_completed")]
        assert [(point.step, point.value) for point in points] == [
            (event.step, event.step_completed.metrics["train/loss"]) for event in steps
        ]
        assert not await second.store.runs_to_feed()


async def test_rows_that_changed_while_the_server_was_dead_are_refused(small: dict[str, Any], tmp_path: Path) -> None:
    async with kitchen_on(tmp_path / "data") as first:
        created = await first.create(**small, save_every=2)
        saved = asyncio.Event()
        first.training.before_step = lambda step: saved.set() if step == 4 else None
        await saved.wait()
        for task in first.manager._tasks:
            task.cancel()
        await asyncio.gather(*first.manager._tasks, return_exceptions=True)
        left = await first.store.get_run(created.run_id)
        assert left.state == event_pb2.RUN_STATE_RUNNING
    rows = Path(small["dataset"])
    rows.write_text(rows.read_text().replace("It is 4.", "It is 5."))
    async with kitchen_on(tmp_path / "data") as second:
        await second.manager.start(recover=True)
        failed = await second.stopped(left)
        assert failed.failure is not None
        assert (failed.state, failed.failure.reason) == (FAILED, "RESUME_MISMATCH")
        assert "dataset_fingerprint" in failed.failure.status.message


async def test_a_resume_ends_a_pause_that_nobody_lived_to_obey(small: dict[str, Any], tmp_path: Path) -> None:
    async with kitchen_on(tmp_path / "data") as kitchen:
        run = await stopped_at(kitchen, 5, **small, save_every=2)
        await kitchen.manager.drain(10)
        kitchen.manager._draining = False
        # As an embedded server leaves it that was killed while it paused.
        await kitchen.store.append(
            run.run_id, [], changes={"state": event_pb2.RUN_STATE_RUNNING, "pause_requested": True}
        )
        kitchen.manager._options = kitchen.manager._options.model_copy(update={"recover": False})
        left = await kitchen.store.get_run(run.run_id)
        resumed = await kitchen.manager.resume(run.run_id, run_pb2.ResumeRunRequest(run_id=run.run_id))
        assert not resumed.pause_requested
        assert (await kitchen.stopped(left)).state == COMPLETED
