"""Operations of one session: accepted once each, carried out in order by one task, kept for a while.

submit(sequence, ...)   new: accepted and queued · repeat: the first operation · early: held (ordered sessions)
the session's task      QUEUED -> RUNNING -> SUCCEEDED | FAILED, or CANCELLED before it began
wait(id)                long-poll; the result stays for RESULT_SECONDS or until RESULTS_KEPT later ones finished
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from crucible.type.v1 import operation_pb2
from crucible_adapters.fakes.fixed import fixed_time
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
RESULT_SECONDS = 600
_RETRY_SECONDS = 1.0

Result = tuple[str, Message]
"""Name of the field of AwaitOperationResponse's `result`, and its value."""
T = TypeVar("T")


class Surroundings(Protocol):
    """What a session's operations need of the engine.

    Attributes:
        gate: nothing is carried out while it is closed.
        clock: seconds, for how long results are kept.
    """

    gate: asyncio.Event
    clock: Callable[[], float]
    hold_seconds: float
    max_operations: int
    max_tokens: int

    def compute(self, function: Callable[[], T]) -> Awaitable[T]: ...


def nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does.

    Attributes:
        on_dropped: runs in its place when it was cancelled before it began.
        tokens: those it reads, and at most writes.
    """

    run: Callable[[], Result]
    on_dropped: Callable[[], None] = nothing
    tokens: int = 0


@dataclass(kw_only=True, eq=False)
class Operation:
    """One accepted call."""

    digest: bytes
    work: Work
    message: operation_pb2.Operation
    result: Result | None = None
    finished_at: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> operation_pb2.Operation:
        """The operation as the wire shows it: a copy, because this one goes on changing."""
        copy = operation_pb2.Operation()
        copy.CopyFrom(self.message)
        return copy

    def finish(self, state: operation_pb2.OperationState, at: float, result: Result | None = None) -> None:
        """Sets the final state and releases whoever waits."""
        self.message.state, self.result, self.finished_at = state, result, at
        self.message.expire_time.CopyFrom(fixed_time(seconds=RESULT_SECONDS))
        self.done.set()


class Operations:
    """A session's operations by id. Subclasses say which sequence numbers are new, repeated or too early."""

    def __init__(self, engine: Surroundings, *, source: str) -> None:
        """`source` is the service's full name, for failures."""
        self._engine = engine
        self._source = source
        self._by_id: dict[str, Operation] = {}
        self._queue: deque[Operation] = deque()
        self._finished: deque[Operation] = deque()
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def pending(self) -> bool:
        """Whether something is queued or under way."""
        return bool(self._queue)

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
        """Drops an operation that has not begun."""
        operation = self.get(operation_id)
        if operation.message.state == operation_pb2.OPERATION_STATE_QUEUED:
            operation.finish(operation_pb2.OPERATION_STATE_CANCELLED, self._engine.clock())
        return operation

    async def close(self) -> None:
        """Drops what has not begun and waits for what is under way."""
        self.closed = True
        for operation in self._queue:
            self.cancel(operation.message.id)
        if self._queue:
            await self._queue[0].done.wait()
        if self._task is not None:
            # It may wait at the gate.
            self._task.cancel()
            await asyncio.wait([self._task])

    def _repeated(self, sequence: int, digest: bytes) -> Operation:
        operation = self.get(_id(sequence))
        if operation.digest != digest:
            raise InvalidArgumentError(
                f"sequence: {sequence} was used for another request: number every new call anew",
                reason="SEQUENCE_REUSED",
                metadata={"field": "sequence", "sequence": sequence},
            )
        return operation

    def _start(self, sequence: int, digest: bytes, work: Work) -> Operation:
        self._check_room(work.tokens)
        state = operation_pb2.OPERATION_STATE_QUEUED
        message = operation_pb2.Operation(id=_id(sequence), state=state, sequence=sequence, create_time=fixed_time())
        operation = self._by_id[message.id] = Operation(digest=digest, work=work, message=message)
        self._queue.append(operation)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._carry_out())
        return operation

    def _check_room(self, tokens: int) -> None:
        unfinished = [each for each in self._queue if not each.done.is_set()]
        for reason, has, more, limit in (
            ("TOO_MANY_IN_FLIGHT", len(unfinished), 1, self._engine.max_operations),
            ("TOO_MANY_TOKENS", sum(each.work.tokens for each in unfinished), tokens, self._engine.max_tokens),
        ):
            if has + more > limit:
                raise ResourceExhaustedError(
                    f"the session's unfinished operations are {has} of at most {limit}, and this is {more} more: "
                    "await some first",
                    reason=reason,
                    metadata={"limit": limit, "in_flight": has},
                    retry_delay=_RETRY_SECONDS,
                )

    async def _carry_out(self) -> None:
        while self._queue:
            # A turn for the others first: until then the operation can be cancelled.
            await asyncio.sleep(0)
            await self._engine.gate.wait()
            operation = self._queue[0]
            if operation.done.is_set():
                operation.work.on_dropped()
            else:
                await self._run(operation)
            self._queue.popleft()
            self._finished.append(operation)
            self._evict()

    async def _run(self, operation: Operation) -> None:
        operation.message.state = operation_pb2.OPERATION_STATE_RUNNING
        try:
            result = await self._engine.compute(operation.work.run)
        except asyncio.CancelledError:
            operation.finish(operation_pb2.OPERATION_STATE_CANCELLED, self._engine.clock())
            raise
        except Exception as error:
            where = f"{self._source}, operation {operation.message.id}"
            failure = error if isinstance(error, KitchenError) else hidden(where, error)
            operation.message.failure.CopyFrom(to_failure(failure, source=self._source))
            operation.finish(operation_pb2.OPERATION_STATE_FAILED, self._engine.clock())
        else:
            operation.finish(operation_pb2.OPERATION_STATE_SUCCEEDED, self._engine.clock(), result)

    def _evict(self) -> None:
        oldest = self._engine.clock() - RESULT_SECONDS
        while self._finished and (len(self._finished) > RESULTS_KEPT or self._finished[0].finished_at < oldest):
            del self._by_id[self._finished.popleft().message.id]

    def _check_open(self) -> None:
        if self.closed:
            raise NotFoundError("session_id: the session was closed", reason="SESSION_NOT_FOUND")


class OrderedOperations(Operations):
    """Dense numbers from 1; calls that arrive early are held until their turn."""

    def __init__(self, engine: Surroundings, *, source: str) -> None:
        super().__init__(engine, source=source)
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
            async with asyncio.timeout(self._engine.hold_seconds):
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

    def __init__(self, engine: Surroundings, *, source: str) -> None:
        super().__init__(engine, source=source)
        self._used: set[int] = set()

    def submit(self, sequence: int, request: Message, work: Work) -> Operation:
        """Accepts a checked call, or finds its first operation. Raises INVALID_ARGUMENT SEQUENCE_REUSED."""
        digest = digest_of(request)
        self._check_open()
        if sequence in self._used:
            return self._repeated(sequence, digest)
        operation = self._start(sequence, digest, work)
        self._used.add(sequence)
        return operation


def digest_of(request: Message) -> bytes:
    """SHA-256 of a request's content, the same for equal requests."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def await_response(operation: Operation, response: Callable[..., Any]) -> Any:
    """An AwaitOperationResponse of either service."""
    result = {} if operation.result is None else dict([operation.result])
    return response(operation=operation.now(), **result)


def _id(sequence: int) -> str:
    return f"op-{sequence}"


def _expired(what: str) -> NotFoundError:
    return NotFoundError(
        f"{what} is unknown, or its result has expired after {RESULT_SECONDS} s or {RESULTS_KEPT} later results",
        reason="OPERATION_NOT_FOUND",
    )
