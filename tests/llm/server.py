"""An HTTP server on loopback that answers as a test has written down, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.loopback import LoopbackServer, Request, head


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
    headers: Mapping[str, str]
    body: Any


class Server(LoopbackServer):
    """Answers from a script, the last answer again and again.

    Attributes:
        asked: the requests so far.
        arrived: set by every request.
        gone: set when a client left a silent answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._script: deque[Answer] = deque()
        self.asked: list[Asked] = []
        self.arrived = asyncio.Event()
        self.gone = asyncio.Event()

    def will(self, *answers: Answer) -> None:
        """Answers so from now on."""
        self._script = deque(answers)

    def answer(self, asked: Asked) -> Answer:
        """What it answers to one request."""
        return self._script.popleft() if len(self._script) > 1 else self._script[0]

    async def _respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = json.loads(request.data) if request.data else None
        asked = Asked(request.method, request.path, request.headers, body)
        self.asked.append(asked)
        self.arrived.set()
        answer = self.answer(asked)
        if not (answer.is_silent and answer.body == b""):
            writer.write(head(answer.status, answer.content_type, "transfer-encoding: chunked", answer.headers))
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
