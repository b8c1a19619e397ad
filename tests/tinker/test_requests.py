"""What goes to Tinker, and what this adapter keeps of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tinker.proto import tinker_public_pb2 as wire

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import datum_pb2
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.requests import LOSSES
from crucible_adapters.tinker.training import TinkerTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance.training_checkpoints import upload_messages
from crucible_kit.conformance.training_session import LOSS, datum
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from crucible_kit.tensors import from_tensor, to_tensor
from crucible_kit.training import TrainingSession
from crucible_kitchen.ports.sampling import SamplingSession
from tests.contract.refusals import refused
from tests.tinker.conftest import Make
from tests.tinker.http import Answer
from tests.tinker.server import TinkerServer

DATA = [datum(np.arange(8), np.arange(1, 9), np.ones(8))]
ADAM = pb.AdamParams(learning_rate=1e-3)


async def logprobs(session: TrainingSession) -> list[float]:
    return from_tensor((await session.forward(DATA, LOSS)).outputs[0].logprobs).tolist()


async def files_of(session: TrainingSession, saved: pb.CheckpointResult) -> dict[str, bytes]:
    paths = [*(file.path for file in saved.files), saved.manifest_path]
    return {
        path: b"".join([each.data async for each in session.read_checkpoint_file(saved.uri, path)]) for path in paths
    }


async def upload(session: TrainingSession, name: str, files: dict[str, bytes]) -> pb.CheckpointResult:
    async def messages() -> AsyncIterator[pb.UploadCheckpointRequest]:
        for each in upload_messages(name, files):
            yield each

    return await session.upload_checkpoint(messages())


async def test_a_step_is_handed_over_while_its_passes_are_computed(server: TinkerServer, make: Make) -> None:
    session = await make().session()
    server.results.clear()
    passes = [await session.enqueue_forward_backward(DATA, LOSS) for _ in range(2)]
    taken = await session.enqueue_optim_step(ADAM)
    await server.has_come("/optim_step")
    assert server.count("/forward_backward") == 2
    server.results.set()
    assert [len((await session.result(each[0])).forward.outputs) for each in passes] == [1, 1]
    assert (await session.result(taken)).optim_step.optim_steps == 1


async def test_a_pass_that_the_library_sends_in_parts_is_the_same(server: TinkerServer, make: Make) -> None:
    data = [datum(np.arange(size), np.arange(1, size + 1), np.ones(size)) for size in (8, 6, 4, 2, 7)]
    found = []
    for config in ({}, {"fwdbwd_max_chunk_len": 2}):
        server.config = config
        session = await make(max_sessions=len(config) + 1).session()
        [sent] = await session.enqueue_forward_backward(data, LOSS)
        taken = await session.enqueue_optim_step(ADAM)
        result, norm = (await session.result(sent)).forward, (await session.result(taken)).optim_step.grad_norm
        rows = [from_tensor(each.logprobs).tolist() for each in result.outputs]
        found.append([result.loss, norm, result.metrics["tokens_sum"], *(value for row in rows for value in row)])
        assert [len(row) for row in rows] == [8, 6, 4, 2, 7]
    # The library sends the first part last.
    order = [each.body.seq_id for each in server.asked_of("/forward_backward")][1:]
    assert (sorted(order), order[-1]) == ([1, 2, 3], 1)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


async def test_a_pass_of_which_a_part_failed_leaves_gradients(server: TinkerServer, make: Make) -> None:
    server.config = {"fwdbwd_max_chunk_len": 1}
    session = await make().session()
    server.will("/retrieve_future", Answer(body={"error": "bad batch", "category": "user"}))
    [sent] = await session.enqueue_forward_backward(DATA * 2, LOSS)
    with refused(InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"):
        await session.result(sent)
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="send the whole step again"):
        await session.result(await session.enqueue_optim_step(ADAM))
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="load a checkpoint"):
        await session.result((await session.enqueue_forward_backward(DATA, LOSS))[0])


@pytest.mark.parametrize("name", sorted(LOSSES))
async def test_losses_are_tinker_s_own(name: str, server: TinkerServer, make: Make) -> None:
    session = await make().session()
    inputs = {each: to_tensor(np.linspace(-1, 1, 8, dtype=np.float32)) for each in LOSSES[name].inputs}
    inputs["target_tokens"] = to_tensor(np.arange(1, 9, dtype=np.int32))
    given = datum_pb2.Datum(model_input=DATA[0].model_input, loss_fn_inputs=inputs)
    parameters = {each: 0.5 + index for index, each in enumerate(LOSSES[name].parameters)}
    output = wire.ForwardBackwardOutput(metrics={"loss:sum": 1.5, "clip_fraction:mean": 0.25})
    record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=1)
    offsets = np.array([0, 32], dtype=np.int64).tobytes()
    record.fields["logprobs"].CopyFrom(
        wire.BatchedTensor(data=np.full(8, -2, np.float32).tobytes(), offsets=offsets, dtype=wire.DTYPE_FLOAT32)
    )
    server.will("/retrieve_future", Answer(body=output.SerializeToString(), content_type="application/x-protobuf"))
    loss = pb.LossFunction(name=name, parameters=parameters)
    [sent] = await session.enqueue_forward_backward([given], loss)
    result = (await session.result(sent)).forward
    assert (result.loss, dict(result.metrics)) == (1.5, {"clip_fraction_mean": 0.25})
    assert from_tensor(result.outputs[0].logprobs).tolist() == [-2.0] * 8
    [asked] = server.asked_of("/forward_backward")
    assert (asked.body.loss_fn, dict(asked.body.loss_fn_config), asked.body.forward_only) == (name, parameters, False)
    [row] = asked.body.data
    assert np.frombuffer(row.model_input[0].encoded_text.tokens, np.int32).tolist() == list(range(8))
    assert set(row.loss_fn_inputs) == set(inputs)
    targets = row.loss_fn_inputs["target_tokens"]
    assert (targets.dtype, np.frombuffer(targets.dense, np.int64).tolist()) == (wire.DTYPE_INT64, list(range(1, 9)))
    for each in LOSSES[name].inputs:
        assert row.loss_fn_inputs[each].dense == inputs[each].dense


async def test_the_contract_s_defaults_are_sent_and_not_left_to_tinker(server: TinkerServer, make: Make) -> None:
    at = make(user_metadata={"team": "seven"}, project_id="p-1")
    session = await at.session(seed=11)
    [created] = server.asked_of("/create_model")
    expected = {"rank": 4, "seed": 11, "train_unembed": False, "train_mlp": True, "train_attn": True}
    assert created.body["lora_config"] == expected
    opened = server.asked_of("/create_session")[-1].body
    assert (opened["user_metadata"], opened["project_id"]) == ({"team": "seven"}, "p-1")
    await session.enqueue_forward_backward(DATA, LOSS)
    await session.result(await session.enqueue_optim_step(ADAM))
    adam = server.asked_of("/optim_step")[0].body["adam_params"]
    # Clipping at a norm that none reaches: without clipping Tinker does not tell it.
    expected = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0}
    assert adam == {**expected, "grad_clip_norm": 1e12}
    sampler = await SamplingSession.follow(at.sampling, session.session_id)
    await sampler.sample(np.arange(3), sp.SamplingParams(max_tokens=4))
    params = server.asked_of("/asample")[0].body["sampling_params"]
    # No token ends a completion unless it is named.
    assert params == {"max_tokens": 4, "seed": 0, "stop": [], "temperature": 1.0, "top_k": -1, "top_p": 1.0}


async def test_a_reference_is_the_checkpoint_wherever_it_is_brought(
    server: TinkerServer, make: Make, model: Path
) -> None:
    session = await make().session()
    await session.enqueue_forward_backward(DATA, LOSS)
    await session.result(await session.enqueue_optim_step(ADAM))
    saved = await session.save_checkpoint("run-1/step-1", weights_only=False, ttl_seconds=60)
    expected = await logprobs(session)
    reference = json.loads((await files_of(session, saved))["tinker_checkpoint.json"])
    assert list(server.ttls.values()) == [None, None], "once read, it is kept: before that, an hour"
    files = await files_of(session, saved)
    await session.delete_checkpoint(saved.uri)
    with refused(NotFoundError, "CHECKPOINT_NOT_FOUND"):
        await session.load_checkpoint(saved.uri, weights_only=True)
    await session.close()

    other = make(max_sessions=2)
    again = await other.session()
    copy = await upload(again, "run-1/step-1", files)
    await again.load_checkpoint(copy.uri, weights_only=False)
    assert await logprobs(again) == expected
    info = (await other.training.GetTrainingSession(pb.GetTrainingSessionRequest(session_id=again.session_id))).session
    assert (info.optim_steps, info.weights_version) == (1, 1)
    await again.delete_checkpoint(copy.uri)
    assert {reference["weights"], reference["sampler_weights"]} <= set(server.paths)

    # Tinker's own paths are taken too, without anything that this adapter knows.
    create = sp.CreateSamplingSessionRequest(
        request_id="00000000-0000-4000-8000-000000000000", checkpoint_uri=reference["sampler_weights"]
    )
    sampler = await other.sampling.CreateSamplingSession(create)
    assert (sampler.vocab_size, sampler.max_sequence_tokens) == (128, 96)
    await again.load_checkpoint(reference["weights"], weights_only=True)
    assert await logprobs(again) == expected


async def test_weights_made_elsewhere_are_refused(make: Make) -> None:
    session = await make().session()
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    with refused(InvalidArgumentError, "FIELD_INVALID", field="header.files[0].path"):
        await upload(session, "elsewhere", files)


async def test_a_model_of_which_nothing_is_known_trains(server: TinkerServer, make: Make) -> None:
    session = await make(models={}).session(base_model="tiny/qwen3")
    info = session.info
    assert (info.vocab_size, info.max_sequence_tokens, info.trainable_parameters) == (2**31 - 1, 2**31 - 1, 0)
    assert (info.lora.alpha, list(info.lora.target_modules), info.lora.train_mlp) == (4.0, [], True)
    assert (await session.forward(DATA, LOSS)).loss > 0


async def test_a_closed_session_ends_its_model(server: TinkerServer, make: Make) -> None:
    session = await make().session()
    assert len(server.open_models) == 1
    await session.close()
    assert not server.open_models


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    for module in ("importlib.util", "crucible_adapters.tinker.connection"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name, *more: None if name == "tinker" else found(name, *more))
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="crucible-kitchen[tinker]"):
        TinkerTraining(TinkerOptions(), AdapterContext(data_dir=tmp_path))


def test_an_adapter_that_is_not_asked_loads_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from crucible_kit.adapter import AdapterContext\n"
        "from crucible_adapters.tinker.training import TinkerTraining as T\n"
        "from crucible_adapters.tinker.sampling import TinkerSampling as S\n"
        "context = AdapterContext(data_dir=Path(sys.argv[1]))\n"
        "[kind(kind.description.options(), context) for kind in (T, S)]\n"
        "print([name for name in ('tinker', 'httpx', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
