"""How the toy engine carries out a session's operations: one after another, by one task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from crucible_adapters.operations import Executor, Load, Operation, Result

T = TypeVar("T")


class Surroundings(Protocol):
    """What a session's operations need of the engine.

    Attributes:
        gate: nothing is carried out while it is closed.
    """

    gate: asyncio.Event

    def compute(self, function: Callable[[], T]) -> Awaitable[T]: ...


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does.

    Attributes:
        on_dropped: runs in its place when it was cancelled before it began.
        tokens: those it reads, and at most writes.
    """

    run: Callable[[], Result]
    on_dropped: Callable[[], None] = nothing
    tokens: int = 0


class ToyExecutor(Executor[Work]):
    """The operations of one session, in order."""

    def __init__(self, engine: Surroundings) -> None:
        self._engine = engine
        self._queue: deque[tuple[Operation, Work]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def load(self) -> Load:
        unfinished = [work.tokens for operation, work in self._queue if not operation.done.is_set()]
        return Load(len(unfinished), sum(unfinished))

    def start(self, operation: Operation, work: Work) -> None:
        self._queue.append((operation, work))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._carry_out())

    def cancel(self, operation: Operation) -> None:
        """Drops an operation that has not begun."""
        if not operation.has_begun:
            operation.drop()

    async def close(self) -> None:
        """Drops what has not begun and waits for what is under way."""
        for operation, _ in self._queue:
            self.cancel(operation)
        if self._queue:
            await self._queue[0][0].done.wait()
        if self._task is not None:
            # It may wait at the gate.
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _carry_out(self) -> None:
        while self._queue:
            # A turn for the others first: until then the operation can be cancelled.
            await asyncio.sleep(0)
            await self._engine.gate.wait()
            operation, work = self._queue[0]
            if operation.done.is_set():
                work.on_dropped()
            else:
                await self._run(operation, work)
            self._queue.popleft()

    async def _run(self, operation: Operation, work: Work) -> None:
        operation.has_begun = True
        try:
            result = await self._engine.compute(work.run)
        except asyncio.CancelledError:
            operation.drop()
            raise
        except Exception as error:
            operation.fail(error)
        else:
            operation.succeed(result)
