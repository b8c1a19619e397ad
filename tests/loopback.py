"""As much of HTTP/1.1 as a test's server needs: bodies with a length, connections that stay, on loopback."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What came; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    data: bytes


class LoopbackServer(ABC):
    """Serves each connection in a task of its own, until it is stopped. While it is away its port stays its own."""

    def __init__(self) -> None:
        self._port: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """http://127.0.0.1:PORT"""
        assert self._port is not None
        return f"http://127.0.0.1:{self._port.getsockname()[1]}"

    async def start(self) -> None:
        # It never listens: what connects to the port is refused unless the server does.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(("127.0.0.1", 0))
        await self.come_back()

    async def stop(self) -> None:
        assert self._port is not None
        await self.go_away()
        self._port.close()

    async def come_back(self) -> None:
        """Listens."""
        assert self._port is not None
        self._server = await asyncio.start_server(self._serve, *self._port.getsockname(), reuse_port=True)

    async def go_away(self) -> None:
        """Breaks the connections; new ones are refused."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._respond(await _read(reader), reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has what it wants
        except asyncio.CancelledError:
            # `stop` ends it; the streams' own callback would take it for an error.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    @abstractmethod
    async def _respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; whether the connection stays."""


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def head(status: int, content_type: str, framing: str, headers: Mapping[str, str]) -> bytes:
    """What is before a body; `framing` is the header that tells where it ends."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", framing]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
