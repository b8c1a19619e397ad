"""Runs that wait for an adapter that is away, and who asks whether it is back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kit.errors import KitchenError, UnavailableError
from crucible_kitchen.workflows.context import Ports

logger = logging.getLogger(__name__)

# Nobody at the address; not attached; gone again. A connection that broke is none: the next attempt finds out.
_AWAY = ("ADAPTER_UNAVAILABLE", "ADAPTER_DETACHED", "ADAPTER_GONE")
# The adapter is there, and whom it asks is away or has too much to do.
_PROVIDER_AWAY = ("PROVIDER_UNAVAILABLE", "RATE_LIMITED")
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_LONGEST_RETURN_SECONDS = 300.0


def absent_port(error: KitchenError, ports: Ports) -> str:
    """The port whose adapter is away, so that a run can only wait for it; empty: that is not what the error says.

    An adapter that the host looks after is never waited for: the next attempt starts it.
    """
    away = (isinstance(error, UnavailableError) and error.reason in _AWAY) or error.reason in _PROVIDER_AWAY
    return error.port if away and error.port and ports.is_remote(error.port) else ""


def first_pause(error: KitchenError | None, returns: int) -> float:
    """Seconds before the adapter of a run is asked after: at least those for which a provider wants to be left alone.

    They grow with `returns`, the times that the run has gone on from the same checkpoint and was stopped again: who
    answers probes and not what a run asks must not fill its log.
    """
    asked = error.retry_delay if error is not None and error.reason in _PROVIDER_AWAY else None
    return max(asked or 0.0, min(_FIRST_PAUSE_SECONDS * 2.0 ** min(returns, 16), _LONGEST_RETURN_SECONDS))


class AdapterWatch:
    """Asks after the adapters that runs wait for, one task for each port, until they answer.

    Args:
        back: awaited with each run whose adapter answers, longest waiting first.
        lost: awaited with each run whose time is up.
    """

    def __init__(
        self, ports: Ports, *, back: Callable[[str], Awaitable[object]], lost: Callable[[str], Awaitable[object]]
    ) -> None:
        self._ports = ports
        self._back = back
        self._lost = lost
        # By port: run id to the event loop's time at which it has waited long enough.
        self._waiting: dict[str, dict[str, float]] = {}
        # By port: seconds before which it is not asked again.
        self._asked_pauses: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def add(self, run_id: str, port: str, seconds: float = math.inf, *, pause: float) -> None:
        """Lets a run wait for a port's adapter, for at most so many seconds, and at least for `pause`."""
        if self._closed:
            return
        logger.warning("run %s waits for the adapter of the port %s", run_id, port)
        self._waiting.setdefault(port, {})[run_id] = asyncio.get_running_loop().time() + seconds
        self._asked_pauses[port] = max(pause, self._asked_pauses.get(port, 0.0))
        if port not in self._tasks:
            self._tasks[port] = asyncio.create_task(self._watch(port), name=f"watch of {port}")

    def remove(self, run_id: str) -> None:
        """The run waits no more."""
        for runs in self._waiting.values():
            runs.pop(run_id, None)

    async def close(self) -> None:
        """Asks no more, whatever is added."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, port: str) -> None:
        pause, loop = _FIRST_PAUSE_SECONDS, asyncio.get_running_loop()
        while runs := self._waiting[port]:
            answers, first = False, min(runs.values())
            pause = max(pause, self._asked_pauses.pop(port, 0.0))
            try:
                async with asyncio.timeout_at(None if first == math.inf else first):
                    await asyncio.sleep(pause)
                    answers = await self._answers(port)
            except TimeoutError:
                pass  # somebody's time is up
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            if answers:
                logger.info("the adapter of the port %s answers", port)
            for run_id, end in list(runs.items()):
                if answers:
                    await self._tell(self._back, run_id, runs)
                elif end <= loop.time():
                    await self._tell(self._lost, run_id, runs)
        del self._tasks[port]

    async def _answers(self, port: str) -> bool:
        try:
            adapter = await self._ports.probe(port)
        # Whatever is wrong with asking must not end the asking.
        except Exception:
            logger.exception("the adapter of the port %s can't be asked", port)
            return False
        return adapter.state == adapter_admin_pb2.ADAPTER_STATE_READY

    async def _tell(self, listener: Callable[[str], Awaitable[object]], run_id: str, runs: dict[str, float]) -> None:
        end = runs.pop(run_id, None)
        if end is None:
            return  # somebody steered it meanwhile
        try:
            await listener(run_id)
        except KitchenError as error:
            logger.warning("run %s waits on: %s", run_id, error)
            runs.setdefault(run_id, end)
