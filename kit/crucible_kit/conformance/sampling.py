"""Sampling adapters: completions that the same seed repeats, and logprobs that belong to them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray
from pydantic import Field

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.type.v1 import operation_pb2
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_close, check_equal
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings, tiny_model
from crucible_kit.tensors import pack_tokens, unpack_floats, unpack_tokens
from crucible_kit.training import check_finished

_ENDED = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)
_WAIT = duration_pb2.Duration(seconds=20)
_SCORES_AT_A_TIME = 16
PROMPT = (3, 1, 4, 1, 5)


class SamplingSettings(SuiteSettings):
    """Settings of the suite of sampling adapters."""

    base_model: str = Field(
        default="",
        description="Model to sample from, as CreateSamplingSession takes it; small. Empty: a tiny one that ships "
        "with the "
        "adapters.",
    )
    max_tokens: int = Field(default=8, ge=4, description="Tokens of a completion.")
    absolute: float = Field(
        default=1e-3, gt=0, description="By how many nats logprobs that are computed in two ways may differ."
    )


SUITE = Suite(port="sampling", settings=SamplingSettings)
Sampling = Context[SamplingSettings]


def base_model(context: Sampling) -> str:
    """The model to sample from."""
    # The capability is the training port's; an adapter of both takes the same names on both.
    return context.settings.base_model or tiny_model(folders="training.local_model" in context.all_capabilities)


def create_request(context: Sampling, **fields: Any) -> pb.CreateSamplingSessionRequest:
    """A request for a session, of the settings' model unless `fields` name one."""
    given = fields or {"base_model": base_model(context)}
    return pb.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **given)


async def create(context: Sampling, request: pb.CreateSamplingSessionRequest) -> pb.CreateSamplingSessionResponse:
    """A session that is closed after the check."""
    response = await context.stub.CreateSamplingSession(request)
    close = pb.CloseSamplingSessionRequest(session_id=response.session_id)
    context.defer(lambda: context.stub.CloseSamplingSession(close))
    return response


async def open_session(context: Sampling, **fields: Any) -> Session:
    """A new session, numbering its calls."""
    return Session(context, await create(context, create_request(context, **fields)))


class Session:
    """An open session.

    Attributes:
        id: its id.
        created: what the adapter said of it.
        next: the number of the next call.
    """

    def __init__(self, context: Sampling, created: pb.CreateSamplingSessionResponse) -> None:
        self._context = context
        self.created = created
        self.id = created.session_id
        self.next = 1

    def number(self) -> int:
        """A number that no call has."""
        self.next += 1
        return self.next - 1

    def params(self, **fields: Any) -> pb.SamplingParams:
        """How to choose; max_tokens are those of the settings."""
        return pb.SamplingParams(**{"max_tokens": self._context.settings.max_tokens, **fields})

    def sample_request(
        self,
        prompt: Sequence[int] = PROMPT,
        *,
        sequence: int | None = None,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        **params: Any,
    ) -> pb.SampleRequest:
        """A request for completions."""
        return pb.SampleRequest(
            session_id=self.id,
            sequence=self.number() if sequence is None else sequence,
            prompt_tokens_int32=pack_tokens(prompt),
            params=self.params(**params),
            num_samples=num_samples,
            prompt_logprobs=prompt_logprobs,
        )

    def score_request(self, tokens: Sequence[int], *, sequence: int | None = None) -> pb.ComputeLogprobsRequest:
        """A request for scores."""
        number = self.number() if sequence is None else sequence
        return pb.ComputeLogprobsRequest(session_id=self.id, sequence=number, tokens_int32=pack_tokens(tokens))

    async def poll(self, operation_id: str, wait: duration_pb2.Duration | None = None) -> pb.AwaitOperationResponse:
        """One AwaitOperation."""
        request = pb.AwaitOperationRequest(session_id=self.id, operation_id=operation_id, wait=wait)
        return await self._context.stub.AwaitOperation(request)

    async def result(self, operation: operation_pb2.Operation) -> pb.AwaitOperationResponse:
        """The operation when it has succeeded. Raises what it failed with."""
        while True:
            response = await self.poll(operation.id, _WAIT)
            if response.operation.state in _ENDED:
                check_finished(response.operation)
                return response

    async def sample(self, prompt: Sequence[int] = PROMPT, **fields: Any) -> pb.SampleResult:
        """Completions."""
        response = await self._context.stub.Sample(self.sample_request(prompt, **fields))
        return (await self.result(response.operation)).sample

    async def score(self, tokens: Sequence[int]) -> NDArray[np.floating]:
        """logprobs of tokens[1:], float32 of shape [n - 1]."""
        response = await self._context.stub.ComputeLogprobs(self.score_request(tokens))
        return unpack_floats((await self.result(response.operation)).logprobs.logprobs_float32)


def tokens_of(sequence: pb.SampledSequence) -> list[int]:
    """A completion's tokens."""
    return unpack_tokens(sequence.tokens_int32).tolist()


def all_tokens(result: pb.SampleResult) -> list[list[int]]:
    """The tokens of every completion."""
    return [tokens_of(sequence) for sequence in result.sequences]


def check_same_logprobs(context: Sampling, got: Any, expected: Any, what: str) -> None:
    """Logprobs that are to be the same up to rounding."""
    check_equal(len(got), len(expected), f"the number of {what}")
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        check_close(float(one), float(other), f"{what}[{place}]", relative=0.0, absolute=context.settings.absolute)


@SUITE.samples
async def _samples(context: Sampling) -> Samples:
    session = await open_session(context)
    operation = (await context.stub.Sample(session.sample_request())).operation
    await session.result(operation)
    return {
        "CreateSamplingSession": create_request(context),
        "Sample": session.sample_request(),
        "StreamSample": pb.StreamSampleRequest(
            session_id=session.id, prompt_tokens_int32=pack_tokens(PROMPT), params=session.params(), num_samples=1
        ),
        "ComputeLogprobs": session.score_request(PROMPT),
        "AwaitOperation": pb.AwaitOperationRequest(session_id=session.id, operation_id=operation.id),
        "CancelOperation": pb.CancelOperationRequest(session_id=session.id, operation_id=operation.id),
        "CloseSamplingSession": pb.CloseSamplingSessionRequest(session_id=f"no-{session.id}"),
    }


@SUITE.pings
async def _ping(context: Sampling) -> None:
    request = pb.CloseSamplingSessionRequest(session_id="no-session-is-called-so")
    await context.stub.CloseSamplingSession(request)


@SUITE.undoes("CreateSamplingSession")
async def _close_created(context: Sampling, messages: Sequence[Any], answer: Any) -> None:
    # The same request again: the first may have been answered to nobody.
    await create(context, messages[0])


@SUITE.requirement(
    "SMP-SAMPLE-01",
    "Sample MUST give num_samples completions of at most max_tokens tokens of the vocabulary, each token with its "
    "logprob.",
    quote="logprob of each token, little-endian float32, in nats",
)
async def _completions(context: Sampling) -> None:
    session = await open_session(context)
    check(session.created.vocab_size > 0, "vocab_size above 0", session.created.vocab_size)
    check(session.created.max_sequence_tokens > 0, "max_sequence_tokens above 0", session.created.max_sequence_tokens)
    for count in (1, 3):
        result = await session.sample(num_samples=count)
        check_equal(len(result.sequences), count, "the number of completions")
        for sequence in result.sequences:
            tokens, logprobs = tokens_of(sequence), unpack_floats(sequence.logprobs_float32)
            most = context.settings.max_tokens
            check(0 < len(tokens) <= most, f"1 to {most} tokens of a completion", len(tokens))
            check_equal(len(logprobs), len(tokens), "the number of logprobs of a completion")
            check(all(0 <= token < session.created.vocab_size for token in tokens), "ids of the vocabulary", tokens)
            good = bool(np.isfinite(logprobs).all() and (logprobs <= 1e-6).all())
            check(good, "finite logprobs, none above 0", logprobs.tolist())
            check_equal(sequence.stop_reason, pb.STOP_REASON_LENGTH, "stop_reason without stop tokens")
            check_equal(len(tokens), most, "the number of tokens where only length ends")
        check_equal(result.weights_version, 0, "weights_version of a base model")
        absent = not result.HasField("prompt_logprobs_float32")
        check(absent, "no prompt_logprobs where they were not asked for", "some")


@SUITE.requirement(
    "SMP-SAMPLE-02",
    "The same request with the same seed MUST give the same tokens, whatever else runs.",
    quote="The same request with the same seed gives the same tokens on the same weights and machine type, whatever "
    "else "
    "runs.",
)
async def _repeats_itself(context: Sampling) -> None:
    session = await open_session(context)
    first = all_tokens(await session.sample(seed=5, num_samples=3))
    again, *_ = await asyncio.gather(
        session.sample(seed=5, num_samples=3), *(session.sample([seed], seed=seed) for seed in range(4))
    )
    check_equal(all_tokens(again), first, "the tokens of the same request beside others")
    other = await open_session(context)
    check_equal(all_tokens(await other.sample(seed=5, num_samples=3)), first, "the tokens in another session")


@SUITE.requirement(
    "SMP-SAMPLE-03",
    "Sample i of a request MUST depend on seed and i, and not on num_samples; without a seed it is 0.",
    quote="sample i of it depends on (seed, i) and not on num_samples. Absent: 0.",
)
async def _samples_by_number(context: Sampling) -> None:
    session = await open_session(context)
    many = all_tokens(await session.sample(num_samples=6))
    check_equal(all_tokens(await session.sample(num_samples=2)), many[:2], "the first of fewer samples")
    check_equal(all_tokens(await session.sample(num_samples=2, seed=0)), many[:2], "the samples of seed 0")
    if session.created.vocab_size > 4:
        check(len({tuple(each) for each in many}) > 1, "different samples at temperature 1", many)
        other = all_tokens(await session.sample(num_samples=6, seed=1))
        check(other != many, "other samples of another seed", other)


@SUITE.requirement(
    "SMP-SAMPLE-04",
    "Temperature 0, and top_k 1, MUST take the most likely token each time.",
    quote="Logits are divided by it; 0 takes the most likely token. Absent: 1.",
)
async def _greedy(context: Sampling) -> None:
    session = await open_session(context)
    result = await session.sample(temperature=0.0, num_samples=3, seed=9)
    greedy = all_tokens(result)
    check_equal(greedy, [greedy[0]] * 3, "completions of temperature 0")
    check_equal(all_tokens(await session.sample(top_k=1, seed=4)), greedy[:1], "the completion of top_k 1")
    check_equal(all_tokens(await session.sample(top_p=1e-9, seed=4)), greedy[:1], "the completion of a top_p near 0")
    best = float(unpack_floats(result.sequences[0].logprobs_float32)[0])
    count = min(session.created.vocab_size, 64)
    for token in range(count):
        scored = float((await session.score([*PROMPT, token]))[-1])
        good = scored <= best + context.settings.absolute
        check(good, f"no token more likely than the chosen {greedy[0][0]} ({best})", f"{token} ({scored})")


@SUITE.requirement(
    "SMP-SAMPLE-05",
    "Logprobs of sampled tokens MUST be those of the model at temperature 1, as ComputeLogprobs gives them.",
    quote="under the model at temperature 1 without top_k or top_p.",
)
async def _logprobs_of_samples(context: Sampling) -> None:
    session = await open_session(context)
    cold = {"temperature": 0.5, "seed": 3}
    cases: list[dict[str, Any]] = [{}, {"temperature": 0.0}, cold, {"top_k": 2}, {"top_p": 0.5}]
    for params in cases:
        [sequence] = (await session.sample(**params)).sequences
        scored = await session.score([*PROMPT, *tokens_of(sequence)])
        sampled = unpack_floats(sequence.logprobs_float32)
        what = f"logprobs of what was sampled with {params or 'no parameters'}"
        check_same_logprobs(context, sampled, scored[len(PROMPT) - 1 :], what)


@SUITE.requirement(
    "SMP-SAMPLE-06",
    "A stop token MUST end a completion, as its last token, with STOP_REASON_STOP.",
    quote="A stop token came; it is the last token of the completion.",
)
async def _stops(context: Sampling) -> None:
    session = await open_session(context)
    [whole] = all_tokens(await session.sample(seed=2))
    for place in range(min(3, len(whole))):
        stop = whole[place]
        [sequence] = (await session.sample(seed=2, stop_tokens=[stop])).sequences
        expected = whole[: whole.index(stop) + 1]
        check_equal(tokens_of(sequence), expected, f"the completion that token {stop} ends")
        check_equal(sequence.stop_reason, pb.STOP_REASON_STOP, "stop_reason after a stop token")
        check_equal(len(unpack_floats(sequence.logprobs_float32)), len(expected), "the number of logprobs")


@SUITE.requirement(
    "SMP-SAMPLE-07",
    "prompt_logprobs MUST be those of each prompt token but the first, as ComputeLogprobs gives them.",
    quote="logprob of each prompt token but the first, which has none: n - 1 little-endian float32.",
)
async def _prompt_logprobs(context: Sampling) -> None:
    session = await open_session(context)
    result = await session.sample(prompt_logprobs=True)
    got = unpack_floats(result.prompt_logprobs_float32)
    check_same_logprobs(context, got, await session.score(PROMPT), "prompt_logprobs")
    single = await session.sample([PROMPT[0]], prompt_logprobs=True)
    present = single.HasField("prompt_logprobs_float32")
    check_equal((present, single.prompt_logprobs_float32), (True, b""), "prompt_logprobs of a prompt of one token")


@SUITE.requirement(
    "SMP-SCORE-01",
    "ComputeLogprobs MUST give n - 1 logprobs of a distribution: after one token they add up to 1 over the vocabulary.",
    quote="logprob of each token but the first, given those before it: n - 1 little-endian float32, in nats.",
)
async def _scores(context: Sampling) -> None:
    session = await open_session(context)
    tokens = [*PROMPT, *PROMPT]
    logprobs = await session.score(tokens)
    check_equal(len(logprobs), len(tokens) - 1, "the number of logprobs")
    beginning = await session.score(tokens[:4])
    check_same_logprobs(context, beginning, logprobs[:3], "logprobs of the beginning alone")
    size = session.created.vocab_size
    if size <= 512:
        total = 0.0
        for start in range(0, size, _SCORES_AT_A_TIME):
            tokens = range(start, min(start + _SCORES_AT_A_TIME, size))
            scores = await asyncio.gather(*(session.score([1, token]) for token in tokens))
            total += float(np.exp(np.concatenate(scores).astype(np.float64)).sum())
        good = abs(total - 1.0) <= 10 * context.settings.absolute
        check(good, f"probabilities of all {size} tokens to add up to 1", total)
