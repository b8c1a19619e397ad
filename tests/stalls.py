"""Time limits that a machine which stands still for seconds does not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest

_TICK = 0.01


@asynccontextmanager
async def running_time(seconds: float | None) -> AsyncIterator[None]:
    """asyncio.timeout, counted in time that the event loop was running."""
    async with asyncio.timeout(None) as limit:
        counting = None if seconds is None else asyncio.create_task(_count(limit, seconds))
        try:
            yield
        finally:
            if counting is not None:
                counting.cancel()


async def _count(limit: asyncio.Timeout, seconds: float) -> None:
    for _ in range(max(1, round(seconds / _TICK))):
        await asyncio.sleep(_TICK)
    limit.reschedule(asyncio.get_running_loop().time())


class _Asyncio:
    timeout = staticmethod(running_time)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def count_running_time(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Lets the time limits of a module's code count only time in which the event loop runs."""
    monkeypatch.setattr(module, "asyncio", _Asyncio())


def longer(seconds: float) -> tuple[float, ...]:
    """Deadlines for tries of a call that must have begun when its deadline passes: a stall may eat the first ones."""
    return (seconds, 1.0, 5.0, 20.0)
