"""Training adapters: the order of calls, what is said twice, and operations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import operation_pb2
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.training_session import (
    ENDED,
    LOSS,
    SUITE,
    Session,
    Training,
    check_same,
    check_same_logprobs,
    datum,
    open_session,
)
from crucible_kit.errors import KitchenError, ResourceExhaustedError

_WINDOW = 64
_RESULTS_KEPT = 64
# Longer than a call that is too early is held.
_HELD_TIMEOUT = 60.0
_SHORT_SECONDS = 0.2
_MANY_CALLS = 100


@SUITE.requirement(
    "TRN-SEQ-01",
    "A repeat of a number with the same payload MUST get the first operation again and apply nothing twice.",
    quote="A repeat of a number with the same payload gets the first operation again and applies nothing twice",
)
async def _repeats(context: Training) -> None:
    repeated, control = await open_session(context), await open_session(context)
    data = repeated.data(2)
    first = await repeated.send_pass(data, sequence=1)
    again = await repeated.send_pass(data, sequence=1)
    check_equal(again.id, first.id, "the operation of a repeated ForwardBackward")
    await repeated.ended(first)
    check_equal((await repeated.send_pass(data, sequence=1)).id, first.id, "the operation of a repeat after its end")
    step = await repeated.send_step(sequence=2)
    result = (await repeated.result(step)).optim_step
    check_equal((await repeated.send_step(sequence=2)).id, step.id, "the operation of a repeated OptimStep")
    expected = await control.train(data)
    check_same(context, result.grad_norm, expected.grad_norm, "grad_norm after a repeated ForwardBackward")
    info = await repeated.info()
    check_equal((info.optim_steps, info.next_sequence), (1, 3), "(optim_steps, next_sequence) after repeats")
    probe = control.data(2, seed=9)
    repeated.next = control.next = 3
    same = await control.logprobs(probe)
    check_same_logprobs(context, await repeated.logprobs(probe), same, "logprobs after repeats")


@SUITE.requirement(
    "TRN-SEQ-02",
    "A repeat of a number with another payload MUST be INVALID_ARGUMENT SEQUENCE_REUSED and change nothing.",
    quote="with another payload it is INVALID_ARGUMENT SEQUENCE_REUSED.",
)
async def _reused_numbers(context: Training) -> None:
    session = await open_session(context)
    data, other = session.data(1), session.data(1, seed=1)
    await session.ended(await session.send_pass(data))
    await session.ended(await session.send_step())
    before = await session.info()
    calls = {
        "other data": session.send_pass(other, sequence=1),
        "another method": session.send_step(sequence=1),
        "another learning rate": session.send_step(sequence=2, learning_rate=0.5),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "INVALID_ARGUMENT", "SEQUENCE_REUSED", what=f"a used number with {what}")
    check_equal(await session.info(), before, "the session after refused repeats")


@SUITE.requirement(
    "TRN-SEQ-03",
    "A call that arrives early MUST be held and run in its turn.",
    quote="A call that arrives early is held (window 64 calls, 10 s) and runs in order",
)
async def _early_calls(context: Training) -> None:
    session, control = await open_session(context), await open_session(context)
    lessons = [session.data(2, seed=seed) for seed in range(2)]
    early = [asyncio.ensure_future(session.send_step(sequence=number)) for number in (4, 2)]
    try:
        await session.send_pass(lessons[0], sequence=1)
        second = (await session.result(await early[1])).optim_step
        await session.send_pass(lessons[1], sequence=3)
        fourth = (await session.result(await early[0])).optim_step
    finally:
        await _given_up(early)
    for number, result, data in ((2, second, lessons[0]), (4, fourth, lessons[1])):
        expected = await control.train(data)
        check_same(context, result.grad_norm, expected.grad_norm, f"grad_norm of call {number}, which came early")
        check_equal(result.optim_steps, expected.optim_steps, f"optim_steps of call {number}, which came early")


@SUITE.requirement(
    "TRN-SEQ-04",
    "A call more than 64 ahead MUST be FAILED_PRECONDITION SEQUENCE_GAP with the number `expected` in the metadata.",
    quote="past that it is FAILED_PRECONDITION SEQUENCE_GAP with `expected` in the metadata.",
)
async def _far_calls(context: Training) -> None:
    session = await open_session(context)
    await session.ended(await session.send_pass(session.data(1)))
    for ahead in (_WINDOW + 1, 10_000, 2**63):
        call = session.send_step(sequence=session.next + ahead)
        error = await check_refused(call, "FAILED_PRECONDITION", "SEQUENCE_GAP", what=f"a call {ahead} ahead")
        _check_expected(context, error, session.next)
    await session.step()


@SUITE.requirement(
    "TRN-SEQ-05",
    "An early call whose turn does not come MUST end with SEQUENCE_GAP, and not be applied afterwards.",
    quote="past that it is FAILED_PRECONDITION SEQUENCE_GAP with `expected` in the metadata.",
)
async def _calls_whose_turn_does_not_come(context: Training) -> None:
    session = await open_session(context)
    request = session.request("OptimStep", sequence=2, adam=session.adam())
    call = context.stub.OptimStep(request, timeout=_HELD_TIMEOUT)
    error = await check_refused(call, "FAILED_PRECONDITION", "SEQUENCE_GAP", what="a call that nobody came before")
    _check_expected(context, error, 1)
    await _check_not_applied(session, "refused")


def _check_expected(context: Training, error: KitchenError, number: int) -> None:
    # Metadata travel in the details, which not every gRPC can send.
    if context.channel.refusals[-1].details is not None:
        check_equal(error.metadata.get("expected"), str(number), "`expected` in the metadata of SEQUENCE_GAP")


@SUITE.requirement(
    "TRN-SEQ-06",
    "A call that is refused before acceptance MUST consume no number.",
    quote="A call refused before acceptance consumes no number.",
)
async def _refused_calls(context: Training) -> None:
    session = await open_session(context)
    data = session.data(1)
    await session.ended(await session.send_pass(data, sequence=1))
    vocabulary = session.created.vocab_size
    bad = {
        "a token outside the vocabulary": {"data": [datum([vocabulary], [0], [1.0])], "loss_fn": LOSS},
        "a weight that is no number": {"data": [datum([0], [0], [float("nan")])], "loss_fn": LOSS},
        "an unknown loss": {"data": data, "loss_fn": pb.LossFunction(name="no-loss-is-called-so")},
    }
    for what, fields in bad.items():
        call = session.send("ForwardBackward", sequence=2, **fields)
        await check_refused(call, "INVALID_ARGUMENT", what=f"a pass with {what}")
        check_equal((await session.info()).next_sequence, 2, f"next_sequence after a refused call with {what}")
    result = (await session.result(await session.send_step(sequence=2))).optim_step
    expected = await (await open_session(context)).train(data)
    check_same(context, result.grad_norm, expected.grad_norm, "grad_norm after refused calls")


@SUITE.requirement(
    "TRN-SEQ-07",
    "Calls that are sent at a time and overtake each other MUST give what they give one by one.",
    quote="So a caller may send ForwardBackward and OptimStep without waiting",
)
async def _calls_at_a_time(context: Training) -> None:
    session, control = await open_session(context), await open_session(context)
    lessons = [session.data(2, seed=seed) for seed in range(4)]

    def call(number: int) -> Coroutine[Any, Any, operation_pb2.Operation]:
        if number % 2:
            return session.send_pass(lessons[number // 2], sequence=number)
        return session.send_step(sequence=number)

    order = [6, 8, 1, 4, 7, 2, 5, 3]
    operations = dict(zip(order, await asyncio.gather(*map(call, order)), strict=True))
    for step, data in enumerate(lessons, start=1):
        expected = await control.train(data)
        got = (await session.result(operations[2 * step])).optim_step
        check_same(context, got.grad_norm, expected.grad_norm, f"grad_norm of step {step} of calls sent at a time")
        check_same(
            context, got.update_norm, expected.update_norm, f"update_norm of step {step} of calls sent at a time"
        )


@SUITE.requirement(
    "TRN-SEQ-08",
    "The same call sent twice at a time MUST be one operation.",
    quote="A repeat of a number with the same payload gets the first operation again and applies nothing twice",
)
async def _twins(context: Training) -> None:
    session, control = await open_session(context), await open_session(context)
    data = session.data(2)
    twins = await asyncio.gather(*(session.send_pass(data, sequence=1) for _ in range(4)))
    check_equal(len({each.id for each in twins}), 1, "the number of operations of one call sent 4 times at a time")
    early = [asyncio.ensure_future(session.send_step(sequence=3)) for _ in range(3)]
    try:
        await session.send_pass(data, sequence=2)
        steps = [await each for each in early]
    finally:
        await _given_up(early)
    check_equal(len({each.id for each in steps}), 1, "the number of operations of an early call sent 3 times")
    await control.send_pass(data)
    expected = await control.train(data)
    result = (await session.result(steps[0])).optim_step
    check_same(context, result.grad_norm, expected.grad_norm, "grad_norm after calls sent several times at a time")


@SUITE.requirement(
    "TRN-SEQ-09",
    "A held call whose caller cancels it, or whose deadline passes, MUST not be applied afterwards.",
    quote="A call refused before acceptance consumes no number.",
)
async def _held_calls_that_nobody_waits_for(context: Training) -> None:
    session = await open_session(context)
    request = session.request("OptimStep", sequence=2, adam=session.adam())
    late = context.stub.OptimStep(request, timeout=_SHORT_SECONDS)
    await check_refused(late, "DEADLINE_EXCEEDED", what="a held call when its deadline passes")
    await _check_not_applied(session, "late")
    session = await open_session(context)
    request = session.request("OptimStep", sequence=2, adam=session.adam())
    held = asyncio.ensure_future(context.stub.OptimStep(request))
    # A call that is answered only when this one has come through.
    await session.info()
    await _given_up([held])
    await session.info()
    await _check_not_applied(session, "cancelled")


async def _check_not_applied(session: Session, what: str) -> None:
    await session.ended(await session.send_pass(session.data(1), sequence=1))
    info = await session.info()
    got = (info.next_sequence, info.optim_steps)
    check_equal(got, (2, 0), f"(next_sequence, optim_steps) when the number before a {what} call has come")


async def _given_up(calls: Sequence[asyncio.Future[Any]]) -> None:
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@SUITE.requirement(
    "TRN-AWAIT-01",
    "AwaitOperation MUST give the same result however often it is asked, and the operation's number and times.",
    quote="Repeats freely.",
)
async def _awaits_repeat(context: Training) -> None:
    session = await open_session(context)
    operation = await session.send_pass(session.data(2))
    check_equal(operation.sequence, 1, "`sequence` of the operation")
    first = await session.result(operation)
    for _ in range(3):
        check_equal(await session.poll(operation.id), first, "the answer of a further AwaitOperation")
    check_equal(first.WhichOneof("result"), "forward", "the kind of result of ForwardBackward")
    check_equal(first.operation.sequence, 1, "`sequence` of the finished operation")
    made, gone = first.operation.create_time, first.operation.expire_time
    check(made.seconds > 0, "a create_time", made)
    check(gone.ToNanoseconds() > made.ToNanoseconds(), "an expire_time after create_time", gone)
    step = await session.result(await session.send_step())
    check_equal(step.WhichOneof("result"), "optim_step", "the kind of result of OptimStep")


@SUITE.requirement(
    "TRN-AWAIT-02",
    "An operation that fails MUST be FAILED with a failure that has code and reason; the AwaitOperation itself is OK.",
    quote="Why it failed; set exactly when state is FAILED.",
)
async def _failures_are_data(context: Training) -> None:
    session = await open_session(context)
    failed = await session.ended(await session.send_step())
    check_equal(failed.operation.state, operation_pb2.OPERATION_STATE_FAILED, "the state of a step without gradients")
    check_equal(failed.operation.failure.reason, "NO_GRADIENTS", "the reason of its failure")
    check_equal(failed.operation.failure.status.code, 9, "the code of its failure")
    check_equal(failed.WhichOneof("result"), None, "the result of a failed operation")
    good = await session.result(await session.send_pass(session.data(1)))
    check(not good.operation.HasField("failure"), "no failure of an operation that succeeded", good.operation.failure)


@SUITE.requirement(
    "TRN-AWAIT-03",
    "An unknown operation MUST be NOT_FOUND OPERATION_NOT_FOUND.",
    quote="NOT_FOUND OPERATION_NOT_FOUND when it is unknown or its result has expired.",
)
async def _unknown_operations(context: Training) -> None:
    session, other = await open_session(context), await open_session(context)
    operation = await other.send_pass(other.data(1))
    cancel = pb.CancelOperationRequest(session_id=session.id, operation_id="no-operation-is-called-so")
    calls = {
        "AwaitOperation of an unknown id": session.poll("no-operation-is-called-so"),
        "AwaitOperation of another session's operation": session.poll(operation.id),
        "CancelOperation of an unknown id": context.stub.CancelOperation(cancel),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "OPERATION_NOT_FOUND", what=what)


@SUITE.requirement(
    "TRN-AWAIT-04",
    "AwaitOperation MUST answer at once without `wait`, and never with DEADLINE_EXCEEDED; an unfinished operation "
    "has no "
    "result.",
    quote="when `wait` runs out it answers the unfinished operation, never DEADLINE_EXCEEDED.",
)
async def _polls(context: Training) -> None:
    session = await open_session(context)
    sent = [await session.send_pass(session.data(3, seed=seed)) for seed in range(8)]
    for operation in reversed(sent):
        for wait in (None, 0.0, 0.01):
            response = await session.poll(operation.id, wait)
            finished = response.operation.state in ENDED
            check_equal(response.WhichOneof("result") is not None, finished, "whether a result is there at the end")
    for operation in sent:
        await session.result(operation)


@SUITE.requirement(
    "TRN-AWAIT-05",
    "Results MUST be kept until 64 later operations have finished (within 10 minutes).",
    quote="AwaitOperation gives its result, which is kept for 10 minutes or 64 operations.",
)
async def _results_are_kept(context: Training) -> None:
    session = await open_session(context)
    begun = time.monotonic()
    first = await session.send("Forward", data=[datum([0], [0], [1.0])], loss_fn=LOSS)
    result = await session.result(first)
    for _ in range(_RESULTS_KEPT - 1):
        await session.ended(await session.send_step())
    if time.monotonic() - begun > 500:
        raise CheckSkipped("the adapter is too slow to finish 64 operations in 10 minutes")
    check_equal(await session.poll(first.id), result, "the result of the first of 64 operations")


@SUITE.requirement(
    "TRN-CANCEL-01",
    "A ForwardBackward that is dropped MUST fail the next step with FAILED_PRECONDITION GRADIENTS_INVALID; after "
    "that the "
    "session goes on as new.",
    quote="Dropping a ForwardBackward counts as its failure.",
)
async def _dropped_passes(context: Training) -> None:
    session, control = await open_session(context), await open_session(context)
    before = await session.logprobs(session.data(2, seed=5))
    for _ in range(5):
        sent = [await session.send_pass(session.data(8, seed=seed)) for seed in range(6)]
        cancel = pb.CancelOperationRequest(session_id=session.id, operation_id=sent[-1].id)
        await context.stub.CancelOperation(cancel)
        dropped = (await session.ended(sent[-1])).operation
        if dropped.state == operation_pb2.OPERATION_STATE_CANCELLED:
            break
        await session.step(learning_rate=0.0)
    else:
        raise CheckSkipped("every pass had begun before it could be dropped")
    step = session.step()
    await check_refused(step, "FAILED_PRECONDITION", "GRADIENTS_INVALID", what="the step after a dropped pass")
    after = await session.logprobs(session.data(2, seed=5))
    check_same_logprobs(context, after, before, "logprobs after the step that failed")
    data = session.data(2, seed=6)
    result, expected = await session.train(data), await control.train(data)
    check_same(context, result.grad_norm, expected.grad_norm, "grad_norm after the step that failed")


@SUITE.requirement(
    "TRN-CANCEL-02",
    "CancelOperation of a finished operation MUST be OK and change nothing.",
    quote="Best effort; the operation's state tells.",
)
async def _cancels_late(context: Training) -> None:
    session = await open_session(context)
    operation = await session.send_pass(session.data(1))
    finished = await session.result(operation)
    cancel = pb.CancelOperationRequest(session_id=session.id, operation_id=operation.id)
    check_equal((await context.stub.CancelOperation(cancel)).operation, finished.operation, "the operation")
    check_equal(await session.poll(operation.id), finished, "the result after CancelOperation")
    await session.step()


@SUITE.requirement(
    "TRN-LIMIT-01",
    "A call over the session's limits MUST be RESOURCE_EXHAUSTED with RetryInfo and a reason, and consume no number.",
    quote="RESOURCE_EXHAUSTED TOO_MANY_IN_FLIGHT or TOO_MANY_TOKENS, with RetryInfo",
)
async def _limits(context: Training) -> None:
    session = await open_session(context)
    data = session.data(4)
    sent = []
    for number in range(1, _MANY_CALLS + 1):
        try:
            sent.append(await session.send("Forward", sequence=number, data=data, loss_fn=LOSS))
        except ResourceExhaustedError as error:
            check(error.reason in ("TOO_MANY_IN_FLIGHT", "TOO_MANY_TOKENS"), "TOO_MANY_IN_FLIGHT", error.reason)
            if context.channel.refusals[-1].details is not None:
                check(error.retry_delay is not None, "RetryInfo", "none")
            for operation in sent:
                await session.ended(operation)
            await session.result(await session.send("Forward", sequence=number, data=data, loss_fn=LOSS))
            return
    await session.ended(sent[-1])
