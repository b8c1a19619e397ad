"""Cancellations and pauses around the moment in which the model is registered, and a server that dies in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_kitchen.runs.executor import RunExecutor
from tests.workflow.kitchen import Kitchen, kitchen_on

COMPLETED = event_pb2.RUN_STATE_COMPLETED


@pytest.mark.parametrize("asked", ["cancel", "pause"])
async def test_once_the_model_is_registered_the_run_completes(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    registry = kitchen.servicers["registry"]
    original = registry.RegisterVersion
    created = await kitchen.create(**small, max_steps=1)

    async def register(request: Any, context: Any) -> Any:
        answer = await original(request, context)
        if asked == "cancel":
            await kitchen.manager.cancel(created.run_id, "too late")
        else:
            await kitchen.manager.pause(created.run_id)
        return answer

    monkeypatch.setattr(registry, "RegisterVersion", register)
    run = await kitchen.stopped(created)
    assert run.state == COMPLETED
    versions = (await registry.ListVersions(registry_pb2.ListVersionsRequest(), None)).versions
    assert [each.version_id for each in versions] == [run.model_version_id]
    assert not run.pause_requested


async def test_a_cancellation_before_that_registers_nothing(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    created = await kitchen.create(**small, max_steps=1)
    original = kitchen.training.SaveCheckpoint

    async def save(request: Any, context: Any) -> Any:
        await kitchen.manager.cancel(created.run_id, "in time")
        return await original(request, context)

    monkeypatch.setattr(kitchen.training, "SaveCheckpoint", save)
    run = await kitchen.stopped(created)
    assert (run.state, run.model_version_id) == (event_pb2.RUN_STATE_CANCELLED, "")
    registry = kitchen.servicers["registry"]
    assert not (await registry.ListVersions(registry_pb2.ListVersionsRequest(), None)).versions
    assert run.summary is not None and run.summary.steps == 1


async def test_a_server_that_died_while_cancelling_tells_what_the_run_came_to(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("the server died before it wrote the end")

    async with kitchen_on(tmp_path / "data") as first:
        created = await first.create(**small)

        def cancel(step: int) -> None:
            if step == 3:
                first.manager._executors[created.run_id].control.cancel = True

        first.training.before_step = cancel
        with monkeypatch.context() as patched:
            patched.setattr(RunExecutor, "_end", die)
            while first.manager._tasks:
                await next(iter(first.manager._tasks))
        await first.store.append(created.run_id, [], changes={"state": event_pb2.RUN_STATE_CANCELLING})
    async with kitchen_on(tmp_path / "data") as second:
        await second.manager.start(recover=True)
        run = await second.store.get_run(created.run_id)
        assert run.state == event_pb2.RUN_STATE_CANCELLED
        assert run.summary is not None and run.summary.steps == 3
        kinds = [event.WhichOneof("payload") for event in (await second.events(run))[-2:]]
        assert kinds == ["summarized", "state_changed"]
