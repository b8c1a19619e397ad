"""The port sampling, over the base model, checkpoints and training sessions of a ToyTraining."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible_kit.errors import NotFoundError, field_error
from crucible_kit.tensors import pack_floats, pack_tokens, unpack_tokens
from tests.conformance.toy.model import LONGEST, NAME, VOCABULARY, Weights, log_softmax
from tests.conformance.toy.operations import Operations, Requests, session_not_found, wait_seconds
from tests.conformance.toy.training import Session as TrainingSession
from tests.conformance.toy.training import ToyTraining

CAPABILITIES = ("sampling.follow", "sampling.stream")


@dataclass
class Session:
    """An open session.

    Attributes:
        weights: what is sampled from, of a session that follows no other.
        followed: the training session whose weights are sampled from.
        pinned: name of the checkpoint that is in use.
    """

    operations: Operations
    weights: Weights
    followed: TrainingSession | None = None
    pinned: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def now(self) -> Weights:
        """The weights to sample from now."""
        return self.weights if self.followed is None else self.followed.weights

    @property
    def version(self) -> int:
        """Their version."""
        return 0 if self.followed is None else self.followed.weights.version


class ToySampling(sampling_pb2_grpc.SamplingServiceServicer):
    """Samples the bigram model."""

    def __init__(self, training: ToyTraining) -> None:
        self.training = training
        self.sessions: dict[str, Session] = {}
        self.requests = Requests()

    def session(self, session_id: str) -> Session:
        """An open session."""
        if session_id not in self.sessions:
            raise session_not_found(session_id)
        return self.sessions[session_id]

    async def CreateSamplingSession(self, request: Any, context: Any) -> pb.CreateSamplingSessionResponse:
        session = self.requests.once(request, lambda: self.open(request))
        return pb.CreateSamplingSessionResponse(
            session_id=session.id, vocab_size=VOCABULARY, max_sequence_tokens=LONGEST, lease=Duration(seconds=1800)
        )

    def open(self, request: Any) -> Session:
        """A new session."""
        session = Session(Operations(ordered=False), Weights())
        match request.WhichOneof("model"):
            case "base_model":
                if request.base_model != NAME:
                    raise NotFoundError(f"base_model: no {request.base_model!r}", reason="MODEL_NOT_FOUND")
            case "checkpoint_uri":
                session.pinned = self.training.checkpoints.name_of(request.checkpoint_uri)
                files = self.training.checkpoints.files(request.checkpoint_uri)
                session.weights = Weights.from_files(files, weights_only=True)
                self.training.checkpoints.in_use.append(session.pinned)
            case "training_session_id":
                session.followed = self.training.session(request.training_session_id)
            case _:
                raise field_error("model", "is missing")
        self.sessions[session.id] = session
        return session

    def prompt(self, data: bytes, name: str, *, least: int = 1, room: int = 0) -> np.ndarray:
        """Token ids, refused when they are none."""
        tokens = unpack_tokens(data, field=name)
        if not least <= len(tokens) <= LONGEST - room:
            raise field_error(name, f"has {len(tokens)} tokens")
        if ((tokens < 0) | (tokens >= VOCABULARY)).any():
            raise field_error(name, "has an id outside the vocabulary")
        return tokens

    async def Sample(self, request: Any, context: Any) -> pb.SampleResponse:
        session = self.session(request.session_id)
        prompt = self.prompt(request.prompt_tokens_int32, "prompt_tokens_int32", room=1)
        self.check_stops(request.params)

        def work() -> tuple[str, pb.SampleResult]:
            result = pb.SampleResult(
                sequences=[self.complete(session, prompt, request.params, n) for n in range(request.num_samples)],
                weights_version=session.version,
            )
            if request.prompt_logprobs:
                result.prompt_logprobs_float32 = pack_floats(self.score(session, prompt))
            return "sample", result

        return pb.SampleResponse(operation=await session.operations.submit(request, work))

    def check_stops(self, params: pb.SamplingParams) -> None:
        """Refuses stop tokens that are no ids."""
        if any(token >= VOCABULARY for token in params.stop_tokens):
            raise field_error("params.stop_tokens", "has an id outside the vocabulary")

    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        """Sample `number` of a request."""
        generator = self.generator(params, number)
        last, tokens, logprobs = int(prompt[-1]), [], []
        stopped = False
        while len(tokens) < min(params.max_tokens, LONGEST - len(prompt)) and not stopped:
            distribution = log_softmax(session.now.matrix[last])
            last = self.choose(distribution, params, generator.random())
            tokens.append(last)
            logprobs.append(float(distribution[last]))
            stopped = last in params.stop_tokens
        return pb.SampledSequence(
            tokens_int32=pack_tokens(tokens),
            logprobs_float32=pack_floats(logprobs),
            stop_reason=pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH,
        )

    def generator(self, params: Any, number: int) -> np.random.Generator:
        """The random choices of one sample."""
        return np.random.default_rng((params.seed % 2**32, number))

    def choose(self, distribution: np.ndarray, params: Any, random: float) -> int:
        """The next token."""
        temperature = params.temperature if params.HasField("temperature") else 1.0
        if temperature == 0:
            return int(distribution.argmax())
        order = np.argsort(-distribution, kind="stable")
        order = order[: params.top_k or len(order)]
        chances = np.exp(log_softmax(distribution[order].astype(np.float64) / temperature))
        kept = len(order)
        if params.HasField("top_p"):
            kept = int(np.searchsorted(np.cumsum(chances), params.top_p)) + 1
        cumulative = np.cumsum(chances[:kept])
        return int(order[min(int(np.searchsorted(cumulative, random * cumulative[-1])), len(cumulative) - 1)])

    def score(self, session: Session, tokens: np.ndarray) -> np.ndarray:
        """logprobs of tokens[1:]."""
        return session.now.logprobs(tokens[:-1], tokens[1:])

    async def StreamSample(self, request: Any, context: Any) -> AsyncIterator[pb.StreamSampleResponse]:
        session = self.session(request.session_id)
        prompt = self.prompt(request.prompt_tokens_int32, "prompt_tokens_int32", room=1)
        for number in range(request.num_samples):
            whole = self.complete(session, prompt, request.params, number)
            for place in range(0, len(whole.tokens_int32), 4):
                last = place + 4 == len(whole.tokens_int32)
                yield pb.StreamSampleResponse(
                    index=number,
                    tokens_int32=whole.tokens_int32[place : place + 4],
                    logprobs_float32=whole.logprobs_float32[place : place + 4],
                    stop_reason=whole.stop_reason if last else pb.STOP_REASON_UNSPECIFIED,
                )

    async def ComputeLogprobs(self, request: Any, context: Any) -> pb.ComputeLogprobsResponse:
        session = self.session(request.session_id)
        tokens = self.prompt(request.tokens_int32, "tokens_int32", least=2)

        def work() -> tuple[str, pb.LogprobsResult]:
            logprobs = pack_floats(self.score(session, tokens))
            return "logprobs", pb.LogprobsResult(logprobs_float32=logprobs, weights_version=session.version)

        return pb.ComputeLogprobsResponse(operation=await session.operations.submit(request, work))

    async def AwaitOperation(self, request: Any, context: Any) -> pb.AwaitOperationResponse:
        operations = self.session(request.session_id).operations
        operation = await operations.wait(request.operation_id, wait_seconds(request))
        return pb.AwaitOperationResponse(operation=operation.message, **operation.result)  # type: ignore[arg-type]

    async def CancelOperation(self, request: Any, context: Any) -> pb.CancelOperationResponse:
        operation = self.session(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.message)

    async def CloseSamplingSession(self, request: Any, context: Any) -> pb.CloseSamplingSessionResponse:
        session = self.sessions.pop(request.session_id, None)
        if session is not None:
            session.operations.close()
            if session.pinned:
                self.training.checkpoints.in_use.remove(session.pinned)
        return pb.CloseSamplingSessionResponse()
