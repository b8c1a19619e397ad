"""Training adapters: passes and optimizer steps, their numbers."""

from __future__ import annotations

import math

import numpy as np

from crucible.type.v1 import tensor_pb2
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused
from crucible_kit.conformance.training_session import (
    SUITE,
    Training,
    check_same,
    check_same_logprobs,
    datum,
    joined_logprobs,
    open_session,
    weights_of,
)

# More targets would take long with a real model's vocabulary.
_MOST_TARGETS = 4096
_STEPS = 5
_LARGE_NORM = 1e30


@SUITE.requirement(
    "TRN-PASS-01",
    "Forward and ForwardBackward MUST give one output for each datum, in order: the logprobs of its targets as "
    "float32 of "
    "shape [n], finite and not above 0.",
    quote="logprob of each target token, float32 of shape [n], in nats.",
)
async def _outputs(context: Training) -> None:
    session = await open_session(context)
    data = session.data(3)
    for name, result in (
        ("Forward", await session.forward(data)),
        ("ForwardBackward", await session.forward_backward(data)),
    ):
        check_equal(len(result.outputs), len(data), f"the number of outputs of {name}")
        for number, (output, given) in enumerate(zip(result.outputs, data, strict=True)):
            what = f"outputs[{number}].logprobs of {name}"
            check_equal(output.logprobs.dtype, tensor_pb2.D_TYPE_FLOAT32, f"dtype of {what}")
            check_equal(list(output.logprobs.shape), [len(weights_of(given))], f"shape of {what}")
        logprobs = joined_logprobs(result)
        good = bool(np.isfinite(logprobs).all() and (logprobs <= 1e-6).all())
        check(good, f"finite logprobs of {name}, none above 0", logprobs.tolist())


@SUITE.requirement(
    "TRN-PASS-02",
    "The loss MUST be the plain sum over all tokens of all data of - weight x logprob.",
    quote="The loss: the sum over all tokens of all data, in nats times the caller's weights.",
)
async def _sums(context: Training) -> None:
    session = await open_session(context)
    data = session.data(3)
    weights = np.concatenate([weights_of(each) for each in data]).astype(np.float64)
    for name, result in (
        ("Forward", await session.forward(data)),
        ("ForwardBackward", await session.forward_backward(data)),
    ):
        expected = -float(weights @ joined_logprobs(result).astype(np.float64))
        scale = float(np.abs(weights) @ np.abs(joined_logprobs(result)))
        good = math.isclose(result.loss, expected, abs_tol=context.settings.relative * scale)
        check(good, f"the loss of {name} to be - sum of weight x logprob = {expected}", result.loss)


@SUITE.requirement(
    "TRN-PASS-03",
    "Logprobs MUST be those of a distribution: after one input their exponentials add up to 1 over the whole "
    "vocabulary.",
    quote="logprob of each target token, float32 of shape [n], in nats.",
)
async def _distribution(context: Training) -> None:
    session = await open_session(context)
    count = min(session.created.vocab_size, _MOST_TARGETS)
    total = 0.0
    for start in range(0, count, 512):
        data = [datum([1], [target], [1.0]) for target in range(start, min(start + 512, count))]
        total += float(np.exp(joined_logprobs(await session.forward(data)).astype(np.float64)).sum())
    bound = 1.0 + 10 * context.settings.relative
    if count < session.created.vocab_size:
        check(0.0 < total <= bound, f"probabilities of {count} targets to add up to at most 1", total)
    else:
        good = abs(total - 1.0) <= 10 * context.settings.relative
        check(good, f"probabilities of all {count} targets to add up to 1", total)


@SUITE.requirement(
    "TRN-PASS-04",
    "A datum's logprobs MUST not depend on the data beside it, nor on later tokens.",
)
async def _alone_and_beside_others(context: Training) -> None:
    session = await open_session(context)
    data = session.data(3)
    together = joined_logprobs(await session.forward(data))
    alone = np.concatenate([await session.logprobs([each]) for each in data])
    check_same_logprobs(context, together, alone, "logprobs of data in one call")
    tokens = np.arange(6) % session.created.vocab_size
    long = datum(tokens[:-1], tokens[1:], np.ones(5))
    cut = datum(tokens[:3], tokens[1:4], np.ones(3))
    whole = await session.logprobs([long])
    check_same_logprobs(context, await session.logprobs([cut]), whole[:3], "logprobs of the sequence's beginning")


@SUITE.requirement(
    "TRN-PASS-05",
    "Forward MUST give no gradients: a step after it alone fails with FAILED_PRECONDITION NO_GRADIENTS.",
    quote="Forward enqueues a pass without gradients",
)
async def _forward_alone(context: Training) -> None:
    session = await open_session(context)
    await session.forward(session.data(1))
    step = session.step()
    await check_refused(step, "FAILED_PRECONDITION", "NO_GRADIENTS", what="a step after Forward alone")


@SUITE.requirement(
    "TRN-PASS-06",
    "Gradients MUST add up: two ForwardBackward give what one does with the data of both.",
    quote="ForwardBackward enqueues a pass that adds the gradient of the loss",
)
async def _gradients_add_up(context: Training) -> None:
    both, halves, one = [await open_session(context) for _ in range(3)]
    data = both.data(4)
    whole = await both.train(data)
    await halves.send_pass(data[:2])
    added = await halves.train(data[2:])
    check_same(context, added.grad_norm, whole.grad_norm, "grad_norm of two passes")
    check_same(context, added.update_norm, whole.update_norm, "update_norm of two passes")
    # A datum twice has twice the gradient: the loss is a sum and no mean.
    single = await one.train(data[:1])
    twice = await (await open_session(context)).train([data[0], data[0]])
    check_same(context, twice.grad_norm, 2 * single.grad_norm, "grad_norm of a datum twice in one pass")


@SUITE.requirement(
    "TRN-STEP-01",
    "Steps MUST train: they lower the loss of the data they are taken on.",
    quote="OptimStep enqueues one AdamW step with the accumulated gradients, then zeroes them.",
)
async def _learns(context: Training) -> None:
    session = await open_session(context)
    data = session.lesson()
    losses = []
    for _ in range(_STEPS):
        losses.append((await session.forward_backward(data)).loss)
        result = await session.step()
        check(result.grad_norm > 0, "a grad_norm above 0", result.grad_norm)
        check(result.update_norm > 0, "an update_norm above 0", result.update_norm)
        check_equal(result.learning_rate, context.settings.learning_rate, "learning_rate of a step")
    losses.append((await session.forward(data)).loss)
    check(losses[-1] < losses[0], f"a loss below {losses[0]} after {_STEPS} steps on the same data", losses)


@SUITE.requirement(
    "TRN-STEP-02",
    "A step MUST zero the gradients: the next one fails with NO_GRADIENTS and changes nothing.",
    quote="NO_GRADIENTS when nothing was accumulated",
)
async def _gradients_go(context: Training) -> None:
    session = await open_session(context)
    step = session.step()
    await check_refused(step, "FAILED_PRECONDITION", "NO_GRADIENTS", what="the first step without gradients")
    await session.train(session.data(1))
    before = await session.logprobs(session.data(2))
    step = session.step()
    await check_refused(step, "FAILED_PRECONDITION", "NO_GRADIENTS", what="a second step without new gradients")
    check_same_logprobs(context, await session.logprobs(session.data(2)), before, "logprobs after the failed step")
    check_equal((await session.info()).optim_steps, 1, "optim_steps after one step and two failed ones")


@SUITE.requirement(
    "TRN-STEP-03",
    "A step with learning rate 0 MUST leave the weights as they are.",
    quote="Learning rate of this step, 0 or more.",
)
async def _no_rate(context: Training) -> None:
    session = await open_session(context)
    data = session.data(2)
    before = await session.logprobs(data)
    result = await session.train(data, learning_rate=0.0)
    check_equal(result.update_norm, 0.0, "update_norm with learning rate 0")
    check_same_logprobs(context, await session.logprobs(data), before, "logprobs after a step of rate 0")


@SUITE.requirement(
    "TRN-STEP-04",
    "Parameters that are left out MUST have the documented defaults: beta1 0.9, beta2 0.95, eps 1e-8, no weight "
    "decay, no "
    "clipping.",
    quote="Decay of the second moment. Absent: 0.95.",
)
async def _defaults(context: Training) -> None:
    written = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    absent, present = await open_session(context), await open_session(context)
    for seed in range(3):
        data = absent.data(2, seed=seed)
        one, other = await absent.train(data), await present.train(data, **written)
        check_same(context, one.update_norm, other.update_norm, f"update_norm of step {seed + 1} without parameters")


@SUITE.requirement(
    "TRN-STEP-05",
    "The first AdamW step MUST move each weight by at most the learning rate: update_norm is at most learning_rate "
    "x the root "
    "of trainable_parameters.",
    quote="AdamW parameters (Loshchilov and Hutter 2019; decoupled weight decay).",
)
async def _first_step(context: Training) -> None:
    session = await open_session(context)
    result = await session.train(session.data(3))
    most = context.settings.learning_rate * math.sqrt(session.created.trainable_parameters)
    check(0 < result.update_norm <= most * 1.01, f"update_norm of at most {most}", result.update_norm)


@SUITE.requirement(
    "TRN-STEP-06",
    "grad_norm MUST be that of the gradients before clipping, and clipping scales them: with a norm of which "
    "nothing is left, "
    "steps that follow each other differ from unclipped ones.",
    quote="Global norm of the gradients before clipping.",
)
async def _clips(context: Training) -> None:
    free, clipped = await open_session(context), await open_session(context)
    loud, quiet = free.data(3, seed=1), free.data(1, seed=2)
    norms = []
    for session, clip in ((free, 0.0), (clipped, 1e-3)):
        first = await session.train(loud, learning_rate=0.0, grad_clip_norm=clip)
        norms.append((first.grad_norm, (await session.train(quiet)).update_norm))
    check_same(context, norms[1][0], norms[0][0], "grad_norm of a clipped step")
    differs = not math.isclose(norms[1][1], norms[0][1], rel_tol=1e-6)
    check(differs, "another step after gradients that were clipped", f"the same update_norm {norms[0][1]}")


@SUITE.requirement(
    "TRN-STEP-07",
    "A step whose gradient norm is not finite MUST fail with NUMERIC_ERROR and leave the weights.",
    quote="NUMERIC_ERROR when the gradient norm is not finite (the weights stay)",
)
async def _too_large(context: Training) -> None:
    session = await open_session(context)
    data = session.data(2)
    before = await session.logprobs(data)
    tokens = np.arange(9) % session.created.vocab_size
    await session.ended(await session.send_pass([datum(tokens[:-1], tokens[1:], np.full(8, 3e38))] * 4))
    response = await session.ended(await session.send_step())
    reason = response.operation.failure.reason
    if not reason:
        # Wider numbers may hold it; then the step is what it says.
        norm = response.optim_step.grad_norm
        check(_LARGE_NORM < norm < math.inf, "a grad_norm as large as weights of 3e38 make it, or NUMERIC_ERROR", norm)
        after = await session.logprobs(data)
        check(bool(np.isfinite(after).all()), "finite logprobs after a step", after.tolist())
        raise CheckSkipped("the adapter's gradients are finite where float32 would overflow")
    check(reason in ("NUMERIC_ERROR", "GRADIENTS_INVALID"), "NUMERIC_ERROR of a step that is not finite", reason)
    check_same_logprobs(context, await session.logprobs(data), before, "logprobs after the failed step")
