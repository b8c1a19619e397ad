"""Sampling adapters with a defect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible_kit.channel import Channel
from crucible_kit.tensors import pack_floats, pack_tokens, unpack_floats, unpack_tokens
from tests.conformance.bindings import to_object
from tests.conformance.mutants.mutant import Mutant
from tests.conformance.toy.model import VOCABULARY, Weights, log_softmax
from tests.conformance.toy.operations import Operation, Operations
from tests.conformance.toy.sampling import CAPABILITIES, Session, ToySampling
from tests.conformance.toy.training import CAPABILITIES as TRAINING_CAPABILITIES
from tests.conformance.toy.training import ToyTraining


class OneGenerator(ToySampling):
    """All samples draw from one generator."""

    def __init__(self, training: ToyTraining) -> None:
        super().__init__(training)
        self._generator = np.random.default_rng(0)

    def generator(self, params: Any, number: int) -> np.random.Generator:
        return self._generator


class SeedsAreIgnored(ToySampling):
    def generator(self, params: Any, number: int) -> np.random.Generator:
        return np.random.default_rng(number)


class NumSamplesMatter(ToySampling):
    async def Sample(self, request: Any, context: Any) -> pb.SampleResponse:
        self._count = request.num_samples
        return await super().Sample(request, context)

    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        return super().complete(session, prompt, params, number + self._count)


class NeverGreedy(ToySampling):
    def choose(self, distribution: np.ndarray, params: Any, random: float) -> int:
        if params.temperature == 0 and params.HasField("temperature"):
            return int(np.argsort(-distribution)[1])
        return super().choose(distribution, params, random)


class TopKIsIgnored(ToySampling):
    def choose(self, distribution: np.ndarray, params: Any, random: float) -> int:
        free = pb.SamplingParams()
        free.CopyFrom(params)
        free.ClearField("top_k")
        return super().choose(distribution, free, random)


class LogprobsAtTemperature(ToySampling):
    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        sequence = super().complete(session, prompt, params, number)
        if params.temperature > 0:
            tokens = [int(prompt[-1]), *unpack_tokens(sequence.tokens_int32).tolist()]
            scaled = log_softmax(session.now.matrix / params.temperature)
            sequence.logprobs_float32 = pack_floats(scaled[tokens[:-1], tokens[1:]])
        return sequence


class StopTokensAreLeftOut(ToySampling):
    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        sequence = super().complete(session, prompt, params, number)
        if sequence.stop_reason == pb.STOP_REASON_STOP:
            sequence.tokens_int32 = sequence.tokens_int32[:-4]
            sequence.logprobs_float32 = sequence.logprobs_float32[:-4]
        return sequence


class AlwaysLength(ToySampling):
    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        sequence = super().complete(session, prompt, params, number)
        sequence.stop_reason = pb.STOP_REASON_LENGTH
        return sequence


class OneTokenTooMany(ToySampling):
    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        more = pb.SamplingParams()
        more.CopyFrom(params)
        more.max_tokens += 1
        return super().complete(session, prompt, more, number)


class ScoresOfZero(ToySampling):
    def score(self, session: Session, tokens: np.ndarray) -> np.ndarray:
        return np.zeros(len(tokens) - 1, np.float32)


class ScoresTheFirstToken(ToySampling):
    def score(self, session: Session, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(1, np.float32), super().score(session, tokens)])


class StaleWeights(ToySampling):
    """A following session samples what it began with."""

    def open(self, request: Any) -> Session:
        session = super().open(request)
        if session.followed is not None:
            session.weights = Weights(matrix=session.followed.weights.matrix.copy())
            session.followed = None
        return session


class NothingIsPinned(ToySampling):
    def open(self, request: Any) -> Session:
        session = super().open(request)
        if session.pinned:
            self.training.checkpoints.in_use.remove(session.pinned)
            session.pinned = ""
        return session


class UncheckedPrompts(ToySampling):
    def prompt(self, data: bytes, name: str, *, least: int = 1, room: int = 0) -> np.ndarray:
        return unpack_tokens(data[: len(data) // 4 * 4], field=name)[:16] % VOCABULARY


class AnyStopToken(ToySampling):
    def check_stops(self, params: pb.SamplingParams) -> None:
        pass


class NewOperationForRepeats(Operations):
    def is_used(self, sequence: int) -> bool:
        return False


class TakesOtherPayloads(Operations):
    def repeated(self, sequence: int, digest: bytes) -> Operation:
        return self._by_sequence[sequence]


def with_operations(kind: Callable[[], Operations]) -> type[ToySampling]:
    """A toy whose sessions have such operations."""

    class Toy(ToySampling):
        def open(self, request: Any) -> Session:
            session = super().open(request)
            session.operations = kind()
            return session

    return Toy


class StreamsWithoutEnd(ToySampling):
    """The last token of a stream is lost."""

    async def StreamSample(self, request: Any, context: Any) -> AsyncIterator[pb.StreamSampleResponse]:
        held = None
        async for response in super().StreamSample(request, context):
            if held is not None and held.index == response.index:
                yield held
            held = response


class StreamsTokensTwice(ToySampling):
    async def StreamSample(self, request: Any, context: Any) -> AsyncIterator[pb.StreamSampleResponse]:
        async for response in super().StreamSample(request, context):
            yield pb.StreamSampleResponse(
                index=response.index, tokens_int32=response.tokens_int32, logprobs_float32=response.logprobs_float32
            )
            yield response


class PromptWithoutScores(ToySampling):
    async def Sample(self, request: Any, context: Any) -> pb.SampleResponse:
        bare = pb.SampleRequest()
        bare.CopyFrom(request)
        bare.prompt_logprobs = False
        return await super().Sample(bare, context)


class HalvesLogprobs(ToySampling):
    def complete(self, session: Session, prompt: np.ndarray, params: Any, number: int) -> pb.SampledSequence:
        sequence = super().complete(session, prompt, params, number)
        sequence.logprobs_float32 = pack_floats(unpack_floats(sequence.logprobs_float32) / 2)
        sequence.tokens_int32 = pack_tokens(unpack_tokens(sequence.tokens_int32))
        return sequence


def _open(kind: type[ToySampling], capabilities: tuple[str, ...]) -> AbstractAsyncContextManager[Channel]:
    training = ToyTraining()
    return to_object(
        {"training": training, "sampling": kind(training)},
        {"training": TRAINING_CAPABILITIES, "sampling": capabilities},
    )


def _mutant(
    kind: type[ToySampling],
    defect: str,
    *red: str,
    others: int = 0,
    capabilities: tuple[str, ...] = CAPABILITIES,
) -> Mutant:
    return Mutant(
        defect=defect,
        port="sampling",
        open=lambda: _open(kind, capabilities),
        red=red,
        others=others,
        settings={"base_model": "toy"},
    )


SAMPLING_MUTANTS = (
    _mutant(OneGenerator, "samples draw from one generator", "SMP-SAMPLE-02", others=3),
    _mutant(SeedsAreIgnored, "seeds are ignored", "SMP-SAMPLE-03"),
    _mutant(NumSamplesMatter, "samples depend on num_samples", "SMP-SAMPLE-03", others=1),
    _mutant(NeverGreedy, "temperature 0 takes the second token", "SMP-SAMPLE-04"),
    _mutant(TopKIsIgnored, "top_k is ignored", "SMP-SAMPLE-04"),
    _mutant(LogprobsAtTemperature, "logprobs are at the sampling temperature", "SMP-SAMPLE-05"),
    _mutant(HalvesLogprobs, "logprobs are halved", "SMP-SAMPLE-05"),
    _mutant(StopTokensAreLeftOut, "stop tokens are left out", "SMP-SAMPLE-06"),
    _mutant(AlwaysLength, "a stop is told as length", "SMP-SAMPLE-06"),
    _mutant(OneTokenTooMany, "completions are one token too long", "SMP-SAMPLE-01"),
    _mutant(ScoresTheFirstToken, "the first token has a score, too", "SMP-SAMPLE-07", "SMP-SCORE-01", others=3),
    _mutant(PromptWithoutScores, "prompts are not scored", "SMP-SAMPLE-07"),
    _mutant(ScoresOfZero, "scores are zeros", "SMP-SCORE-01", others=4),
    _mutant(StaleWeights, "a following session is stale", "SMP-FOLLOW-01"),
    _mutant(NothingIsPinned, "checkpoints in use are deleted", "SMP-FOLLOW-02"),
    _mutant(UncheckedPrompts, "prompts are not checked", "SMP-DATA-01"),
    _mutant(AnyStopToken, "stop tokens are not checked", "SMP-DATA-01"),
    _mutant(
        with_operations(lambda: NewOperationForRepeats(ordered=False)), "repeats make new operations", "SMP-SEQ-01"
    ),
    _mutant(
        with_operations(lambda: TakesOtherPayloads(ordered=False)),
        "repeats with another payload are taken",
        "SMP-SEQ-01",
    ),
    _mutant(
        with_operations(lambda: Operations(ordered=True, hold_seconds=0.05)),
        "numbers must be dense",
        "SMP-SEQ-02",
        others=1,
    ),
    _mutant(StreamsWithoutEnd, "streams lose their end", "SMP-STREAM-01"),
    _mutant(StreamsTokensTwice, "streams send tokens twice", "SMP-STREAM-01"),
    _mutant(ToySampling, "follows though it does not say so", "SMP-FOLLOW-03", capabilities=("sampling.stream",)),
)
