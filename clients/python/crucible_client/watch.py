"""A watch that survives its streams: it resumes after the last event that it handed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import grpc

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_kit.errors import DataLossError, KitchenError, UnavailableError

Watch = AsyncGenerator[run_pb2.WatchRunResponse, None]

# Codes with which a transport ends a stream that it lost; such an error has no reason of its own.
_TRANSPORT_CODES = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}


@dataclass(frozen=True, kw_only=True)
class WatchPolicy:
    """When a watch gives a stream up, and when itself. All in seconds.

    Attributes:
        silence: without any message for so long a stream counts as dead; a living server speaks every 15 s.
        first_backoff: pause after the first failure; doubles with each further one.
        max_backoff: longest pause.
        patience: without any message for so long the watch gives up with the last error.
    """

    silence: float = 45.0
    first_backoff: float = 0.25
    max_backoff: float = 5.0
    patience: float = 300.0


def may_heal(error: KitchenError) -> bool:
    """Whether the same call may succeed later: what the server says, and connections that broke."""
    return error.retryable or (error.code in _TRANSPORT_CODES and error.reason == error.code.name)


async def watch_events(
    open_stream: Callable[[int], Watch], after_sequence: int, policy: WatchPolicy
) -> AsyncGenerator[event_pb2.RunEvent, None]:
    """Events after a sequence number, in order, each once, until the server says that the run has ended.

    Args:
        open_stream: starts a WatchRun after a sequence number.

    Raises:
        OutOfRangeError: SEQUENCE_OUT_OF_RANGE.
        DataLossError: EVENT_GAP, the server left events out.
        KitchenError: the last error, when nothing came for as long as the policy is patient.
    """
    backoff = Backoff(policy)
    last = after_sequence
    while True:
        stream = open_stream(last)
        try:
            while (response := await _next(stream, policy.silence)) is not None:
                backoff.reset()
                for event in response.events:
                    if event.sequence <= last:
                        continue
                    if event.sequence != last + 1:
                        raise _gap(event, last)
                    last = event.sequence
                    yield event
            return
        except KitchenError as error:
            if not may_heal(error):
                raise
            failure = error
        finally:
            await stream.aclose()
        await backoff.wait(failure)


async def _next(stream: Watch, silence: float) -> run_pb2.WatchRunResponse | None:
    """The next response; None at the end of the stream."""
    clock = asyncio.timeout(silence)
    try:
        async with clock:
            return await anext(stream, None)
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise UnavailableError(f"the watch was silent for {silence:g} s", reason="WATCH_SILENT") from error


class Backoff:
    """Growing pauses between tries, and the end of patience."""

    def __init__(self, policy: WatchPolicy) -> None:
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self.reset()

    def reset(self) -> None:
        """Something worked: starts anew."""
        self._pause = self._policy.first_backoff
        self._since = self._loop.time()

    async def wait(self, error: KitchenError) -> None:
        """Pauses for as long as the error or the policy asks; raises the error when patience has run out."""
        pause = max(self._pause, error.retry_delay or 0.0)
        if self._loop.time() + pause - self._since > self._policy.patience:
            raise error
        await asyncio.sleep(pause)
        self._pause = min(2 * self._pause, self._policy.max_backoff)


def _gap(event: event_pb2.RunEvent, last: int) -> DataLossError:
    return DataLossError(
        f"run {event.run_id!r}: event {event.sequence} came after {last}: read the log with ListRunEvents",
        reason="EVENT_GAP",
        metadata={"run_id": event.run_id, "sequence": event.sequence, "last_sequence": last},
    )
