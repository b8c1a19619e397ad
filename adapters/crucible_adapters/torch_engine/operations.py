"""How a session's operations are carried out: as jobs of the session's queue, in order, on the compute thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from crucible_adapters.operations import Executor, Load, Operation, Result
from crucible_adapters.torch_engine.compute import ComputeQueue, nothing
from crucible_adapters.torch_engine.failures import as_kitchen_error
from crucible_adapters.torch_engine.sampler import SamplingCancelled

Cancelled = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does on the compute thread."""

    run: Callable[[Cancelled], Result]
    """Asked between tokens, the argument says whether the caller has cancelled; work may ignore it."""
    on_dropped: Callable[[], None] = nothing
    """Runs in the operation's place when it was cancelled before it began."""
    tokens: int = 0
    """Tokens it runs through the model, padding aside; at most, for one that samples."""


class ComputeExecutor(Executor[Work]):
    """The operations of one session. Cancelled ones count until their place in the queue has passed."""

    def __init__(self, queue: ComputeQueue) -> None:
        self._queue = queue
        # gone when it has ended, because a failed one holds what it computed with
        self._futures: dict[Operation, Future[Result]] = {}
        self._to_stop: set[Operation] = set()

    @property
    def load(self) -> Load:
        return Load(self._queue.unfinished, self._queue.cost)

    def start(self, operation: Operation, work: Work) -> None:
        def run() -> Result:
            operation.has_begun = True
            return work.run(lambda: operation in self._to_stop)

        future = self._queue.submit(run, on_cancelled=work.on_dropped, cost=work.tokens)
        self._futures[operation] = future
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda each: loop.call_soon_threadsafe(self._finish, operation, each))

    def cancel(self, operation: Operation) -> None:
        """Drops an operation that has not begun; asks one that runs to stop, where it can."""
        self._to_stop.add(operation)
        if self._futures[operation].cancel():
            operation.drop()
        else:
            # the thread has it, though it may not have said so yet
            operation.has_begun = True

    async def close(self) -> None:
        # before the cancelling: nothing is left to do in a dropped operation's place
        self._queue.close()
        operations = list(self._futures)
        for operation in operations:
            self.cancel(operation)
        for operation in operations:
            await operation.done.wait()

    def _finish(self, operation: Operation, future: Future[Result]) -> None:
        del self._futures[operation]
        self._to_stop.discard(operation)
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, SamplingCancelled):
            operation.drop()
        elif error is None:
            operation.succeed(future.result())
        else:
            operation.fail(as_kitchen_error(error, operation.name))
