"""An adapter that goes away: its run waits, and goes on by itself to the bytes of one that was left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_client import fold
from crucible_kit.errors import NotFoundError, ResourceExhaustedError, UnavailableError
from crucible_kitchen.runs import executor, manager, metrics_feed, waiting
from crucible_kitchen.store import RunRecord
from tests.fault.survive import assert_whole_log
from tests.workflow.kitchen import Kitchen, kitchen_on, payloads

COMPLETED, FAILED, PAUSED = event_pb2.RUN_STATE_COMPLETED, event_pb2.RUN_STATE_FAILED, event_pb2.RUN_STATE_PAUSED
CANCELLED = event_pb2.RUN_STATE_CANCELLED


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "_LONGEST_PAUSE_SECONDS", 0.02)


def final_bytes(kitchen: Kitchen, run: RunRecord) -> bytes:
    assert run.latest_checkpoint is not None and run.latest_checkpoint.final
    folder = kitchen.data / "blobs" / run.latest_checkpoint.key_prefix
    return (folder / "adapter_model.safetensors").read_bytes()


def goes_away(kitchen: Kitchen, port: str, *, at_step: int) -> None:
    """Takes a port's adapter, which is not the host's, away once, when a step is about to be taken."""
    kitchen.hosted.discard(port)
    left = [at_step]

    def before_step(step: int) -> None:
        if left == [step]:
            left.clear()
            kitchen.away.add(port)

    kitchen.training.before_step = before_step


async def waiting_run(kitchen: Kitchen, port: str, /, **config: Any) -> RunRecord:
    """A run that waits for a port, which goes away at step 5."""
    goes_away(kitchen, port, at_step=5)
    run = await kitchen.run(**config)
    assert (run.state, run.waiting_for_port) == (PAUSED, port)
    return run


async def resumed(kitchen: Kitchen, run: RunRecord) -> RunRecord:
    return await kitchen.manager.resume(run.run_id, run_pb2.ResumeRunRequest(run_id=run.run_id))


def stored_losses(kitchen: Kitchen, run: RunRecord) -> Any:
    query = metrics_pb2.QueryMetricsRequest(run_id=run.run_id, name="train/loss")
    return kitchen.servicers["metrics"].QueryMetrics(query, None)


async def assert_as_undisturbed(kitchen: Kitchen, run: RunRecord, undisturbed: RunRecord) -> None:
    assert (run.state, run.waiting_for_port, run.failure) == (COMPLETED, "", None)
    events = await kitchen.events(run)
    assert_whole_log(events)
    view, theirs = fold(events), fold(await kitchen.events(undisturbed))
    assert (view.waiting_for_port, view.failure) == ("", None)
    losses = [{number: step.metrics["train/loss"] for number, step in each.steps.items()} for each in (view, theirs)]
    assert losses[0] == losses[1]
    assert final_bytes(kitchen, run) == final_bytes(kitchen, undisturbed)


# Step at which it goes away: 0 before the run begins; and the step from which the run goes on.
@pytest.mark.parametrize(
    ("port", "at_step", "from_step"),
    [
        ("blob", 0, 0),
        ("dataset", 0, 0),
        ("hub", 0, 0),
        ("tokenizer", 0, 0),
        ("blob", 3, 2),
        ("training", 5, 4),
        ("sampling", 5, 6),
        ("tokenizer", 5, 6),
        ("registry", 5, 6),
    ],
)
async def test_a_run_waits_for_each_port_and_goes_on_by_itself(
    kitchen: Kitchen, small: dict[str, Any], port: str, at_step: int, from_step: int
) -> None:
    config = small | {"save_every": 2, "eval_fraction": 0.1, "sample_prompts": 1, "max_steps": 6}
    undisturbed = await kitchen.run(**config)
    created = await kitchen.create_held(**config)
    goes_away(kitchen, port, at_step=at_step)
    if not at_step:
        kitchen.away.add(port)
    await kitchen.begin(created)

    paused = await kitchen.stopped(created)
    assert (paused.state, paused.waiting_for_port, paused.attempt) == (PAUSED, port, 1)
    assert paused.failure is not None and paused.failure.reason == "ADAPTER_UNAVAILABLE"
    events = await kitchen.events(paused)
    assert_whole_log(events)
    assert (events[-1].state_changed.to_state, events[-1].state_changed.waiting_for_port) == (PAUSED, port)
    assert events[-1].state_changed.failure == paused.failure
    assert fold(events).waiting_for_port == port
    # What can be reached is tidied up.
    assert not any(event.HasField("stage_failed") and event.stage_path == "cleanup" for event in events)
    assert port == "training" or not kitchen.training._sessions

    await kitchen.probed.wait()
    assert (await kitchen.store.get_run(created.run_id)).last_sequence == paused.last_sequence
    kitchen.away.clear()
    run = await kitchen.stopped(paused)
    await assert_as_undisturbed(kitchen, run, undisturbed)
    started = payloads(await kitchen.events(run), "attempt_started")
    assert [each.from_checkpoint.step for each in started] == [0, from_step]


async def test_however_often_it_goes_away_the_run_does_not_fail(kitchen: Kitchen, small: dict[str, Any]) -> None:
    undisturbed = await kitchen.run(**small)
    kitchen.hosted.clear()
    kitchen.training.before_step = lambda step: kitchen.away.add("training")
    run = await kitchen.create(**small)
    for _ in range(4):
        run = await kitchen.stopped(run)
        assert (run.state, run.waiting_for_port) == (PAUSED, "training")
        kitchen.away.clear()
    run = await kitchen.stopped(run)
    assert (run.state, run.attempt) == (PAUSED, 5)
    kitchen.training.before_step = lambda step: None
    kitchen.away.clear()
    await assert_as_undisturbed(kitchen, await kitchen.stopped(run), undisturbed)


@pytest.mark.parametrize(("hosted", "reason"), [({"training"}, "ENGINE_CRASH_LOOP"), (set(), "ADAPTER_LOST")])
async def test_an_adapter_that_is_there_and_loses_the_session_each_time_ends_the_run(
    kitchen: Kitchen, small: dict[str, Any], hosted: set[str], reason: str
) -> None:
    kitchen.hosted = hosted
    seen: list[int] = []

    def lose(step: int) -> None:
        seen.append(step)
        raise NotFoundError("the session is unknown", reason="SESSION_NOT_FOUND")

    kitchen.training.before_step = lose
    failed = await kitchen.run(**small)
    assert failed.failure is not None
    assert (failed.state, failed.failure.reason, seen) == (FAILED, reason, [1, 1, 1])


async def test_a_provider_with_too_much_to_do_is_left_alone_for_as_long_as_it_asks(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await kitchen.run(**small, save_every=2)
    kitchen.hosted.clear()
    away = [UnavailableError("overloaded", reason="PROVIDER_UNAVAILABLE") for _ in range(4)]
    left = [*away, ResourceExhaustedError("fewer requests", reason="RATE_LIMITED", retry_delay=7)]
    kitchen.training.before_step = lambda step: _raise(left.pop()) if step == 3 and left else None
    slept: list[float] = []
    original = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await original(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    run = await kitchen.run(**small, save_every=2)
    while run.state == PAUSED:
        assert run.waiting_for_port == "training"
        run = await kitchen.stopped(run)
    await assert_as_undisturbed(kitchen, run, undisturbed)
    # Asked after at once, it answers: what it goes on to refuse makes the pauses grow.
    assert [each for each in slept if each in (7, 0.01, 0.02, 0.04, 0.08, 0.16)] == [7, 0.02, 0.04, 0.08, 0.16]
    await kitchen.manager.drain(10)
    assert not kitchen.manager._waits


def _raise(error: Exception) -> None:
    raise error


async def test_an_adapter_that_the_host_starts_itself_is_not_waited_for(
    kitchen: Kitchen, small: dict[str, Any]
) -> None:
    assert "training" in kitchen.hosted
    kitchen.training.before_step = lambda step: kitchen.away.add("training")
    failed = await kitchen.run(**small)
    assert failed.failure is not None
    assert (failed.state, failed.attempt, failed.failure.reason) == (FAILED, 3, "ENGINE_CRASH_LOOP")


async def test_a_run_that_waits_takes_no_place(kitchen: Kitchen, small: dict[str, Any]) -> None:
    assert kitchen.manager._options.max_concurrent_runs == 1
    sampled = await waiting_run(kitchen, "sampling", **small, eval_fraction=0.1, sample_prompts=1, max_steps=5)
    assert (await kitchen.run(**small)).state == COMPLETED
    assert (await kitchen.store.get_run(sampled.run_id)).waiting_for_port == "sampling"
    kitchen.away.clear()
    assert (await kitchen.stopped(sampled)).state == COMPLETED


async def test_two_runs_that_wait_for_one_adapter_go_on_in_turn(kitchen: Kitchen, small: dict[str, Any]) -> None:
    kitchen.manager._options = kitchen.manager._options.model_copy(update={"max_concurrent_runs": 2})
    both = [await kitchen.create_held(**small) for _ in range(2)]
    kitchen.away.add("dataset")
    for run in both:
        await kitchen.begin(run)
    paused = [await kitchen.stopped(run) for run in both]
    assert {run.waiting_for_port for run in paused} == {"dataset"}
    kitchen.away.clear()
    assert [(await kitchen.stopped(run)).state for run in paused] == [COMPLETED, COMPLETED]


async def test_a_pause_ends_the_waiting_and_the_run_stays(kitchen: Kitchen, small: dict[str, Any]) -> None:
    undisturbed = await kitchen.run(**small)
    first = await waiting_run(kitchen, "blob", **small, save_every=2)
    second = await waiting_run(kitchen, "blob", **small, save_every=2)
    kitchen.training.before_step = lambda step: None
    paused = await kitchen.manager.pause(first.run_id)
    assert (paused.state, paused.waiting_for_port, paused.failure) == (PAUSED, "", None)
    events = await kitchen.events(paused)
    assert events[-1].state_changed == event_pb2.RunStateChanged(
        from_state=PAUSED, to_state=PAUSED, reason="it waits no more for the adapter of the port blob"
    )
    assert fold(events).waiting_for_port == ""
    assert await kitchen.manager.pause(first.run_id) == paused

    kitchen.away.clear()
    assert (await kitchen.stopped(second)).state == COMPLETED
    assert (await kitchen.store.get_run(first.run_id)).last_sequence == paused.last_sequence
    await assert_as_undisturbed(kitchen, await kitchen.resume(paused), undisturbed)


async def test_a_resume_tries_at_once(kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_FIRST_PAUSE_SECONDS", 3600)
    undisturbed = await kitchen.run(**small)
    paused = await waiting_run(kitchen, "blob", **small, save_every=2)
    again = await kitchen.stopped(await resumed(kitchen, paused))
    assert (again.state, again.waiting_for_port, again.attempt) == (PAUSED, "blob", 2)
    kitchen.away.clear()
    queued = await resumed(kitchen, again)
    assert (queued.waiting_for_port, queued.failure) == ("", None)
    await assert_as_undisturbed(kitchen, await kitchen.stopped(queued), undisturbed)


async def test_a_repeated_resume_does_not_end_a_later_wait(kitchen: Kitchen, small: dict[str, Any]) -> None:
    request = run_pb2.ResumeRunRequest(request_id="2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11")
    paused = await waiting_run(kitchen, "blob", **small, save_every=2)
    request.run_id = paused.run_id
    again = await kitchen.stopped(await kitchen.manager.resume(paused.run_id, request))
    assert await kitchen.manager.resume(paused.run_id, request) == again
    kitchen.away.clear()
    assert (await kitchen.stopped(again)).state == COMPLETED


async def test_a_waiting_run_can_be_cancelled(kitchen: Kitchen, small: dict[str, Any]) -> None:
    paused = await waiting_run(kitchen, "blob", **small, save_every=2)
    cancelled = await kitchen.manager.cancel(paused.run_id, "no need")
    assert (cancelled.state, cancelled.waiting_for_port, cancelled.failure) == (CANCELLED, "", None)
    assert cancelled.end_time is not None
    kitchen.away.clear()
    assert (await kitchen.run(**small)).state == COMPLETED
    assert (await kitchen.store.get_run(paused.run_id)).last_sequence == cancelled.last_sequence


@pytest.mark.parametrize("asked", ["pause", "cancel"])
async def test_what_was_asked_before_the_adapter_went_comes_first(
    kitchen: Kitchen, small: dict[str, Any], asked: str
) -> None:
    created = await kitchen.create_held(**small, save_every=2)
    original = kitchen.training.SaveCheckpoint

    async def save(request: Any, context: Any) -> Any:
        kitchen.away.add("blob")
        if asked == "pause":
            await kitchen.manager.pause(created.run_id)
        else:
            await kitchen.manager.cancel(created.run_id, "")
        return await original(request, context)

    kitchen.training.SaveCheckpoint = save  # type: ignore[method-assign]
    await kitchen.begin(created)
    stopped = await kitchen.stopped(created)
    assert (stopped.state, stopped.waiting_for_port) == (PAUSED if asked == "pause" else CANCELLED, "")
    assert_whole_log(await kitchen.events(stopped))


@pytest.mark.parametrize("asked", ["pause", "cancel", "resume"])
async def test_what_is_asked_while_the_execution_still_tidies_up_counts(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The metrics store is away too, and so the execution takes its time to end."""
    tidying, leave = asyncio.Event(), asyncio.Event()

    async def finish(self: metrics_feed.MetricsFeed) -> None:
        tidying.set()
        await leave.wait()

    monkeypatch.setattr(metrics_feed.MetricsFeed, "finish", finish)
    paused = await waiting_run(kitchen, "blob", **small, save_every=2)
    await tidying.wait()
    assert paused.run_id in kitchen.manager._executors
    if asked == "pause":
        record = await kitchen.manager.pause(paused.run_id)
        assert (record.state, record.waiting_for_port) == (PAUSED, "")
    elif asked == "cancel":
        record = await kitchen.manager.cancel(paused.run_id, "")
        assert record.state == CANCELLED
    else:
        record = await resumed(kitchen, paused)
        kitchen.away.clear()
    leave.set()
    if asked == "resume":
        record = await kitchen.stopped(record)
        assert record.state == COMPLETED
    else:
        kitchen.away.clear()
        assert (await kitchen.run(**small)).state == COMPLETED
    assert (await kitchen.store.get_run(paused.run_id)).last_sequence == record.last_sequence


async def test_a_server_that_starts_goes_on_waiting(small: dict[str, Any], tmp_path: Path) -> None:
    async with kitchen_on(tmp_path / "data") as first:
        undisturbed = await first.run(**small)
        paused = await waiting_run(first, "blob", **small, save_every=2)
    async with kitchen_on(tmp_path / "data") as second:
        second.away.add("blob")
        await second.manager.start(recover=True)
        await second.probed.wait()
        assert (await second.store.get_run(paused.run_id)).waiting_for_port == "blob"
        second.away.clear()
        await assert_as_undisturbed(second, await second.stopped(paused), undisturbed)


async def test_a_server_that_takes_up_nothing_leaves_waiting_runs(small: dict[str, Any], tmp_path: Path) -> None:
    async with kitchen_on(tmp_path / "data") as first:
        paused = await waiting_run(first, "blob", **small, save_every=2)
    async with kitchen_on(tmp_path / "data") as second:
        await second.manager.start(recover=False)
        assert (await second.run(**small)).state == COMPLETED
        left = await second.store.get_run(paused.run_id)
        assert (left.waiting_for_port, left.last_sequence) == ("blob", paused.last_sequence)
        assert (await second.resume(paused)).state == COMPLETED


async def test_an_adapter_that_is_away_for_too_long_fails_the_run(small: dict[str, Any], tmp_path: Path) -> None:
    async with kitchen_on(tmp_path / "data") as first:
        first.manager._options = first.manager._options.model_copy(update={"max_adapter_wait_seconds": 0.05})
        paused = await waiting_run(first, "blob", **small, save_every=2)
        failed = await first.stopped(paused)
        assert failed.failure is not None and failed.end_time is not None
        assert (failed.state, failed.waiting_for_port, failed.failure.reason) == (FAILED, "", "ADAPTER_LOST")
        events = await first.events(failed)
        assert_whole_log(events)
        assert (events[-1].state_changed.failure, fold(events).waiting_for_port) == (failed.failure, "")
        first.away.clear()
        assert (await first.resume(failed)).state == COMPLETED


@pytest.mark.parametrize("hours", [0, 2])
async def test_the_time_that_a_run_has_waited_survives_the_server(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    async with kitchen_on(tmp_path / "data") as first:
        paused = await waiting_run(first, "blob", **small, save_every=2)

    class LaterClock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(manager, "datetime", LaterClock)
    async with kitchen_on(tmp_path / "data") as second:
        options = second.manager._options.model_copy(update={"max_adapter_wait_seconds": 3600.0})
        second.manager._options = options
        second.away.add("blob")
        await second.manager.start(recover=True)
        if not hours:
            await second.probed.wait()
            second.away.clear()
        run = await second.stopped(paused)
        assert (run.state, run.waiting_for_port) == (FAILED if hours else COMPLETED, "")
        assert run.failure is None or run.failure.reason == "ADAPTER_LOST"


async def test_metrics_that_come_after_the_end_of_the_run_are_all_there_once(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_FEED_SECONDS", 0.01)
    monkeypatch.setattr(metrics_feed, "_RETRY_SECONDS", 0.01)
    kitchen.away.add("metrics")
    runs = [await kitchen.run(**small) for _ in range(2)]
    assert [(run.state, run.attempt) for run in runs] == [(COMPLETED, 1)] * 2
    assert not (await stored_losses(kitchen, runs[0])).points
    while kitchen.manager._executors:
        await next(iter(kitchen.manager._tasks))
    assert kitchen.manager._feeding is not None and not kitchen.manager._feeding.done()
    kitchen.away.clear()
    await kitchen.manager._feeding
    for run in runs:
        steps = [event for event in await kitchen.events(run) if event.HasField("step_completed")]
        assert [(point.step, point.value) for point in (await stored_losses(kitchen, run)).points] == [
            (event.step, event.step_completed.metrics["train/loss"]) for event in steps
        ]
    assert not await kitchen.store.runs_to_feed()


async def test_rows_of_an_adapter_that_was_started_anew_are_opened_again(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await kitchen.run(**small)
    datasets = kitchen.servicers["dataset"]
    original, forgotten = datasets.ReadRows, [True]

    async def read(request: Any, context: Any) -> AsyncIterator[Any]:
        if forgotten:
            forgotten.clear()
            raise NotFoundError("no such handle", reason="DATASET_NOT_FOUND")
        async for each in original(request, context):
            yield each

    monkeypatch.setattr(datasets, "ReadRows", read)
    run = await kitchen.run(**small)
    assert run.attempt == 2
    await assert_as_undisturbed(kitchen, run, undisturbed)


def breaks_once(stream: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """A stream whose connection breaks behind its first message, the first time."""
    broken: list[bool] = []

    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        async for each in stream(request, context):
            yield each
            if not broken:
                broken.append(True)
                raise UnavailableError("Socket closed", reason="UNAVAILABLE")

    return call


async def test_transfers_whose_connection_breaks_are_made_again_as_a_whole(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await kitchen.run(**small)
    blobs, write, left = kitchen.servicers["blob"], kitchen.servicers["blob"].WriteBlob, [True]

    async def write_blob(requests: Any, context: Any) -> Any:
        if left:
            left.clear()
            await anext(requests)
            raise UnavailableError("Socket closed", reason="UNAVAILABLE")
        return await write(requests, context)

    monkeypatch.setattr(blobs, "WriteBlob", write_blob)
    monkeypatch.setattr(blobs, "ReadBlob", breaks_once(blobs.ReadBlob))
    monkeypatch.setattr(kitchen.servicers["dataset"], "ReadRows", breaks_once(kitchen.servicers["dataset"].ReadRows))
    reading = breaks_once(kitchen.training.ReadCheckpointFile)
    monkeypatch.setattr(kitchen.training, "ReadCheckpointFile", reading)
    goes_away(kitchen, "training", at_step=5)
    paused = await kitchen.run(**small, save_every=2)
    kitchen.away.clear()
    run = await kitchen.stopped(paused)
    await assert_as_undisturbed(kitchen, run, undisturbed)
    assert run.attempt == 2, "only the absence of the training adapter costs an attempt"
