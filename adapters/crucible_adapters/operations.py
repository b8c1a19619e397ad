"""Operations of one session of training or sampling: accepted once each, carried out by an adapter, kept for a while.

    submit(sequence, ...)   new: accepted and started · repeat: the first operation · early: held (ordered sessions)
    executor                QUEUED -> RUNNING -> SUCCEEDED | FAILED, or CANCELLED before it began
    wait(id)                long-poll; the result stays for RESULT_SECONDS or until RESULTS_KEPT later ones finished

The rules are the same for all adapters and stand here; how work is carried out is each one's Executor.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

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
MAX_WAIT_SECONDS = 30.0
"""Longest that one AwaitOperation waits."""
_RETRY_SECONDS = 1.0

Result = tuple[str, Message]
"""Name of the field of AwaitOperationResponse's `result`, and its value."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a session may have unfinished, and how long an early call is held."""

    operations: int = 64
    tokens: int = 4 * 1024 * 1024
    hold_seconds: float = 10.0


def _random_id(_: int) -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Stamps:
    """What operations are marked with; a fake has its own.

    Attributes:
        new_id: the id of an operation, given its sequence number.
        wall_nanos: the time that operations tell, in nanoseconds since 1970.
        clock: seconds, for how long results are kept.
    """

    new_id: Callable[[int], str] = _random_id
    wall_nanos: Callable[[], int] = time.time_ns
    clock: Callable[[], float] = time.monotonic


@dataclass(kw_only=True, eq=False)
class Operation:
    """One accepted call. Owned by the event loop; another thread may set `has_begun` and nothing else.

    Attributes:
        source: full name of the service, for failures.
        keep: told once that it has finished.
    """

    sequence: int
    digest: bytes
    source: str
    stamps: Stamps
    keep: Callable[[Operation], None]
    message: operation_pb2.Operation = field(default_factory=operation_pb2.Operation)
    has_begun: bool = False
    result: Result | None = None
    finished_at: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.message.id = self.stamps.new_id(self.sequence)
        self.message.sequence = self.sequence
        self.message.state = operation_pb2.OPERATION_STATE_QUEUED
        self.message.create_time.FromNanoseconds(self.stamps.wall_nanos())

    @property
    def id(self) -> str:
        """Its id in the session."""
        return self.message.id

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"{self.source}, operation {self.id}"

    def now(self) -> operation_pb2.Operation:
        """The operation as the wire shows it: a copy, because this one goes on changing."""
        copy = operation_pb2.Operation()
        copy.CopyFrom(self.message)
        if self.has_begun and not self.done.is_set():
            copy.state = operation_pb2.OPERATION_STATE_RUNNING
        return copy

    def succeed(self, result: Result) -> None:
        """It has a result. Nothing when it had finished."""
        self._finish(operation_pb2.OPERATION_STATE_SUCCEEDED, result)

    def fail(self, error: Exception) -> None:
        """It has failed. An error that is none of ours is told in the log alone. Nothing when it had finished."""
        if self.done.is_set():
            return
        failure = error if isinstance(error, KitchenError) else hidden(self.name, error)
        self.message.failure.CopyFrom(to_failure(failure, source=self.source))
        self._finish(operation_pb2.OPERATION_STATE_FAILED)

    def drop(self) -> None:
        """It was cancelled. Nothing when it had finished."""
        self._finish(operation_pb2.OPERATION_STATE_CANCELLED)

    def _finish(self, state: operation_pb2.OperationState, result: Result | None = None) -> None:
        if self.done.is_set():
            return
        self.message.state, self.result, self.finished_at = state, result, self.stamps.clock()
        self.message.expire_time.FromNanoseconds(self.stamps.wall_nanos() + int(RESULT_SECONDS * 1e9))
        self.done.set()
        self.keep(self)


class Sized(Protocol):
    """Work that says how many tokens it reads, and at most writes."""

    @property
    def tokens(self) -> int: ...


WorkT = TypeVar("WorkT", bound=Sized)


class Load(NamedTuple):
    """What a session has unfinished."""

    operations: int
    tokens: int


class Executor(ABC, Generic[WorkT]):
    """How an adapter carries out the operations of one session."""

    @property
    @abstractmethod
    def load(self) -> Load:
        """What it has not finished."""

    @abstractmethod
    def start(self, operation: Operation, work: WorkT) -> None:
        """Takes an operation. Later sets `has_begun`, and calls `succeed`, `fail` or `drop` on the event loop."""

    @abstractmethod
    def cancel(self, operation: Operation) -> None:
        """Drops an operation that has not begun, or stops one that has, where it can."""

    @abstractmethod
    async def close(self) -> None:
        """Drops what has not begun. When it returns, every operation has finished."""


class Operations(Generic[WorkT]):
    """A session's operations by id. Subclasses say which sequence numbers are new, repeated or too early.

    Args:
        source: the service's full name, for failures.
    """

    def __init__(self, executor: Executor[WorkT], *, source: str, limits: Limits, stamps: Stamps = Stamps()) -> None:
        self._executor = executor
        self._source = source
        self._limits = limits
        self._stamps = stamps
        self._by_id: dict[str, Operation] = {}
        self._by_sequence: dict[int, Operation] = {}
        self._finished: deque[Operation] = deque()
        self.closed = False

    @property
    def pending(self) -> bool:
        """Whether something is queued or under way."""
        return self._executor.load.operations > 0

    def get(self, operation_id: str) -> Operation:
        """The operation. Raises NOT_FOUND OPERATION_NOT_FOUND when it is unknown or its result has expired."""
        self._evict()
        if operation_id not in self._by_id:
            raise _expired(f"operation {operation_id!r}")
        return self._by_id[operation_id]

    async def wait(self, request: Any, response: Callable[..., Any]) -> Any:
        """Answers an AwaitOperation of either service: with the result if there is one within the request's `wait`."""
        operation = self.get(request.operation_id)
        seconds = min(request.wait.seconds + request.wait.nanos / 1e9, MAX_WAIT_SECONDS)
        if seconds > 0 and not operation.done.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await operation.done.wait()
            except TimeoutError:
                pass
        result = {} if operation.result is None else dict([operation.result])
        return response(operation=operation.now(), **result)

    def cancel(self, operation_id: str) -> Operation:
        """Cancels an operation as far as the adapter can; one that has finished stays as it is."""
        operation = self.get(operation_id)
        if not operation.done.is_set():
            self._executor.cancel(operation)
        return operation

    async def close(self) -> None:
        """Takes no more calls and ends what is unfinished."""
        self.closed = True
        await self._executor.close()

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

    def _start(self, sequence: int, digest: bytes, work: WorkT) -> Operation:
        self._check_room(work.tokens)
        operation = Operation(
            sequence=sequence, digest=digest, source=self._source, stamps=self._stamps, keep=self._keep
        )
        self._executor.start(operation, work)
        self._by_id[operation.id] = self._by_sequence[sequence] = operation
        return operation

    def _check_room(self, tokens: int) -> None:
        limits, load = self._limits, self._executor.load
        if load.operations >= limits.operations:
            raise ResourceExhaustedError(
                f"the session has {load.operations} unfinished operations: await some first",
                reason="TOO_MANY_IN_FLIGHT",
                metadata={"limit": limits.operations, "in_flight": load.operations},
                retry_delay=_RETRY_SECONDS,
            )
        if load.tokens + tokens > limits.tokens:
            raise ResourceExhaustedError(
                f"the session's unfinished operations have {load.tokens} tokens, and {tokens} more would pass its "
                f"limit of {limits.tokens}: await some first",
                reason="TOO_MANY_TOKENS",
                metadata={"limit": limits.tokens, "in_flight": load.tokens, "tokens": tokens},
                retry_delay=_RETRY_SECONDS,
            )

    def _keep(self, operation: Operation) -> None:
        self._finished.append(operation)
        self._evict()

    def _evict(self) -> None:
        oldest = self._stamps.clock() - RESULT_SECONDS
        while self._finished and (len(self._finished) > RESULTS_KEPT or self._finished[0].finished_at < oldest):
            operation = self._finished.popleft()
            del self._by_id[operation.id], self._by_sequence[operation.sequence]

    def _check_open(self) -> None:
        if self.closed:
            raise NotFoundError("session_id: the session was closed", reason="SESSION_NOT_FOUND")


class OrderedOperations(Operations[WorkT]):
    """Dense numbers from 1; calls that arrive early are held until their turn."""

    def __init__(self, executor: Executor[WorkT], *, source: str, limits: Limits, stamps: Stamps = Stamps()) -> None:
        super().__init__(executor, source=source, limits=limits, stamps=stamps)
        self.next_sequence = 1
        self._turns: set[tuple[int, asyncio.Event]] = set()

    async def submit(self, sequence: int, request: Message, work: WorkT) -> Operation:
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


class UnorderedOperations(Operations[WorkT]):
    """Any positive number that was not used is new."""

    def __init__(self, executor: Executor[WorkT], *, source: str, limits: Limits, stamps: Stamps = Stamps()) -> None:
        super().__init__(executor, source=source, limits=limits, stamps=stamps)
        # All numbers up to the floor are used, and these above it.
        self._floor = 0
        self._used: set[int] = set()

    def submit(self, sequence: int, request: Message, work: WorkT) -> Operation:
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


def _expired(what: str) -> NotFoundError:
    return NotFoundError(
        f"{what} is unknown, or its result has expired after {RESULT_SECONDS:g} s or {RESULTS_KEPT} later results",
        reason="OPERATION_NOT_FOUND",
    )
