"""SamplingService over a unix socket: what it samples from, repeats, refusals, cancelling."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_adapters.torch_engine import service_sampling
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.sampler import SamplingCancelled, SamplingOptions, compute_logprobs, sample
from crucible_kit.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from crucible_kit.tensors import unpack_floats, unpack_tokens
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data
from tests.engine.wire import Wire, sample_request

PROMPT = [5, 77, 12, 90]


async def test_sample_equals_the_core(wire: Wire, tiny_folder: Path) -> None:
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    stop = list(range(0, VOCAB, 16))
    options = SamplingOptions(max_tokens=12, temperature=0.8, top_k=60, top_p=0.95, seed=7, stop_tokens=frozenset(stop))
    expected = sample(model, PROMPT, 5, options, prompt_logprobs=True)
    session_id = await wire.open_sampling(base_model=str(tiny_folder))

    result = await wire.sample(
        session_id,
        1,
        PROMPT,
        num_samples=5,
        prompt_logprobs=True,
        max_tokens=12,
        temperature=0.8,
        top_k=60,
        top_p=0.95,
        seed=7,
        stop_tokens=stop,
    )

    assert result.weights_version == 0
    assert expected.prompt_logprobs is not None
    np.testing.assert_array_equal(unpack_floats(result.prompt_logprobs_float32), expected.prompt_logprobs)
    reasons = set()
    for sequence, completion in zip(result.sequences, expected.completions, strict=True):
        np.testing.assert_array_equal(unpack_tokens(sequence.tokens_int32), completion.tokens)
        np.testing.assert_array_equal(unpack_floats(sequence.logprobs_float32), completion.logprobs)
        assert (sequence.stop_reason == sp.STOP_REASON_STOP) == completion.stopped
        reasons.add(sequence.stop_reason)
    assert reasons == {sp.STOP_REASON_STOP, sp.STOP_REASON_LENGTH}


async def test_absent_parameters_are_the_documented_defaults(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    defaults = await wire.sample(session_id, 1, PROMPT)
    given = await wire.sample(session_id, 2, PROMPT, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    assert list(defaults.sequences) == list(given.sequences)
    assert not defaults.HasField("prompt_logprobs_float32")


async def test_sessions_are_pinned_or_follow(wire: Wire, tiny_folder: Path) -> None:
    """An older checkpoint and the base stay what they are while training goes on; following sees every step."""
    training = await wire.open(tiny_folder)
    await wire.train(training, 1, random_data([20], seed=1))
    saved = await wire.save(training, 3, "one")
    base = await wire.open_sampling(base_model=str(tiny_folder))
    pinned = await wire.open_sampling(checkpoint_uri=saved.uri)
    live = await wire.open_sampling(training_session_id=training)
    before = [await wire.score(each, 1, PROMPT) for each in (base, pinned, live)]
    np.testing.assert_array_equal(before[1], before[2])
    assert not np.array_equal(before[0], before[1])

    result = await wire.train(training, 4, random_data([20], seed=2))
    after = [await wire.score(each, 2, PROMPT) for each in (base, pinned, live)]
    sampled = await wire.sample(live, 3, PROMPT)

    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])
    assert not np.array_equal(after[2], before[2])
    assert sampled.weights_version == result.weights_version == 2
    expected = compute_logprobs(load_model(tiny_folder, device="cpu", dtype="float32"), PROMPT)
    np.testing.assert_array_equal(after[0], expected)


async def test_sampling_from_a_checkpoint_leaves_the_live_weights(wire: Wire, tiny_folder: Path) -> None:
    norms = []
    for use in (False, True):
        training = await wire.open(tiny_folder)
        await wire.train(training, 1, random_data([20], seed=1))
        saved = await wire.save(training, 3, "one")
        await wire.train(training, 4, random_data([20], seed=2))
        if use:
            pinned = await wire.open_sampling(checkpoint_uri=saved.uri)
            await wire.sample(pinned, 1, PROMPT)
        norms.append((await wire.train(training, 6, random_data([20], seed=3))).grad_norm)
    assert norms[0] == norms[1]


async def test_any_new_number_is_taken_and_repeats_are_recognised(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    first = (await wire.sampling.Sample(sample_request(session_id, 500, PROMPT))).operation
    second = (await wire.sampling.Sample(sample_request(session_id, 1, PROMPT))).operation
    again = (await wire.sampling.Sample(sample_request(session_id, 500, PROMPT))).operation
    assert again.id == first.id != second.id
    with pytest.raises(InvalidArgumentError) as caught:
        await wire.sampling.Sample(sample_request(session_id, 1, PROMPT, seed=1))
    assert caught.value.reason == "SEQUENCE_REUSED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": [1, VOCAB]}, "prompt_tokens_int32[1]"),
        ({"prompt": [-5]}, "prompt_tokens_int32[0]"),
        ({"prompt": []}, "prompt_tokens_int32"),
        ({"prompt": [1] * MAX_POSITIONS}, "prompt_tokens_int32"),
        ({"max_tokens": 0}, "params.max_tokens"),
        ({"temperature": -1.0}, "params.temperature"),
        ({"temperature": float("nan")}, "params.temperature"),
        ({"top_p": 1.5}, "params.top_p"),
        ({"top_k": -1}, "params.top_k"),
        ({"stop_tokens": [3, VOCAB]}, "params.stop_tokens[1]"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
async def test_bad_request_is_refused(wire: Wire, tiny_folder: Path, fields: dict[str, Any], field: str) -> None:
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    request = sample_request(session_id, 1, fields.pop("prompt", PROMPT), **fields)
    with pytest.raises(InvalidArgumentError) as caught:
        await wire.sampling.Sample(request)
    assert caught.value.fields[0].field == field


async def test_a_lone_token_has_no_logprob(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    with pytest.raises(InvalidArgumentError, match="at least two"):
        await wire.score(session_id, 1, [3])


async def test_what_does_not_exist_is_not_found(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    for model, reason in (
        ({"base_model": str(tmp_path / "nowhere")}, "MODEL_NOT_FOUND"),
        ({"checkpoint_uri": "torch-engine:nothing"}, "CHECKPOINT_NOT_FOUND"),
        ({"training_session_id": "nobody"}, "SESSION_NOT_FOUND"),
    ):
        with pytest.raises(NotFoundError) as caught:
            await wire.open_sampling(**model)
        assert caught.value.reason == reason
    with pytest.raises(InvalidArgumentError, match="training_session_id"):
        await wire.open_sampling()


async def test_followed_session_that_is_closed_is_not_sampled(wire: Wire, tiny_folder: Path) -> None:
    training = await wire.open(tiny_folder)
    live = await wire.open_sampling(training_session_id=training)
    await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=training))
    with pytest.raises(NotFoundError) as caught:
        await wire.sample(live, 1, PROMPT)
    assert caught.value.reason == "SESSION_NOT_FOUND"


async def test_streaming_is_not_declared(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    request = sp.StreamSampleRequest(
        session_id=session_id,
        prompt_tokens_int32=b"\x01\0\0\0",
        params=sp.SamplingParams(max_tokens=1),
        num_samples=1,
    )
    with pytest.raises(UnimplementedError, match=r"sampling\.stream"):
        async for _ in wire.sampling.StreamSample(request):
            pass


async def test_running_sample_can_be_cancelled(wire: Wire, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(*_: Any, cancelled: Any, **__: Any) -> None:
        loop.call_soon_threadsafe(started.set)
        while not cancelled():
            pass
        raise SamplingCancelled

    monkeypatch.setattr(service_sampling, "sample", endless)
    session_id = await wire.open_sampling(base_model=str(tiny_folder))
    operation = (await wire.sampling.Sample(sample_request(session_id, 1, PROMPT))).operation
    await started.wait()
    request = sp.CancelOperationRequest(session_id=session_id, operation_id=operation.id)
    running = (await wire.sampling.CancelOperation(request)).operation
    assert running.state == operation_pb2.OPERATION_STATE_RUNNING
    ended = sp.AwaitOperationRequest(session_id=session_id, operation_id=operation.id)
    ended.wait.FromSeconds(30)
    response = await wire.sampling.AwaitOperation(ended)
    assert response.operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert response.WhichOneof("result") is None


async def test_model_is_shared_and_freed(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    sessions = [await wire.open_sampling(base_model=str(tiny_folder)) for _ in range(2)]
    assert len(engine._shared) == 1
    for session_id in sessions:
        await wire.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=session_id))
    assert not engine._shared
    with pytest.raises(NotFoundError):
        await wire.sample(sessions[0], 1, PROMPT)
