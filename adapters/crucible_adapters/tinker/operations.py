"""Operations of one session: accepted once each, handed to the library in order, kept for a while.

submit(sequence, ...)   new: accepted and queued · repeat: the first operation · early: held (ordered sessions)
begin                   in order, without waiting for earlier results: QUEUED -> RUNNING
end                     SUCCEEDED | FAILED; in order for ordered sessions
wait(id)                long-poll; the result stays for RESULT_SECONDS or until RESULTS_KEPT later ones finished
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
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
from crucible_kit.outcomes import hidden

HOLD_WINDOW = 64
"""Calls ahead of the expected one that are held."""
RESULTS_KEPT = 64
RESULT_SECONDS = 600.0
_RETRY_SECONDS = 1.0

Result = tuple[str, Message]
"""Name of the field of AwaitOperationResponse's `result`, and its value."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a session may have unfinished, and how long an early call is held."""

    operations: int
    tokens: int
    hold_seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does.

    Attributes:
        begin: hands the call to the library and returns what waits for its result. It does not wait itself.
        is_barrier: begins when all earlier ones have ended, and ends before a later one begins.
        can_be_dropped: a caller may cancel it before it begins.
        tokens: those it reads, and at most writes.
    """

    begin: Callable[[], Coroutine[Any, Any, Result]]
    is_barrier: bool = False
    can_be_dropped: bool = True
    tokens: int = 0


@dataclass(kw_only=True, eq=False)
class Operation:
    """One accepted call."""

    sequence: int
    digest: bytes
    work: Work
    message: operation_pb2.Operation = field(default_factory=operation_pb2.Operation)
    result: Result | None = None
    finished_at: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.message.id = uuid.uuid4().hex
        self.message.sequence = self.sequence
        self.message.state = operation_pb2.OPERATION_STATE_QUEUED
        self.message.create_time.GetCurrentTime()

    def now(self) -> operation_pb2.Operation:
        """The operation as the wire shows it: a copy, because this one goes on changing."""
        copy = operation_pb2.Operation()
        copy.CopyFrom(self.message)
        return copy

    def finish(self, state: operation_pb2.OperationState, result: Result | None = None) -> None:
        """Sets the final state and releases whoever waits."""
        self.message.state, self.result, self.finished_at = state, result, time.monotonic()
        self.message.expire_time.FromNanoseconds(time.time_ns() + int(RESULT_SECONDS * 1e9))
        self.done.set()


class Operations:
    """A session's operations by id. Subclasses say which sequence numbers are new, repeated or too early.

    Args:
        source: the service's full name, for failures.
        in_order: results are taken one after another, as the calls were begun.
    """

    def __init__(self, limits: Limits, *, source: str, in_order: bool) -> None:
        self._limits = limits
        self._source = source
        self._in_order = in_order
        self._by_id: dict[str, Operation] = {}
        self._by_sequence: dict[int, Operation] = {}
        self._queue: deque[Operation] = deque()
        self._unfinished: set[Operation] = set()
        self._finished: deque[Operation] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None
        self._under_way: dict[Operation, asyncio.Task[None]] = {}
        self.closed = False

    @property
    def pending(self) -> bool:
        """Whether something is queued or under way."""
        return bool(self._unfinished)

    def get(self, operation_id: str) -> Operation:
        """The operation. Raises NOT_FOUND OPERATION_NOT_FOUND when it is unknown or its result has expired."""
        self._evict()
        if operation_id not in self._by_id:
            raise _expired(f"operation {operation_id!r}")
        return self._by_id[operation_id]

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """The operation, finished if that happens within `seconds`."""
        operation = self.get(operation_id)
        if seconds > 0 and not operation.done.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await operation.done.wait()
            except TimeoutError:
                pass
        return operation

    def cancel(self, operation_id: str) -> Operation:
        """Drops an operation that has not begun, where that leaves nothing half done."""
        operation = self.get(operation_id)
        if operation.work.can_be_dropped and operation.message.state == operation_pb2.OPERATION_STATE_QUEUED:
            self._end(operation, operation_pb2.OPERATION_STATE_CANCELLED)
        return operation

    async def close(self) -> None:
        """Drops what has not begun and waits no longer for what has."""
        self.closed = True
        tasks = [*self._under_way.values(), *([self._pump] if self._pump is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for operation in list(self._unfinished):
            self._end(operation, operation_pb2.OPERATION_STATE_CANCELLED)

    def _repeated(self, sequence: int, digest: bytes) -> Operation:
        self._evict()
        operation = self._by_sequence.get(sequence)
        if operation is None:
            raise _expired(f"the operation of sequence {sequence}")
        if operation.digest != digest:
            raise InvalidArgumentError(
                f"sequence: {sequence} was used for another request: number every new call anew",
                reason="SEQUENCE_REUSED",
                metadata={"field": "sequence", "sequence": sequence},
            )
        return operation

    def _start(self, sequence: int, digest: bytes, work: Work) -> Operation:
        self._check_room(work.tokens)
        operation = Operation(sequence=sequence, digest=digest, work=work)
        self._by_id[operation.message.id] = self._by_sequence[sequence] = operation
        self._unfinished.add(operation)
        self._queue.append(operation)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._begin_all())
        return operation

    def _check_room(self, tokens: int) -> None:
        for reason, has, more, limit in (
            ("TOO_MANY_IN_FLIGHT", len(self._unfinished), 1, self._limits.operations),
            ("TOO_MANY_TOKENS", sum(each.work.tokens for each in self._unfinished), tokens, self._limits.tokens),
        ):
            if has + more > limit:
                raise ResourceExhaustedError(
                    f"the session's unfinished operations are {has} of at most {limit}, and this is {more} more: "
                    "await some first",
                    reason=reason,
                    metadata={"limit": limit, "in_flight": has},
                    retry_delay=_RETRY_SECONDS,
                )

    async def _begin_all(self) -> None:
        while self._queue:
            # A turn for the others first: until then the operation can be cancelled.
            await asyncio.sleep(0)
            operation = self._queue[0]
            if operation.work.is_barrier and self._under_way:
                await asyncio.wait(list(self._under_way.values()))
            self._queue.popleft()
            if operation.done.is_set():
                continue
            self._last = self._begin(operation)
            if operation.work.is_barrier:
                await asyncio.wait([self._last])

    def _begin(self, operation: Operation) -> asyncio.Task[None]:
        operation.message.state = operation_pb2.OPERATION_STATE_RUNNING
        try:
            result = operation.work.begin()
        except Exception as error:
            result = _raised(error)
        task = asyncio.create_task(self._run(operation, result, self._last if self._in_order else None))
        self._under_way[operation] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._under_way.pop(operation, None)
            # A task that was cancelled before its first turn has not awaited it.
            result.close()

        task.add_done_callback(ended)
        return task

    async def _run(
        self, operation: Operation, result: Coroutine[Any, Any, Result], before: asyncio.Task[None] | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            found = await result
        except Exception as error:
            where = f"{self._source}, operation {operation.message.id}"
            failure = error if isinstance(error, KitchenError) else hidden(where, error)
            operation.message.failure.CopyFrom(to_failure(failure, source=self._source))
            self._end(operation, operation_pb2.OPERATION_STATE_FAILED)
        else:
            self._end(operation, operation_pb2.OPERATION_STATE_SUCCEEDED, found)

    def _end(self, operation: Operation, state: operation_pb2.OperationState, result: Result | None = None) -> None:
        operation.finish(state, result)
        self._unfinished.discard(operation)
        self._finished.append(operation)
        self._evict()

    def _evict(self) -> None:
        oldest = time.monotonic() - RESULT_SECONDS
        while self._finished and (len(self._finished) > RESULTS_KEPT or self._finished[0].finished_at < oldest):
            operation = self._finished.popleft()
            del self._by_id[operation.message.id], self._by_sequence[operation.sequence]

    def _check_open(self) -> None:
        if self.closed:
            raise NotFoundError("session_id: the session was closed", reason="SESSION_NOT_FOUND")


class OrderedOperations(Operations):
    """Dense numbers from 1; calls that arrive early are held until their turn."""

    def __init__(self, limits: Limits, *, source: str) -> None:
        super().__init__(limits, source=source, in_order=True)
        self.next_sequence = 1
        self._turns: set[tuple[int, asyncio.Event]] = set()

    async def submit(self, sequence: int, request: Message, work: Work) -> Operation:
        """Accepts a checked call in its turn, or finds its first operation.

        Raises FAILED_PRECONDITION SEQUENCE_GAP for a call too far ahead or whose turn does not come in time,
        INVALID_ARGUMENT SEQUENCE_REUSED for a repeat with another payload. Neither uses up a number.
        """
        digest = digest_of(request)
        if self.next_sequence < sequence:
            await self._hold(sequence)
        self._check_open()
        if sequence < self.next_sequence:
            return self._repeated(sequence, digest)
        operation = self._start(sequence, digest, work)
        self.next_sequence += 1
        self._let_in(self.next_sequence)
        return operation

    async def close(self) -> None:
        self.closed = True
        self._let_in(self.next_sequence + HOLD_WINDOW)
        await super().close()

    def _let_in(self, up_to: int) -> None:
        for sequence, turn in self._turns:
            if sequence <= up_to:
                turn.set()

    async def _hold(self, sequence: int) -> None:
        if sequence > self.next_sequence + HOLD_WINDOW:
            raise self._gap(sequence)
        held = (sequence, asyncio.Event())
        self._turns.add(held)
        try:
            async with asyncio.timeout(self._limits.hold_seconds):
                await held[1].wait()
        except TimeoutError:
            raise self._gap(sequence) from None
        finally:
            self._turns.remove(held)

    def _gap(self, sequence: int) -> KitchenError:
        return FailedPreconditionError(
            f"sequence: {sequence} came while {self.next_sequence} is expected: send that one first",
            reason="SEQUENCE_GAP",
            metadata={"field": "sequence", "expected": self.next_sequence, "sequence": sequence},
        )


class UnorderedOperations(Operations):
    """Any positive number that was not used is new."""

    def __init__(self, limits: Limits, *, source: str) -> None:
        super().__init__(limits, source=source, in_order=False)
        # All numbers up to the floor are used, and these above it.
        self._floor = 0
        self._used: set[int] = set()

    def submit(self, sequence: int, request: Message, work: Work) -> Operation:
        """Accepts a checked call, or finds its first operation. Raises INVALID_ARGUMENT SEQUENCE_REUSED."""
        digest = digest_of(request)
        self._check_open()
        if sequence <= self._floor or sequence in self._used:
            return self._repeated(sequence, digest)
        operation = self._start(sequence, digest, work)
        self._used.add(sequence)
        while self._floor + 1 in self._used:
            self._floor += 1
            self._used.remove(self._floor)
        return operation


def digest_of(request: Message) -> bytes:
    """SHA-256 of a request's content, the same for equal requests."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


async def _raised(error: Exception) -> Result:
    raise error


def _expired(what: str) -> NotFoundError:
    return NotFoundError(
        f"{what} is unknown, or its result has expired after {RESULT_SECONDS:g} s or {RESULTS_KEPT} later results",
        reason="OPERATION_NOT_FOUND",
    )
