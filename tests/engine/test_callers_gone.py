"""What fails after its caller has hung up fails quietly: asyncio would log it as an exception that nobody asked for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.port.training.v1 import training_pb2
from crucible_adapters.sessions import SessionRecord, SessionTable
from crucible_adapters.torch_engine.shared_models import SharedModels


@pytest.fixture
async def unasked() -> list[dict[str, Any]]:
    """What asyncio reports to its loop's handler."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    return reported


async def create_session(made: Callable[..., Awaitable[Any]]) -> None:
    table = SessionTable[SessionRecord](limits={"full": 1}, lease_seconds=60)
    request = training_pb2.CreateTrainingSessionRequest(request_id="a")
    await table.create("a", request, made, kind="full")


async def acquire_model(made: Callable[..., Awaitable[Any]]) -> None:
    await SharedModels(made).acquire(Path("/nowhere"), "float32")


@pytest.mark.parametrize("call", [create_session, acquire_model])
async def test_a_failure_that_nobody_waits_for(call: Any, unasked: list[dict[str, Any]]) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fail(*_: object) -> Any:
        begun.set()
        await go_on.wait()
        raise OSError("the disk is gone")

    caller = asyncio.create_task(call(fail))
    await begun.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    go_on.set()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    del caller, others
    gc.collect()
    assert unasked == []
