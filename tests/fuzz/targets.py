"""Processes to play against: a whole server, an engine by itself, and the light adapters by themselves.

Each knows what a friendly client does with it, before the calls and after them: the answers must be the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psutil
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc, gateway_pb2
from crucible.kitchen.v1 import adapter_admin_pb2, catalog_pb2, event_pb2, run_pb2
from crucible_adapters.builtin.weights import materialise
from crucible_client import KitchenClient
from crucible_kit.channel import Channel, connect
from crucible_kit.ports import PORTS
from tests.fuzz.calls import Method, methods_of
from tests.fuzz.friendly import ROWS, Sessions, refresh_stores, use_stores
from tests.fuzz.world import World, odd_files
from tests.system.harness import SMALL, Server

_START_SECONDS = 120.0
# Calls that answer whatever one sends say least; those that start processes cost most.
_WEIGHTS = {
    "ListRecipes": 1,
    "ListWorkflows": 1,
    "ListStages": 1,
    "ListMetricDefinitions": 1,
    "ListAdapters": 1,
    "CloseTrainingSession": 1,
    "CloseSamplingSession": 1,
    "CloseDataset": 1,
    "DeleteCheckpoint": 2,
    "WaitRun": 2,
    "WatchRun": 2,
    "Watch": 1,
    "CreateTrainingSession": 3,
    "ForwardBackward": 5,
    "CreateRun": 8,
    "WriteBlob": 6,
    "UploadFile": 6,
    "UploadCheckpoint": 6,
    "ReadRows": 6,
    "OpenDataset": 6,
    "ApplyChatTemplate": 6,
}
# They take the adapters away that the rest is played against, and start whatever program they are told to.
_NOT_PLAYED = frozenset({"AddAdapter", "RemoveAdapter"})
_EXTRA = (
    *health_pb2.DESCRIPTOR.services_by_name.values(),
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
    *channelz_pb2.DESCRIPTOR.services_by_name.values(),
)


class Target(ABC):
    """One thing to play against.

    Attributes:
        name: for reports.
        methods: what it serves.
        world: what requests may refer to.
        address: where it listens.
        watched: folders whose files tell of side effects.
        needed: pools of the world that must not stay empty.
        log: its log.
    """

    name: str
    methods: tuple[Method, ...]
    address: str
    log: Path
    needed: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World()
        self.watched: list[Path] = []
        self._channel: Channel | None = None

    async def start(self) -> None:
        """Starts the process and opens what requests refer to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self.folder / "files"
        self.world.statics |= odd_files(files, ROWS)
        self.watched.append(files)
        await self._start()
        self._channel = connect(self.address)
        await self.refresh()

    async def stop(self) -> None:
        """Ends it all."""
        if self._channel is not None:
            await self._channel.close()
        await asyncio.to_thread(self._stop)

    def stub(self, port: str) -> Any:
        """A port's stub on the target's address."""
        return PORTS[port].stub(self._channel)

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    def _stop(self) -> None: ...

    @abstractmethod
    def pid(self) -> int:
        """Its main process."""

    @abstractmethod
    async def refresh(self) -> None:
        """Opens anew what calls have closed, and closes what they have left behind."""

    async def quiet(self) -> None:
        """Ends what calls have set going."""
        return

    @abstractmethod
    async def use(self) -> Any:
        """What a friendly client gets from it: the same each time."""

    async def calls_in_flight(self) -> int:
        """Calls that its process has begun and not ended; 0 where it does not tell."""
        return 0

    def processes(self) -> list[psutil.Process]:
        """Its processes that last: the main one and the engine."""
        main = psutil.Process(self.pid())
        return [main, *(each for each in main.children(recursive=True) if "torch_engine" in " ".join(_command(each)))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _child_environment() -> dict[str, str]:
    paths = [path for path in sys.path if path]
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **nobody, "PYTHONPATH": os.pathsep.join(paths)}


class ServerTarget(Target):
    """`kitchen serve` with everything behind it."""

    name = "server"
    needed = ("training_session", "sampling_session", "checkpoint", "dataset", "run")

    def __init__(self, folder: Path, *, profile: str = "local") -> None:
        super().__init__(folder)
        kitchen = [
            service
            for file in (run_pb2, catalog_pb2, adapter_admin_pb2, gateway_pb2)
            for service in file.DESCRIPTOR.services_by_name.values()
        ]
        services: list[Any] = [*kitchen, *(port.service for port in PORTS.values()), *_EXTRA]
        self.methods = tuple(each for each in methods_of(services, _WEIGHTS) if each.name not in _NOT_PLAYED)
        self._profile = profile
        self._sessions = Sessions(self, "builtin:tiny-qwen3")
        self.data = folder / "data"
        self.log = folder / "data.log"

    async def _start(self) -> None:
        manifest = self.folder / "manifest.yaml"
        manifest.write_text(f"profile: {self._profile}\n")
        arguments = ("--manifest", str(manifest), "--max-client-training-sessions", "32")
        self._server = await asyncio.to_thread(Server, self.data, *arguments, environment=_child_environment())
        self.address = self._server.address
        self.watched.append(self.data)
        names = {"model": "builtin:tiny-qwen3", "tokenizer": "builtin:tiny-qwen3", "uploads": "fuzz/repo"}
        self.world.statics |= {kind: [name.encode()] for kind, name in names.items()}

    def _stop(self) -> None:
        self._server.terminate()

    def pid(self) -> int:
        return self._server.process.pid

    async def refresh(self) -> None:
        await self._sessions.refresh()
        await refresh_stores(self)
        async with KitchenClient.connect(self.address) as kitchen:
            if not self.world.pools["run"]:
                run = await kitchen.create_run("sl_basic", preset="tiny", hold=True)
                self.world.add("run", run.run_id)

    async def quiet(self) -> None:
        """Cancels the runs that calls have started, so that they end."""
        async with KitchenClient.connect(self.address) as kitchen:
            active = (event_pb2.RUN_STATE_QUEUED, event_pb2.RUN_STATE_RUNNING, event_pb2.RUN_STATE_CANCELLING)
            runs = (await kitchen.list_runs(states=active, page_size=500)).runs
            for run in runs:
                await kitchen.cancel_run(run.run_id)
            for run in runs:
                await kitchen.wait(run.run_id)

    async def use(self) -> Any:
        """Losses of a hosted run, and what the ports answer."""
        await self.quiet()
        rows = str(self.folder / "files" / "rows.jsonl")
        async with KitchenClient.connect(self.address) as kitchen:
            run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": rows})
            ended = await kitchen.wait(run.run_id)
            assert ended.state == event_pb2.RUN_STATE_COMPLETED, ended
            self.world.add("finished_run", run.run_id)
            self.world.add("version", ended.model_version_id)
            losses = [
                (name, value)
                for event in [event async for event in kitchen.watch(run.run_id)]
                if event.HasField("step_completed")
                for name, value in sorted(event.step_completed.metrics.items())
                if name in ("train/loss", "train/mean_nll", "optim/grad_norm")
            ]
        return [losses, await self._sessions.use(), await use_stores(self)]

    async def calls_in_flight(self) -> int:
        stub = channelz_pb2_grpc.ChannelzStub(self._channel)  # type: ignore[arg-type]
        servers = (await stub.GetServers(channelz_pb2.GetServersRequest())).server
        return sum(each.data.calls_started - each.data.calls_succeeded - each.data.calls_failed for each in servers) - 1


class AdaptersTarget(Target):
    """The light adapters, and the fakes of ports without any, behind the kit's server without the runtime in front."""

    name = "adapters"
    needed = ("dataset", "blob")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        light = (
            *("blob", "dataset", "hub", "metrics", "registry", "tokenizer"),
            *("deployment", "embedding", "environment", "evaluator", "feedback"),
            *("llm", "python_bridge", "reward", "vector"),
        )
        adapter = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"]
        self.methods = methods_of([*(PORTS[port].service for port in light), adapter], _WEIGHTS)
        self.data = folder / "data"
        self.log = folder / "data.log"

    async def _start(self) -> None:
        self.data.mkdir()
        command = [sys.executable, "-m", "tests.fuzz.adapter_host", str(self.data)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log.open("w"), env=_child_environment(), text=True
        )
        assert self._process.stdout is not None
        self.address = json.loads(await asyncio.to_thread(self._process.stdout.readline))["address"]
        self.watched.append(self.data)
        model = self.folder / "model"
        materialise("tiny-qwen3", model)
        statics = {"model": str(model), "tokenizer": str(model), "uploads": "fuzz/repo"}
        self.world.statics |= {kind: [name.encode()] for kind, name in statics.items()}

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def pid(self) -> int:
        return self._process.pid

    async def refresh(self) -> None:
        await refresh_stores(self)

    async def use(self) -> Any:
        return await use_stores(self)


class EngineTarget(Target):
    """The torch engine's process by itself, on a unix socket."""

    name = "engine"
    needed = ("training_session", "sampling_session", "checkpoint")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        adapter = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"]
        services = [PORTS["training"].service, PORTS["sampling"].service, adapter]
        self.methods = methods_of(services, _WEIGHTS)
        self.work = folder / "work"
        self.log = folder / "engine.log"
        self._model = folder / "model"
        self._sessions = Sessions(self, str(self._model))

    async def _start(self) -> None:
        materialise("tiny-qwen3", self._model)
        self._sockets = Path(tempfile.mkdtemp(prefix="fz-"))
        self.address = f"unix:{self._sockets}/engine.sock"
        command = [sys.executable, "-m", "crucible_adapters.torch_engine", "--listen", self.address]
        options = ["--work-dir", str(self.work), "--parent-pipe", "--device", "cpu", "--threads", "1"]
        self._process = subprocess.Popen(
            [*command, *options, "--max-lora-sessions", "32", "--max-full-sessions", "2"],
            stdin=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=_child_environment(),
        )
        channel: Any = connect(self.address)
        await adapter_pb2_grpc.AdapterServiceStub(channel).Probe(adapter_pb2.ProbeRequest(), timeout=_START_SECONDS)
        await channel.close()
        self.watched.append(self.work)
        self.world.statics |= {"model": [str(self._model).encode()]}

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._sockets.joinpath("engine.sock").unlink(missing_ok=True)
        self._sockets.rmdir()

    def pid(self) -> int:
        return self._process.pid

    async def refresh(self) -> None:
        await self._sessions.refresh()

    async def use(self) -> Any:
        return await self._sessions.use()
