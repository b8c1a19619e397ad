"""A step's event is written while the next step is computed, and loses nothing by that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_kit.errors import UnavailableError
from crucible_kitchen.store import RunRecord
from tests.workflow.kitchen import Kitchen, payloads

COMPLETED = event_pb2.RUN_STATE_COMPLETED


class HeldSteps:
    """Holds back the commits of steps' events until they are let go."""

    def __init__(self, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self.first = asyncio.Event()
        self.go_on = asyncio.Event()
        self.error: Exception | None = None
        self._append = kitchen.store.append
        monkeypatch.setattr(kitchen.store, "append", self.append)

    async def append(self, run_id: str, events: Any, **parts: Any) -> RunRecord:
        step = next((event.step for event in events if event.HasField("step_completed")), None)
        if step is not None:
            self.asked.append(step)
            self.first.set()
            await self.go_on.wait()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
        return await self._append(run_id, events, **parts)


async def test_the_engine_is_one_step_ahead_of_the_disk_and_no_more(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    second_step, steps = asyncio.Event(), []

    def note(step: int) -> None:
        steps.append(step)
        if step == 2:
            second_step.set()

    kitchen.training.before_step = note
    held = HeldSteps(kitchen, monkeypatch)
    run = await kitchen.create(**small)
    async with asyncio.timeout(30):
        await second_step.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    # The second step is done, and its event waits for the first one's.
    assert (held.asked, steps) == ([1], [1, 2])
    assert not payloads(await kitchen.events(run), "step_completed")
    held.go_on.set()
    ended = await kitchen.stopped(run)
    assert ended.state == COMPLETED
    events = await kitchen.events(run)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.step for event in events if event.HasField("step_completed")] == [1, 2, 3, 4, 5, 6]


async def test_a_pause_and_an_end_wait_for_the_last_steps_event(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldSteps(kitchen, monkeypatch)
    run = await kitchen.create(**small)
    await held.first.wait()
    await kitchen.manager.pause(run.run_id)
    held.go_on.set()
    paused = await kitchen.stopped(run)
    assert paused.state == event_pb2.RUN_STATE_PAUSED
    assert paused.summary is not None
    steps = [event.step for event in await kitchen.events(run) if event.HasField("step_completed")]
    assert steps == list(range(1, paused.step + 1))
    assert paused.summary.steps == paused.step == (paused.latest_checkpoint and paused.latest_checkpoint.step)


async def test_an_event_that_is_refused_fails_the_run(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldSteps(kitchen, monkeypatch)
    held.error = UnavailableError("run store: closed", reason="STORE_CLOSED")
    held.go_on.set()
    ended = await kitchen.run(**small)
    # The attempt was lost with its event; the next one did it again.
    assert (ended.state, ended.attempt) == (COMPLETED, 2)
    steps = [(event.attempt, event.step) for event in await kitchen.events(ended) if event.HasField("step_completed")]
    assert steps == [(2, step) for step in range(1, 7)]


async def test_all_metrics_of_all_attempts_reach_the_metrics_store_in_few_batches(
    kitchen: Kitchen, small: dict[str, Any]
) -> None:
    record, batches = kitchen.servicers["metrics"].RecordMetrics, []

    async def seen(request: metrics_pb2.RecordMetricsRequest, context: Any) -> Any:
        batches.append(request)
        return await record(request, context)

    kitchen.servicers["metrics"].RecordMetrics = seen
    failed = []

    def fail_once(step: int) -> None:
        if step == 4 and not failed:
            failed.append(step)
            raise UnavailableError("gone", reason="ENGINE_GONE")

    kitchen.training.before_step = fail_once
    ended = await kitchen.run(**small, save_every=2)
    assert (ended.state, ended.attempt) == (COMPLETED, 2)
    await kitchen.manager.drain(10)
    expected = {
        (event.step, name): value
        for event in await kitchen.events(ended)
        if event.HasField("step_completed")
        for name, value in event.step_completed.metrics.items()
    }
    stored = {}
    for name in {name for _, name in expected}:
        request = metrics_pb2.QueryMetricsRequest(run_id=ended.run_id, name=name, page_size=500)
        answer = await kitchen.servicers["metrics"].QueryMetrics(request, None)
        stored |= {(point.step, name): point.value for point in answer.points}
    assert stored == expected
    assert [each.batch_key for each in batches] == sorted({each.batch_key for each in batches})
    assert len(batches) < len({event for event, _ in expected})
