"""Work that many ask for and one does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs one piece of work at a time; who asks meanwhile gets its result. A caller that hangs up does not stop it:
    the next one would have to wait as long.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Result] | None = None

    async def run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the work that is under way, or else of `work`."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(work())
            # Its callers may all be gone.
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._task)

    async def cancel(self) -> None:
        """Ends the work that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
