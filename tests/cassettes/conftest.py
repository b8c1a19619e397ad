from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.cassettes import methods
from crucible_kit.cassettes.format import Cassette, read_cassette
from crucible_kit.cassettes.playback import Playback
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.recorder import RecordingChannel
from crucible_kit.cassettes.replayer import Replayer
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.channel import Channel, connect
from crucible_kit.ports import PORTS
from crucible_kit.serving import ServedAdapter, serve_ports
from tests.cassettes.scratch import PORT


@pytest.fixture(autouse=True)
def talk_is_a_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        methods.services.cache_clear()
        methods._methods.cache_clear()

    monkeypatch.setitem(PORTS, PORT.name, PORT)
    forget()
    yield
    monkeypatch.undo()
    forget()


class Studio:
    """Serves, records and replays for a test, and ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = AsyncExitStack()
        # A test's own folder has too long a path for a socket.
        self._sockets = Path(tempfile.mkdtemp(prefix="cs-"))
        self._stack.callback(shutil.rmtree, self._sockets)
        self._count = 0

    def socket(self) -> str:
        """A new address."""
        self._count += 1
        return f"unix:{self._sockets}/{self._count}"

    async def serve(self, servicer: Any, port: str = "talk", capabilities: tuple[str, ...] = ()) -> ServedAdapter:
        """An adapter on a socket."""
        served = await serve_ports({port: servicer}, self.socket(), name="scratch", capabilities={port: capabilities})
        self._stack.push_async_callback(served.stop, 0)
        return served

    def connect(self, address: str) -> Channel:
        """A channel to an address."""
        channel = connect(address, retry=False)
        self._stack.push_async_callback(channel.close)
        return channel

    def writer(self, name: str = "case.jsonl", **details: Any) -> CassetteWriter:
        """A new cassette."""
        return CassetteWriter(self.folder / name, **details)

    async def recording(
        self, servicer: Any, how: str = "proxy", port: str = "talk", **details: Any
    ) -> tuple[Any, Channel, Any]:
        """A stub whose calls are recorded, its channel, and what ends the recording and reads it."""
        served = await self.serve(servicer, port)
        writer = self.writer(**details)
        if how == "channel":
            channel: Channel = RecordingChannel(self.connect(served.address), writer)
            stop: Any = writer.close
        else:
            proxy = RecordingProxy(writer, served.address)
            channel = self.connect(proxy.start(self.socket()))
            stop = proxy.stop
        self._stack.push_async_callback(asyncio.to_thread, stop)

        async def finish() -> Cassette:
            await asyncio.to_thread(stop)
            return read_cassette(self.folder / "case.jsonl")

        return PORTS[port].stub(channel), channel, finish

    async def replay(self, *cassettes: Cassette, port: str = "talk", **options: Any) -> tuple[Any, Replayer]:
        """A stub of a replayer, which holds no call unless it is told to."""
        replayer = Replayer(Playback(cassettes, **{"hold_seconds": 0.0, **options}))
        await replayer.start(self.socket())
        self._stack.push_async_callback(replayer.stop, 0)
        return PORTS[port].stub(self.connect(replayer.address)), replayer

    async def close(self) -> None:
        """Ends what was started, the newest first."""
        await self._stack.aclose()


@pytest.fixture
async def studio(tmp_path: Path) -> AsyncIterator[Studio]:
    studio = Studio(tmp_path)
    yield studio
    await studio.close()


async def sent(*messages: Any) -> AsyncIterator[Any]:
    """A stream of requests."""
    for each in messages:
        yield each


async def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    """What a stream brings."""
    return [each async for each in stream]
