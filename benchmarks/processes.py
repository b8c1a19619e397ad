"""The server and the engine as the benchmarks start them: in processes of their own, as users have them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_adapters.torch_engine.spec import TORCH_ENGINE, TorchEngineOptions
from crucible_kit.adapter import CONTRACT_VERSIONS
from crucible_kit.channel import RemoteChannel, connect

_START_SECONDS = 120


class Server:
    """One `kitchen serve`."""

    def __init__(self, data: Path, process: asyncio.subprocess.Process, address: str) -> None:
        """Use `start`."""
        self.data = data
        self.process = process
        self.address = address

    @classmethod
    async def start(cls, data: Path, *options: str, engine: Mapping[str, Any] | None = None) -> Server:
        """Starts it and waits for its address.

        Args:
            engine: settings of the torch engine.
        """
        arguments = ["--listen", "127.0.0.1:0", "--data", str(data), "--json", *options]
        if engine is not None:
            mapping = {"adapter": "builtin:torch", "options": dict(engine)}
            manifest = data.parent / f"{data.name}.json"  # JSON is YAML
            ports = {"training": mapping, "sampling": mapping}
            manifest.write_text(json.dumps({"profile": "local", "ports": ports}))
            arguments += ["--manifest", str(manifest)]
        with (data.parent / f"{data.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crucible_kitchen.cli", "serve", *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "KITCHEN_TOKEN": ""},
            )
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {await process.wait()}: see {data.name}.log")
        return cls(data, process, json.loads(line)["address"])

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """SIGTERM: running runs save a checkpoint."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()


@asynccontextmanager
async def serving(data: Path, *options: str, engine: Mapping[str, Any] | None = None) -> AsyncIterator[Server]:
    """A server for the length of a block."""
    server = await Server.start(data, *options, engine=engine)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def torch_engine(
    folder: Path, *, threads: int, device: str = "cpu"
) -> AsyncIterator[tuple[RemoteChannel, asyncio.subprocess.Process]]:
    """An engine started as the server starts it, and a channel to it, for the length of a block."""
    socket = folder / "engine.sock"
    options = TORCH_ENGINE.arguments(TorchEngineOptions(device=device, threads=threads))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", TORCH_ENGINE.module, "--listen", f"unix:{socket}", "--parent-pipe"),
        *("--work-dir", str(folder / "engine"), *options),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **TORCH_ENGINE.environment},
    )
    channel = connect(f"unix:{socket}")
    try:
        info = adapter_pb2.GetAdapterInfoRequest(host_contract_versions=CONTRACT_VERSIONS)
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[arg-type]
        await stub.GetAdapterInfo(info, timeout=_START_SECONDS)
        yield channel, process
    finally:
        await channel.close()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process; with VmHWM the most it ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
