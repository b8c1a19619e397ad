"""A thread pool that an adapter owns: blocking work off the event loop, never left running behind its caller's back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from crucible_kit.errors import UnavailableError

P = ParamSpec("P")
T = TypeVar("T")
_END: Any = object()


class Threads:
    """Runs plain functions in threads.

    Args:
        name: prefix of the threads' names.
        count: most threads; 1 runs everything one after another.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix=name)
        self.closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. A cancelled caller goes on only when the thread is done with the function.

        Raises:
            UnavailableError: ADAPTER_CLOSED after `close`.
        """
        if self.closed:
            raise UnavailableError(f"the {self._name} adapter is closed", reason="ADAPTER_CLOSED")
        future = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        future.add_done_callback(retrieve)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A thread can't be stopped; the caller's clean-up must not meet it half way.
            await asyncio.wait([future])
            raise

    async def iterate(self, items: Iterator[T]) -> AsyncIterator[T]:
        """The items, each made in a thread; closes a generator in the end."""
        try:
            while (item := await self.run(next, items, _END)) is not _END:
                yield item
        finally:
            close = getattr(items, "close", None)
            if close is not None and not self.closed:
                await self.run(close)

    async def close(self) -> None:
        """Refuses new work, waits for what runs and ends the threads."""
        self.closed = True
        await asyncio.to_thread(self._pool.shutdown, wait=True)


def retrieve(future: asyncio.Future[Any]) -> None:
    """Marks an exception as seen: when its caller was cancelled nobody else will."""
    if not future.cancelled():
        future.exception()
