"""Clocks that do not wait."""

from __future__ import annotations

from crucible_adapters.retries import Clock


class Waits:
    """A clock that does not wait, and tells what it was asked to.

    Attributes:
        seconds: of each wait.
        clock: for the adapter.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.clock = Clock(monotonic=lambda: 0.0, wall=lambda: 0.0, sleep=self._sleep, chance=lambda: 0.0)

    async def _sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
