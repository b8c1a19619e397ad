"""Every port's suite runs over five bindings: an object, an object behind serialised messages, a unix socket, TCP, and
a tunnel that the adapter has opened.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import Channel, ObjectChannel, connect
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from tests.contract.processes import AdapterProcess
from tests.kit.mlflow import Mlflow, mlflow_server
from tests.kit.tunnels import tunnelled

BINDINGS = ("object", "serialise", "unix", "tcp", "tunnel")


class Binding:
    """Gives stubs of adapters, and ends what it started."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._stack = AsyncExitStack()

    async def stub(self, adapter: Any) -> Any:
        """A stub that calls the adapter over this binding; the adapter is closed with it."""
        self._stack.push_async_callback(adapter.close)
        port = PORTS[adapter.description.port]
        return port.stub(await self._channel(port.name, port.service.full_name, adapter))

    async def stub_of_process(self, port: str, process: AdapterProcess) -> Any:
        """A stub that calls an adapter in a process of its own, which is ended with it."""
        self._stack.push_async_callback(asyncio.to_thread, process.stop)
        channel = connect(process.address)
        self._stack.push_async_callback(channel.close)
        return PORTS[port].stub(channel)

    async def _channel(self, port: str, service: str, adapter: Any) -> Channel:
        if self._kind in ("object", "serialise"):
            return ObjectChannel({service: adapter}, serialise=self._kind == "serialise")
        if self._kind == "tunnel":
            return (await self._stack.enter_async_context(tunnelled({port: adapter})))[port]
        # Short: a socket's path has at most 107 characters.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        address = f"unix:{Path(folder) / 's'}" if self._kind == "unix" else "127.0.0.1:0"
        description = adapter.description
        served = await serve_ports(
            {port: adapter}, address, name=description.name, capabilities={port: description.capabilities}
        )
        self._stack.push_async_callback(served.stop)
        channel = connect(served.address)
        self._stack.push_async_callback(channel.close)
        return channel

    async def stop(self) -> None:
        """Ends servers, when their calls have ended, and adapters."""
        await self._stack.aclose()


@pytest.fixture(params=BINDINGS)
async def binding(request: pytest.FixtureRequest) -> AsyncIterator[Binding]:
    binding = Binding(request.param)
    yield binding
    await binding.stop()


@pytest.fixture
async def local() -> AsyncIterator[Binding]:
    """The plain object alone, for what a binding does not change, such as the format of a file."""
    binding = Binding("object")
    yield binding
    await binding.stop()


@pytest.fixture
def context(tmp_path: Path) -> AdapterContext:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return AdapterContext(data_dir=data_dir)


@pytest.fixture
def unused_address() -> Iterator[str]:
    """An address that nobody listens at: its port is bound, so that nobody else gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(scope="session")
def mlflow_serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """MLflow's own server; it takes seconds to start."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow(mlflow_serving: Mlflow) -> Mlflow:
    """The same for each test, without the last one's answers."""
    mlflow_serving.forget()
    return mlflow_serving
