"""A training session against an adapter with limits: it waits for room, and asks for nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_kit import training
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import InvalidArgumentError, ResourceExhaustedError, to_failure
from crucible_kit.ports import PORTS
from crucible_kit.tensors import pack_tokens
from crucible_kit.training import TrainingSession

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")


class FakeLimited(training_pb2_grpc.TrainingServiceServicer):
    """Takes so many unfinished operations; one finishes when somebody waits for it. Fails those of `failing`."""

    def __init__(self, room: int, failing: tuple[int, ...] = ()) -> None:
        self.room, self.failing = room, failing
        self.unfinished: list[int] = []
        self.accepted: list[int] = []
        self.refusals = 0

    def _accept(self, sequence: int) -> operation_pb2.Operation:
        if len(self.unfinished) >= self.room:
            self.refusals += 1
            raise ResourceExhaustedError("full", reason="TOO_MANY_IN_FLIGHT", retry_delay=1.0)
        self.accepted.append(sequence)
        self.unfinished.append(sequence)
        return operation_pb2.Operation(id=str(sequence))

    async def Forward(self, request: Any, context: Any) -> training_pb2.ForwardResponse:
        return training_pb2.ForwardResponse(operation=self._accept(request.sequence))

    async def ForwardBackward(self, request: Any, context: Any) -> training_pb2.ForwardBackwardResponse:
        return training_pb2.ForwardBackwardResponse(operation=self._accept(request.sequence))

    async def OptimStep(self, request: Any, context: Any) -> training_pb2.OptimStepResponse:
        return training_pb2.OptimStepResponse(operation=self._accept(request.sequence))

    async def AwaitOperation(self, request: Any, context: Any) -> training_pb2.AwaitOperationResponse:
        sequence = int(request.operation_id)
        if sequence in self.unfinished:
            self.unfinished.remove(sequence)
        response = training_pb2.AwaitOperationResponse(
            operation=operation_pb2.Operation(id=request.operation_id, state=operation_pb2.OPERATION_STATE_SUCCEEDED),
            forward=training_pb2.ForwardResult(loss=float(sequence), outputs=[training_pb2.LossOutput()]),
        )
        if sequence in self.failing:
            response.operation.state = operation_pb2.OPERATION_STATE_FAILED
            response.operation.failure.CopyFrom(to_failure(InvalidArgumentError("bad data", reason="TEST")))
        return response


def session(servicer: FakeLimited) -> TrainingSession:
    channel = ObjectChannel({PORTS["training"].service.full_name: servicer})
    return TrainingSession(PORTS["training"].stub(channel), training_pb2.TrainingSession(session_id="s"))


def data(count: int) -> list[datum_pb2.Datum]:
    """Rows that fill one message each under the patched limit."""
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(np.zeros(20, dtype=np.int32)))
    return [datum_pb2.Datum(model_input=datum_pb2.ModelInput(chunks=[chunk])) for _ in range(count)]


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MAX_CALL_BYTES", 1)


@pytest.mark.parametrize("room", [1, 2, 100])
async def test_a_full_session_s_oldest_call_is_waited_for(room: int) -> None:
    servicer = FakeLimited(room)
    mine = session(servicer)
    operations = await mine.enqueue_forward_backward(data(5), CROSS_ENTROPY)
    step = await mine.enqueue_optim_step(training_pb2.AdamParams())
    # A call that is refused has used no number: the same one comes again.
    assert servicer.accepted == [1, 2, 3, 4, 5, 6]
    assert (servicer.refusals > 0) == (room < 6)
    losses = [(await mine.result(each)).forward.loss for each in operations]
    assert (losses, (await mine.result(step)).operation.id) == ([1, 2, 3, 4, 5], "6")


async def test_a_failure_that_made_room_is_told_where_its_result_is_asked_for() -> None:
    mine = session(FakeLimited(1, failing=(1,)))
    first, second = await mine.enqueue_forward_backward(data(2), CROSS_ENTROPY)
    with pytest.raises(InvalidArgumentError, match="bad data"):
        await mine.result(first)
    assert (await mine.result(second)).forward.loss == 2


async def test_a_large_forward_pass_is_never_far_ahead_of_its_results() -> None:
    """Adapters keep the results of the newest operations only."""
    servicer = FakeLimited(100)
    result = await session(servicer).forward(data(50), CROSS_ENTROPY)
    assert (result.loss, len(result.outputs)) == (sum(range(1, 51)), 50)
    crowd = FakeLimited(4)
    assert (await session(crowd).forward(data(50), CROSS_ENTROPY)).loss == sum(range(1, 51))
    assert crowd.refusals == 0


async def test_a_call_that_never_fits_is_no_promise_of_a_retry() -> None:
    with pytest.raises(ResourceExhaustedError) as caught:
        await session(FakeLimited(0)).enqueue_forward_backward(data(1), CROSS_ENTROPY)
    assert (caught.value.reason, caught.value.retryable) == ("TOO_MANY_IN_FLIGHT", False)


async def test_a_new_session_waits_for_another_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []
    waits: list[float] = []

    async def create(request: Any, *, timeout: float) -> training_pb2.CreateTrainingSessionResponse:
        requests.append(request)
        if len(requests) < 3:
            raise ResourceExhaustedError("full", reason="TOO_MANY_SESSIONS", retry_delay=2.5)
        opened = training_pb2.TrainingSession(session_id="mine", next_sequence=1)
        return training_pb2.CreateTrainingSessionResponse(session=opened)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    class Stub:
        CreateTrainingSession = staticmethod(create)

    monkeypatch.setattr(training.asyncio, "sleep", sleep)
    opened = await TrainingSession.create(Stub, base_model="m")
    assert (opened.session_id, waits) == ("mine", [2.5, 2.5])
    assert len({each.request_id for each in requests}) == 1, "one session, however often it is asked for"


async def test_a_refused_call_uses_up_no_number() -> None:
    adapter = FakeLimited(room=8)

    async def refuse(request: Any, context: Any) -> training_pb2.SaveCheckpointResponse:
        raise InvalidArgumentError("name: bad", reason="FIELD_INVALID")

    adapter.SaveCheckpoint = refuse  # type: ignore[method-assign]
    opened = session(adapter)
    with pytest.raises(InvalidArgumentError):
        await opened.save_checkpoint("../x", weights_only=True)
    await opened.enqueue_optim_step(training_pb2.AdamParams())
    assert adapter.accepted == [1]
