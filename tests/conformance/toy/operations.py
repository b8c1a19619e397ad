"""Numbered operations of a session, carried out one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from crucible.type.v1 import operation_pb2
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    to_failure,
)

QUEUED, RUNNING = operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING
SUCCEEDED, FAILED = operation_pb2.OPERATION_STATE_SUCCEEDED, operation_pb2.OPERATION_STATE_FAILED
CANCELLED = operation_pb2.OPERATION_STATE_CANCELLED
KEPT = 64
_WINDOW = 64
_IN_FLIGHT = 64
_TICK = 0.01
Work = Callable[[], tuple[str, Message]]
"""The name of the result's field in AwaitOperationResponse, and the result."""


@dataclass
class Operation:
    """One accepted call."""

    message: operation_pb2.Operation
    digest: bytes
    work: Work
    dropped: Callable[[], None]
    result: dict[str, Message] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """See the module.

    Attributes:
        ordered: numbers are dense from 1; otherwise they only tell calls apart.
        next_sequence: the number expected next.
        hold_seconds: how long an early call is held, in time that the event loop was running: while the machine
            stands still, the calls that must come before do too.
    """

    def __init__(self, *, ordered: bool, hold_seconds: float = 0.4) -> None:
        self.ordered = ordered
        self.next_sequence = 1
        self.hold_seconds = hold_seconds
        self.closed = False
        self._by_id: dict[str, Operation] = {}
        self._by_sequence: dict[int, Operation] = {}
        self._used: set[int] = set()
        self._finished: deque[Operation] = deque()
        self._queue: deque[Operation] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._turns: dict[int, asyncio.Event] = {}

    async def submit(
        self, request: Any, work: Work, dropped: Callable[[], None] = lambda: None
    ) -> operation_pb2.Operation:
        """Accepts a call in its turn, or finds its first operation."""
        sequence, digest = request.sequence, request.SerializeToString(deterministic=True)
        if self.ordered and sequence > self.next_sequence:
            await self.hold(sequence)
        if self.closed:
            raise session_not_found("")
        if self.is_used(sequence):
            return self.repeated(sequence, digest).message
        self.check_room()
        return self.accept(sequence, digest, work, dropped).message

    def is_used(self, sequence: int) -> bool:
        """Whether the number belongs to an earlier call."""
        return sequence < self.next_sequence if self.ordered else sequence in self._used

    def repeated(self, sequence: int, digest: bytes) -> Operation:
        """The first operation of a repeated number."""
        operation = self._by_sequence.get(sequence)
        if operation is None:
            raise operation_not_found(f"sequence {sequence}")
        if operation.digest != digest:
            raise InvalidArgumentError(f"sequence: {sequence} was used for another request", reason="SEQUENCE_REUSED")
        return operation

    def check_room(self) -> None:
        """Refuses a call when too many are unfinished."""
        if len(self._queue) >= _IN_FLIGHT:
            raise ResourceExhaustedError("too many calls", reason="TOO_MANY_IN_FLIGHT", retry_delay=0.01)

    def accept(self, sequence: int, digest: bytes, work: Work, dropped: Callable[[], None]) -> Operation:
        """Takes a new call in."""
        message = operation_pb2.Operation(id=uuid.uuid4().hex, state=QUEUED, sequence=sequence)
        message.create_time.GetCurrentTime()
        operation = Operation(message, digest, work, dropped)
        self._by_id[message.id] = self._by_sequence[sequence] = operation
        self._used.add(sequence)
        self._queue.append(operation)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        self.next_sequence = max(self.next_sequence, sequence + 1)
        turn = self._turns.get(self.next_sequence)
        if turn is not None:
            turn.set()
        return operation

    async def hold(self, sequence: int) -> None:
        """Returns when the turn of an early call has come."""
        if sequence > self.next_sequence + _WINDOW:
            raise self.gap(sequence)
        turn = self._turns.setdefault(sequence, asyncio.Event())
        try:
            for _ in range(max(1, round(self.hold_seconds / _TICK))):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK):
                        await turn.wait()
                        return
            raise self.gap(sequence)
        finally:
            self._turns.pop(sequence, None)

    def gap(self, sequence: int) -> KitchenError:
        """The error of a call whose turn has not come."""
        return FailedPreconditionError(
            f"sequence: {sequence} came while {self.next_sequence} is expected",
            reason="SEQUENCE_GAP",
            metadata={"expected": self.next_sequence},
        )

    async def _run(self) -> None:
        while self._queue:
            # Others have a turn in between, as with an engine of its own.
            for _ in range(4):
                await asyncio.sleep(0)
            self.carry_out(self._queue.popleft())

    def carry_out(self, operation: Operation) -> None:
        """Does what an operation is for."""
        if operation.message.state == CANCELLED:
            operation.dropped()
            return
        try:
            name, result = operation.work()
            operation.result = {name: result}
            self.finish(operation, SUCCEEDED)
        except KitchenError as error:
            operation.message.failure.CopyFrom(to_failure(error, source="toy"))
            self.finish(operation, FAILED)

    def finish(self, operation: Operation, state: operation_pb2.OperationState) -> None:
        """Notes an end and forgets the oldest results."""
        operation.message.state = state
        operation.message.expire_time.FromNanoseconds(operation.message.create_time.ToNanoseconds() + 600 * 10**9)
        operation.done.set()
        self._finished.append(operation)
        while len(self._finished) > KEPT:
            oldest = self._finished.popleft()
            self._by_id.pop(oldest.message.id, None)
            self._by_sequence.pop(oldest.message.sequence, None)

    def get(self, operation_id: str) -> Operation:
        """An operation."""
        if operation_id not in self._by_id:
            raise operation_not_found(operation_id)
        return self._by_id[operation_id]

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """An operation, finished if that happens in time."""
        operation = self.get(operation_id)
        if seconds > 0:
            try:
                async with asyncio.timeout(min(seconds, 30.0)):
                    await operation.done.wait()
            except TimeoutError:
                pass
        return operation

    def cancel(self, operation_id: str) -> Operation:
        """Drops an operation that has not begun."""
        operation = self.get(operation_id)
        if operation.message.state == QUEUED:
            self.finish(operation, CANCELLED)
        return operation

    def close(self) -> None:
        """Drops what has not begun."""
        self.closed = True
        for operation in self._queue:
            operation.message.state = CANCELLED
            operation.done.set()
        for turn in self._turns.values():
            turn.set()


class Requests:
    """What was made for a request id, once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[bytes, Any]] = {}

    def once(self, request: Any, make: Callable[[], Any]) -> Any:
        """What the first such request made; raises REQUEST_ID_REUSED for another payload."""
        digest = request.SerializeToString(deterministic=True)
        if request.request_id not in self._made:
            self._made[request.request_id] = digest, make()
        known, made = self._made[request.request_id]
        if known != digest:
            raise InvalidArgumentError("request_id: was used for another request", reason="REQUEST_ID_REUSED")
        return made


def session_not_found(session_id: str) -> NotFoundError:
    """The error of a session that is not open."""
    return NotFoundError(f"session_id: no open session {session_id!r}", reason="SESSION_NOT_FOUND")


def operation_not_found(what: str) -> NotFoundError:
    """The error of an operation that is not known."""
    return NotFoundError(f"operation_id: {what} is unknown or expired", reason="OPERATION_NOT_FOUND")


def wait_seconds(request: Any) -> float:
    """How long an AwaitOperation may wait."""
    return request.wait.seconds + request.wait.nanos / 1e9
