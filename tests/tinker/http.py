"""An HTTP server that asks a function for its answers, and a script of answers."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.loopback import LoopbackServer, Request, head


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


class HttpServer(LoopbackServer):
    """Answers each request by what `handle` gives; a handler that fails ends the connection with 500."""

    def __init__(self, handle: Callable[[Request], Awaitable[Answer]]) -> None:
        super().__init__()
        self._handle = handle
        self.failures: list[Exception] = []

    async def _respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            answer = await self._handle(request)
        except Exception as error:
            self.failures.append(error)
            answer = Answer(status=500, body={"detail": type(error).__name__})
        if answer.is_silent:
            await reader.read()
            return False
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        length = len(body) + (100 if answer.is_cut else 0)
        writer.write(head(answer.status, answer.content_type, f"content-length: {length}", answer.headers) + body)
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
        self._script: defaultdict[str, deque[Answer | None]] = defaultdict(deque)
        self._came = asyncio.Condition()

    def will(self, path: str, *answers: Answer | None) -> None:
        """Answers so to the next requests of a path, such as /optim_step; None: as usual."""
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
