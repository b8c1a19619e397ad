"""Logs as long as wanted without the training that would write them: put into a server's store before it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from crucible.kitchen.v1 import event_pb2
from crucible_kitchen.recipes import RECIPES
from crucible_kitchen.recipes.recipe import find_recipe
from crucible_kitchen.server import STORE_FILE
from crucible_kitchen.store.records import RunRecord
from crucible_kitchen.store.store import Store

_BATCH = 500
_LINE_BYTES = 600
# What a step of sl_basic records.
_METRICS = (
    *("train/loss", "train/mean_nll", "train/tokens", "train/input_tokens", "train/tokens_per_second", "train/epoch"),
    *("optim/lr", "optim/grad_norm", "optim/update_norm", "progress/step", "progress/fraction"),
    *("time/step", "time/get_batch", "time/forward_backward", "time/optim_step", "time/log_metrics"),
)


def step_events(count: int, first: int = 1) -> Iterator[event_pb2.RunEvent]:
    """Events of steps, as large as a run's."""
    for step in range(first, first + count):
        metrics = {name: (step * 0.618 + index) % 10 for index, name in enumerate(_METRICS)}
        done = event_pb2.StepCompleted(metrics=metrics, fraction=0.5)
        yield event_pb2.RunEvent(stage_path="epochs/steps/log_metrics", step=step, step_completed=done)


def log_events(count: int) -> Iterator[event_pb2.RunEvent]:
    """Lines for people, as large as a step's event."""
    for number in range(count):
        line = event_pb2.LogRecorded(message=f"line {number} ".ljust(_LINE_BYTES, "."))
        yield event_pb2.RunEvent(stage_path="epochs/steps/log_metrics", log_recorded=line)


async def fill(data: Path, run_id: str, count: int, *, state: event_pb2.RunState) -> None:
    """Makes a run whose log has `count` events, the first and the last of them changes of its state."""
    await asyncio.to_thread(data.mkdir, mode=0o700, parents=True, exist_ok=True)
    store = await Store.open(data / STORE_FILE)
    try:
        record = RunRecord(
            run_id=run_id,
            recipe="sl_basic",
            workflow="supervised",
            dataset="builtin:word-problems",
            config=find_recipe("sl_basic", RECIPES).configure("tiny", {}),
            preset="tiny",
            config_sha256="0" * 64,
            seed=0,
            create_time=datetime.now(UTC),
        )
        await store.create_run(record, [_changed(event_pb2.RUN_STATE_CREATED)])
        await _append(store, run_id, step_events(count - 2))
        await store.append(run_id, [_changed(state)], changes={"state": state})
    finally:
        await store.close()


async def extend(data: Path, run_id: str, count: int) -> None:
    """Lengthens the log of a run that is there to `count` events."""
    store = await Store.open(data / STORE_FILE)
    try:
        there = (await store.get_run(run_id)).last_sequence
        await _append(store, run_id, log_events(count - there))
    finally:
        await store.close()


async def _append(store: Store, run_id: str, events: Iterator[event_pb2.RunEvent]) -> None:
    while batch := list(islice(events, _BATCH)):
        await store.append(run_id, batch)


def _changed(state: event_pb2.RunState) -> event_pb2.RunEvent:
    return event_pb2.RunEvent(state_changed=event_pb2.RunStateChanged(to_state=state))
