"""Training adapters with a defect in sessions and capabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.errors import (
    NotFoundError,
)
from tests.conformance.mutants.mutant import training_mutant
from tests.conformance.toy.model import Weights
from tests.conformance.toy.operations import Requests
from tests.conformance.toy.training import CAPABILITIES, Row, Session, ToyTraining


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


TRAINING_SESSION_MUTANTS = (
    training_mutant(OneSession, "sessions share their weights", "TRN-SESSION-07", others=15),
    training_mutant(ForgetsRequests, "request ids are ignored", "TRN-SESSION-02", others=1),
    training_mutant(ReusesRequests, "a request id takes any payload", "TRN-SESSION-03"),
    training_mutant(AnyModel, "any model is taken", "TRN-SESSION-04"),
    training_mutant(NeverCloses, "closed sessions go on", "TRN-SESSION-05"),
    training_mutant(CloseNeedsOne, "closing what is absent is refused", "TRN-SESSION-05"),
    training_mutant(StaleDescription, "a session's description is stale", "TRN-SESSION-06", others=3),
    training_mutant(NoLease, "a session has no lease", "TRN-SESSION-01"),
    training_mutant(ImagesAreIgnored, "images are ignored", "TRN-CAP-02"),
    training_mutant(LoraIsIgnored, "lora is ignored", "TRN-LORA-05"),
    training_mutant(
        ToyTraining,
        "declares training.lora and lacks it",
        *("TRN-LORA-01", "TRN-LORA-02", "TRN-LORA-03", "TRN-LORA-04"),
        others=63,
        capabilities=(*CAPABILITIES, "training.lora"),
    ),
    training_mutant(
        ToyTraining,
        "does not declare training.checkpoint_files and has it",
        "XPT-METHOD-02",
        capabilities=("training.full",),
    ),
    training_mutant(NoCheckpointFiles, "declares training.checkpoint_files and lacks it", "TRN-FILES-01", others=4),
)
