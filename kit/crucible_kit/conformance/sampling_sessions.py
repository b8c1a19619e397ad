"""Sampling adapters: sessions, what is said twice, refusals, and the weights that sessions follow."""

from __future__ import annotations

import asyncio
import uuid

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible_kit.conformance.expect import check, check_equal, check_refused, collect, one_by_one
from crucible_kit.conformance.requirement import Stage
from crucible_kit.conformance.sampling import (
    PROMPT,
    SUITE,
    Sampling,
    Session,
    all_tokens,
    base_model,
    check_same_logprobs,
    create,
    create_request,
    open_session,
)
from crucible_kit.conformance.sampling_follow import Trainer
from crucible_kit.tensors import pack_tokens, unpack_floats, unpack_tokens

__all__ = ["SUITE"]


@SUITE.requirement(
    "SMP-SESSION-01",
    "The same request_id with the same payload MUST get the same session, with another payload INVALID_ARGUMENT "
    "REQUEST_ID_REUSED.",
    quote="CreateSamplingSession binds a model. Idempotent by request_id.",
)
async def _same_request(context: Sampling) -> None:
    request = create_request(context)
    both = await asyncio.gather(create(context, request), create(context, request))
    check_equal(both[1].session_id, both[0].session_id, "the session of a repeated request_id")
    changed = pb.CreateSamplingSessionRequest(request_id=request.request_id, base_model=f"{request.base_model}x")
    call = context.stub.CreateSamplingSession(changed)
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with another model")


@SUITE.requirement(
    "SMP-SESSION-02",
    "A model, checkpoint or training session that is not there MUST be NOT_FOUND, and a request without a model "
    "refused.",
    quote="NOT_FOUND MODEL_NOT_FOUND, CHECKPOINT_NOT_FOUND or SESSION_NOT_FOUND",
)
async def _not_there(context: Sampling) -> None:
    name = f"no-such-model-{uuid.uuid4().hex}"
    model = f"/{name}" if base_model(context).startswith("/") else f"no-such-owner/{name}"
    call = context.stub.CreateSamplingSession(create_request(context, base_model=model))
    await check_refused(call, "NOT_FOUND", "MODEL_NOT_FOUND", what=f"the model {model!r}")
    call = context.stub.CreateSamplingSession(create_request(context, checkpoint_uri=f"no-such-checkpoint/{name}"))
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="an unknown checkpoint")
    call = context.stub.CreateSamplingSession(pb.CreateSamplingSessionRequest(request_id=str(uuid.uuid4())))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="a session of no model")


@SUITE.requirement(
    "SMP-SESSION-03",
    "Calls of a session that was closed MUST be NOT_FOUND SESSION_NOT_FOUND; closing it again is OK.",
    quote="CloseSamplingSession frees the session. Idempotent: an unknown session is OK.",
)
async def _closed(context: Sampling) -> None:
    session = await open_session(context)
    operation = (await context.stub.Sample(session.sample_request())).operation
    for _ in range(2):
        await context.stub.CloseSamplingSession(pb.CloseSamplingSessionRequest(session_id=session.id))
    cancel = pb.CancelOperationRequest(session_id=session.id, operation_id=operation.id)
    calls = {
        "Sample": context.stub.Sample(session.sample_request()),
        "ComputeLogprobs": context.stub.ComputeLogprobs(session.score_request(PROMPT)),
        "AwaitOperation": session.poll(operation.id),
        "CancelOperation": context.stub.CancelOperation(cancel),
    }
    for name, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "SESSION_NOT_FOUND", what=f"{name} of a closed session")


@SUITE.requirement(
    "SMP-SEQ-01",
    "A repeat of a number with the same payload MUST get the first operation again, with another payload "
    "INVALID_ARGUMENT "
    "SEQUENCE_REUSED.",
    quote="a repeat with the same payload gets the first",
)
async def _repeats(context: Sampling) -> None:
    session = await open_session(context)
    request = session.sample_request(sequence=7, seed=1)
    first = (await context.stub.Sample(request)).operation
    check_equal(first.sequence, 7, "`sequence` of the operation")
    twins = await asyncio.gather(*(context.stub.Sample(request) for _ in range(3)))
    check_equal({each.operation.id for each in twins}, {first.id}, "the operations of repeats")
    result = await session.result(first)
    check_equal((await context.stub.Sample(request)).operation.id, first.id, "the operation of a repeat after its end")
    check_equal(await session.poll(first.id), result, "the result after repeats")
    request.params.seed = 2
    await check_refused(
        context.stub.Sample(request), "INVALID_ARGUMENT", "SEQUENCE_REUSED", what="a used number with another seed"
    )
    score = session.score_request(PROMPT, sequence=7)
    call = context.stub.ComputeLogprobs(score)
    await check_refused(call, "INVALID_ARGUMENT", "SEQUENCE_REUSED", what="a used number of another method")


@SUITE.requirement(
    "SMP-SEQ-02",
    "Numbers MUST only tell calls apart: any positive one that was not used is new, in whatever order.",
    quote="any positive number that the session has not used is new",
)
async def _any_numbers(context: Sampling) -> None:
    session = await open_session(context)
    for number in (1_000, 3, 2**62, 2, 1):
        operation = (await context.stub.Sample(session.sample_request(sequence=number))).operation
        await session.result(operation)


@SUITE.requirement(
    "SMP-AWAIT-01",
    "AwaitOperation MUST repeat its result, answer at once without `wait`, and not know other operations.",
    quote="NOT_FOUND OPERATION_NOT_FOUND.",
)
async def _awaits(context: Sampling) -> None:
    session, other = await open_session(context), await open_session(context)
    operation = (await context.stub.Sample(session.sample_request())).operation
    unfinished = await session.poll(operation.id)
    named = unfinished.WhichOneof("result")
    check(named in (None, "sample"), "no result, or that of Sample", named)
    result = await session.result(operation)
    check_equal(await session.poll(operation.id), result, "the answer of a further AwaitOperation")
    scored = (await context.stub.ComputeLogprobs(session.score_request(PROMPT))).operation
    check_equal((await session.result(scored)).WhichOneof("result"), "logprobs", "the kind of result")
    calls = {
        "an unknown operation": session.poll("no-operation-is-called-so"),
        "another session's operation": other.poll(operation.id),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "OPERATION_NOT_FOUND", what=what)
    cancel = pb.CancelOperationRequest(session_id=session.id, operation_id=operation.id)
    check_equal(
        (await context.stub.CancelOperation(cancel)).operation, result.operation, "a cancelled finished operation"
    )


@SUITE.requirement(
    "SMP-DATA-01",
    "Prompts that are no ids of the vocabulary, or leave no room, MUST be INVALID_ARGUMENT FIELD_INVALID.",
    quote="The prompt: at least one token id, little-endian int32. Required.",
)
async def _bad_prompts(context: Sampling) -> None:
    session = await open_session(context)
    size, longest = session.created.vocab_size, session.created.max_sequence_tokens
    cases = {
        "an id that is vocab_size": pack_tokens([size]),
        "an id below 0": pack_tokens([0, -1]),
        "3 bytes": b"\0\0\0",
    }
    if longest * 4 < context.max_message_bytes // 2:
        cases["a prompt longer than the model takes"] = pack_tokens([0] * (longest + 1))
    for what, prompt in cases.items():
        request = session.sample_request(sequence=1)
        request.prompt_tokens_int32 = prompt
        await check_refused(
            context.stub.Sample(request), "INVALID_ARGUMENT", "FIELD_INVALID", what=f"Sample with {what}"
        )
        scoring = session.score_request(PROMPT, sequence=1)
        scoring.tokens_int32 = prompt
        call = context.stub.ComputeLogprobs(scoring)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"ComputeLogprobs with {what}")
    call = context.stub.ComputeLogprobs(session.score_request([0], sequence=1))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="ComputeLogprobs of one token")
    request = session.sample_request(sequence=1, stop_tokens=[size])
    await check_refused(
        context.stub.Sample(request), "INVALID_ARGUMENT", "FIELD_INVALID", what="a stop token outside the vocabulary"
    )
    # None of them has used the number.
    await session.result((await context.stub.Sample(session.sample_request(sequence=1))).operation)


@SUITE.requirement(
    "SMP-STREAM-01",
    "StreamSample MUST send the tokens and logprobs that Sample gives, and set stop_reason on the last message of "
    "each.",
    quote="StreamSample sends tokens as they come.",
    capability="sampling.stream",
)
async def _streams(context: Sampling) -> None:
    session = await open_session(context)
    whole = await session.sample(num_samples=2, seed=3)
    request = pb.StreamSampleRequest(
        session_id=session.id,
        prompt_tokens_int32=pack_tokens(PROMPT),
        params=session.params(seed=3),
        num_samples=2,
    )
    messages = await collect(context.stub.StreamSample(request))
    for index, sequence in enumerate(whole.sequences):
        parts = [each for each in messages if each.index == index]
        tokens = [token for each in parts for token in unpack_tokens(each.tokens_int32).tolist()]
        check_equal(tokens, unpack_tokens(sequence.tokens_int32).tolist(), f"streamed tokens of completion {index}")
        logprobs = [value for each in parts for value in unpack_floats(each.logprobs_float32).tolist()]
        expected = unpack_floats(sequence.logprobs_float32).tolist()
        check_same_logprobs(context, logprobs, expected, f"streamed logprobs of completion {index}")
        reasons = [each.stop_reason for each in parts]
        check_equal(reasons[-1], sequence.stop_reason, f"stop_reason of the last message of completion {index}")
        check_equal(set(reasons[:-1]) - {pb.STOP_REASON_UNSPECIFIED}, set(), "stop_reason of messages before the last")


@SUITE.requirement(
    "SMP-FOLLOW-01",
    "A session that follows a training session MUST sample its weights as they are after each step, and say their "
    "version.",
    quote="Version of the weights: of the followed training session, 0 for a base model or checkpoint.",
    capability="sampling.follow",
)
async def _follows(context: Sampling) -> None:
    trainer = await Trainer.open(context)
    session = await open_session(context, training_session_id=trainer.id)
    tokens = [1, 2, 3, 4, 5, 6]
    seen = []
    for version in range(3):
        result = await session.sample(temperature=0.0)
        check_equal(result.weights_version, version, f"weights_version after {version} steps")
        score = await session.score(tokens)
        check_same_logprobs(context, score, await trainer.logprobs(tokens), f"logprobs after {version} steps")
        seen.append(tuple(score.tolist()))
        await trainer.learn(tokens)
    check_equal(len(set(seen)), 3, "the number of different logprobs over two steps")


@SUITE.requirement(
    "SMP-FOLLOW-02",
    "A session of a checkpoint MUST keep its weights, whatever is trained later, and count as a use of the checkpoint.",
    quote="A checkpoint: the session is pinned to it for good.",
)
async def _checkpoints(context: Sampling) -> None:
    trainer = await Trainer.open(context)
    tokens = [1, 2, 3, 4, 5, 6]
    await trainer.learn(tokens)
    uri = await trainer.save()
    expected = await trainer.logprobs(tokens)
    session = await open_session(context, checkpoint_uri=uri)
    await trainer.learn(tokens)
    check_same_logprobs(context, await session.score(tokens), expected, "logprobs of a checkpoint")
    await check_refused(trainer.delete(uri), "FAILED_PRECONDITION", "CHECKPOINT_IN_USE", what="deleting it")
    check_equal((await session.sample()).weights_version, 0, "weights_version of a checkpoint")


@SUITE.requirement(
    "SMP-FOLLOW-03",
    "Following a training session MUST be UNIMPLEMENTED CAPABILITY_MISSING where sampling.follow is not declared.",
    quote="Needs `sampling.follow`.",
    without="sampling.follow",
)
async def _no_following(context: Sampling) -> None:
    call = context.stub.CreateSamplingSession(create_request(context, training_session_id="any"))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="a session that follows another")


@SUITE.requirement(
    "SMP-RESTART-01",
    "After a restart the sessions MUST be gone, and the same request give the same tokens.",
    quote="Errors common to all: NOT_FOUND SESSION_NOT_FOUND",
    stage=Stage.RESTART,
)
async def _sessions_end_with_the_process(context: Sampling) -> None:
    session = await open_session(context)
    before = all_tokens(await session.sample(seed=1, num_samples=2))
    await context.restart()
    call = context.stub.Sample(Session(context, session.created).sample_request())
    await check_refused(call, "NOT_FOUND", "SESSION_NOT_FOUND", what="a call of a session before the restart")
    fresh = await open_session(context)
    check_equal(all_tokens(await fresh.sample(seed=1, num_samples=2)), before, "the tokens of the same request")
