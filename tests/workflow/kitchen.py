"""Whole runs in this process: a real store, run manager and light adapters; training and sampling are fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Struct

from crucible.kitchen.v1 import adapter_admin_pb2, event_pb2, run_pb2
from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.hub.local import LocalHub
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import UnavailableError
from crucible_kit.ports import PORTS
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.runs.manager import RunManager
from crucible_kitchen.store import RunRecord, Store
from tests.workflow.fake_training import FakeSampling, FakeTraining
from tests.workflow.port_channel import PortChannel

ADAPTERS: tuple[Any, ...] = (
    LocalBlobStore,
    LocalDatasets,
    LocalHub,
    SqliteMetricsStore,
    SqliteModelRegistry,
    TokenizersFolder,
)
TRAINING = frozenset(
    {
        *("training.lora", "training.lora_modules", "training.full"),
        *("training.local_model", "training.checkpoint_files"),
    }
)
STOPPED = frozenset(
    {
        event_pb2.RUN_STATE_COMPLETED,
        event_pb2.RUN_STATE_FAILED,
        event_pb2.RUN_STATE_CANCELLED,
        event_pb2.RUN_STATE_PAUSED,
    }
)


class Kitchen:
    """Runs on a data folder, and what they do to the fakes.

    Attributes:
        capabilities: of each port; a test may change them.
        servicers: by port; a test may wrap their methods.
        away: ports whose adapter is away: calls fail as those to an address at which nobody listens.
        hosted: ports whose adapter is the host's to start.
        probed: set whenever somebody has asked whether an adapter is there.
    """

    def __init__(self, data: Path, store: Store) -> None:
        self.data = data
        self.store = store
        self.training = FakeTraining()
        self.sampling = FakeSampling()
        context = AdapterContext(data_dir=data)
        made = [adapter(adapter.description.options(), context) for adapter in ADAPTERS]
        self.servicers: dict[str, Any] = {each.description.port: each for each in made}
        self.capabilities = {port: frozenset(each.description.capabilities) for port, each in self.servicers.items()}
        self.servicers |= {"training": self.training, "sampling": self.sampling}
        self.capabilities |= {"training": TRAINING, "sampling": frozenset({"sampling.follow"})}
        channel = ObjectChannel({PORTS[port].service.full_name: each for port, each in self.servicers.items()})
        self.away: set[str] = set()
        self.hosted = {"training", "sampling"}
        self.probed = asyncio.Event()
        channels = {port: PortChannel(_Switched(channel, port, self.away), port) for port in self.servicers}
        self._stubs = {port: PORTS[port].stub(channels[port]) for port in self.servicers}
        self.manager = RunManager(store, _Ports(self), ServerOptions(data=data))

    async def create(self, preset: str = "", seed: int = 0, /, **config: Any) -> RunRecord:
        """Creates a run of sl_basic and queues it."""
        return await self.manager.create(_request(preset, seed, config))

    async def create_held(self, **config: Any) -> RunRecord:
        """Creates a run of sl_basic that `begin` queues."""
        request = _request("", 0, config)
        request.hold = True
        return await self.manager.create(request)

    async def begin(self, run: RunRecord) -> None:
        """Queues a held run."""
        await self.manager.begin(run.run_id, run_pb2.StartRunRequest(run_id=run.run_id))

    async def stopped(self, run: RunRecord) -> RunRecord:
        """The run when it has stopped after its last event in `run`."""
        position = run.last_sequence
        while True:
            await self.store.wait_for_events(run.run_id, position, 30)
            now = await self.store.get_run(run.run_id)
            if now.state in STOPPED and now.last_sequence > run.last_sequence:
                return now
            position = now.last_sequence

    async def run(self, preset: str = "", seed: int = 0, /, **config: Any) -> RunRecord:
        """Creates a run and waits until it has stopped."""
        return await self.stopped(await self.create(preset, seed, **config))

    async def resume(self, run: RunRecord) -> RunRecord:
        """Resumes a run and waits until it has stopped again."""
        return await self.stopped(await self.manager.resume(run.run_id, run_pb2.ResumeRunRequest(run_id=run.run_id)))

    async def events(self, run: RunRecord) -> list[event_pb2.RunEvent]:
        """The run's whole log."""
        return await self.store.read_events(run.run_id, 0, limit=10_000, max_bytes=2**30)

    def folders(self, run: RunRecord) -> list[str]:
        """Checkpoints in the blob store, as <attempt>/<name>, those that have files."""
        root = self.data / "blobs" / "runs" / run.run_id
        files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()] if root.exists() else []
        return sorted({"/".join(path.parts[:2]) for path in files})


def _request(preset: str, seed: int, config: dict[str, Any]) -> run_pb2.CreateRunRequest:
    request = run_pb2.CreateRunRequest(recipe="sl_basic", preset=preset, seed=seed, config=Struct())
    request.config.update(config)
    return request


class _Ports:
    def __init__(self, kitchen: Kitchen) -> None:
        self._kitchen = kitchen
        self._asked: set[str] = set()

    async def stub(self, port: str) -> Any:
        return self._kitchen._stubs[port]

    async def capabilities(self, port: str) -> frozenset[str]:
        return self._kitchen.capabilities[port]

    def is_remote(self, port: str) -> bool:
        return port not in self._kitchen.hosted

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        assert port not in self._asked, "one asks after each port"
        self._asked.add(port)
        await asyncio.sleep(0)
        self._asked.discard(port)
        away = port in self._kitchen.away
        state = adapter_admin_pb2.ADAPTER_STATE_DEGRADED if away else adapter_admin_pb2.ADAPTER_STATE_READY
        self._kitchen.probed.set()
        return adapter_admin_pb2.Adapter(port=port, state=state)


class _Switched:
    """A port's channel, with a switch."""

    def __init__(self, channel: ObjectChannel, port: str, away: set[str]) -> None:
        self._channel = channel
        self._port = port
        self._away = away

    def _check(self) -> None:
        if self._port in self._away:
            raise UnavailableError("nobody has answered", reason="ADAPTER_UNAVAILABLE", retry_delay=1.0)

    def _answering(self, inner: Any) -> Any:
        async def call(request: Any, **options: Any) -> Any:
            self._check()
            return await inner(request, **options)

        return call

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._answering(self._channel.unary_unary(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._answering(self._channel.stream_unary(*args, **kwargs))

    def _streaming(self, inner: Any) -> Any:
        async def call(request: Any, **options: Any) -> AsyncIterator[Any]:
            self._check()
            async for each in inner(request, **options):
                yield each

        return call

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._streaming(self._channel.stream_stream(*args, **kwargs))

    async def close(self) -> None:
        pass


@asynccontextmanager
async def kitchen_on(data: Path) -> AsyncIterator[Kitchen]:
    """A kitchen on a data folder for the length of a block."""
    data.mkdir(exist_ok=True)
    store = await Store.open(data / "kitchen.db")
    kitchen = Kitchen(data, store)
    try:
        yield kitchen
    finally:
        await kitchen.manager.drain(10)
        await store.close()
        for port, each in kitchen.servicers.items():
            if port not in ("training", "sampling"):
                await each.close()


def payloads(events: list[event_pb2.RunEvent], name: str) -> list[Any]:
    """The payloads of one kind, in order."""
    return [getattr(event, name) for event in events if event.WhichOneof("payload") == name]


def write_rows(path: Path, count: int) -> Path:
    """Rows that all differ."""
    rows = [{"question": f"What is {number} + 1?", "answer": f"It is {number + 1}."} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
