"""A server's gRPC side over a real store, with the parts behind it replaced by the least that answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from crucible.kitchen.v1 import adapter_admin_pb2, catalog_pb2, event_pb2, run_pb2
from crucible.kitchen.v1.event_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_COMPLETED,
    RUN_STATE_CREATED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    LogRecorded,
    RunEvent,
    RunStateChanged,
)
from crucible.kitchen.v1.run_pb2_grpc import RunServiceStub
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.errors import FailedPreconditionError, NotFoundError
from crucible_kitchen.api.access import Tokens
from crucible_kitchen.api.endpoint import Endpoint
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.mapping import PortMapping
from crucible_kitchen.relay.relay import Relay
from crucible_kitchen.store import CheckpointRecord, RequestKey, RunRecord, Store

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def record(run_id: str = "run-1", **fields: Any) -> RunRecord:
    given: dict[str, Any] = {
        "recipe": "sl_basic",
        "workflow": "supervised",
        "dataset": "builtin:words",
        "config": {"learning_rate": 0.5, "steps": 3},
        "config_sha256": "c" * 64,
        "seed": 7,
        "create_time": START,
    }
    return RunRecord(run_id=run_id, **{**given, **fields})


def log_event(message: str = "hello", **fields: Any) -> RunEvent:
    return RunEvent(log_recorded=LogRecorded(message=message), **fields)


def state_event(to: event_pb2.RunState) -> RunEvent:
    return RunEvent(state_changed=RunStateChanged(to_state=to))


def checkpoint(step: int, **fields: Any) -> CheckpointRecord:
    given: dict[str, Any] = {
        "uri": f"file:///checkpoints/step-{step}",
        "attempt": 1,
        "manifest_sha256": f"{step:064x}",
        "size_bytes": 1000 + step,
        "final": False,
        "position": {"path": ["epochs", 0, "steps", step], "values": {"fingerprint": "f", "planned": 9}},
        "files": [{"path": "model.safetensors", "size_bytes": 1000, "sha256": "a" * 64}],
        "key_prefix": f"runs/run-1/attempt-1/step-{step}",
    }
    return CheckpointRecord(step=step, **{**given, **fields})


def checkpoint_event(saved: CheckpointRecord) -> RunEvent:
    message = event_pb2.Checkpoint(uri=saved.uri, step=saved.step, manifest_sha256=saved.manifest_sha256)
    return RunEvent(checkpoint_saved=event_pb2.CheckpointSaved(checkpoint=message))


def deleted_event(saved: CheckpointRecord) -> RunEvent:
    message = event_pb2.Checkpoint(uri=saved.uri, step=saved.step)
    return RunEvent(checkpoint_deleted=event_pb2.CheckpointDeleted(checkpoint=message))


def damaged_event(saved: CheckpointRecord) -> RunEvent:
    message = event_pb2.Checkpoint(uri=saved.uri, step=saved.step)
    return RunEvent(checkpoint_damaged=event_pb2.CheckpointDamaged(checkpoint=message))


class FakeRuns:
    """Changes states and runs nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, request: run_pb2.CreateRunRequest) -> RunRecord:
        key = RequestKey.of("CreateRun", request.request_id, request.SerializeToString(deterministic=True))
        new = record(
            request.run_id or "run-given",
            recipe=request.recipe,
            labels=dict(request.labels),
            create_time=datetime.now(UTC),
        )
        return (await self._store.create_run(new, [state_event(RUN_STATE_CREATED)], request=key))[0]

    async def begin(self, run_id: str, request: run_pb2.StartRunRequest) -> RunRecord:
        key = RequestKey.of("StartRun", request.request_id, request.SerializeToString(deterministic=True))
        return await self._change(run_id, RUN_STATE_QUEUED, [RUN_STATE_CREATED], key)

    async def pause(self, run_id: str) -> RunRecord:
        return await self._change(run_id, RUN_STATE_PAUSED, [RUN_STATE_QUEUED, RUN_STATE_RUNNING])

    async def resume(self, run_id: str, request: run_pb2.ResumeRunRequest) -> RunRecord:
        expect = [RUN_STATE_PAUSED, RUN_STATE_FAILED, RUN_STATE_CANCELLED]
        return await self._change(run_id, RUN_STATE_QUEUED, expect)

    async def cancel(self, run_id: str, reason: str) -> RunRecord:
        return await self._change(run_id, RUN_STATE_CANCELLED)

    async def _change(
        self, run_id: str, state: event_pb2.RunState, expect: Any = None, key: RequestKey | None = None
    ) -> RunRecord:
        return await self._store.append(
            run_id, [state_event(state)], changes={"state": state}, expect=expect, request=key
        )


class FakeAdapters:
    async def adapters(self) -> list[adapter_admin_pb2.Adapter]:
        return [adapter_admin_pb2.Adapter(port=port) for port in ("tokenizer", "blob")]

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        if port != "blob":
            raise NotFoundError(f"port {port!r} is unknown", reason="PORT_NOT_FOUND")
        return adapter_admin_pb2.Adapter(port=port, state=adapter_admin_pb2.ADAPTER_STATE_READY)

    async def add(self, port: str, mapping: PortMapping, **_: Any) -> adapter_admin_pb2.Adapter:
        return adapter_admin_pb2.Adapter(port=port, target=mapping.adapter)

    async def remove(self, port: str, **_: Any) -> None:
        return None


class FakeHost:
    """Has no adapter."""

    def require(self, port: str) -> None:
        raise FailedPreconditionError(f"port {port!r} has no adapter", reason="PORT_NOT_MAPPED")

    async def stub(self, port: str) -> Any:
        raise NotFoundError(f"port {port!r} has no adapter", reason="PORT_NOT_FOUND")

    def attached(self, port: str) -> None:
        return None

    async def known_capabilities(self, port: str) -> frozenset[str]:
        return frozenset()


class FakeCatalog:
    def recipes(self) -> list[catalog_pb2.Recipe]:
        return [self.recipe("sl_basic"), self.recipe("chat_sl")]

    def recipe(self, name: str) -> catalog_pb2.Recipe:
        if name not in ("sl_basic", "chat_sl"):
            raise NotFoundError(f"recipe {name!r} is unknown", reason="RECIPE_NOT_FOUND")
        found = catalog_pb2.Recipe(name=name)
        found.config_schema["type"] = "object"
        return found

    def workflows(self) -> list[catalog_pb2.Workflow]:
        return [self.workflow("supervised")]

    def workflow(self, name: str) -> catalog_pb2.Workflow:
        return catalog_pb2.Workflow(name=name)

    def stages(self) -> list[catalog_pb2.Stage]:
        return [catalog_pb2.Stage(name="optim_step"), catalog_pb2.Stage(name="forward_backward")]

    def metric_definitions(self) -> list[catalog_pb2.MetricDefinition]:
        return [catalog_pb2.MetricDefinition(name="train/loss", unit="nats")]


@dataclass
class Api:
    """A served store and a client of it."""

    store: Store
    endpoint: Endpoint
    address: str
    channel: RemoteChannel
    runs: RunServiceStub

    async def new_run(self, run_id: str = "run-1", events: int = 0, **fields: Any) -> None:
        """A run whose log has its CREATED event and so many more."""
        await self.store.create_run(record(run_id, **fields), [state_event(RUN_STATE_CREATED)])
        if events:
            await self.store.append(run_id, [log_event(str(index)) for index in range(2, events + 2)])

    async def complete(self, run_id: str = "run-1") -> None:
        await self.store.append(
            run_id, [state_event(RUN_STATE_COMPLETED)], changes={"state": RUN_STATE_COMPLETED, "end_time": START}
        )


@asynccontextmanager
async def serve(
    folder: Path,
    *,
    clock: Callable[[], datetime] | None = None,
    token: str = "",
    relay: Relay | None = None,
    **options: Any,
) -> AsyncIterator[Api]:
    """Serves a store in `folder` on a unix socket; the options are Endpoint's."""
    store = await Store.open(folder / "kitchen.db", **({} if clock is None else {"clock": clock}))
    sockets = tempfile.mkdtemp(prefix="ck-")  # pytest's folders are too long for a socket's path
    endpoint = Endpoint(
        store=store,
        runs=FakeRuns(store),
        adapters=FakeAdapters(),
        catalog=FakeCatalog(),
        relay=relay or Relay(FakeHost(), ServerOptions(data=folder), bytes(32)),
        **options,
    )
    address = endpoint.bind(f"unix:{sockets}/s")
    await endpoint.start()
    channel = connect(address, token=token)
    try:
        yield Api(store, endpoint, address, channel, RunServiceStub(channel))
    finally:
        await channel.close()
        await endpoint.stop(0.2)
        await store.close()
        shutil.rmtree(sockets)


def tokens(**roles: str) -> Tokens:
    """Tokens by role name, through a file as a server reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.write("".join(f"{role}: {token}\n" for role, token in roles.items()))
        file.flush()
        return Tokens.read(Path(file.name))
