"""A full queue, filled and emptied by many callers at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import ResourceExhaustedError
from crucible_kitchen.store.records import RunRecord
from tests.contract.tokenizer_folders import make_folder
from tests.workflow.kitchen import Kitchen, kitchen_on, payloads, write_rows

QUEUED = 1000
_STATES = (
    *(event_pb2.RUN_STATE_CREATED, event_pb2.RUN_STATE_QUEUED),
    *(event_pb2.RUN_STATE_CANCELLING, event_pb2.RUN_STATE_CANCELLED),
)


def hold_first_step(kitchen: Kitchen) -> asyncio.Event:
    """Keeps the run at work where it is until the event is set."""
    go_on, step = asyncio.Event(), kitchen.training.OptimStep

    async def held(request: Any, context: Any) -> Any:
        await go_on.wait()
        return await step(request, context)

    kitchen.training.OptimStep = held  # type: ignore[method-assign]
    return go_on


async def test_a_thousand_runs_wait_in_order_and_one_more_is_refused(tmp_path: Path) -> None:
    model, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", 4)
    config = {"model": str(model), "dataset": str(rows), "batch_size": 4, "max_length": 64, "lora_rank": 8}
    async with kitchen_on(tmp_path / "data") as kitchen:
        go_on = hold_first_step(kitchen)
        running = await kitchen.create(**config)
        outcomes = await asyncio.gather(*(kitchen.create(**config) for _ in range(QUEUED + 5)), return_exceptions=True)
        queued = [each for each in outcomes if isinstance(each, RunRecord)]
        refused = [each for each in outcomes if not isinstance(each, RunRecord)]
        assert len(queued) == QUEUED
        assert {type(each) for each in refused} == {ResourceExhaustedError}
        assert {each.reason for each in refused if isinstance(each, ResourceExhaustedError)} == {"QUEUE_FULL"}
        with pytest.raises(ResourceExhaustedError):
            await kitchen.create(**config)

        # All but the first three and the last three to come are cancelled, many at a time.
        waiting = sorted(queued, key=lambda run: run.queue_order)
        kept = waiting[:3] + waiting[-3:]
        await asyncio.gather(*(kitchen.manager.cancel(run.run_id, "enough") for run in waiting[3:-3]))
        for run in waiting[3:-3:100]:
            changes = payloads(await kitchen.events(run), "state_changed")
            assert tuple(each.to_state for each in changes) == _STATES
        go_on.set()
        ends = [await kitchen.stopped(run) for run in [running, *kept]]
        assert {run.state for run in ends} == {event_pb2.RUN_STATE_COMPLETED}
        starts = [run.start_time for run in ends]
        assert starts == sorted(starts)  # type: ignore[type-var]
