"""A caller that hangs up while its change of a run is under way."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_kit.errors import FailedPreconditionError
from tests.workflow.kitchen import Kitchen


async def test_a_refusal_that_nobody_waits_for_is_not_reported_as_unasked(kitchen: Kitchen) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    request = run_pb2.CreateRunRequest(recipe="sl_basic", preset="tiny", hold=True)
    run = await kitchen.manager.create(request)
    assert run.state == event_pb2.RUN_STATE_CREATED
    resume = run_pb2.ResumeRunRequest(run_id=run.run_id)
    with pytest.raises(FailedPreconditionError):
        await kitchen.manager.resume(run.run_id, resume)
    caller = asyncio.create_task(kitchen.manager.resume(run.run_id, resume))
    await asyncio.sleep(0)  # it has begun
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    del caller
    # Changes of one run come one at a time: when this one has ended, that one has.
    with pytest.raises(FailedPreconditionError):
        await kitchen.manager.resume(run.run_id, resume)
    gc.collect()
    assert reported == []
