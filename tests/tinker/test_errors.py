"""What goes wrong on the way to Tinker, and what the ports tell of it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import datum_pb2
from crucible_adapters.tinker import connection
from crucible_kit.conformance.training_session import LOSS, datum
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from crucible_kit.training import TrainingSession
from crucible_kitchen.ports.sampling import SamplingSession
from tests.contract.refusals import refused
from tests.providers import Waits
from tests.tinker.conftest import KEY, MODEL, Make
from tests.tinker.http import Answer
from tests.tinker.server import TinkerServer

DATA = [datum(np.arange(8), np.arange(1, 9), np.ones(8))]
ADAM = pb.AdamParams(learning_rate=1e-3)
# The key in a server's words must not get any further.
LOUD = {"detail": f"no, not with {KEY}"}


async def step(session: TrainingSession) -> pb.OptimStepResult:
    """A pass and a step behind it, without waiting in between."""
    [sent] = await session.enqueue_forward_backward(DATA, LOSS)
    taken = await session.enqueue_optim_step(ADAM)
    await session.result(sent)
    return (await session.result(taken)).optim_step


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (401, UnauthenticatedError, "PROVIDER_CREDENTIALS"),
        (402, ResourceExhaustedError, "QUOTA_EXHAUSTED"),
        (403, PermissionDeniedError, "PROVIDER_FORBIDDEN"),
        (422, InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    ],
)
async def test_a_refusal_is_told_once_and_without_the_key(
    status: int, kind: type[KitchenError], reason: str, server: TinkerServer, make: Make, waits: Waits
) -> None:
    server.will("/create_session", Answer(status=status, body=LOUD))
    with pytest.raises(kind) as caught:
        await make().session()
    assert caught.value.reason == reason and caught.value.retry_delay is None
    assert KEY not in str(caught.value)
    assert (server.count("/create_session"), waits.told) == (1, [])


async def test_what_may_go_well_is_sent_again_by_the_policy(server: TinkerServer, make: Make, waits: Waits) -> None:
    at = make()
    session = await at.session()
    server.will("/forward_backward", Answer(status=429, body={}, headers={"Retry-After": "7"}))
    server.will("/optim_step", Answer(status=500, body={}), Answer(status=503, body={}), Answer(is_cut=True, body={}))
    server.will("/retrieve_future", Answer(is_cut=True, body={}))
    first = await step(session)
    assert first.optim_steps == 1 and first.update_norm > 0
    assert sorted(waits.told) == sorted([7.0, 0.375, 0.375, 0.75, 1.5])
    # Each of them was one call.
    numbers = [each.body.seq_id for each in server.asked_of("/forward_backward")]
    assert numbers == [1, 1] and [each.body["seq_id"] for each in server.asked_of("/optim_step")] == [2] * 4
    other = await at.session()
    assert (await step(other)).update_norm == first.update_norm


async def test_too_many_requests_end_with_the_delay(server: TinkerServer, make: Make, waits: Waits) -> None:
    at = make(retries={"tries": 2})
    server.will("/create_session", *[Answer(status=429, body={}, headers={"Retry-After": "9"})] * 2)
    # Asked of the stub: the session of the kit would wait.
    request = pb.CreateTrainingSessionRequest(request_id="0" * 8 + "-0000-4000-8000-" + "0" * 12, base_model=MODEL)
    request.lora.rank = 4
    with pytest.raises(ResourceExhaustedError) as caught:
        await at.training.CreateTrainingSession(request)
    assert (caught.value.reason, caught.value.retry_delay, waits.told) == ("RATE_LIMITED", 9.0, [9.0])


async def test_a_session_whose_calls_may_be_lost_goes_on_from_a_checkpoint_alone(
    server: TinkerServer, make: Make, waits: Waits
) -> None:
    session = await make().session()
    saved = await session.save_checkpoint("before", weights_only=False)
    expected = await step(session)
    server.will("/forward_backward", *[Answer(status=500, body=LOUD)] * 4)
    with refused(UnavailableError, "PROVIDER_ERROR", says="answers 500"):
        await step(session)
    with refused(UnavailableError, "PROVIDER_ERROR"):
        await session.forward(DATA, LOSS)
    assert server.count("/forward_backward") == 5
    await session.load_checkpoint(saved.uri, weights_only=False)
    again = await step(session)
    assert (again.grad_norm, again.update_norm, again.optim_steps) == (expected.grad_norm, expected.update_norm, 1)


async def test_nobody_answers_in_time(server: TinkerServer, make: Make) -> None:
    # The first of all requests, so that no other is meant when the machine stands still.
    server.will("/client/config", Answer(is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT"):
        await make(timeout_seconds=0.2, retries={"tries": 1}).session()


async def test_a_probe_asks_once_whether_tinker_can_serve(
    server: TinkerServer, make: Make, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 60)
    both = make().adapters
    server.will("/client/config", Answer(status=404, body={"detail": "a shop"}))
    assert f"{server.address} has no such thing: check the name, and that base_url" in await both[0].probe()
    await server.go_away()
    assert ["can't be reached" in await each.probe() for each in both] == [True, True]
    await server.come_back()
    asked = "/get_server_capabilities"
    assert [await each.probe() for each in both] == ["", ""] and server.count(asked) == 2
    server.will(asked, Answer(status=503, body=LOUD), Answer(status=401, body=LOUD), Answer(status=404, body={}))
    assert "answers 503: no, not with [redacted]" in await both[0].probe()
    assert "refuses the key" in await both[0].probe()
    assert await both[0].probe() == "", "a server of its wire format that tells nothing of itself is there, too"
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 0.1)
    server.will(asked, Answer(is_silent=True))
    assert "has not answered" in await both[0].probe()
    assert waits.told == [] and not server.count("/create_session")


async def test_nobody_is_there(make: Make, waits: Waits) -> None:
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="can't be reached"):
        await make(base_url="http://127.0.0.1:9", retries={"tries": 2}).session()
    assert waits.told == [0.375]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/optim_step", Answer(body=b"<html>")),
        ("/optim_step", Answer(body={"request": 1})),
        ("/retrieve_future", Answer(body={"metrics": 1})),
        ("/retrieve_future", Answer(body=b"\xff\xff", content_type="application/x-protobuf")),
        ("/retrieve_future", Answer(body=b"", content_type="application/x-protobuf")),
    ],
    ids=["no JSON", "a field is missing", "JSON in place of a message", "no message", "a message without a loss"],
)
async def test_a_reply_that_can_t_be_read_is_told(path: str, answer: Answer, server: TinkerServer, make: Make) -> None:
    session = await make().session()
    server.will(path, answer)
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
        await step(session)


async def test_what_tinker_itself_fails_at_is_told_in_its_words(server: TinkerServer, make: Make) -> None:
    session = await make().session()
    server.will("/retrieve_future", Answer(body={"error": f"bad {KEY} batch", "category": "user"}))
    sent = await session.enqueue_forward_backward(DATA, LOSS)
    with pytest.raises(InvalidArgumentError, match=r"bad \[redacted\] batch") as caught:
        await session.result(sent[0])
    assert caught.value.reason == "PROVIDER_REFUSED_REQUEST"
    asked = server.count("/optim_step")
    with refused(FailedPreconditionError, "GRADIENTS_INVALID"):
        await session.result(await session.enqueue_optim_step(ADAM))
    assert server.count("/optim_step") == asked, "a step without its batch is not taken"
    # That pass was the step's only one: nothing is left of it, and the session goes on.
    server.will("/retrieve_future", Answer(body={"error": "a machine went away", "category": "server"}))
    with refused(UnavailableError, "PROVIDER_FAILED_REQUEST", says="a machine went away"):
        await session.forward(DATA, LOSS)
    assert (await session.forward(DATA, LOSS)).loss > 0


async def test_half_a_batch_is_never_trained_on(server: TinkerServer, make: Make) -> None:
    session = await make().session()
    saved = await session.save_checkpoint("before", weights_only=True)
    first = await session.enqueue_forward_backward(DATA, LOSS)
    await session.result(first[0])
    server.will("/retrieve_future", Answer(body={"error": "bad batch", "category": "user"}))
    second = await session.enqueue_forward_backward(DATA, LOSS)
    with refused(InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"):
        await session.result(second[0])
    for _ in range(2):
        with refused(FailedPreconditionError, "GRADIENTS_INVALID"):
            await session.result(await session.enqueue_optim_step(ADAM))
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="load a checkpoint"):
        await step(session)
    assert not server.count("/optim_step")
    await session.load_checkpoint(saved.uri, weights_only=True)
    assert (await step(session)).optim_steps == 1


async def test_a_step_that_was_taken_without_its_pass_ends_the_training(server: TinkerServer, make: Make) -> None:
    session = await make().session()
    saved = await session.save_checkpoint("before", weights_only=True)
    before, server.results = server.count("/retrieve_future"), asyncio.Event()
    # The engine of the test's server has no such loss.
    inputs: dict[str, Any] = dict.fromkeys(("advantages", "logprobs"), DATA[0].loss_fn_inputs["weights"])
    inputs["target_tokens"] = DATA[0].loss_fn_inputs["target_tokens"]
    data = [datum_pb2.Datum(model_input=DATA[0].model_input, loss_fn_inputs=inputs)]
    await session.enqueue_forward_backward(data, pb.LossFunction(name="ppo"))
    await server.has_come("/retrieve_future", before + 1)
    # Its result comes before that of the pass.
    server.will("/retrieve_future", Answer(body={"metrics": {"grad_norm": 1.0}}))
    taken = await session.enqueue_optim_step(ADAM)
    await server.has_come("/retrieve_future", before + 2)
    server.results.set()
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="send the whole step again"):
        await session.result(taken)
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="the step was taken without it"):
        await session.forward(DATA, LOSS)
    await session.load_checkpoint(saved.uri, weights_only=True)
    assert (await step(session)).optim_steps == 1


async def test_a_lost_completion_is_sampled_again(server: TinkerServer, make: Make) -> None:
    at = make()
    session = await SamplingSession.follow(at.sampling, (await at.session()).session_id)
    params = sp.SamplingParams(max_tokens=4)
    expected = await session.sample(np.arange(3), params)
    server.will("/retrieve_future", Answer(status=410, body={"detail": "expired"}))
    assert (await session.sample(np.arange(3), params)).tolist() == expected.tolist()
    assert server.count("/asample") == 3


async def test_what_is_not_there_is_not_found(server: TinkerServer, make: Make) -> None:
    at = make()
    with refused(NotFoundError, "MODEL_NOT_FOUND", says="is not supported"):
        await at.session(base_model="owner/model")
    for uri in ("tinker://run/weights/none", "elsewhere"):
        with refused(NotFoundError, "CHECKPOINT_NOT_FOUND"):
            await (await at.session()).load_checkpoint(uri, weights_only=True)


@pytest.mark.parametrize(
    ("lora", "field"),
    [
        (pb.LoraConfig(rank=4, alpha=8), "lora.alpha"),
        (pb.LoraConfig(rank=4, target_modules=["q_proj"]), "lora.target_modules"),
    ],
    ids=["alpha", "target_modules"],
)
async def test_an_adapter_that_tinker_can_t_train_is_refused(
    lora: pb.LoraConfig, field: str, server: TinkerServer, make: Make
) -> None:
    with refused(UnimplementedError, "CAPABILITY_MISSING", says=field):
        await make().session(lora=lora)
    assert not server.asked


async def test_without_a_key_nothing_is_sent(server: TinkerServer, make: Make) -> None:
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS", says="secrets: {api_key: VARIABLE}"):
        await make(key="").session()
    with refused(InvalidArgumentError, "MANIFEST_INVALID", field="secrets.api_key"):
        make(key="sk-of-somebody-else")
    assert not server.asked
