"""The port training."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from crucible.port.training.v1 import training_pb2 as pb
from crucible.port.training.v1 import training_pb2_grpc
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import FailedPreconditionError, NotFoundError, capability_missing, field_error
from crucible_kit.tensors import from_tensor, to_tensor, unpack_tokens
from tests.conformance.toy.checkpoints import Checkpoints
from tests.conformance.toy.model import LONGEST, NAME, VOCABULARY, Weights
from tests.conformance.toy.operations import Operations, Requests, session_not_found, wait_seconds

CAPABILITIES = ("training.checkpoint_files", "training.full")
_LEASE = Duration(seconds=1800)


@dataclass
class Session:
    """An open session.

    Attributes:
        gradient: what was accumulated; None: nothing.
        failed: a pass since the last step did not take effect.
    """

    operations: Operations
    weights: Weights = field(default_factory=Weights)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    gradient: np.ndarray | None = None
    failed: bool = False


@dataclass
class Row:
    """One datum as arrays of shape [n]."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class ToyTraining(training_pb2_grpc.TrainingServiceServicer):
    """Trains the bigram model, all of it."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.checkpoints = Checkpoints()
        self.requests = Requests()

    def new_operations(self) -> Operations:
        """The operations of a new session."""
        return Operations(ordered=True)

    def session(self, session_id: str) -> Session:
        """An open session."""
        if session_id not in self.sessions:
            raise session_not_found(session_id)
        return self.sessions[session_id]

    async def CreateTrainingSession(self, request: Any, context: Any) -> pb.CreateTrainingSessionResponse:
        if request.HasField("lora"):
            raise capability_missing("training", "training.lora", "leave lora out")
        if request.base_model != NAME:
            raise NotFoundError(f"base_model: there is no {request.base_model!r}", reason="MODEL_NOT_FOUND")

        def make() -> Session:
            session = Session(self.new_operations())
            self.sessions[session.id] = session
            return session

        session = self.requests.once(request, make)
        return pb.CreateTrainingSessionResponse(session=self.describe(session))

    async def GetTrainingSession(self, request: Any, context: Any) -> pb.GetTrainingSessionResponse:
        return pb.GetTrainingSessionResponse(session=self.describe(self.session(request.session_id)))

    def describe(self, session: Session) -> pb.TrainingSession:
        """A session as the port tells it."""
        return pb.TrainingSession(
            session_id=session.id,
            base_model=NAME,
            trainable_parameters=VOCABULARY**2,
            vocab_size=VOCABULARY,
            max_sequence_tokens=LONGEST,
            dtype="float32",
            device="cpu",
            optim_steps=session.weights.steps,
            weights_version=session.weights.version,
            next_sequence=session.operations.next_sequence,
            lease=_LEASE,
        )

    async def Forward(self, request: Any, context: Any) -> pb.ForwardResponse:
        session = self.session(request.session_id)
        rows = self.parse(request)
        operation = await session.operations.submit(request, lambda: ("forward", self.forward(session, rows)))
        return pb.ForwardResponse(operation=operation)

    async def ForwardBackward(self, request: Any, context: Any) -> pb.ForwardBackwardResponse:
        session = self.session(request.session_id)
        rows = self.parse(request)

        def work() -> tuple[str, pb.ForwardResult]:
            result = self.forward(session, rows)
            with np.errstate(over="ignore", invalid="ignore"):
                gradient = sum(session.weights.gradient(row.tokens, row.targets, row.weights) for row in rows)
                self.accumulate(session, gradient)
            return "forward", result

        operation = await session.operations.submit(request, work, lambda: self.invalidate(session))
        return pb.ForwardBackwardResponse(operation=operation)

    def parse(self, request: Any) -> list[Row]:
        """The data of a pass, refused before acceptance when it is bad."""
        if request.loss_fn.name != "cross_entropy":
            raise field_error("loss_fn.name", f"{request.loss_fn.name!r} is unknown")
        for name in request.loss_fn.parameters:
            raise field_error(f"loss_fn.parameters[{name!r}]", "cross_entropy has no parameters")
        return [self.parse_row(datum, f"data[{number}]") for number, datum in enumerate(request.data)]

    def parse_row(self, datum: Any, path: str) -> Row:
        """One datum."""
        parts = []
        for chunk in datum.model_input.chunks:
            kind = chunk.WhichOneof("chunk")
            if kind == "image":
                raise capability_missing("training", "training.image_input", "send token ids only")
            if kind is None:
                raise field_error(f"{path}.model_input", "has a chunk of nothing")
            parts.append(unpack_tokens(chunk.tokens_int32, field=f"{path}.model_input"))
        tokens = np.concatenate(parts)
        if not 0 < len(tokens) <= LONGEST:
            raise field_error(f"{path}.model_input", f"has {len(tokens)} tokens")
        if set(datum.loss_fn_inputs) != {"target_tokens", "weights"}:
            raise field_error(f"{path}.loss_fn_inputs", "must be target_tokens and weights")
        row = Row(
            tokens,
            self.parse_input(datum, path, "target_tokens", ("int32", "int64"), len(tokens)),
            self.parse_input(datum, path, "weights", ("float32",), len(tokens)),
        )
        self.check_row(row, path)
        return row

    def parse_input(self, datum: Any, path: str, name: str, dtypes: tuple[str, ...], length: int) -> np.ndarray:
        """One input of the loss."""
        where = f"{path}.loss_fn_inputs[{name!r}]"
        values = from_tensor(datum.loss_fn_inputs[name], field=where)
        if values.dtype.name not in dtypes or values.shape != (length,):
            raise field_error(where, f"is {values.dtype} of shape {values.shape}")
        return values

    def check_row(self, row: Row, path: str) -> None:
        """Refuses numbers that mean nothing."""
        for ids in (row.tokens, row.targets):
            if ((ids < 0) | (ids >= VOCABULARY)).any():
                raise field_error(path, "has an id outside the vocabulary")
        if not np.isfinite(row.weights).all():
            raise field_error(path, "has a weight that is not finite")

    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        """The loss and the logprobs."""
        logprobs = [session.weights.logprobs(row.tokens, row.targets) for row in rows]
        return pb.ForwardResult(
            loss=self.loss(rows, logprobs), outputs=[pb.LossOutput(logprobs=to_tensor(each)) for each in logprobs]
        )

    def loss(self, rows: list[Row], logprobs: list[np.ndarray]) -> float:
        """A plain sum."""
        return float(
            -sum((row.weights.astype(np.float64) * each).sum() for row, each in zip(rows, logprobs, strict=True))
        )

    def accumulate(self, session: Session, gradient: Any) -> None:
        """Adds to the session's gradients."""
        session.gradient = gradient if session.gradient is None else session.gradient + gradient

    def invalidate(self, session: Session) -> None:
        """Notes a pass that did not take effect."""
        session.gradient, session.failed = None, True

    async def OptimStep(self, request: Any, context: Any) -> pb.OptimStepResponse:
        session = self.session(request.session_id)
        operation = await session.operations.submit(request, lambda: ("optim_step", self.step(session, request.adam)))
        return pb.OptimStepResponse(operation=operation)

    def step(self, session: Session, adam: pb.AdamParams) -> pb.OptimStepResult:
        """One step, the gradients gone after it."""
        gradient, failed = session.gradient, session.failed
        self.clear_gradients(session)
        if failed:
            raise FailedPreconditionError("a pass of this step did not take effect", reason="GRADIENTS_INVALID")
        if gradient is None:
            raise FailedPreconditionError("nothing was accumulated", reason="NO_GRADIENTS")
        with np.errstate(over="ignore"):
            norm = float(np.sqrt((gradient**2).sum()))
        if not np.isfinite(norm):
            raise FailedPreconditionError("the gradient norm is not finite", reason="NUMERIC_ERROR")
        if adam.grad_clip_norm and norm > adam.grad_clip_norm:
            gradient = gradient * (adam.grad_clip_norm / norm)
        update_norm = session.weights.adamw(gradient, self.parameters(adam))
        return pb.OptimStepResult(
            grad_norm=norm,
            update_norm=update_norm,
            learning_rate=adam.learning_rate,
            optim_steps=session.weights.steps,
            weights_version=session.weights.version,
        )

    def clear_gradients(self, session: Session) -> None:
        """What every step does with them, failed or not."""
        session.gradient, session.failed = None, False

    def parameters(self, adam: pb.AdamParams) -> dict[str, float]:
        """AdamW's parameters with the defaults filled in."""
        given = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0}
        given |= {name: getattr(adam, name) for name in given if adam.HasField(name)}
        return {**given, "learning_rate": adam.learning_rate}

    async def SaveCheckpoint(self, request: Any, context: Any) -> pb.SaveCheckpointResponse:
        session = self.session(request.session_id)
        ttl = request.ttl.seconds if request.HasField("ttl") else None

        def work() -> tuple[str, pb.CheckpointResult]:
            files = self.saved_files(session, request.weights_only)
            return "checkpoint", self.checkpoints.save(request.name, files, ttl)

        return pb.SaveCheckpointResponse(operation=await session.operations.submit(request, work))

    def saved_files(self, session: Session, weights_only: bool) -> dict[str, bytes]:
        """What a checkpoint holds."""
        return session.weights.files(weights_only=weights_only)

    async def LoadCheckpoint(self, request: Any, context: Any) -> pb.LoadCheckpointResponse:
        session = self.session(request.session_id)

        def work() -> tuple[str, pb.CheckpointResult]:
            name = self.checkpoints.name_of(request.uri)
            files = self.checkpoints.files(request.uri)
            self.load(session, files, weights_only=request.weights_only)
            return "checkpoint", self.checkpoints.describe(name)

        return pb.LoadCheckpointResponse(operation=await session.operations.submit(request, work))

    def load(self, session: Session, files: dict[str, bytes], *, weights_only: bool) -> None:
        """Replaces a session's weights."""
        if not weights_only and "optimizer.bin" not in files:
            raise FailedPreconditionError("the checkpoint has no optimizer", reason="CHECKPOINT_MISMATCH")
        version = session.weights.version + 1
        session.weights = Weights.from_files(files, weights_only=weights_only)
        session.weights.version = version
        self.clear_gradients(session)

    async def AwaitOperation(self, request: Any, context: Any) -> pb.AwaitOperationResponse:
        operations = self.session(request.session_id).operations
        operation = await operations.wait(request.operation_id, wait_seconds(request))
        return pb.AwaitOperationResponse(operation=operation.message, **operation.result)  # type: ignore[arg-type]

    async def CancelOperation(self, request: Any, context: Any) -> pb.CancelOperationResponse:
        operation = self.session(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.message)

    async def ReadCheckpointFile(self, request: Any, context: Any) -> AsyncIterator[pb.ReadCheckpointFileResponse]:
        data = self.checkpoints.file(request.uri, request.path)
        for offset in range(0, max(len(data), 1), CHUNK_BYTES):
            part = data[offset : offset + CHUNK_BYTES]
            yield pb.ReadCheckpointFileResponse(offset=offset, crc32=crc32(part), data=part)

    async def UploadCheckpoint(self, request_iterator: Any, context: Any) -> pb.UploadCheckpointResponse:
        return pb.UploadCheckpointResponse(checkpoint=await self.checkpoints.receive(request_iterator))

    async def DeleteCheckpoint(self, request: Any, context: Any) -> pb.DeleteCheckpointResponse:
        self.checkpoints.delete(request.uri)
        return pb.DeleteCheckpointResponse()

    async def CloseTrainingSession(self, request: Any, context: Any) -> pb.CloseTrainingSessionResponse:
        session = self.sessions.pop(request.session_id, None)
        if session is not None:
            session.operations.close()
        return pb.CloseTrainingSessionResponse()
