"""As much of HTTP/1.1 as a test's server needs: bodies with a length, connections that stay, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What came; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What is sent.

    Attributes:
        body: JSON, or bytes as they are.
        is_cut: close the connection in the middle of the body.
        is_silent: send nothing until the client goes away.
    """

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    is_cut: bool = False
    is_silent: bool = False


class HttpServer:
    """Answers each request by what `handle` gives; a handler that fails ends the connection with 500."""

    def __init__(self, handle: Callable[[Request], Awaitable[Answer]]) -> None:
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[Exception] = []

    @property
    def address(self) -> str:
        """http://127.0.0.1:PORT"""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has what it wants
        except asyncio.CancelledError:
            # `stop` ends it; the streams' own callback would take it for an error.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        try:
            answer = await self._handle(Request(method, path, headers, data))
        except Exception as error:
            self.failures.append(error)
            answer = Answer(status=500, body={"detail": type(error).__name__})
        if answer.is_silent:
            await reader.read()
            return False
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        length = len(body) + (100 if answer.is_cut else 0)
        lines = [f"HTTP/1.1 {answer.status} X", f"content-type: {answer.content_type}", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        await writer.drain()
        return not answer.is_cut


@dataclass(frozen=True)
class Asked:
    """A request that came.

    Attributes:
        path: behind /api/v1.
        body: JSON, or the message of a pass.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Scripted:
    """Keeps what came, and what is to be answered in place of the usual.

    Attributes:
        asked: the requests so far.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._script: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._came = asyncio.Condition()

    def will(self, path: str, *answers: Answer) -> None:
        """Answers so to the next requests of a path, such as /optim_step."""
        self._script[path].extend(answers)

    def count(self, path: str) -> int:
        """Requests of a path so far."""
        return len(self.asked_of(path))

    def asked_of(self, path: str) -> list[Asked]:
        """Requests of a path so far."""
        return [each for each in self.asked if each.path == path]

    async def has_come(self, path: str, count: int = 1) -> None:
        """Waits for so many requests of a path."""
        async with self._came:
            await self._came.wait_for(lambda: self.count(path) >= count)

    async def _note(self, asked: Asked) -> Answer | None:
        """Keeps a request; what was written down for it, if anything."""
        self.asked.append(asked)
        async with self._came:
            self._came.notify_all()
        return self._script[asked.path].popleft() if self._script[asked.path] else None
