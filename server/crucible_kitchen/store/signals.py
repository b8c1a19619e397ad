"""Wakes those who wait for something new in a run's log. For one event loop; nothing here blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Waiter:
    """One that waits for a run.

    Attributes:
        changed: set at every change of the run.
        last_sequence: the log's end as of the newest change; 0 before the first.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.last_sequence = 0


class Signals:
    """Waiters by run."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}
        self.interrupted = False

    @contextmanager
    def waiter(self, run_id: str) -> Iterator[Waiter]:
        """One that learns of the run's changes. Enter before looking at the log, so that nothing is missed."""
        waiter = Waiter()
        waiters = self._waiters.setdefault(run_id, set())
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(run_id, None)

    def notify(self, run_id: str, last_sequence: int) -> None:
        """Wakes the run's waiters."""
        for waiter in self._waiters.get(run_id, ()):
            waiter.last_sequence = last_sequence
            waiter.changed.set()

    def interrupt(self) -> None:
        """Wakes everybody, for good."""
        self.interrupted = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.changed.set()
