"""The suite of training adapters, its settings, and sessions with short forms of the calls that the checks make."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray
from pydantic import Field

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check_close, check_equal
from crucible_kit.conformance.requirement import Suite
from crucible_kit.conformance.settings import SuiteSettings, tiny_model
from crucible_kit.tensors import from_tensor, pack_tokens, to_tensor
from crucible_kit.training import check_finished

ENDED = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)
LOSS = pb.LossFunction(name="cross_entropy")
_WAIT_SECONDS = 20
_OPERATION_FIELDS = {
    "Forward": pb.ForwardRequest,
    "ForwardBackward": pb.ForwardBackwardRequest,
    "OptimStep": pb.OptimStepRequest,
    "SaveCheckpoint": pb.SaveCheckpointRequest,
    "LoadCheckpoint": pb.LoadCheckpointRequest,
}


class TrainingSettings(SuiteSettings):
    """Settings of the suite of training adapters."""

    base_model: str = Field(
        default="",
        description="Model to train, as CreateTrainingSession takes it; small, so that a step takes moments. Empty: "
        "a tiny "
        "one that ships with the adapters.",
    )
    lora_rank: int = Field(
        default=4,
        ge=0,
        description="Rank of the adapters that are trained. 0, and adapters that declare training.full but not "
        "training.lora: every weight is trained.",
    )
    dtype: str = Field(default="", description="Type of the weights, as CreateTrainingSession takes it.")
    sequence_tokens: int = Field(default=12, ge=4, description="Tokens of a sequence.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Of steps that must lower the loss of what they were taken on."
    )
    relative: float = Field(
        default=1e-3,
        gt=0,
        description="By how much numbers that are computed in two ways may differ, as a part of their size.",
    )


SUITE = Suite(port="training", settings=TrainingSettings)
Training = Context[TrainingSettings]


def base_model(context: Training) -> str:
    """The model to train."""
    return context.settings.base_model or tiny_model(folders="training.local_model" in context.capabilities)


def lora_of(context: Training) -> pb.LoraConfig | None:
    """The adapter that sessions train; None: they train every weight."""
    rank = context.settings.lora_rank
    only_full = "training.full" in context.capabilities and "training.lora" not in context.capabilities
    return None if rank == 0 or only_full else pb.LoraConfig(rank=rank)


def create_request(context: Training, **fields: Any) -> pb.CreateTrainingSessionRequest:
    """A request for a session, `fields` in place of what the settings say."""
    given = {
        "request_id": str(uuid.uuid4()),
        "base_model": base_model(context),
        "lora": lora_of(context),
        "dtype": context.settings.dtype,
        **fields,
    }
    return pb.CreateTrainingSessionRequest(**given)


async def create(context: Training, request: pb.CreateTrainingSessionRequest) -> pb.TrainingSession:
    """A session that is closed after the check."""
    session = (await context.stub.CreateTrainingSession(request)).session
    close = pb.CloseTrainingSessionRequest(session_id=session.session_id)
    context.defer(lambda: context.stub.CloseTrainingSession(close))
    return session


async def open_session(context: Training, **fields: Any) -> Session:
    """A new session, numbering its calls."""
    return Session(context, await create(context, create_request(context, **fields)))


class Session:
    """An open session.

    Attributes:
        id: its id.
        created: what the adapter said of it when it was created.
        next: the number of the next call.
    """

    def __init__(self, context: Training, created: pb.TrainingSession) -> None:
        self._context = context
        self.created = created
        self.id = created.session_id
        self.next = 1

    def request(self, method: str, *, sequence: int | None = None, **fields: Any) -> Any:
        """A request of a numbered call; without a number the next one is taken."""
        if sequence is None:
            sequence, self.next = self.next, self.next + 1
        return _OPERATION_FIELDS[method](session_id=self.id, sequence=sequence, **fields)

    async def send(self, method: str, *, sequence: int | None = None, **fields: Any) -> operation_pb2.Operation:
        """Enqueues a call."""
        return await self.enqueue(method, self.request(method, sequence=sequence, **fields))

    async def enqueue(self, method: str, request: Any) -> operation_pb2.Operation:
        """Enqueues a call of this request."""
        return (await getattr(self._context.stub, method)(request)).operation

    async def send_pass(
        self, data: Sequence[datum_pb2.Datum], *, sequence: int | None = None
    ) -> operation_pb2.Operation:
        """Enqueues a ForwardBackward."""
        return await self.send("ForwardBackward", sequence=sequence, data=data, loss_fn=LOSS)

    async def send_step(self, *, sequence: int | None = None, **adam: float) -> operation_pb2.Operation:
        """Enqueues an OptimStep."""
        return await self.send("OptimStep", sequence=sequence, adam=self.adam(**adam))

    def adam(self, **adam: float) -> pb.AdamParams:
        """The parameters of a step, the learning rate that of the settings."""
        return pb.AdamParams(**{"learning_rate": self._context.settings.learning_rate, **adam})

    async def poll(self, operation_id: str, wait: float | None = None) -> pb.AwaitOperationResponse:
        """One AwaitOperation; without `wait` it is left out."""
        request = pb.AwaitOperationRequest(session_id=self.id, operation_id=operation_id)
        if wait is not None:
            request.wait.CopyFrom(duration_pb2.Duration(seconds=int(wait), nanos=int(wait % 1 * 1e9)))
        return await self._context.stub.AwaitOperation(request)

    async def ended(self, operation: operation_pb2.Operation) -> pb.AwaitOperationResponse:
        """The operation when it has ended, however."""
        while True:
            response = await self.poll(operation.id, _WAIT_SECONDS)
            if response.operation.state in ENDED:
                return response

    async def result(self, operation: operation_pb2.Operation) -> pb.AwaitOperationResponse:
        """The operation when it has succeeded. Raises what it failed with."""
        response = await self.ended(operation)
        check_finished(response.operation)
        return response

    async def forward(self, data: Sequence[datum_pb2.Datum]) -> pb.ForwardResult:
        """Losses and logprobs at the weights now."""
        return (await self.result(await self.send("Forward", data=data, loss_fn=LOSS))).forward

    async def forward_backward(self, data: Sequence[datum_pb2.Datum]) -> pb.ForwardResult:
        """The same, and gradients."""
        return (await self.result(await self.send_pass(data))).forward

    async def step(self, **adam: float) -> pb.OptimStepResult:
        """One step."""
        return (await self.result(await self.send("OptimStep", adam=self.adam(**adam)))).optim_step

    async def train(self, data: Sequence[datum_pb2.Datum], **adam: float) -> pb.OptimStepResult:
        """Gradients of the data and one step."""
        await self.send_pass(data)
        return await self.step(**adam)

    async def logprobs(self, data: Sequence[datum_pb2.Datum]) -> NDArray[np.floating]:
        """logprobs of all targets of the data, one behind the other, float32 of shape [tokens]."""
        return joined_logprobs(await self.forward(data))

    async def info(self) -> pb.TrainingSession:
        """What the adapter says of it now."""
        request = pb.GetTrainingSessionRequest(session_id=self.id)
        return (await self._context.stub.GetTrainingSession(request)).session

    async def save(self, name: str, *, weights_only: bool = False, **fields: Any) -> pb.CheckpointResult:
        """A checkpoint, deleted after the check."""
        operation = await self.send("SaveCheckpoint", name=name, weights_only=weights_only, **fields)
        checkpoint = (await self.result(operation)).checkpoint
        forget = pb.DeleteCheckpointRequest(uri=checkpoint.uri)
        self._context.defer(lambda: self._context.stub.DeleteCheckpoint(forget))
        return checkpoint

    async def load(self, uri: str, *, weights_only: bool = False) -> pb.CheckpointResult:
        """Replaces the weights."""
        operation = await self.send("LoadCheckpoint", uri=uri, weights_only=weights_only)
        return (await self.result(operation)).checkpoint

    def data(self, count: int = 3, *, seed: int = 0) -> list[datum_pb2.Datum]:
        """Random datums of different lengths with weights of either sign, some zero."""
        generator = np.random.default_rng(seed)
        longest = min(self._context.settings.sequence_tokens, self.created.max_sequence_tokens)
        return [self._datum(generator, max(2, longest - number)) for number in range(count)]

    def _datum(self, generator: np.random.Generator, length: int) -> datum_pb2.Datum:
        tokens = generator.integers(0, self.created.vocab_size, length + 1)
        weights = generator.normal(size=length).astype(np.float32)
        weights[0] = 0.0
        return datum(tokens[:-1], tokens[1:], weights)

    def lesson(self, *, seed: int = 0) -> list[datum_pb2.Datum]:
        """Data whose mean loss a model can learn: every token counts the same."""
        generator = np.random.default_rng(seed)
        length = max(2, min(self._context.settings.sequence_tokens, self.created.max_sequence_tokens))
        tokens = generator.integers(0, self.created.vocab_size, length + 1)
        return [datum(tokens[:-1], tokens[1:], np.full(length, 1.0 / length, dtype=np.float32))]


def datum(tokens: Any, targets: Any, weights: Any) -> datum_pb2.Datum:
    """One sequence; tokens, targets and weights of shape [n]."""
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(np.asarray(tokens)))
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={
            "target_tokens": to_tensor(np.asarray(targets, dtype=np.int32)),
            "weights": to_tensor(np.asarray(weights, dtype=np.float32)),
        },
    )


def weights_of(datum: datum_pb2.Datum) -> NDArray[np.floating]:
    """The weights of a datum, float32 of shape [n]."""
    return from_tensor(datum.loss_fn_inputs["weights"])


def joined_logprobs(result: pb.ForwardResult) -> NDArray[np.floating]:
    """All logprobs of a result, float32 of shape [tokens]."""
    rows = [from_tensor(output.logprobs).ravel() for output in result.outputs]
    return np.concatenate(rows) if rows else np.zeros(0, dtype=np.float32)


def check_same(context: Training, got: float, expected: float, what: str) -> None:
    """Two numbers that are to be the same up to rounding."""
    check_close(got, expected, what, relative=context.settings.relative, absolute=1e-9)


def check_same_logprobs(
    context: Training, got: NDArray[np.floating], expected: NDArray[np.floating], what: str
) -> None:
    """Logprobs that are to be the same up to rounding."""
    check_equal(got.shape, expected.shape, f"the shape of {what}")
    relative = context.settings.relative
    for place, (one, other) in enumerate(zip(got.tolist(), expected.tolist(), strict=True)):
        check_close(one, other, f"{what}[{place}]", relative=relative, absolute=relative)
