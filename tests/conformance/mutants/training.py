"""Training adapters with a defect."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import numpy as np

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import operation_pb2
from crucible_kit.channel import Channel
from crucible_kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    from_failure,
)
from tests.conformance.bindings import to_object
from tests.conformance.mutants.mutant import Mutant
from tests.conformance.toy.checkpoints import Checkpoints, with_manifest
from tests.conformance.toy.model import VOCABULARY, Weights
from tests.conformance.toy.operations import Operation, Operations, Requests, Work
from tests.conformance.toy.training import CAPABILITIES, Row, Session, ToyTraining

SETTINGS = {"base_model": "toy", "learning_rate": 0.05}


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


class ForgetsFailedPasses(ToyTraining):
    def invalidate(self, session: Session) -> None:
        pass


class MeanLoss(ToyTraining):
    def loss(self, rows: list[Row], logprobs: list[np.ndarray]) -> float:
        return super().loss(rows, logprobs) / sum(len(row.tokens) for row in rows)


class ZeroLogprobs(ToyTraining):
    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        result = super().forward(session, rows)
        for output in result.outputs:
            output.logprobs.dense = bytes(len(output.logprobs.dense))
        return pb.ForwardResult(loss=0.0, outputs=result.outputs)


class NoSoftmax(ToyTraining):
    """Scores that are no probabilities."""

    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        before = session.weights
        session.weights = Weights(matrix=before.matrix)
        session.weights.logprobs = lambda tokens, targets: -np.abs(before.matrix[tokens, targets])  # type: ignore[method-assign]
        try:
            return super().forward(session, rows)
        finally:
            session.weights = before


class OutputsReversed(ToyTraining):
    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        result = super().forward(session, rows)
        return pb.ForwardResult(loss=result.loss, outputs=list(result.outputs)[::-1])


class NeighboursMatter(ToyTraining):
    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        result = super().forward(session, rows)
        shift = np.float32(0.1 * (len(rows) - 1))
        for output in result.outputs:
            output.logprobs.dense = (np.frombuffer(output.logprobs.dense, np.float32) - shift).tobytes()
        return result


class ForwardTrains(ToyTraining):
    def forward(self, session: Session, rows: list[Row]) -> pb.ForwardResult:
        if session.gradient is None:
            session.gradient = np.ones((VOCABULARY, VOCABULARY), np.float32)
        return super().forward(session, rows)


class MeanGradient(ToyTraining):
    def accumulate(self, session: Session, gradient: Any) -> None:
        super().accumulate(session, gradient / np.float32(7))
        if session.gradient is not None and session.gradient is not gradient:
            session.gradient = session.gradient / np.float32(np.abs(session.gradient).max() or 1)


class LastGradientOnly(ToyTraining):
    def accumulate(self, session: Session, gradient: Any) -> None:
        session.gradient = gradient


class KeepsGradients(ToyTraining):
    def clear_gradients(self, session: Session) -> None:
        session.failed = False


class NeverMoves(ToyTraining):
    def step(self, session: Session, adam: pb.AdamParams) -> pb.OptimStepResult:
        matrix = session.weights.matrix
        result = super().step(session, adam)
        session.weights.matrix = matrix
        return result


class OwnLearningRate(ToyTraining):
    def parameters(self, adam: pb.AdamParams) -> dict[str, float]:
        return {**super().parameters(adam), "learning_rate": adam.learning_rate or 1e-3}


class OtherDefaults(ToyTraining):
    def parameters(self, adam: pb.AdamParams) -> dict[str, float]:
        return {**super().parameters(adam), **({} if adam.HasField("beta2") else {"beta2": 0.999})}


class LargeSteps(ToyTraining):
    def parameters(self, adam: pb.AdamParams) -> dict[str, float]:
        return {**super().parameters(adam), "learning_rate": 2 * adam.learning_rate}


class NeverClips(ToyTraining):
    def step(self, session: Session, adam: pb.AdamParams) -> pb.OptimStepResult:
        unclipped = pb.AdamParams()
        unclipped.CopyFrom(adam)
        unclipped.ClearField("grad_clip_norm")
        return super().step(session, unclipped)


class StepsOnAnything(ToyTraining):
    """A gradient that is not finite becomes a step."""

    def step(self, session: Session, adam: pb.AdamParams) -> pb.OptimStepResult:
        if session.gradient is not None:
            session.gradient = np.clip(np.nan_to_num(session.gradient), -1e6, 1e6)
        return super().step(session, adam)


class StepsIntoNothing(ToyTraining):
    """After a step that is not finite the weights are not, either."""

    def step(self, session: Session, adam: pb.AdamParams) -> pb.OptimStepResult:
        try:
            return super().step(session, adam)
        except FailedPreconditionError as error:
            if error.reason != "NUMERIC_ERROR":
                raise
            session.weights.matrix = session.weights.matrix * np.float32("nan")
            return pb.OptimStepResult(grad_norm=1e39, update_norm=1.0, learning_rate=adam.learning_rate)


class TakesAnyNumber(ToyTraining):
    def check_row(self, row: Row, path: str) -> None:
        super().check_row(Row(row.tokens, row.targets, np.nan_to_num(row.weights)), path)


class WrapsTokens(ToyTraining):
    def check_row(self, row: Row, path: str) -> None:
        row.tokens, row.targets = row.tokens % VOCABULARY, row.targets % VOCABULARY
        super().check_row(row, path)


class IgnoresExtraInputs(ToyTraining):
    def parse_row(self, datum: Any, path: str) -> Row:
        for name in set(datum.loss_fn_inputs) - {"target_tokens", "weights"}:
            del datum.loss_fn_inputs[name]
        return super().parse_row(datum, path)


class PadsInputs(ToyTraining):
    def parse_input(self, datum: Any, path: str, name: str, dtypes: tuple[str, ...], length: int) -> np.ndarray:
        tensor = datum.loss_fn_inputs[name]
        if name == "weights" and len(tensor.shape) == 1 and tensor.shape[0] < length:
            tensor.dense += bytes(4 * (length - tensor.shape[0]))
            tensor.shape[0] = length
        return super().parse_input(datum, path, name, dtypes, length)


class ReadsWhateverSize(ToyTraining):
    def parse_input(self, datum: Any, path: str, name: str, dtypes: tuple[str, ...], length: int) -> np.ndarray:
        tensor = datum.loss_fn_inputs[name]
        if name == "weights" and len(tensor.shape) == 1 and tensor.dtype == 1:
            tensor.dense = tensor.dense[: 4 * tensor.shape[0]].ljust(4 * tensor.shape[0], b"\0")
        return super().parse_input(datum, path, name, dtypes, length)


class CastsInputs(ToyTraining):
    def parse_input(self, datum: Any, path: str, name: str, dtypes: tuple[str, ...], length: int) -> np.ndarray:
        every = ("float32", "float16", "float64", "int32", "int64", "uint8", "bool", "uint16")
        return super().parse_input(datum, path, name, every, length).astype(dtypes[0])


class MisreadsWideTargets(ToyTraining):
    def parse_input(self, datum: Any, path: str, name: str, dtypes: tuple[str, ...], length: int) -> np.ndarray:
        values = super().parse_input(datum, path, name, dtypes, length)
        return values.view(np.int32)[:length] if values.dtype == np.int64 else values


class FirstChunkOnly(ToyTraining):
    def parse_row(self, datum: Any, path: str) -> Row:
        if len(datum.model_input.chunks) > 1:
            first = len(datum.model_input.chunks[0].tokens_int32)
            rest = b"".join(chunk.tokens_int32 for chunk in datum.model_input.chunks)[first:]
            datum.model_input.chunks[0].tokens_int32 += bytes(len(rest))
            del datum.model_input.chunks[1:]
        return super().parse_row(datum, path)


class CutsSequences(ToyTraining):
    def parse_row(self, datum: Any, path: str) -> Row:
        for chunk in datum.model_input.chunks:
            if len(chunk.tokens_int32) > 4 * 32:
                chunk.tokens_int32 = chunk.tokens_int32[: 4 * 32]
                for tensor in datum.loss_fn_inputs.values():
                    tensor.shape[0] = 32
                    tensor.dense = tensor.dense[: 4 * 32]
        return super().parse_row(datum, path)


class AnyLoss(ToyTraining):
    def parse(self, request: Any) -> list[Row]:
        request.loss_fn.CopyFrom(pb.LossFunction(name="cross_entropy"))
        return super().parse(request)


class NoOptimizerState(ToyTraining):
    """It is left out of checkpoints, and nobody says so."""

    def saved_files(self, session: Session, weights_only: bool) -> dict[str, bytes]:
        fresh = Weights(steps=session.weights.steps, version=session.weights.version, matrix=session.weights.matrix)
        return fresh.files(weights_only=weights_only)


class OptimizerAlwaysLoaded(ToyTraining):
    def load(self, session: Session, files: dict[str, bytes], *, weights_only: bool) -> None:
        moments, steps = session.weights.moments, session.weights.moment_steps
        super().load(session, files, weights_only=weights_only or "optimizer.bin" not in files)
        if weights_only and "optimizer.bin" not in files:
            session.weights.moments, session.weights.moment_steps = moments, steps


class RoundsWeights(ToyTraining):
    def saved_files(self, session: Session, weights_only: bool) -> dict[str, bytes]:
        rounded = Weights(**{**session.weights.__dict__, "matrix": np.round(session.weights.matrix, 1)})
        return rounded.files(weights_only=weights_only)


class LoadKeepsGradients(ToyTraining):
    def load(self, session: Session, files: dict[str, bytes], *, weights_only: bool) -> None:
        gradient = session.gradient
        super().load(session, files, weights_only=weights_only)
        session.gradient = gradient


def with_checkpoints(kind: type[Checkpoints]) -> type[ToyTraining]:
    """A toy with such checkpoints."""

    class Toy(ToyTraining):
        def __init__(self) -> None:
            super().__init__()
            self.checkpoints = kind()

    return Toy


class Overwrites(Checkpoints):
    def save(self, name: str, files: dict[str, bytes], ttl_seconds: int | None) -> pb.CheckpointResult:
        self._files.pop(name, None)
        return super().save(name, files, ttl_seconds)


class UnsortedFiles(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        files = list(result.files)[::-1]
        del result.files[:]
        result.files.extend(files)
        return result


class WrongHashes(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        for file in result.files:
            file.sha256 = hashlib.sha256(file.path.encode()).hexdigest()
        return result


class WrongManifestHash(Checkpoints):
    def describe(self, name: str) -> pb.CheckpointResult:
        result = super().describe(name)
        result.manifest_sha256 = "0" * 64
        return result


class AnyCheckpoint(Checkpoints):
    def name_of(self, uri: str) -> str:
        try:
            return super().name_of(uri)
        except NotFoundError:
            self._files["empty"] = with_manifest(Weights().files(weights_only=False))
            return "empty"


class DeleteNeedsOne(Checkpoints):
    def delete(self, uri: str) -> None:
        self.name_of(uri)
        super().delete(uri)


class NoExpiry(Checkpoints):
    def save(self, name: str, files: dict[str, bytes], ttl_seconds: int | None) -> pb.CheckpointResult:
        return super().save(name, files, None)


class UncheckedUploads(Checkpoints):
    def verify(self, header: pb.UploadCheckpointHeader, files: dict[str, bytes]) -> None:
        pass


class UploadsLeaveSomething(Checkpoints):
    """A refused upload takes the name."""

    def verify(self, header: pb.UploadCheckpointHeader, files: dict[str, bytes]) -> None:
        if header.name in self.taken:
            raise AlreadyExistsError("the name is taken", reason="CHECKPOINT_EXISTS")
        self.taken.append(header.name)
        super().verify(header, files)

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []


class UncheckedOrder(Checkpoints):
    def take(self, contents: list[bytearray], chunk: pb.UploadCheckpointChunk) -> None:
        contents[chunk.file_index] += chunk.data


class AnyFile(Checkpoints):
    def file(self, uri: str, path: str) -> bytes:
        try:
            return super().file(uri, path)
        except NotFoundError as error:
            if error.reason == "CHECKPOINT_FILE_NOT_FOUND":
                return b""
            raise


class OneSession(ToyTraining):
    """All sessions train one model."""

    def __init__(self) -> None:
        super().__init__()
        self._weights = Weights()

    async def CreateTrainingSession(self, request: Any, context: Any) -> pb.CreateTrainingSessionResponse:
        response = await super().CreateTrainingSession(request, context)
        self.sessions[response.session.session_id].weights = self._weights
        return response


class ForgetsRequests(ToyTraining):
    async def CreateTrainingSession(self, request: Any, context: Any) -> pb.CreateTrainingSessionResponse:
        self.requests = Requests()
        return await super().CreateTrainingSession(request, context)


class AnyRequest(Requests):
    def once(self, request: Any, make: Callable[[], Any]) -> Any:
        if request.request_id in self._made:
            return self._made[request.request_id][1]
        return super().once(request, make)


class ReusesRequests(ToyTraining):
    def __init__(self) -> None:
        super().__init__()
        self.requests = AnyRequest()


class AnyModel(ToyTraining):
    async def CreateTrainingSession(self, request: Any, context: Any) -> pb.CreateTrainingSessionResponse:
        known = pb.CreateTrainingSessionRequest()
        known.CopyFrom(request)
        known.base_model = "toy"
        return await super().CreateTrainingSession(known, context)


class NeverCloses(ToyTraining):
    async def CloseTrainingSession(self, request: Any, context: Any) -> pb.CloseTrainingSessionResponse:
        return pb.CloseTrainingSessionResponse()


class CloseNeedsOne(ToyTraining):
    async def CloseTrainingSession(self, request: Any, context: Any) -> pb.CloseTrainingSessionResponse:
        self.session(request.session_id)
        return await super().CloseTrainingSession(request, context)


class StaleDescription(ToyTraining):
    def describe(self, session: Session) -> pb.TrainingSession:
        described = super().describe(session)
        described.optim_steps = described.weights_version = 0
        return described


class NoLease(ToyTraining):
    def describe(self, session: Session) -> pb.TrainingSession:
        described = super().describe(session)
        described.ClearField("lease")
        return described


class ImagesAreIgnored(ToyTraining):
    def parse_row(self, datum: Any, path: str) -> Row:
        texts = [chunk for chunk in datum.model_input.chunks if chunk.WhichOneof("chunk") != "image"]
        del datum.model_input.chunks[:]
        datum.model_input.chunks.extend(texts)
        return super().parse_row(datum, path)


class LoraIsIgnored(ToyTraining):
    async def CreateTrainingSession(self, request: Any, context: Any) -> pb.CreateTrainingSessionResponse:
        full = pb.CreateTrainingSessionRequest()
        full.CopyFrom(request)
        full.ClearField("lora")
        return await super().CreateTrainingSession(full, context)


class NoCheckpointFiles(ToyTraining):
    async def ReadCheckpointFile(self, request: Any, context: Any) -> AsyncIterator[pb.ReadCheckpointFileResponse]:
        raise NotFoundError("uri: there is none", reason="CHECKPOINT_NOT_FOUND")
        yield


def _open(kind: type[ToyTraining], capabilities: tuple[str, ...]) -> Callable[[], AbstractAsyncContextManager[Channel]]:
    return lambda: to_object({"training": kind()}, {"training": capabilities})


def _mutant(
    kind: type[ToyTraining],
    defect: str,
    *red: str,
    others: int = 0,
    capabilities: tuple[str, ...] = CAPABILITIES,
) -> Mutant:
    return Mutant(
        defect=defect,
        port="training",
        open=_open(kind, capabilities),
        red=red,
        others=others,
        settings=SETTINGS,
    )


def _operations(kind: type[Operations], defect: str, *red: str, others: int = 0) -> Mutant:
    return _mutant(with_operations(kind), defect, *red, others=others)


def _checkpoints(kind: type[Checkpoints], defect: str, *red: str, others: int = 0) -> Mutant:
    return _mutant(with_checkpoints(kind), defect, *red, others=others)


TRAINING_MUTANTS = (
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
    _mutant(RefusedCallsTakeNumbers, "refused calls take numbers", "TRN-SEQ-06", others=8),
    _mutant(ForgetsFailedPasses, "a step follows a failed pass", "TRN-CANCEL-01"),
    _mutant(MeanLoss, "the loss is a mean", "TRN-PASS-02"),
    _mutant(ZeroLogprobs, "logprobs are zeros", "TRN-PASS-03", others=1),
    _mutant(NoSoftmax, "logprobs are no probabilities", "TRN-PASS-03", others=1),
    _mutant(OutputsReversed, "outputs come in another order", "TRN-PASS-01", "TRN-PASS-02", others=1),
    _mutant(NeighboursMatter, "logprobs depend on the batch", "TRN-PASS-04", others=2),
    _mutant(ForwardTrains, "Forward gives gradients", "TRN-PASS-05", others=3),
    _mutant(MeanGradient, "gradients are scaled", "TRN-PASS-06"),
    _mutant(LastGradientOnly, "gradients do not add up", "TRN-PASS-06"),
    _mutant(KeepsGradients, "steps keep the gradients", "TRN-STEP-02", others=3),
    _mutant(NeverMoves, "steps move nothing", "TRN-STEP-01"),
    _mutant(OwnLearningRate, "learning rate 0 is not 0", "TRN-STEP-03"),
    _mutant(OtherDefaults, "another default of beta2", "TRN-STEP-04"),
    _mutant(LargeSteps, "steps are twice as large", "TRN-STEP-05"),
    _mutant(NeverClips, "gradients are never clipped", "TRN-STEP-06"),
    _mutant(StepsOnAnything, "a gradient that is not finite is made one", "TRN-STEP-07"),
    _mutant(StepsIntoNothing, "a gradient that is not finite becomes a step", "TRN-STEP-07"),
    _mutant(TakesAnyNumber, "NaN is accepted", "TRN-DATA-02", others=1),
    _mutant(WrapsTokens, "tokens wrap around the vocabulary", "TRN-DATA-01", others=1),
    _mutant(IgnoresExtraInputs, "extra inputs are ignored", "TRN-DATA-03"),
    _mutant(PadsInputs, "short inputs are padded", "TRN-DATA-05"),
    _mutant(ReadsWhateverSize, "bytes need not fit their shape", "TRN-DATA-04", others=1),
    _mutant(CastsInputs, "element types are cast", "TRN-DATA-06"),
    _mutant(MisreadsWideTargets, "int64 targets are misread", "TRN-DATA-07"),
    _mutant(CutsSequences, "long sequences are cut", "TRN-DATA-08"),
    _mutant(FirstChunkOnly, "only the first chunk is read", "TRN-DATA-09", others=1),
    _mutant(AnyLoss, "every loss is cross_entropy", "TRN-DATA-10", others=1),
    _mutant(NoOptimizerState, "checkpoints lack the optimizer's state", "TRN-CKPT-03", others=1),
    _mutant(OptimizerAlwaysLoaded, "a missing optimizer is not missed", "TRN-CKPT-04"),
    _mutant(RoundsWeights, "checkpoints round the weights", "TRN-CKPT-02", others=4),
    _mutant(LoadKeepsGradients, "loading keeps the gradients", "TRN-CKPT-07"),
    _checkpoints(Overwrites, "checkpoints are overwritten", "TRN-CKPT-05"),
    _checkpoints(UnsortedFiles, "files are not sorted", "TRN-CKPT-01"),
    _checkpoints(WrongHashes, "files have other hashes", "TRN-FILES-01"),
    _checkpoints(WrongManifestHash, "the manifest has another hash", "TRN-FILES-01"),
    _checkpoints(AnyCheckpoint, "a checkpoint that is not there is loaded", "TRN-CKPT-06", others=2),
    _checkpoints(DeleteNeedsOne, "deleting what is absent is refused", "TRN-CKPT-08"),
    _checkpoints(NoExpiry, "a ttl is ignored", "TRN-CKPT-09"),
    _checkpoints(UncheckedUploads, "uploads are not verified", "TRN-FILES-04"),
    _checkpoints(UploadsLeaveSomething, "refused uploads take the name", "TRN-FILES-04"),
    _checkpoints(UncheckedOrder, "chunks of uploads are not checked", "TRN-FILES-05"),
    _checkpoints(AnyFile, "a file that is not there is empty", "TRN-FILES-02"),
    _mutant(OneSession, "sessions share their weights", "TRN-SESSION-07", others=15),
    _mutant(ForgetsRequests, "request ids are ignored", "TRN-SESSION-02", others=1),
    _mutant(ReusesRequests, "a request id takes any payload", "TRN-SESSION-03"),
    _mutant(AnyModel, "any model is taken", "TRN-SESSION-04"),
    _mutant(NeverCloses, "closed sessions go on", "TRN-SESSION-05"),
    _mutant(CloseNeedsOne, "closing what is absent is refused", "TRN-SESSION-05"),
    _mutant(StaleDescription, "a session's description is stale", "TRN-SESSION-06", others=3),
    _mutant(NoLease, "a session has no lease", "TRN-SESSION-01"),
    _mutant(ImagesAreIgnored, "images are ignored", "TRN-CAP-02"),
    _mutant(LoraIsIgnored, "lora is ignored", "TRN-LORA-05"),
    _mutant(
        ToyTraining,
        "declares training.lora and lacks it",
        *("TRN-LORA-01", "TRN-LORA-02", "TRN-LORA-03", "TRN-LORA-04"),
        others=63,
        capabilities=(*CAPABILITIES, "training.lora"),
    ),
    _mutant(
        ToyTraining,
        "does not declare training.checkpoint_files and has it",
        "XPT-METHOD-02",
        capabilities=("training.full",),
    ),
    _mutant(NoCheckpointFiles, "declares training.checkpoint_files and lacks it", "TRN-FILES-01", others=4),
)
