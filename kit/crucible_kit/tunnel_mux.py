"""The calls of one end of a tunnel, without any transport: pieces in turn, credit, reassembly within limits.

What gateway.proto says of frames both ends do alike, and here. An end gives its frames their form through a function,
and is told by `received`, `drained` and `left` when a call has moved.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from crucible_kit._remote_channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.parsing import message_too_large

MAX_PIECE_BYTES = 255 * 1024
"""Of a message in one frame: with what is around it, a frame stays below 256 KiB."""
PIECE_COST = 64
"""Bytes of the window that a frame takes beside its message's: empty messages take memory, too."""
WINDOW_BYTES = 1024 * 1024
"""Of one call and direction, where an end names no window."""
MAX_CALLS = 256
"""In flight in one tunnel, where an adapter names no limit."""


class FrameError(InvalidArgumentError):
    """A frame that breaks the rules of the tunnel, which it ends."""


def frame_invalid(problem: str, **facts: object) -> FrameError:
    """The error of a frame that has no place where it comes."""
    return FrameError(
        f"{problem}: see crucible/adapter/v1/gateway.proto for the order of frames",
        reason="FRAME_INVALID",
        metadata=facts,
    )


class Part(NamedTuple):
    """What one frame carries of one direction of a call.

    Attributes:
        payload: a message or a piece of one; None: neither.
        more: the message goes on in the next part.
        last: nothing follows in this direction.
    """

    payload: bytes | None
    more: bool = False
    last: bool = False


class Sender:
    """One direction of a call on its way out."""

    def __init__(self, window: int, *, announced: bool) -> None:
        """`window`: the receiver's, in bytes. `announced`: the other end knows the call already."""
        self._balance = window
        self._announced = announced
        self._messages: deque[bytes] = deque()
        self._offset = 0
        self._finished = False
        self._apart = False
        self._done = False

    @property
    def ready(self) -> bool:
        """Whether a part may leave now."""
        if self._messages:
            return self._balance > 0
        return not self._announced or (self._finished and not self._done)

    @property
    def idle(self) -> bool:
        """Whether no message waits."""
        return not self._messages

    @property
    def done(self) -> bool:
        """Whether the last part has left."""
        return self._done

    def push(self, message: bytes) -> None:
        """Adds a message behind those that wait."""
        self._messages.append(message)

    def finish(self, *, apart: bool = False) -> None:
        """Nothing follows what waits. `apart`: the last message is not to say so, but a part of its own."""
        self._finished = True
        self._apart = apart

    def add_credit(self, amount: int) -> None:
        """The receiver takes so many bytes more."""
        self._balance += amount

    def next_part(self) -> Part:
        """The next part; call it only when `ready`."""
        self._announced = True
        if not self._messages:
            self._done = self._finished
            return Part(None, last=self._finished)
        message = self._messages[0]
        end = self._offset + MAX_PIECE_BYTES
        more = end < len(message)
        # A whole message is not copied.
        piece = message[self._offset : end] if self._offset or more else message
        if more:
            self._offset = end
        else:
            self._messages.popleft()
            self._offset = 0
            self._done = self._finished and not self._apart and not self._messages
        self._balance -= len(piece) + PIECE_COST
        return Part(piece, more, self._done)


class Receiver:
    """One direction of a call on its way in. It holds a window and one message at most."""

    def __init__(self, window: int) -> None:
        """`window`: what the other end was told, in bytes."""
        self._window = window
        # With the bytes of the window that each holds.
        self._messages: deque[tuple[bytes, int]] = deque()
        self._partial: bytearray | None = None
        self._held = 0
        self._used = 0
        self._read = 0
        self._last = False

    @property
    def unread_bytes(self) -> int:
        """Of what is here and not taken."""
        return sum(len(message) for message, _ in self._messages) + len(self._partial or b"")

    @property
    def ended(self) -> bool:
        """Whether everything has come and been taken."""
        return self._last and not self._messages

    def accept(self, part: Part) -> None:
        """Takes what a frame has brought.

        Raises:
            FrameError: out of order, too large a piece, or without credit.
            InvalidArgumentError: MESSAGE_TOO_LARGE; the call has failed, the tunnel has not.
        """
        if self._last:
            raise frame_invalid("a frame of a call comes after the last one of its direction")
        if part.payload is None:
            if not part.last or part.more or self._partial is not None:
                raise frame_invalid("a frame brings neither a message nor an end, or an end amid a message")
            self._last = True
            return
        self._check(part, len(part.payload))
        cost = len(part.payload) + PIECE_COST
        self._used += cost
        self._held += cost
        self._collect(part.payload, more=part.more)
        self._last = part.last

    def _check(self, part: Part, size: int) -> None:
        if part.more and (part.last or not size):
            raise frame_invalid("a message that goes on ends its direction, or goes on without a byte")
        if size > MAX_PIECE_BYTES:
            raise frame_invalid(f"a frame has {size} bytes of a message, at most {MAX_PIECE_BYTES} are allowed")
        if self._used >= self._window:
            raise frame_invalid(f"a message is sent without credit: {self._used} bytes are unread", window=self._window)
        whole = size + len(self._partial or b"")
        if whole > MAX_MESSAGE_BYTES:
            raise message_too_large("a message in a tunnel", whole, MAX_MESSAGE_BYTES)

    def _collect(self, payload: bytes, *, more: bool) -> None:
        if more:
            if self._partial is None:
                self._partial = bytearray()
            self._partial += payload
            if not self._messages:
                self._free_pieces()
            return
        if self._partial is not None:
            self._partial += payload
            payload, self._partial = bytes(self._partial), None
        self._messages.append((payload, self._held))
        self._held = 0

    def _free_pieces(self) -> None:
        """Lets an incomplete message grow past the window, as nothing else waits."""
        self._read += self._held
        self._held = 0

    def take(self) -> bytes | None:
        """The next complete message; None: none is there."""
        if not self._messages:
            return None
        message, held = self._messages.popleft()
        self._read += held
        if not self._messages:
            self._free_pieces()
        return message

    def credit(self) -> int:
        """The bytes to give back now; 0: too few for a frame of their own, or nothing more will come."""
        if self._last or 2 * self._read < self._window:
            return 0
        given, self._read = self._read, 0
        self._used -= given
        return given


Frame = TypeVar("Frame")


class Call(Generic[Frame]):
    """One call at one end.

    Attributes:
        call_id: its number; 0 until the frame that begins it has left.
        end: the frame that ends it from here, where the last part of a message can't.
        over: this end has done with it: nothing leaves any more, what comes is ignored.
    """

    def __init__(
        self,
        frame: Callable[[Any, Part], Frame],
        *,
        call_id: int = 0,
        send_window: int = WINDOW_BYTES,
        receive_window: int = WINDOW_BYTES,
    ) -> None:
        """`frame` gives a part of this call its form. `call_id`: of a call that the other end has begun."""
        self.call_id = call_id
        self.frame = frame
        self.sender = Sender(send_window, announced=call_id > 0)
        self.receiver = Receiver(receive_window)
        self.end: Frame | None = None
        self.over = False

    def received(self) -> None:
        """Something has come."""

    def drained(self) -> None:
        """No message waits to leave any more."""

    def left(self) -> None:
        """The last frame of this end has left."""


class Multiplexer(Generic[Frame]):
    """The calls of one end and the order in which their frames leave: what steers first, then a part of each in turn.

    Args:
        credit: makes the frame that gives a call so many bytes.
        on_ready: called when a frame may leave.
    """

    def __init__(self, credit: Callable[[int, int], Frame], on_ready: Callable[[], None]) -> None:
        self._credit = credit
        self._on_ready = on_ready
        self._open: dict[Call[Frame], None] = {}
        self._calls: dict[int, Call[Frame]] = {}
        self._highest = 0
        self._steering: deque[Frame] = deque()
        self._turns: OrderedDict[Call[Frame], None] = OrderedDict()

    def __len__(self) -> int:
        """How many calls are in flight."""
        return len(self._open)

    @property
    def calls(self) -> list[Call[Frame]]:
        """The calls in flight, in the order in which they have begun."""
        return list(self._open)

    def begin(self, call: Call[Frame]) -> None:
        """Begins a call of this end's, in the order of these calls."""
        self._open[call] = None
        self._queue(call)

    def accept_call(self, call: Call[Frame]) -> None:
        """Takes a call that the other end has begun. Raises FrameError when its number is not a new one."""
        if call.call_id <= self._highest:
            raise frame_invalid(f"call {call.call_id} begins after call {self._highest}", call_id=call.call_id)
        self._highest = call.call_id
        self._open[call] = None
        self._calls[call.call_id] = call

    def find(self, call_id: int) -> Call[Frame] | None:
        """A call; None: it has ended. Raises FrameError when there never was one."""
        call = self._calls.get(call_id)
        if call is None and not 0 < call_id <= self._highest:
            raise frame_invalid(f"there is no call {call_id}", call_id=call_id)
        return call

    def forget(self, call: Call[Frame]) -> None:
        """Ends a call at this end: what waits to leave is dropped, what comes for it is ignored."""
        call.over = True
        self._open.pop(call, None)
        self._turns.pop(call, None)
        self._calls.pop(call.call_id, None)

    def steer(self, frame: Frame) -> None:
        """Sends a frame before all messages."""
        self._steering.append(frame)
        self._on_ready()

    def push(self, call: Call[Frame], message: bytes) -> None:
        """Sends a message of at most MAX_MESSAGE_BYTES."""
        call.sender.push(message)
        self._queue(call)

    def finish(self, call: Call[Frame], end: Frame | None = None) -> None:
        """Nothing follows what was pushed; `end` is the frame that says so, unless the last part can."""
        call.end = end
        call.sender.finish(apart=end is not None)
        self._queue(call)

    def add_credit(self, call_id: int, amount: int) -> None:
        """The other end takes so many bytes more of a call."""
        call = self.find(call_id)
        if call is not None:
            call.sender.add_credit(amount)
            self._queue(call)

    def accept(self, call: Call[Frame], part: Part) -> None:
        """Takes a part of a call. Raises as Receiver.accept."""
        call.receiver.accept(part)
        self._give_back(call)
        call.received()

    def take(self, call: Call[Frame]) -> bytes | None:
        """The call's next complete message; None: none is there."""
        message = call.receiver.take()
        if message is not None:
            self._give_back(call)
        return message

    def _give_back(self, call: Call[Frame]) -> None:
        if not call.over and (amount := call.receiver.credit()):
            self.steer(self._credit(call.call_id, amount))

    def _queue(self, call: Call[Frame]) -> None:
        if call.sender.ready and not call.over:
            self._turns.setdefault(call)
            self._on_ready()

    def next_frame(self) -> Frame | None:
        """The next frame to leave; None: there is none now."""
        if self._steering:
            return self._steering.popleft()
        if not self._turns:
            return None
        call, _ = self._turns.popitem(last=False)
        if not call.call_id:
            self._highest += 1
            call.call_id = self._highest
            self._calls[call.call_id] = call
        part = call.sender.next_part()
        if call.sender.ready:
            self._turns[call] = None
        if call.sender.idle:
            call.drained()
        if call.sender.done:
            call.left()
        return call.end if part.payload is None and part.last and call.end is not None else call.frame(call, part)
