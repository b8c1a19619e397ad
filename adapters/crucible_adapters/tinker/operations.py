"""How a session's operations are handed to the library: begun in order, without waiting for earlier results."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from crucible_adapters.operations import Executor, Load, Operation, Result


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does.

    Attributes:
        begin: hands the call to the library and returns what waits for its result. It does not wait itself.
        is_barrier: begins when all earlier ones have ended, and ends before a later one begins.
        can_be_dropped: a caller may cancel it before it begins.
        tokens: those it reads, and at most writes.
    """

    begin: Callable[[], Coroutine[Any, Any, Result]]
    is_barrier: bool = False
    can_be_dropped: bool = True
    tokens: int = 0


class TinkerExecutor(Executor[Work]):
    """The operations of one session.

    Args:
        in_order: results are taken one after another, as the calls were begun.
    """

    def __init__(self, *, in_order: bool) -> None:
        self._in_order = in_order
        self._queue: deque[tuple[Operation, Work]] = deque()
        self._unfinished: dict[Operation, Work] = {}
        self._pump: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None
        self._under_way: dict[Operation, asyncio.Task[None]] = {}

    @property
    def load(self) -> Load:
        return Load(len(self._unfinished), sum(work.tokens for work in self._unfinished.values()))

    def start(self, operation: Operation, work: Work) -> None:
        self._unfinished[operation] = work
        self._queue.append((operation, work))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._begin_all())

    def cancel(self, operation: Operation) -> None:
        """Drops an operation that has not begun, where that leaves nothing half done."""
        if self._unfinished[operation].can_be_dropped and not operation.has_begun:
            operation.drop()
            del self._unfinished[operation]

    async def close(self) -> None:
        """Drops what has not begun and waits no longer for what has."""
        tasks = [*self._under_way.values(), *([self._pump] if self._pump is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for operation in self._unfinished:
            operation.drop()
        self._unfinished.clear()

    async def _begin_all(self) -> None:
        while self._queue:
            # A turn for the others first: until then the operation can be cancelled.
            await asyncio.sleep(0)
            operation, work = self._queue[0]
            if work.is_barrier and self._under_way:
                await asyncio.wait(list(self._under_way.values()))
            self._queue.popleft()
            if operation.done.is_set():
                continue
            self._last = self._begin(operation, work)
            if work.is_barrier:
                await asyncio.wait([self._last])

    def _begin(self, operation: Operation, work: Work) -> asyncio.Task[None]:
        operation.has_begun = True
        try:
            result = work.begin()
        except Exception as error:
            result = _raised(error)
        task = asyncio.create_task(self._run(operation, result, self._last if self._in_order else None))
        self._under_way[operation] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._under_way.pop(operation, None)
            # A task that was cancelled before its first turn has not awaited it.
            result.close()

        task.add_done_callback(ended)
        return task

    async def _run(
        self, operation: Operation, result: Coroutine[Any, Any, Result], before: asyncio.Task[None] | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            found = await result
        except Exception as error:
            operation.fail(error)
        else:
            operation.succeed(found)
        del self._unfinished[operation]


async def _raised(error: Exception) -> Result:
    raise error
