"""Training adapters with a defect in the order of calls and in operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import operation_pb2
from crucible_kit.errors import (
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    from_failure,
)
from tests.conformance.mutants.mutant import Mutant, training_mutant
from tests.conformance.toy.operations import Operation, Operations, Work
from tests.conformance.toy.training import Row, ToyTraining


def with_operations(kind: type[Operations]) -> type[ToyTraining]:
    """A toy whose sessions have such operations."""

    class Toy(ToyTraining):
        def new_operations(self) -> Operations:
            return kind(ordered=True)

    return Toy


class AppliesRepeats(Operations):
    def repeated(self, sequence: int, digest: bytes) -> Operation:
        operation = super().repeated(sequence, digest)
        with suppress(KitchenError):
            operation.work()
        return operation


class NewOperationForRepeats(Operations):
    def is_used(self, sequence: int) -> bool:
        return False


class TakesOtherPayloads(Operations):
    def repeated(self, sequence: int, digest: bytes) -> Operation:
        return self._by_sequence[sequence]


class TakesGaps(Operations):
    async def hold(self, sequence: int) -> None:
        pass


class RefusesEarlyCalls(Operations):
    async def hold(self, sequence: int) -> None:
        raise self.gap(sequence)


class NoExpectedNumber(Operations):
    def gap(self, sequence: int) -> KitchenError:
        return FailedPreconditionError("sequence: too early", reason="SEQUENCE_GAP")


class AppliesWhatNobodyWaitsFor(Operations):
    """A held call goes on when its caller has left."""

    async def submit(self, request: Any, work: Work, dropped: Callable[[], None] = lambda: None) -> Any:
        held = asyncio.ensure_future(super().submit(request, work, dropped))
        held.add_done_callback(lambda each: each.cancelled() or each.exception())
        return await asyncio.shield(held)


class OldestLast(Operations):
    """What is queued is carried out from its end."""

    async def _run(self) -> None:
        while self._queue:
            for _ in range(4):
                await asyncio.sleep(0)
            self.carry_out(self._queue.pop())


class ForgetsResults(Operations):
    async def wait(self, operation_id: str, seconds: float) -> Operation:
        operation = await super().wait(operation_id, seconds)
        if operation.done.is_set():
            del self._by_id[operation_id]
        return operation


class KeepsFewResults(Operations):
    def finish(self, operation: Operation, state: operation_pb2.OperationState) -> None:
        super().finish(operation, state)
        while len(self._finished) > 8:
            oldest = self._finished.popleft()
            self._by_id.pop(oldest.message.id, None)


class RaisesFailures(Operations):
    async def wait(self, operation_id: str, seconds: float) -> Operation:
        operation = await super().wait(operation_id, seconds)
        if operation.message.HasField("failure"):
            raise from_failure(operation.message.failure)
        return operation


class KnowsEveryOperation(Operations):
    def get(self, operation_id: str) -> Operation:
        try:
            return super().get(operation_id)
        except NotFoundError:
            message = operation_pb2.Operation(id=operation_id, state=operation_pb2.OPERATION_STATE_QUEUED)
            return Operation(message, b"", lambda: ("forward", pb.ForwardResult()), lambda: None)


class ResultsTooEarly(Operations):
    async def wait(self, operation_id: str, seconds: float) -> Operation:
        operation = await super().wait(operation_id, seconds)
        if not operation.done.is_set():
            return Operation(operation.message, b"", operation.work, operation.dropped, {"forward": pb.ForwardResult()})
        return operation


class IgnoresDropping(Operations):
    def carry_out(self, operation: Operation) -> None:
        if operation.message.state != operation_pb2.OPERATION_STATE_CANCELLED:
            super().carry_out(operation)


class CancelsFinished(Operations):
    def cancel(self, operation_id: str) -> Operation:
        operation = self.get(operation_id)
        if operation.done.is_set():
            operation.message.state = operation_pb2.OPERATION_STATE_CANCELLED
            operation.result = {}
            return operation
        return super().cancel(operation_id)


class NoRetryDelay(Operations):
    def check_room(self) -> None:
        if len(self._queue) >= 4:
            raise ResourceExhaustedError("too many calls", reason="TOO_MANY_IN_FLIGHT")


class LimitTakesNumbers(Operations):
    def check_room(self) -> None:
        if len(self._queue) >= 4:
            self.next_sequence += 1
            raise ResourceExhaustedError("too many calls", reason="TOO_MANY_IN_FLIGHT", retry_delay=0.01)


class RefusedCallsTakeNumbers(ToyTraining):
    def parse(self, request: Any) -> list[Row]:
        try:
            return super().parse(request)
        except KitchenError:
            self.session(request.session_id).operations.next_sequence += 1
            raise


def _operations(kind: type[Operations], defect: str, *red: str, others: int = 0) -> Mutant:
    return training_mutant(with_operations(kind), defect, *red, others=others)


TRAINING_ORDER_MUTANTS = (
    _operations(AppliesRepeats, "repeats are applied twice", "TRN-SEQ-01", "TRN-SEQ-08"),
    _operations(NewOperationForRepeats, "repeats make new operations", "TRN-SEQ-01", "TRN-SEQ-02", others=1),
    _operations(TakesOtherPayloads, "repeats with another payload are taken", "TRN-SEQ-02"),
    _operations(TakesGaps, "gaps are taken", "TRN-SEQ-03", "TRN-SEQ-04", "TRN-SEQ-05", others=2),
    _operations(RefusesEarlyCalls, "early calls are not held", "TRN-SEQ-03", "TRN-SEQ-07", others=1),
    _operations(NoExpectedNumber, "a gap does not tell the expected number", "TRN-SEQ-04", others=1),
    _operations(AppliesWhatNobodyWaitsFor, "a held call is applied though its caller left", "TRN-SEQ-09"),
    _operations(OldestLast, "operations run out of order", "TRN-SEQ-07", others=30),
    _operations(ForgetsResults, "results are given once", "TRN-AWAIT-01", others=3),
    _operations(KeepsFewResults, "only eight results are kept", "TRN-AWAIT-05"),
    _operations(RaisesFailures, "failures are raised by AwaitOperation", "TRN-AWAIT-02", others=2),
    _operations(KnowsEveryOperation, "unknown operations are queued", "TRN-AWAIT-03"),
    _operations(ResultsTooEarly, "unfinished operations have results", "TRN-AWAIT-04"),
    _operations(IgnoresDropping, "a dropped pass is not missed", "TRN-CANCEL-01"),
    _operations(CancelsFinished, "finished operations can be cancelled", "TRN-CANCEL-02"),
    _operations(NoRetryDelay, "a full session gives no RetryInfo", "TRN-LIMIT-01", others=3),
    _operations(LimitTakesNumbers, "a full session takes numbers", "TRN-LIMIT-01", others=3),
    training_mutant(RefusedCallsTakeNumbers, "refused calls take numbers", "TRN-SEQ-06", others=8),
)
