"""The fake of sampling: the same weights as the fake of training, and tokens that depend on their request alone."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_adapters.fakes.sampling import FakeSampling
from crucible_adapters.fakes.toy.engine import ToyOptions
from crucible_adapters.fakes.training import FakeTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from crucible_kit.tensors import from_tensor, pack_tokens, unpack_floats, unpack_tokens
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.toy_sessions import OPTIONS, VOCAB, Sampler, Trainer, datum

CYCLE = [1, 2, 3, 4, 5, 6]


@pytest.fixture
def fake(context: AdapterContext) -> FakeSampling:
    return FakeSampling(ToyOptions(**OPTIONS), context)


@pytest.fixture
async def stub(binding: Binding, fake: FakeSampling) -> Any:
    return await binding.stub(fake)


@pytest.fixture
async def training(binding: Binding, context: AdapterContext) -> Any:
    """The fake of training in the same data folder."""
    return await binding.stub(FakeTraining(ToyOptions(**OPTIONS), context))


async def taught(training: Any, **fields: Any) -> Trainer:
    """A session that has learnt that 1 to 6 follow each other."""
    trainer = await Trainer.create(training, **fields)
    for _ in range(40):
        await trainer.step([datum([*CYCLE, 1])], learning_rate=0.3)
    return trainer


def tokens(sequence: sp.SampledSequence) -> list[int]:
    return unpack_tokens(sequence.tokens_int32).tolist()


async def test_a_sample_depends_on_seed_and_number_alone(stub: Any) -> None:
    sampler = await Sampler.create(stub)
    three = [tokens(each) for each in (await sampler.sample([1, 2], samples=3, seed=4)).sequences]
    assert [tokens(each) for each in (await sampler.sample([1, 2], samples=2, seed=4)).sequences] == three[:2]
    assert tokens((await sampler.sample([1, 2], seed=5)).sequences[0]) not in three
    assert len({tuple(each) for each in three}) == 3
    other = await Sampler.create(stub)
    assert [tokens(each) for each in (await other.sample([1, 2], samples=3, seed=4)).sequences] == three


async def test_logprobs_are_those_of_the_trainer(stub: Any, training: Any) -> None:
    trainer = await taught(training)
    sampler = await Sampler.create(stub, training_session_id=trainer.id)
    result = (await sampler.sample([1, 2], temperature=2.0, seed=1)).sequences[0]
    sequence = [1, 2, *tokens(result)]
    [output] = (await trainer.forward([datum(sequence)])).outputs
    expected = from_tensor(output.logprobs)
    assert (unpack_floats(result.logprobs_float32) == expected[1:]).all()
    scored = await sampler.logprobs(sequence)
    assert (unpack_floats(scored.logprobs_float32) == expected).all()
    asked = await sampler.call(
        "Sample",
        prompt_tokens_int32=pack_tokens(sequence),
        params=sp.SamplingParams(max_tokens=1),
        num_samples=1,
        prompt_logprobs=True,
    )
    assert (unpack_floats(asked.sample.prompt_logprobs_float32) == expected).all()
    assert not (await sampler.sample([1])).HasField("prompt_logprobs_float32")


async def test_live_weights_are_followed(stub: Any, training: Any) -> None:
    trainer = await Trainer.create(training)
    sampler = await Sampler.create(stub, training_session_id=trainer.id)
    before = await sampler.logprobs([1, 2])
    assert before.weights_version == 0
    await trainer.step([datum([1, 2])])
    after = await sampler.logprobs([1, 2])
    assert after.weights_version == 1
    assert unpack_floats(after.logprobs_float32) > unpack_floats(before.logprobs_float32)
    await trainer.close()
    with refused(NotFoundError, "SESSION_NOT_FOUND", says="training_session_id"):
        await sampler.logprobs([1, 2])


async def test_a_checkpoint_is_sampled_as_it_was(stub: Any, training: Any) -> None:
    trainer = await taught(training)
    saved = await trainer.save("taught", weights_only=True)
    live = await Sampler.create(stub, training_session_id=trainer.id)
    pinned = await Sampler.create(stub, checkpoint_uri=saved.uri)
    before = await live.logprobs(CYCLE)
    assert (await pinned.logprobs(CYCLE)).logprobs_float32 == before.logprobs_float32
    await trainer.step([datum(CYCLE[::-1])])
    assert (await live.logprobs(CYCLE)).logprobs_float32 != before.logprobs_float32
    assert (await pinned.logprobs(CYCLE)).logprobs_float32 == before.logprobs_float32
    assert (await pinned.logprobs(CYCLE)).weights_version == 0
    with refused(FailedPreconditionError, "CHECKPOINT_IN_USE"):
        await training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=saved.uri))
    await pinned.close()
    await pinned.close()
    await training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=saved.uri))
    with refused(NotFoundError, "CHECKPOINT_NOT_FOUND", says="checkpoint_uri"):
        await Sampler.create(stub, checkpoint_uri=saved.uri)


async def test_an_adapter_is_sampled_on_its_base_model(stub: Any, training: Any) -> None:
    trainer = await taught(training, lora=tp.LoraConfig(rank=4))
    saved = await trainer.save("adapter")
    live = await Sampler.create(stub, training_session_id=trainer.id)
    for fields in ({}, {"checkpoint_base_model": "fake/model"}):
        pinned = await Sampler.create(stub, checkpoint_uri=saved.uri, **fields)
        assert await pinned.logprobs(CYCLE) == sp.LogprobsResult(
            logprobs_float32=(await live.logprobs(CYCLE)).logprobs_float32
        )
    with refused(NotFoundError, "MODEL_NOT_FOUND"):
        await Sampler.create(stub, checkpoint_uri=saved.uri, checkpoint_base_model="fake/other")
    named = await Trainer.create(training, lora=tp.LoraConfig(rank=4), base_model_name="owner/name")
    with refused(NotFoundError, "MODEL_NOT_FOUND", says="owner/name"):
        await Sampler.create(stub, checkpoint_uri=(await named.save("named")).uri)


async def test_the_most_likely_tokens_are_taken_at_temperature_0(stub: Any, training: Any) -> None:
    trainer = await taught(training)
    sampler = await Sampler.create(stub, training_session_id=trainer.id)
    greedy: list[dict[str, Any]] = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}]
    for params in greedy:
        [sequence] = (await sampler.sample([1], max_tokens=4, **params)).sequences
        assert tokens(sequence) == [2, 3, 4, 5]
        assert sequence.stop_reason == sp.STOP_REASON_LENGTH
    [sequence] = (await sampler.sample([1], max_tokens=9, temperature=0.0, stop_tokens=[4, 6])).sequences
    assert tokens(sequence) == [2, 3, 4]
    assert sequence.stop_reason == sp.STOP_REASON_STOP
    [sequence] = (await sampler.sample(CYCLE * 2, max_tokens=99, temperature=0.0)).sequences
    assert len(tokens(sequence)) == 4, "the longest sequence ends it"


async def test_samples_have_the_probabilities_of_the_filtered_distribution(stub: Any, training: Any) -> None:
    trainer = await Trainer.create(training)
    for _ in range(10):
        await trainer.step([datum([1, 2]), datum([1, 3]), datum([1, 3])], learning_rate=0.3)
    sampler = await Sampler.create(stub, training_session_id=trainer.id)
    logprobs = [unpack_floats((await sampler.logprobs([1, each])).logprobs_float32)[0] for each in range(VOCAB)]
    cases: list[tuple[dict[str, Any], Sequence[int] | None]] = [
        ({}, range(VOCAB)),
        ({"top_k": 2}, (2, 3)),
        ({"temperature": 0.5, "top_k": 3}, None),
    ]
    for params, kept in cases:
        scaled = np.asarray(logprobs, np.float64) / params.get("temperature", 1.0)
        chosen = np.argsort(-scaled)[:3] if kept is None else np.asarray(kept)
        expected = np.zeros(VOCAB)
        expected[chosen] = np.exp(scaled[chosen]) / np.exp(scaled[chosen]).sum()
        drawn = await sampler.sample([1], samples=1024, max_tokens=1, **params)
        counts = np.bincount([tokens(each)[0] for each in drawn.sequences], minlength=VOCAB) / 1024
        # Five standard deviations of a share of 1,024 draws: the seed is fixed, so this holds or never does.
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected) / 1024) + 1e-12).all()


async def test_a_stream_is_the_sample_in_pieces(stub: Any) -> None:
    sampler = await Sampler.create(stub)
    params = sp.SamplingParams(max_tokens=5, seed=3, stop_tokens=list(range(0, VOCAB, 3)))
    prompt = pack_tokens([1, 2])
    whole = await sampler.call("Sample", prompt_tokens_int32=prompt, params=params, num_samples=4)
    request = sp.StreamSampleRequest(session_id=sampler.id, prompt_tokens_int32=prompt, params=params, num_samples=4)
    joined = [sp.SampledSequence() for _ in range(4)]
    async for part in stub.StreamSample(request):
        assert joined[part.index].stop_reason == sp.STOP_REASON_UNSPECIFIED
        joined[part.index].tokens_int32 += part.tokens_int32
        joined[part.index].logprobs_float32 += part.logprobs_float32
        joined[part.index].stop_reason = part.stop_reason
    assert joined == list(whole.sample.sequences)


async def test_a_repeated_number_gets_its_first_operation(stub: Any) -> None:
    sampler = await Sampler.create(stub)
    fields = {"session_id": sampler.id, "tokens_int32": pack_tokens([1, 2])}
    first = (await stub.ComputeLogprobs(sp.ComputeLogprobsRequest(sequence=7, **fields))).operation
    assert (await stub.ComputeLogprobs(sp.ComputeLogprobsRequest(sequence=7, **fields))).operation.id == first.id
    # Any number that was not used is new.
    assert (await stub.ComputeLogprobs(sp.ComputeLogprobsRequest(sequence=3, **fields))).operation.id != first.id
    other = sp.ComputeLogprobsRequest(session_id=sampler.id, sequence=7, tokens_int32=pack_tokens([1, 3]))
    with refused(InvalidArgumentError, "SEQUENCE_REUSED"):
        await stub.ComputeLogprobs(other)


async def test_an_operation_that_has_not_begun_is_dropped(fake: FakeSampling, stub: Any) -> None:
    sampler = await Sampler.create(stub)
    fake.engine.gate.clear()
    request = sp.ComputeLogprobsRequest(session_id=sampler.id, sequence=1, tokens_int32=pack_tokens([1, 2]))
    operation_id = (await stub.ComputeLogprobs(request)).operation.id
    cancelled = await stub.CancelOperation(sp.CancelOperationRequest(session_id=sampler.id, operation_id=operation_id))
    assert cancelled.operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    fake.engine.gate.set()
    request = sp.AwaitOperationRequest(session_id=sampler.id, operation_id=operation_id)
    assert (await stub.AwaitOperation(request)).operation == cancelled.operation


async def test_sessions_are_created_once(stub: Any) -> None:
    request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), base_model="fake/model")
    created = await stub.CreateSamplingSession(request)
    assert await stub.CreateSamplingSession(request) == created
    assert (created.vocab_size, created.max_sequence_tokens) == (VOCAB, 16)
    assert created.lease.seconds > 0
    other = sp.CreateSamplingSessionRequest(request_id=request.request_id, base_model="builtin:tiny-qwen3")
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await stub.CreateSamplingSession(other)


async def test_what_cannot_be_sampled_is_refused(stub: Any, training: Any) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND"):
        await Sampler.create(stub, base_model="fake/other")
    with refused(NotFoundError, "SESSION_NOT_FOUND", says="training_session_id"):
        await Sampler.create(stub, training_session_id="training-0")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="model"):
        await stub.CreateSamplingSession(sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4())))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="checkpoint_base_model"):
        await Sampler.create(stub, base_model="fake/model", checkpoint_base_model="fake/model")
    whole = await (await Trainer.create(training)).save("whole")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="checkpoint_base_model"):
        await Sampler.create(stub, checkpoint_uri=whole.uri, checkpoint_base_model="fake/model")
    sampler = await Sampler.create(stub)
    prompts: list[tuple[Sequence[int], dict[str, Any], str]] = [
        ([VOCAB], {}, "prompt_tokens_int32[0]"),
        (range(16), {}, "prompt_tokens_int32"),
        ([1], {"stop_tokens": [VOCAB]}, "params.stop_tokens[0]"),
        ([1], {"max_tokens": 0}, "params.max_tokens"),
    ]
    for prompt, params, field in prompts:
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await sampler.sample(prompt, **params)
    for scored in ([1], [1, VOCAB]):
        with pytest.raises(InvalidArgumentError):
            await sampler.logprobs(scored)
    with refused(NotFoundError, "SESSION_NOT_FOUND"):
        await Sampler(stub, "sampling-0").logprobs([1, 2])


async def test_another_engine_s_sessions_are_not_seen(stub: Any, binding: Binding, context: AdapterContext) -> None:
    apart = await binding.stub(FakeTraining(ToyOptions(**OPTIONS, seed=1), context))
    trainer = await Trainer.create(apart)
    assert math.isfinite((await trainer.forward()).loss)
    with refused(NotFoundError, "SESSION_NOT_FOUND"):
        await Sampler.create(stub, training_session_id=trainer.id)
