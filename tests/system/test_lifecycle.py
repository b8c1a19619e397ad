"""Pausing, cancelling, draining, being killed: the run ends with the bytes of one that was left alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_client import KitchenClient
from tests.system.harness import SMALL, Server, checkpoint_folder, children, serving, tensor_files

LONGER = SMALL | {"max_steps": 12, "save_every": 4}


async def watch_until(kitchen: KitchenClient, run_id: str, enough: Callable[[event_pb2.RunEvent], bool]) -> None:
    """Returns when an event is the one."""
    async for event in kitchen.watch(run_id):
        if enough(event):
            return
    raise AssertionError("the run ended before")


def at_step(step: int) -> Callable[[event_pb2.RunEvent], bool]:
    return lambda event: event.HasField("step_completed") and event.step == step


def final_tensors(events: list[event_pb2.RunEvent]) -> dict[str, bytes]:
    saved = [event.checkpoint_saved.checkpoint for event in events if event.HasField("checkpoint_saved")]
    assert saved[-1].final
    return tensor_files(checkpoint_folder(saved[-1].uri))


def folded_losses(events: list[event_pb2.RunEvent]) -> dict[int, float]:
    """Loss by step, the highest attempt of each counting."""
    best: dict[int, tuple[int, float]] = {}
    for event in events:
        if event.HasField("step_completed") and event.attempt >= best.get(event.step, (0, 0.0))[0]:
            best[event.step] = (event.attempt, event.step_completed.metrics["train/loss"])
    return {step: loss for step, (_, loss) in best.items()}


@pytest.fixture(scope="session")
def undisturbed(server: Server, rows: Path) -> tuple[dict[int, float], dict[str, bytes]]:
    async def run() -> list[event_pb2.RunEvent]:
        async with KitchenClient.connect(server.address) as kitchen:
            run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows)}, seed=1)
            return [event async for event in kitchen.watch(run.run_id)]

    events = asyncio.run(run())
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED
    return folded_losses(events), final_tensors(events)


def assert_same_outcome(
    events: list[event_pb2.RunEvent], undisturbed: tuple[dict[int, float], dict[str, bytes]]
) -> None:
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED, events[-1]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert folded_losses(events) == undisturbed[0]
    tensors = final_tensors(events)
    assert tensors.keys() == undisturbed[1].keys()
    assert all(tensors[name] == undisturbed[1][name] for name in tensors)


async def test_paused_and_resumed_equals_undisturbed(kitchen: KitchenClient, rows: Path, undisturbed):
    run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows)}, seed=1)
    await watch_until(kitchen, run.run_id, at_step(2))
    asked = await kitchen.pause_run(run.run_id)
    assert asked.pause_requested or asked.state == event_pb2.RUN_STATE_PAUSED
    paused = await kitchen.wait(run.run_id)
    assert paused.state == event_pb2.RUN_STATE_PAUSED
    assert paused.latest_checkpoint.step == paused.step < 12
    await kitchen.resume_run(run.run_id)
    events = [event async for event in kitchen.watch(run.run_id)]
    assert_same_outcome(events, undisturbed)
    assert (await kitchen.get_run(run.run_id)).attempt == 2


async def test_killed_and_restarted_equals_undisturbed(tmp_path: Path, rows: Path, undisturbed):
    with serving(tmp_path / "data") as server:
        async with KitchenClient.connect(server.address) as kitchen:
            run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows)}, seed=1)
            await watch_until(kitchen, run.run_id, at_step(6))
        server.kill()
        server.start()
        async with KitchenClient.connect(server.address) as kitchen:
            # Nobody asks for it: the server goes on by itself.
            events = [event async for event in kitchen.watch(run.run_id)]
    assert_same_outcome(events, undisturbed)
    started = [event.attempt_started for event in events if event.HasField("attempt_started")]
    assert [each.attempt for each in started] == [1, 2]
    assert started[1].from_checkpoint.step == 4
    redone = [event for event in events if event.HasField("step_completed") and event.step == 5]
    assert [event.attempt for event in redone] == [1, 2]
    first, last = started[1].superseded_first_sequence, started[1].superseded_last_sequence
    assert first <= redone[0].sequence <= last < redone[1].sequence


async def test_a_killed_engine_costs_an_attempt_and_nothing_else(tmp_path: Path, rows: Path, undisturbed):
    with serving(tmp_path / "data") as server:
        async with KitchenClient.connect(server.address) as kitchen:
            run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows)}, seed=1)
            await watch_until(kitchen, run.run_id, at_step(6))
            for pid in children(server.process.pid):
                os.kill(pid, signal.SIGKILL)
            events = [event async for event in kitchen.watch(run.run_id)]
    assert_same_outcome(events, undisturbed)
    started = [event.attempt_started for event in events if event.HasField("attempt_started")]
    assert [each.attempt for each in started] == [1, 2]
    assert started[1].from_checkpoint.step == 4


async def test_drained_by_sigterm_goes_on_where_it_stood(tmp_path: Path, rows: Path, undisturbed):
    with serving(tmp_path / "data") as server:
        async with KitchenClient.connect(server.address) as kitchen:
            run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows)}, seed=1)
            await watch_until(kitchen, run.run_id, at_step(2))
        assert server.terminate() == 0
        server.start()
        async with KitchenClient.connect(server.address) as kitchen:
            events = [event async for event in kitchen.watch(run.run_id)]
    assert_same_outcome(events, undisturbed)
    # It saved before it ended, so no step was done twice.
    steps = [event.step for event in events if event.HasField("step_completed")]
    assert steps == list(range(1, 13))


async def test_cancelled_rolls_back_registers_nothing_and_keeps_checkpoints(kitchen: KitchenClient, rows: Path):
    run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(rows), "max_steps": 500})
    await watch_until(kitchen, run.run_id, lambda event: event.HasField("checkpoint_saved"))
    asked = await kitchen.cancel_run(run.run_id, reason="changed my mind")
    assert asked.state == event_pb2.RUN_STATE_CANCELLING
    events = [event async for event in kitchen.watch(run.run_id)]
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_CANCELLED
    assert events[-1].state_changed.reason == "changed my mind"
    ended = await kitchen.get_run(run.run_id)
    assert not ended.model_version_id
    assert tensor_files(checkpoint_folder(ended.latest_checkpoint.uri))
    assert any(event.HasField("stage_rolled_back") for event in events)
    # Asking again changes nothing.
    assert (await kitchen.cancel_run(run.run_id)).last_sequence == ended.last_sequence


async def test_a_dataset_that_changed_is_not_trained_on(kitchen: KitchenClient, rows: Path, tmp_path: Path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(rows.read_text())
    run = await kitchen.create_run("sl_basic", preset="tiny", config=LONGER | {"dataset": str(mine)})
    await watch_until(kitchen, run.run_id, at_step(1))
    await kitchen.pause_run(run.run_id)
    assert (await kitchen.wait(run.run_id)).state == event_pb2.RUN_STATE_PAUSED
    mine.write_text(rows.read_text().replace("#### ", "#### 1"))
    await kitchen.resume_run(run.run_id)
    ended = await kitchen.wait(run.run_id)
    assert ended.state == event_pb2.RUN_STATE_FAILED
    assert ended.failure.reason == "RESUME_MISMATCH"
    assert "dataset_fingerprint" in ended.failure.status.message


async def test_a_start_from_nothing_must_find_the_plan_it_had(kitchen: KitchenClient, rows: Path, tmp_path: Path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(rows.read_text())
    config = LONGER | {"dataset": str(mine), "save_every": 0, "max_steps": 500}
    run = await kitchen.create_run("sl_basic", preset="tiny", config=config)
    await watch_until(kitchen, run.run_id, at_step(1))
    await kitchen.cancel_run(run.run_id)
    assert not (await kitchen.wait(run.run_id)).HasField("latest_checkpoint")
    mine.write_text("".join(line + "\n" for line in rows.read_text().splitlines()[:-1]))
    await kitchen.resume_run(run.run_id)
    ended = await kitchen.wait(run.run_id)
    assert (ended.state, ended.attempt) == (event_pb2.RUN_STATE_FAILED, 2)
    assert ended.failure.reason == "RESUME_MISMATCH"


async def test_runs_wait_for_their_turn_in_order(kitchen: KitchenClient, rows: Path):
    config = SMALL | {"dataset": str(rows), "max_steps": 2, "warmup_steps": 0}
    runs = [await kitchen.create_run("sl_basic", preset="tiny", config=config, seed=seed) for seed in range(3)]
    ends = [await kitchen.wait(run.run_id) for run in runs]
    assert {run.state for run in ends} == {event_pb2.RUN_STATE_COMPLETED}
    for earlier, later in pairwise(ends):
        assert earlier.end_time.ToNanoseconds() <= later.start_time.ToNanoseconds()


async def test_a_repeated_start_runs_the_run_once(kitchen: KitchenClient, rows: Path):
    config = SMALL | {"dataset": str(rows), "max_steps": 2, "warmup_steps": 0}
    run = await kitchen.create_run("sl_basic", preset="tiny", config=config, hold=True)
    request_id = "2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11"
    await asyncio.gather(*(kitchen.start_run(run.run_id, request_id=request_id) for _ in range(3)))
    assert (await kitchen.wait(run.run_id)).state == event_pb2.RUN_STATE_COMPLETED
    # A run behind it in the queue: had the first been queued again, it would have run by now.
    behind = await kitchen.create_run("sl_basic", preset="tiny", config=config)
    await kitchen.wait(behind.run_id)
    ended = await kitchen.get_run(run.run_id)
    assert (ended.state, ended.attempt) == (event_pb2.RUN_STATE_COMPLETED, 1)
