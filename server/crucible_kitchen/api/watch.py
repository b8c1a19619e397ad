"""Watching a run: replay, then follow, always from the log; a watcher that reads slowly costs nobody anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from crucible.kitchen.v1 import run_pb2
from crucible_kit.errors import OutOfRangeError, ResourceExhaustedError
from crucible_kit.faults import fault_point
from crucible_kitchen.api.access import draining_error
from crucible_kitchen.api.pages import Pages
from crucible_kitchen.store.records import TERMINAL_STATES
from crucible_kitchen.store.store import Store

DEFAULT_BATCH = 32
MAX_BATCH = 128


class Watches:
    """The watches of a server.

    Args:
        max_per_run: watches of one run at the same time.
        heartbeat_seconds: silence after which an empty response tells that the watch is alive.
    """

    def __init__(self, store: Store, *, max_per_run: int, heartbeat_seconds: float = 15.0) -> None:
        self._store = store
        self._pages = Pages(store)
        self._max_per_run = max_per_run
        self._heartbeat_seconds = heartbeat_seconds
        self._open: Counter[str] = Counter()
        self.draining = False

    def drain(self) -> None:
        """Ends all watches with DRAINING, those to come too; other waits on the store end as well."""
        self.draining = True
        self._store.interrupt_waits()

    async def watch(self, request: run_pb2.WatchRunRequest) -> AsyncGenerator[run_pb2.WatchRunResponse, None]:
        """The responses of one WatchRun.

        Raises:
            NotFoundError: RUN_NOT_FOUND.
            OutOfRangeError: SEQUENCE_OUT_OF_RANGE.
            ResourceExhaustedError: TOO_MANY_WATCHERS.
            UnavailableError: DRAINING.
        """
        run_id, position = request.run_id, request.after_sequence
        limit = min(request.max_batch or DEFAULT_BATCH, MAX_BATCH)
        with self._slot(run_id):
            response, state = await self._pages.after(run_id, position, limit)
            if position > response.last_sequence:
                raise _past_the_end(run_id, position, response.last_sequence)
            # The first response goes out whatever the log holds: the watcher sees at once that it is connected.
            while True:
                if response.events:
                    fault_point("server.watch.mid")
                position = response.last_sequence
                yield response
                # A FAILED in the middle of the log is not the end: the run was resumed.
                if response.caught_up and state in TERMINAL_STATES:
                    return
                if response.caught_up:
                    await self._store.wait_for_events(run_id, position, self._heartbeat_seconds)
                response, state = await self._pages.after(run_id, position, limit)
                if self.draining and not response.events:
                    raise draining_error()

    @contextmanager
    def _slot(self, run_id: str) -> Iterator[None]:
        if self._open[run_id] >= self._max_per_run:
            raise ResourceExhaustedError(
                f"run {run_id!r} has {self._max_per_run} watches, the most allowed: end one, or use ListRunEvents",
                reason="TOO_MANY_WATCHERS",
                metadata={"run_id": run_id, "max_watchers_per_run": self._max_per_run},
            )
        self._open[run_id] += 1
        try:
            yield
        finally:
            self._open[run_id] -= 1
            if not self._open[run_id]:
                del self._open[run_id]


def _past_the_end(run_id: str, position: int, last: int) -> OutOfRangeError:
    return OutOfRangeError(
        f"after_sequence {position} is past the end of run {run_id!r}'s log, which is {last}: send the last sequence "
        "you have seen, or 0 for the whole log",
        reason="SEQUENCE_OUT_OF_RANGE",
        metadata={"run_id": run_id, "after_sequence": position, "last_sequence": last},
    )
