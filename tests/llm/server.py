"""An HTTP server on loopback that answers as a test has written down, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What it answers to one request.

    Attributes:
        body: JSON, bytes as they are, or the events of a stream, each in a chunk of its own.
        is_cut: close the connection before the body's end is told.
        is_silent: after the body send nothing more until the client goes away.
    """

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    is_cut: bool = False
    is_silent: bool = False

    @classmethod
    def stream(cls, events: Sequence[bytes], **more: Any) -> Answer:
        """Server-sent events."""
        return cls(body=list(events), content_type="text/event-stream", **more)


@dataclass(frozen=True)
class Asked:
    """What it was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Server:
    """Answers from a script, the last answer again and again.

    Attributes:
        asked: the requests so far.
        arrived: set by every request.
        gone: set when a client left a silent answer.
    """

    def __init__(self) -> None:
        self._script: deque[Answer] = deque()
        self.asked: list[Asked] = []
        self.arrived = asyncio.Event()
        self.gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def will(self, *answers: Answer) -> None:
        """Answers so from now on."""
        self._script = deque(answers)

    def answer(self, asked: Asked) -> Answer:
        """What it answers to one request."""
        return self._script.popleft() if len(self._script) > 1 else self._script[0]

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
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers, json.loads(data) if data else None)
        self.asked.append(asked)
        self.arrived.set()
        answer = self.answer(asked)
        lines = [f"HTTP/1.1 {answer.status} X", f"content-type: {answer.content_type}", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if not (answer.is_silent and answer.body == b""):
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for part in answer.body if isinstance(answer.body, list) else [_bytes(answer.body)]:
            if part:
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
        if answer.is_silent:
            await reader.read()
            self.gone.set()
            return False
        if answer.is_cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    kind = f"event: {name}\n" if name else ""
    return f"{kind}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
