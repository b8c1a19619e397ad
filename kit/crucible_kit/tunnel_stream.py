"""What both ends of a tunnel add to their calls: waiting for messages, and for room to send them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic

from crucible_kit._remote_channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import KitchenError
from crucible_kit.parsing import message_too_large
from crucible_kit.tunnel_mux import Call, Frame, Multiplexer, Part


class TunnelStream(Call[Frame]):
    """The messages of one call, for one reader and one writer."""

    def __init__(
        self, multiplexer: Multiplexer[Frame], frame: Callable[[Any, Part], Frame], *, call_id: int = 0, **windows: int
    ) -> None:
        """The windows are those of Call."""
        super().__init__(frame, call_id=call_id, **windows)
        self._multiplexer = multiplexer
        self._failure: KitchenError | None = None
        self._incoming = asyncio.Event()
        self._room = asyncio.Event()

    def received(self) -> None:
        self._incoming.set()

    def drained(self) -> None:
        self._room.set()

    def fail(self, error: KitchenError) -> None:
        """Ends the call here: what has come is still read, then the error is raised."""
        if not self.over:
            self._failure = error
            self.close()

    def close(self) -> None:
        """Ends the call here; what has come is still read."""
        self._multiplexer.forget(self)
        self._incoming.set()
        self._room.set()

    def push(self, message: bytes) -> None:
        """Sends a message without waiting for room: once in a call, or after `send`.

        Raises INVALID_ARGUMENT MESSAGE_TOO_LARGE.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise message_too_large("the message", len(message), MAX_MESSAGE_BYTES)
        self._multiplexer.push(self, message)

    async def send(self, message: bytes) -> None:
        """Sends a message when the one before it has left. Raises as `push`; does nothing when the call is over."""
        while not self.sender.idle and not self.over:
            self._room.clear()
            await self._room.wait()
        if not self.over:
            self.push(message)

    def finish(self, end: Frame | None = None) -> None:
        """Nothing follows; see Multiplexer.finish."""
        self._multiplexer.finish(self, end)

    async def receive(self) -> bytes | None:
        """The next message; None: there are no more. Raises what the call has failed with."""
        while (message := self._multiplexer.take(self)) is None:
            if self._failure is not None:
                raise self._failure
            if self.receiver.ended or self.over:
                return None
            self._incoming.clear()
            await self._incoming.wait()
        return message


class TunnelEnd(Generic[Frame]):
    """One end of a tunnel: its calls, and its frames as a stream.

    Args:
        credit: makes the frame that gives a call so many bytes.
    """

    def __init__(self, credit: Callable[[int, int], Frame]) -> None:
        self._wake = asyncio.Event()
        self.multiplexer: Multiplexer[Frame] = Multiplexer(credit, self._wake.set)
        self._finished = False

    async def outgoing(self) -> AsyncIterator[Frame]:
        """The frames in the order in which they are to leave, until `finish` and nothing waits."""
        while True:
            frame = self.multiplexer.next_frame()
            if frame is not None:
                yield frame
                continue
            if self._finished:
                return
            self._wake.clear()
            await self._wake.wait()

    def finish(self) -> None:
        """Ends `outgoing` when what waits has left."""
        self._finished = True
        self._wake.set()
