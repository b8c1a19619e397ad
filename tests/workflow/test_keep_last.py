"""keep_last: old checkpoints go, never one that somebody needs, and a crash at any moment leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import PermissionDeniedError, UnavailableError
from crucible_kitchen.runs.checkpoints import CheckpointSaver
from tests.workflow.kitchen import Kitchen, payloads

COMPLETED = event_pb2.RUN_STATE_COMPLETED


def once(error: Exception, original: Any, *, after: int = 0) -> Any:
    """A replacement of an asynchronous function that raises one time, after so many ordinary calls."""
    calls = [0]

    async def replacement(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == after + 1:
            raise error
        return await original(*args, **kwargs)

    return replacement


async def steps_kept(kitchen: Kitchen, run: Any) -> list[tuple[int, bool]]:
    return [(each.step, each.final) for each in await kitchen.store.checkpoints(run.run_id)]


async def test_only_the_newest_and_the_final_one_are_kept(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small, save_every=1, keep_last=2)
    assert run.state == COMPLETED
    assert await steps_kept(kitchen, run) == [(5, False), (6, False), (6, True)]
    assert kitchen.folders(run) == ["attempt-1/final", "attempt-1/step-5", "attempt-1/step-6"]
    events = await kitchen.events(run)
    told = [
        (event.WhichOneof("payload"), getattr(event, str(event.WhichOneof("payload"))).checkpoint.step)
        for event in events
        if event.WhichOneof("payload") in ("checkpoint_saved", "checkpoint_deleted")
    ]
    # An old one goes only when a newer one is there.
    assert told == [
        ("checkpoint_saved", 1),
        ("checkpoint_saved", 2),
        ("checkpoint_saved", 3),
        ("checkpoint_deleted", 1),
        ("checkpoint_saved", 4),
        ("checkpoint_deleted", 2),
        ("checkpoint_saved", 5),
        ("checkpoint_deleted", 3),
        ("checkpoint_saved", 6),
        ("checkpoint_deleted", 4),
        ("checkpoint_saved", 6),
    ]
    saved = {each.checkpoint.uri for each in payloads(events, "checkpoint_saved")}
    deleted = {each.checkpoint.uri for each in payloads(events, "checkpoint_deleted")}
    assert saved - deleted == {each.uri for each in await kitchen.store.checkpoints(run.run_id)}
    assert run.latest_checkpoint is not None and run.latest_checkpoint.final


async def test_all_are_kept_unless_asked_otherwise(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small, save_every=2)
    assert await steps_kept(kitchen, run) == [(2, False), (4, False), (6, False), (6, True)]


async def test_a_paused_run_goes_on_from_the_one_it_kept(kitchen: Kitchen, small: dict[str, Any]) -> None:
    undisturbed = await kitchen.run(**small)
    created = await kitchen.create(**small, save_every=1, keep_last=1)

    def pause(step: int) -> None:
        if step == 4:
            kitchen.manager._executors[created.run_id].control.pause = True

    kitchen.training.before_step = pause
    paused = await kitchen.stopped(created)
    assert (paused.state, await steps_kept(kitchen, paused)) == (event_pb2.RUN_STATE_PAUSED, [(4, False)])
    kitchen.training.before_step = lambda step: None
    run = await kitchen.resume(paused)
    assert await steps_kept(kitchen, run) == [(6, False), (6, True)]
    assert kitchen.folders(run) == ["attempt-2/final", "attempt-2/step-6"]
    final, expected = run.latest_checkpoint, undisturbed.latest_checkpoint
    assert final is not None and expected is not None and final.manifest_sha256 == expected.manifest_sha256


async def test_a_crash_between_the_new_one_and_the_old_one_s_end_leaves_nothing(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = UnavailableError("the server died here", reason="TEST")
    # The first call is the attempt's own; the fourth one comes after the save of step 3.
    monkeypatch.setattr(CheckpointSaver, "forget_old", once(gone, CheckpointSaver.forget_old, after=3))
    run = await kitchen.run(**small, save_every=1, keep_last=1)
    assert (run.state, run.attempt) == (COMPLETED, 2)
    started = payloads(await kitchen.events(run), "attempt_started")
    assert started[1].from_checkpoint.step == 3
    assert await steps_kept(kitchen, run) == [(6, False), (6, True)]
    assert kitchen.folders(run) == ["attempt-2/final", "attempt-2/step-6"]


async def test_a_crash_between_the_store_and_the_files_leaves_nothing(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = UnavailableError("the server died here", reason="TEST")
    deleting = once(gone, CheckpointSaver._delete_leftover, after=2)
    monkeypatch.setattr(CheckpointSaver, "_delete_leftover", deleting)
    created = await kitchen.create(**small, save_every=1, keep_last=1)
    run = await kitchen.stopped(created)
    assert (run.state, run.attempt) == (COMPLETED, 2)
    assert kitchen.folders(run) == ["attempt-2/final", "attempt-2/step-6"]
    deleted = [each.checkpoint.step for each in payloads(await kitchen.events(run), "checkpoint_deleted")]
    assert deleted == [1, 2, 3, 4, 5], "each is told once"


async def test_files_that_do_not_go_stop_nothing_and_go_later(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = kitchen.servicers["blob"]
    refuses = PermissionDeniedError("the folder is read-only", reason="TEST")
    monkeypatch.setattr(blob, "DeleteBlob", once(refuses, blob.DeleteBlob))
    run = await kitchen.run(**small, save_every=1, keep_last=1)
    assert (run.state, run.attempt) == (COMPLETED, 1)
    [warning] = payloads(await kitchen.events(run), "log_recorded")
    assert warning.severity == event_pb2.LogRecorded.SEVERITY_WARNING
    assert "step-1 are still there: the folder is read-only" in warning.message
    assert kitchen.folders(run) == ["attempt-1/final", "attempt-1/step-6"]


async def test_a_failed_run_keeps_what_its_resume_needs(kitchen: Kitchen, small: dict[str, Any]) -> None:
    created = await kitchen.create(**small, save_every=2, keep_last=1)

    def fail(step: int) -> None:
        if step == 5:
            raise PermissionDeniedError("not this one", reason="TEST")

    kitchen.training.before_step = fail
    failed = await kitchen.stopped(created)
    assert (failed.state, await steps_kept(kitchen, failed)) == (event_pb2.RUN_STATE_FAILED, [(4, False)])
    assert kitchen.folders(failed) == ["attempt-1/step-4"]
    kitchen.training.before_step = lambda step: None
    assert (await kitchen.resume(failed)).state == COMPLETED


@pytest.mark.parametrize("value", [-1, 1.5, "all"])
async def test_other_values_are_refused(kitchen: Kitchen, small: dict[str, Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.keep_last"):
        await kitchen.create(**small, keep_last=value)
    assert (await kitchen.store.list_runs()) == []
