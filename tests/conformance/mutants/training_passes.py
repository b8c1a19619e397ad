"""Training adapters with a defect in passes, steps and the reading of data."""

from __future__ import annotations

from typing import Any

import numpy as np

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.errors import (
    FailedPreconditionError,
)
from tests.conformance.mutants.mutant import training_mutant
from tests.conformance.toy.model import VOCABULARY, Weights
from tests.conformance.toy.training import Row, Session, ToyTraining


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


TRAINING_PASS_MUTANTS = (
    training_mutant(ForgetsFailedPasses, "a step follows a failed pass", "TRN-CANCEL-01"),
    training_mutant(MeanLoss, "the loss is a mean", "TRN-PASS-02"),
    training_mutant(ZeroLogprobs, "logprobs are zeros", "TRN-PASS-03", others=1),
    training_mutant(NoSoftmax, "logprobs are no probabilities", "TRN-PASS-03", others=1),
    training_mutant(OutputsReversed, "outputs come in another order", "TRN-PASS-01", "TRN-PASS-02", others=1),
    training_mutant(NeighboursMatter, "logprobs depend on the batch", "TRN-PASS-04", others=2),
    training_mutant(ForwardTrains, "Forward gives gradients", "TRN-PASS-05", others=3),
    training_mutant(MeanGradient, "gradients are scaled", "TRN-PASS-06"),
    training_mutant(LastGradientOnly, "gradients do not add up", "TRN-PASS-06"),
    training_mutant(KeepsGradients, "steps keep the gradients", "TRN-STEP-02", others=3),
    training_mutant(NeverMoves, "steps move nothing", "TRN-STEP-01"),
    training_mutant(OwnLearningRate, "learning rate 0 is not 0", "TRN-STEP-03"),
    training_mutant(OtherDefaults, "another default of beta2", "TRN-STEP-04"),
    training_mutant(LargeSteps, "steps are twice as large", "TRN-STEP-05"),
    training_mutant(NeverClips, "gradients are never clipped", "TRN-STEP-06"),
    training_mutant(StepsOnAnything, "a gradient that is not finite is made one", "TRN-STEP-07"),
    training_mutant(StepsIntoNothing, "a gradient that is not finite becomes a step", "TRN-STEP-07"),
    training_mutant(TakesAnyNumber, "NaN is accepted", "TRN-DATA-02", others=1),
    training_mutant(WrapsTokens, "tokens wrap around the vocabulary", "TRN-DATA-01", others=1),
    training_mutant(IgnoresExtraInputs, "extra inputs are ignored", "TRN-DATA-03"),
    training_mutant(PadsInputs, "short inputs are padded", "TRN-DATA-05"),
    training_mutant(ReadsWhateverSize, "bytes need not fit their shape", "TRN-DATA-04", others=1),
    training_mutant(CastsInputs, "element types are cast", "TRN-DATA-06"),
    training_mutant(MisreadsWideTargets, "int64 targets are misread", "TRN-DATA-07"),
    training_mutant(CutsSequences, "long sequences are cut", "TRN-DATA-08"),
    training_mutant(FirstChunkOnly, "only the first chunk is read", "TRN-DATA-09", others=1),
    training_mutant(AnyLoss, "every loss is cross_entropy", "TRN-DATA-10", others=1),
)
