"""Operations of one session: accepted once each, run in order on the compute thread, kept for a while.

Life of a call:

    submit(sequence, ...)   new: accepted and queued · repeat: the first operation · early: held (ordered sessions)
    compute thread          QUEUED -> RUNNING -> SUCCEEDED | FAILED, or CANCELLED before it ran
    wait(id)                long-poll; the result stays for RESULT_SECONDS or until RESULTS_KEPT later ones finished
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from google.protobuf.message import Message

from crucible.type.v1 import operation_pb2
from crucible_adapters.torch_engine.compute import ComputeQueue, nothing
from crucible_adapters.torch_engine.failures import as_kitchen_error
from crucible_adapters.torch_engine.sampler import SamplingCancelled
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    to_failure,
)

HOLD_WINDOW = 64
"""Calls ahead of the expected one that are held."""
HOLD_SECONDS = 10.0
RESULTS_KEPT = 64
RESULT_SECONDS = 600.0
_RETRY_SECONDS = 1.0

Cancelled = Callable[[], bool]
Result = tuple[str, Message]
"""Name of the field of AwaitOperationResponse's `result`, and its value."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an operation does on the compute thread."""

    run: Callable[[Cancelled], Result]
    """Asked between tokens, the argument says whether the caller has cancelled; work may ignore it."""
    on_dropped: Callable[[], None] = nothing
    """Runs in the operation's place when it was cancelled before it began."""
    tokens: int = 0
    """Tokens it runs through the model, padding aside; at most, for one that samples."""


@dataclass(frozen=True, kw_only=True)
class InFlightLimits:
    """What a session may have queued and running, together."""

    operations: int = 64
    tokens: int = 4 * 1024 * 1024


@dataclass(kw_only=True, eq=False)
class Operation:
    """One accepted call. Owned by the event loop; the compute thread sees only its future and `cancel_requested`."""

    sequence: int
    digest: bytes
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    message: operation_pb2.Operation = field(default_factory=operation_pb2.Operation)
    future: Future[Result] | None = None
    """The work on the compute thread; gone when it has ended, because a failed one holds what it computed with."""
    cancel_requested: bool = False
    result: Result | None = None
    finished_at: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.message.id = self.id
        self.message.sequence = self.sequence
        self.message.state = operation_pb2.OPERATION_STATE_QUEUED
        self.message.create_time.GetCurrentTime()

    def now(self) -> operation_pb2.Operation:
        """The operation as the wire shows it."""
        # done on the compute thread and not yet here: still running
        if self.future is not None and (self.future.running() or self.future.done()):
            self.message.state = operation_pb2.OPERATION_STATE_RUNNING
        return self.message

    def finish(self, state: operation_pb2.OperationState, result: Result | None = None) -> None:
        """Set the final state and release whoever waits."""
        self.result = result
        self.future = None
        self.message.state = state
        self.message.expire_time.FromNanoseconds(time.time_ns() + int(RESULT_SECONDS * 1e9))
        self.finished_at = time.monotonic()
        self.done.set()


class Operations:
    """A session's operations by id. Subclasses say which sequence numbers are new, repeated or too early."""

    def __init__(self, queue: ComputeQueue, *, source: str, limits: InFlightLimits) -> None:
        """`source` is the service's full name, for failures."""
        self._queue = queue
        self._source = source
        self._limits = limits
        self._by_id: dict[str, Operation] = {}
        self._by_sequence: dict[int, Operation] = {}
        self._finished: deque[Operation] = deque()
        self.closed = False

    @property
    def pending(self) -> int:
        """Operations whose place in the queue has not passed."""
        return self._queue.unfinished

    def get(self, operation_id: str) -> Operation:
        """The operation. Raises NotFoundError OPERATION_NOT_FOUND when it is unknown or its result has expired."""
        self._evict()
        if operation_id not in self._by_id:
            raise _expired(f"operation {operation_id!r}")
        return self._by_id[operation_id]

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """The operation, finished if that happens within `seconds`."""
        operation = self.get(operation_id)
        if not operation.done.is_set() and seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await operation.done.wait()
            except TimeoutError:
                pass
        return operation

    def cancel(self, operation_id: str) -> Operation:
        """Drop an operation that has not begun; ask one that runs to stop, where it can."""
        operation = self.get(operation_id)
        self._drop(operation)
        return operation

    async def close(self) -> None:
        """Drop what has not begun and wait for what runs."""
        self.closed = True
        # before the cancelling: nothing is left to do in a dropped operation's place
        self._queue.close()
        operations = list(self._by_id.values())
        for operation in operations:
            self._drop(operation)
        for operation in operations:
            await operation.done.wait()

    def _drop(self, operation: Operation) -> None:
        operation.cancel_requested = True
        if operation.future is not None and operation.future.cancel():
            operation.finish(operation_pb2.OPERATION_STATE_CANCELLED)

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
        operation = Operation(sequence=sequence, digest=digest)
        future = self._queue.submit(
            lambda: work.run(lambda: operation.cancel_requested), on_cancelled=work.on_dropped, cost=work.tokens
        )
        operation.future = future
        self._by_id[operation.id] = self._by_sequence[sequence] = operation
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda each: loop.call_soon_threadsafe(self._finish, operation, each))
        return operation

    def _check_room(self, tokens: int) -> None:
        limits, queue = self._limits, self._queue
        if queue.unfinished >= limits.operations:
            raise ResourceExhaustedError(
                f"the session has {queue.unfinished} unfinished operations: await some first",
                reason="TOO_MANY_IN_FLIGHT",
                metadata={"limit": limits.operations, "in_flight": queue.unfinished},
                retry_delay=_RETRY_SECONDS,
            )
        if queue.cost + tokens > limits.tokens:
            raise ResourceExhaustedError(
                f"the session's unfinished operations have {queue.cost} tokens, and {tokens} more would pass its limit "
                f"of {limits.tokens}: await some first",
                reason="TOO_MANY_TOKENS",
                metadata={"limit": limits.tokens, "in_flight": queue.cost, "tokens": tokens},
                retry_delay=_RETRY_SECONDS,
            )

    def _finish(self, operation: Operation, future: Future[Result]) -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, SamplingCancelled):
            operation.finish(operation_pb2.OPERATION_STATE_CANCELLED)
        elif error is None:
            operation.finish(operation_pb2.OPERATION_STATE_SUCCEEDED, future.result())
        else:
            failure = as_kitchen_error(error, f"{self._source}, operation {operation.id}")
            operation.message.failure.CopyFrom(to_failure(failure, source=self._source))
            operation.finish(operation_pb2.OPERATION_STATE_FAILED)
        self._finished.append(operation)
        self._evict()

    def _evict(self) -> None:
        oldest = time.monotonic() - RESULT_SECONDS
        while self._finished and (len(self._finished) > RESULTS_KEPT or self._finished[0].finished_at < oldest):
            operation = self._finished.popleft()
            del self._by_id[operation.id], self._by_sequence[operation.sequence]

    def _check_open(self) -> None:
        if self.closed:
            raise NotFoundError("session_id: the session was closed", reason="SESSION_NOT_FOUND")


class OrderedOperations(Operations):
    """Dense numbers from 1; calls that arrive early are held until their turn."""

    def __init__(self, queue: ComputeQueue, *, source: str, limits: InFlightLimits) -> None:
        super().__init__(queue, source=source, limits=limits)
        self.next_sequence = 1
        self._turns: dict[int, asyncio.Event] = {}

    async def submit(self, sequence: int, request: Message, work: Work) -> Operation:
        """Accept a checked call in its turn, or find its first operation.

        Raises SEQUENCE_GAP for a call too far ahead or whose turn does not come in time, SEQUENCE_REUSED for a repeat
        with another payload. Neither uses up a number.
        """
        digest = digest_of(request)
        if self.next_sequence < sequence:
            await self._hold(sequence)
        self._check_open()
        if sequence < self.next_sequence:
            return self._repeated(sequence, digest)
        operation = self._start(sequence, digest, work)
        self.next_sequence += 1
        turn = self._turns.get(self.next_sequence)
        if turn is not None:
            turn.set()
        return operation

    async def close(self) -> None:
        self.closed = True
        for turn in self._turns.values():
            turn.set()
        await super().close()

    async def _hold(self, sequence: int) -> None:
        if sequence > self.next_sequence + HOLD_WINDOW:
            raise self._gap(sequence)
        turn = self._turns.setdefault(sequence, asyncio.Event())
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                await turn.wait()
        except TimeoutError:
            raise self._gap(sequence) from None
        finally:
            self._turns.pop(sequence, None)

    def _gap(self, sequence: int) -> KitchenError:
        return FailedPreconditionError(
            f"sequence: {sequence} came while {self.next_sequence} is expected: send that one first",
            reason="SEQUENCE_GAP",
            metadata={"field": "sequence", "expected": self.next_sequence, "sequence": sequence},
        )


class UnorderedOperations(Operations):
    """Any positive number that was not used is new."""

    def __init__(self, queue: ComputeQueue, *, source: str, limits: InFlightLimits) -> None:
        super().__init__(queue, source=source, limits=limits)
        # all numbers up to the floor are used, and these above it
        self._floor = 0
        self._used: set[int] = set()

    def submit(self, sequence: int, request: Message, work: Work) -> Operation:
        """Accept a checked call, or find its first operation. Raises SEQUENCE_REUSED for another payload."""
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
