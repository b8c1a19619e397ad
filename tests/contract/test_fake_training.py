"""The fake of training: it learns, applies every call once and in order, and goes on from its checkpoints exactly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import uuid
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_adapters.fakes.toy.engine import ToyEngine, ToyOptions
from crucible_adapters.fakes.training import FakeTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)
from crucible_kit.tensors import from_tensor, to_tensor
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.toy_sessions import CROSS_ENTROPY, DATA, MODEL, OPTIONS, VOCAB, Trainer, checkpoint_files, datum

QUEUED, CANCELLED = operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_CANCELLED
ADAM = tp.AdamParams(learning_rate=0.1)


@pytest.fixture
def fake(context: AdapterContext) -> FakeTraining:
    return FakeTraining(ToyOptions(**OPTIONS, hold_seconds=0.05, max_sessions=4, max_tokens_in_flight=200), context)


@pytest.fixture
async def stub(binding: Binding, fake: FakeTraining) -> Any:
    return await binding.stub(fake)


@pytest.fixture
async def trainer(stub: Any) -> Trainer:
    return await Trainer.create(stub)


async def test_a_session_learns(trainer: Trainer) -> None:
    tokens = sum(len(from_tensor(each.loss_fn_inputs["weights"])) for each in DATA)
    losses = [await trainer.step() / tokens for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.05)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2
    result = await trainer.forward()
    assert result.loss == pytest.approx(-sum(from_tensor(each.logprobs).sum() for each in result.outputs), rel=1e-6)
    assert [each.logprobs.shape[0] for each in result.outputs] == [7, 6]
    assert (await trainer.now()).optim_steps == 60


async def test_a_session_is_described_and_created_once(stub: Any) -> None:
    request = tp.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model=MODEL)
    session = (await stub.CreateTrainingSession(request)).session
    assert (session.vocab_size, session.max_sequence_tokens, session.next_sequence) == (VOCAB, 16, 1)
    assert session.trainable_parameters == VOCAB + VOCAB * VOCAB
    assert session.lease.seconds > 0
    assert not session.HasField("lora")
    assert (await stub.CreateTrainingSession(request)).session == session
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await stub.CreateTrainingSession(tp.CreateTrainingSessionRequest(request_id=request.request_id, base_model="x"))
    await Trainer(stub, session).close()
    await Trainer(stub, session).close()
    with refused(NotFoundError, "SESSION_NOT_FOUND"):
        await Trainer(stub, session).now()
    assert (await stub.CreateTrainingSession(request)).session.session_id != session.session_id


async def test_sessions_that_cannot_be_are_refused(stub: Any) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND", says="fake/model"):
        await Trainer.create(stub, base_model="fake/other")
    cases: dict[str, dict[str, Any]] = {
        "dtype": {"dtype": "bfloat16"},
        "lora.rank": {"lora": tp.LoraConfig()},
        "lora.alpha": {"lora": tp.LoraConfig(rank=2, alpha=0)},
        "lora.target_modules[0]": {"lora": tp.LoraConfig(rank=2, target_modules=["q_proj"])},
        "lora.train_mlp": {"lora": tp.LoraConfig(rank=2, target_modules=["bigram"], train_mlp=True)},
        "lora.train_unembedding": {"lora": tp.LoraConfig(rank=2, train_unembedding=True)},
        "lora": {"lora": tp.LoraConfig(rank=2, train_mlp=False, train_attention=False)},
    }
    for field, fields in cases.items():
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await Trainer.create(stub, **fields)
    for _ in range(4):
        last = await Trainer.create(stub)
    with pytest.raises(ResourceExhaustedError) as caught:
        await Trainer.create(stub)
    assert (caught.value.reason, caught.value.retry_delay) == ("TOO_MANY_SESSIONS", 5.0)
    await last.close()
    await Trainer.create(stub)


async def test_a_repeated_call_applies_nothing_twice(stub: Any, trainer: Trainer) -> None:
    passed = await trainer.enqueue("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
    stepped = await trainer.enqueue("OptimStep", adam=ADAM)
    first = await trainer.finished(stepped)
    again = tp.OptimStepRequest(session_id=trainer.id, sequence=2, adam=ADAM)
    assert (await stub.OptimStep(again)).operation.id == stepped
    assert await trainer.finished(stepped) == first
    repeat = tp.ForwardBackwardRequest(session_id=trainer.id, sequence=1, data=DATA, loss_fn=CROSS_ENTROPY)
    assert (await stub.ForwardBackward(repeat)).operation.id == passed
    other = tp.OptimStepRequest(session_id=trainer.id, sequence=2, adam=tp.AdamParams(learning_rate=0.2))
    with refused(InvalidArgumentError, "SEQUENCE_REUSED"):
        await stub.OptimStep(other)
    now = await trainer.now()
    assert (now.optim_steps, now.weights_version, now.next_sequence) == (1, 1, 3)


async def test_an_early_call_waits_for_its_turn(binding: Binding, context: AdapterContext) -> None:
    trainer = await Trainer.create(await binding.stub(FakeTraining(ToyOptions(**OPTIONS), context)))
    forward = tp.ForwardBackwardRequest(session_id=trainer.id, sequence=1, data=DATA, loss_fn=CROSS_ENTROPY)
    step = tp.OptimStepRequest(session_id=trainer.id, sequence=2, adam=ADAM)
    early = asyncio.ensure_future(trainer.stub.OptimStep(step))
    await asyncio.sleep(0)
    await trainer.stub.ForwardBackward(forward)
    assert (await trainer.finished((await early).operation.id)).optim_step.optim_steps == 1


async def test_a_gap_is_refused_and_uses_no_number_up(stub: Any, trainer: Trainer) -> None:
    for sequence in (2, 66):
        with pytest.raises(FailedPreconditionError) as caught:
            await stub.OptimStep(tp.OptimStepRequest(session_id=trainer.id, sequence=sequence, adam=ADAM))
        assert (caught.value.reason, caught.value.metadata["expected"]) == ("SEQUENCE_GAP", "1")
    await trainer.step()


BAD_DATA: dict[str, tuple[Any, Callable[[datum_pb2.Datum], object]]] = {
    "data[0].model_input.chunks[0].tokens_int32[1]": (
        [1, VOCAB, 2],
        lambda each: None,
    ),
    "data[0].model_input.chunks[0]": ([1, 2], lambda each: each.model_input.chunks[0].Clear()),
    "data[0].model_input": (list(range(18)), lambda each: None),
    "data[0].loss_fn_inputs['weights']": ([1, 2], lambda each: each.loss_fn_inputs.pop("weights")),
    "data[0].loss_fn_inputs['extra']": (
        [1, 2],
        lambda each: each.loss_fn_inputs["extra"].CopyFrom(to_tensor(np.zeros(1, np.float32))),
    ),
    "data[0].loss_fn_inputs['weights'].dtype": (
        [1, 2],
        lambda each: each.loss_fn_inputs["weights"].CopyFrom(to_tensor(np.zeros(1))),
    ),
    "data[0].loss_fn_inputs['weights'].shape": (
        [1, 2],
        lambda each: each.loss_fn_inputs["weights"].CopyFrom(to_tensor(np.zeros(2, np.float32))),
    ),
    "data[0].loss_fn_inputs['weights'][0]": (
        [1, 2],
        lambda each: each.loss_fn_inputs["weights"].CopyFrom(to_tensor(np.full(1, np.nan, np.float32))),
    ),
    "data[0].loss_fn_inputs['target_tokens'][0]": (
        [1, 2],
        lambda each: each.loss_fn_inputs["target_tokens"].CopyFrom(to_tensor(np.full(1, -1, np.int32))),
    ),
}


async def test_bad_data_is_refused_and_uses_no_number_up(trainer: Trainer) -> None:
    for field, (tokens, change) in BAD_DATA.items():
        bad = datum(tokens)
        change(bad)
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await trainer.enqueue("ForwardBackward", data=[bad], loss_fn=CROSS_ENTROPY)
    image = datum([1, 2])
    image.model_input.chunks[0].image.uri = "file:///x.png"
    with refused(UnimplementedError, "CAPABILITY_MISSING"):
        await trainer.enqueue("Forward", data=[image], loss_fn=CROSS_ENTROPY)
    for loss, field in (
        (tp.LossFunction(name="hinge"), "loss_fn.name"),
        (tp.LossFunction(name="cross_entropy", parameters={"beta": 1}), "loss_fn.parameters['beta']"),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await trainer.enqueue("Forward", data=DATA, loss_fn=loss)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="data"):
        await trainer.enqueue("Forward", data=DATA * 20, loss_fn=CROSS_ENTROPY)
    assert (await trainer.now()).next_sequence == 1


async def test_every_loss_of_the_wire_runs(trainer: Trainer) -> None:
    tokens = [1, 2, 3]
    inputs = {"logprobs": np.full(2, -3.0), "advantages": np.array([1.0, -1.0])}
    for name in ("importance_sampling", "ppo", "cispo", "dro"):
        result = await trainer.forward([datum(tokens, **inputs)], tp.LossFunction(name=name))
        assert math.isfinite(result.loss)
        assert result.loss != 0
        await trainer.call("ForwardBackward", data=[datum(tokens, **inputs)], loss_fn=tp.LossFunction(name=name))
        assert (await trainer.call("OptimStep", adam=ADAM)).optim_step.update_norm > 0
    bounds = {"clip_low_threshold": 0.0, "clip_high_threshold": 0.0}
    shut = tp.LossFunction(name="ppo", parameters=bounds)
    assert (await trainer.forward([datum([1, 2], logprobs=np.zeros(1), advantages=np.ones(1))], shut)).loss == 0


async def test_a_step_needs_whole_gradients(fake: FakeTraining, trainer: Trainer) -> None:
    with refused(FailedPreconditionError, "NO_GRADIENTS"):
        await trainer.call("OptimStep", adam=ADAM)
    fake.engine.gate.clear()
    first = await trainer.enqueue("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
    second = await trainer.enqueue("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
    request = tp.CancelOperationRequest(session_id=trainer.id, operation_id=second)
    assert (await trainer.stub.CancelOperation(request)).operation.state == CANCELLED
    fake.engine.gate.set()
    await trainer.finished(first)
    with refused(FailedPreconditionError, "GRADIENTS_INVALID", says="cancelled"):
        await trainer.call("OptimStep", adam=ADAM)
    await trainer.step()
    with refused(FailedPreconditionError, "NO_GRADIENTS"):
        await trainer.call("OptimStep", adam=ADAM)
    assert (await trainer.now()).optim_steps == 1


async def test_numbers_that_are_not_finite_do_not_reach_the_weights(trainer: Trainer) -> None:
    before = (await trainer.forward()).loss
    huge = datum([1, 2], logprobs=np.array([-1e30]), advantages=np.ones(1))
    await trainer.call("ForwardBackward", data=[huge], loss_fn=tp.LossFunction(name="importance_sampling"))
    with refused(FailedPreconditionError, "NUMERIC_ERROR", says="the weights stay"):
        await trainer.call("OptimStep", adam=ADAM)
    assert (await trainer.forward()).loss == before
    saved = await trainer.save("good")
    await trainer.call("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
    for call in ("OptimStep", "Forward", "SaveCheckpoint"):
        fields: dict[str, Any] = {
            "OptimStep": {"adam": tp.AdamParams(learning_rate=1e308, weight_decay=1e308)},
            "Forward": {"data": DATA, "loss_fn": CROSS_ENTROPY},
            "SaveCheckpoint": {"name": "bad"},
        }[call]
        with refused(FailedPreconditionError, "NUMERIC_ERROR", says="load a checkpoint"):
            await trainer.call(call, **fields)
    await trainer.load(saved.uri)
    assert (await trainer.forward()).loss == before


async def test_adam_parameters_that_cannot_be_are_refused(trainer: Trainer) -> None:
    for field, adam in (
        ("adam.beta1", tp.AdamParams(beta1=1)),
        ("adam.eps", tp.AdamParams(eps=0)),
        ("adam.learning_rate", tp.AdamParams(learning_rate=-1)),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await trainer.enqueue("OptimStep", adam=adam)


async def test_an_unfinished_operation_is_answered_when_the_wait_runs_out(fake: FakeTraining, trainer: Trainer) -> None:
    fake.engine.gate.clear()
    operation_id = await trainer.enqueue("Forward", data=DATA, loss_fn=CROSS_ENTROPY)
    for wait in (None, {"nanos": 1_000_000}):
        request = tp.AwaitOperationRequest(session_id=trainer.id, operation_id=operation_id, wait=wait)
        response = await trainer.stub.AwaitOperation(request)
        assert (response.operation.state, response.WhichOneof("result")) == (QUEUED, None)
    fake.engine.gate.set()
    assert (await trainer.finished(operation_id)).forward.loss > 0
    with refused(NotFoundError, "OPERATION_NOT_FOUND"):
        await trainer.finished("op-99")


async def test_a_session_takes_only_so_much_at_a_time(fake: FakeTraining, trainer: Trainer) -> None:
    fake.engine.gate.clear()
    for _ in range(15):
        await trainer.enqueue("Forward", data=DATA, loss_fn=CROSS_ENTROPY)  # 13 tokens
    with pytest.raises(ResourceExhaustedError) as caught:
        await trainer.enqueue("Forward", data=DATA, loss_fn=CROSS_ENTROPY)
    assert (caught.value.reason, caught.value.retry_delay) == ("TOO_MANY_TOKENS", 1.0)
    for _ in range(49):
        await trainer.enqueue("OptimStep", adam=ADAM)
    with refused(ResourceExhaustedError, "TOO_MANY_IN_FLIGHT"):
        await trainer.enqueue("OptimStep", adam=ADAM)
    fake.engine.gate.set()
    await trainer.finished("op-15")
    await trainer.enqueue("Forward", data=DATA, loss_fn=CROSS_ENTROPY)


async def test_closing_drops_what_has_not_begun(fake: FakeTraining, trainer: Trainer) -> None:
    fake.engine.gate.clear()
    operation_id = await trainer.enqueue("Forward", data=DATA, loss_fn=CROSS_ENTROPY)
    waiting = asyncio.ensure_future(trainer.finished(operation_id))
    await asyncio.sleep(0)
    await trainer.close()
    with pytest.raises(KitchenError) as caught:
        await waiting
    # Over a wire the wait may come after the close.
    assert caught.value.reason in ("OPERATION_CANCELLED", "SESSION_NOT_FOUND")


async def test_results_are_kept_for_64_operations_or_ten_minutes(fake: FakeTraining, trainer: Trainer) -> None:
    first = await trainer.enqueue("Forward", data=DATA[:1], loss_fn=CROSS_ENTROPY)
    for _ in range(63):
        await trainer.forward(DATA[:1])
    await trainer.finished(first)
    await trainer.forward(DATA[:1])
    with refused(NotFoundError, "OPERATION_NOT_FOUND", says="64 later results"):
        await trainer.finished(first)
    now = fake.engine.clock()
    fake.engine.clock = lambda: now + 601
    with refused(NotFoundError, "OPERATION_NOT_FOUND"):
        await trainer.finished("op-65")


async def test_a_session_ends_with_its_lease(fake: FakeTraining, trainer: Trainer) -> None:
    now = fake.engine.clock()
    fake.engine.clock = lambda: now + 1700
    await trainer.now()  # renews it
    fake.engine.clock = lambda: now + 3400
    await trainer.now()
    fake.engine.clock = lambda: now + 5201
    with refused(NotFoundError, "SESSION_NOT_FOUND"):
        await trainer.now()


async def test_a_checkpoint_s_files_are_listed_and_read(stub: Any, trainer: Trainer) -> None:
    await trainer.step()
    saved = await trainer.save("run/step-1")
    paths = [file.path for file in saved.files]
    assert paths == sorted(paths) == ["config.json", "model.safetensors", "optimizer.safetensors"]
    assert (saved.optim_steps, saved.weights_version) == (1, 1)
    files = await checkpoint_files(stub, saved)
    for file in saved.files:
        data = files[file.path]
        assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    manifest = files[saved.manifest_path]
    assert saved.manifest_sha256 == hashlib.sha256(manifest).hexdigest()
    assert {path: each["sha256"] for path, each in json.loads(manifest)["files"].items()} == {
        file.path: file.sha256 for file in saved.files
    }
    assert load(files["model.safetensors"])["bigram"].shape == (VOCAB, VOCAB)
    request = tp.ReadCheckpointFileRequest(uri=saved.uri, path="model.safetensors")
    chunks = [response async for response in stub.ReadCheckpointFile(request)]
    assert all(zlib.crc32(each.data) == each.crc32 and len(each.data) <= 256 * 1024 for each in chunks)
    for uri, path, reason in (
        (saved.uri, "other", "CHECKPOINT_FILE_NOT_FOUND"),
        ("toy:other", "config.json", "CHECKPOINT_NOT_FOUND"),
    ):
        with refused(NotFoundError, reason):
            async for _ in stub.ReadCheckpointFile(tp.ReadCheckpointFileRequest(uri=uri, path=path)):
                pass


async def test_going_on_from_a_checkpoint_gives_the_same_bytes(stub: Any, trainer: Trainer) -> None:
    for _ in range(3):
        await trainer.step()
    saved = await trainer.save("at-3")
    whole = [await trainer.step() for _ in range(3)]
    expected = await checkpoint_files(stub, await trainer.save("at-6"))
    other = await Trainer.create(stub)
    loaded = await other.load(saved.uri)
    assert loaded == saved
    assert [await other.step() for _ in range(3)] == whole
    files = await checkpoint_files(stub, await other.save("again-at-6"))
    tensors = [path for path in files if path.endswith(".safetensors")]
    assert [files[path] for path in tensors] == [expected[path] for path in tensors]
    # Gradients that were pending are gone, and a new optimizer steps otherwise.
    await other.call("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
    await other.load(saved.uri, weights_only=True)
    with refused(FailedPreconditionError, "NO_GRADIENTS"):
        await other.call("OptimStep", adam=ADAM)
    assert [await other.step() for _ in range(3)] != whole


def upload(
    name: str, files: dict[str, bytes], *, damage: str = "", size: int | None = None
) -> AsyncIterator[tp.UploadCheckpointRequest]:
    async def requests() -> AsyncIterator[tp.UploadCheckpointRequest]:
        listed = [
            tp.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in files.items()
        ]
        yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name=name, files=listed))
        for index, (path, data) in enumerate(files.items()):
            content = data[:-1] + bytes([data[-1] ^ 1]) if path == damage else data
            step = size or len(content)
            for offset in range(0, len(content), step):
                part = content[offset : offset + step]
                chunk = tp.UploadCheckpointChunk(file_index=index, offset=offset, crc32=zlib.crc32(part), data=part)
                yield tp.UploadCheckpointRequest(chunk=chunk)

    return requests()


async def test_a_checkpoint_moves_to_another_engine(stub: Any, trainer: Trainer) -> None:
    await trainer.step()
    saved = await trainer.save("here")
    files = await checkpoint_files(stub, saved)
    await stub.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=saved.uri))
    with refused(NotFoundError, "CHECKPOINT_NOT_FOUND"):
        await trainer.load(saved.uri)
    for _ in range(2):
        uploaded = (await stub.UploadCheckpoint(upload("there", files, size=100))).checkpoint
    assert uploaded.manifest_sha256 == saved.manifest_sha256
    other = await Trainer.create(stub)
    await other.load(uploaded.uri)
    assert (await other.forward()).loss == (await trainer.forward()).loss
    with refused(AlreadyExistsError, "CHECKPOINT_EXISTS"):
        await trainer.step()
        await trainer.save("there")


async def test_a_damaged_upload_stores_nothing(stub: Any, trainer: Trainer) -> None:
    files = await checkpoint_files(stub, await trainer.save("here"))
    for damage in files:
        with pytest.raises(DataLossError) as caught:
            await stub.UploadCheckpoint(upload("there", files, damage=damage))
        assert (caught.value.reason, caught.value.metadata["file"]) == ("CHECKPOINT_CORRUPT", damage)
        assert caught.value.metadata["expected"] != caught.value.metadata["actual"]
    # One whose manifest lists other files.
    with refused(DataLossError, "CHECKPOINT_CORRUPT"):
        await stub.UploadCheckpoint(upload("there", {k: v for k, v in files.items() if k != "optimizer.safetensors"}))
    with refused(NotFoundError, "CHECKPOINT_NOT_FOUND"):
        await trainer.load("toy:there")


async def test_a_broken_upload_is_refused(stub: Any, trainer: Trainer) -> None:
    files = await checkpoint_files(stub, await trainer.save("here"))
    chunk = tp.UploadCheckpointChunk

    async def changed(at: int, part: tp.UploadCheckpointRequest) -> AsyncIterator[tp.UploadCheckpointRequest]:
        number = 0
        async for request in upload("there", files):
            yield part if number == at else request
            number += 1

    cases = {
        "header": (0, tp.UploadCheckpointRequest(chunk=chunk())),
        "chunk": (1, tp.UploadCheckpointRequest()),
        "chunk.file_index": (1, tp.UploadCheckpointRequest(chunk=chunk(file_index=9))),
        "chunk.offset": (1, tp.UploadCheckpointRequest(chunk=chunk(offset=5))),
        "chunk.data": (1, tp.UploadCheckpointRequest(chunk=chunk(data=b"x" * 999, crc32=zlib.crc32(b"x" * 999)))),
    }
    for field, (at, part) in cases.items():
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await stub.UploadCheckpoint(changed(at, part))
    with refused(DataLossError, "CHUNK_CORRUPT"):
        await stub.UploadCheckpoint(changed(1, tp.UploadCheckpointRequest(chunk=chunk(data=b"{", crc32=1))))


async def test_a_folder_made_elsewhere_is_checked_and_loads_its_weights(stub: Any, trainer: Trainer) -> None:
    await trainer.step()
    files = await checkpoint_files(stub, await trainer.save("here"))
    foreign = {path: files[path] for path in ("config.json", "model.safetensors")}
    uploaded = (await stub.UploadCheckpoint(upload("foreign", foreign))).checkpoint
    assert uploaded.manifest_path
    other = await Trainer.create(stub)
    with refused(FailedPreconditionError, "CHECKPOINT_MISMATCH", says="weights_only"):
        await other.load(uploaded.uri)
    await other.load(uploaded.uri, weights_only=True)
    assert (await other.forward()).loss == (await trainer.forward()).loss
    for broken in ({"config.json": b"{}"}, foreign | {"model.safetensors": b"nonsense"}):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="header.files"):
            await stub.UploadCheckpoint(upload("broken", broken))


async def test_a_checkpoint_with_a_ttl_goes_by_itself(fake: FakeTraining, stub: Any, trainer: Trainer) -> None:
    saved = await trainer.save("short", ttl={"seconds": 60})
    assert saved.HasField("expire_time")
    kept = await trainer.save("kept", ttl={"seconds": 60})
    kept = await trainer.save("kept")  # the longer of both counts
    assert not kept.HasField("expire_time")
    now = fake.engine.clock()
    fake.engine.clock = lambda: now + 61
    with refused(NotFoundError, "CHECKPOINT_NOT_FOUND"):
        await trainer.load(saved.uri)
    await trainer.load(kept.uri)
    await stub.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=saved.uri))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="ttl"):
        await trainer.save("x", ttl={"seconds": 0})


async def test_a_lora_session_trains_its_adapter_alone(stub: Any) -> None:
    full, lora = await Trainer.create(stub), await Trainer.create(stub, lora=tp.LoraConfig(rank=3, alpha=6), seed=5)
    assert lora.info.lora == tp.LoraConfig(rank=3, alpha=6, target_modules=["bigram"])
    assert lora.info.trainable_parameters == 2 * 3 * VOCAB
    before = (await full.forward()).loss
    assert (await lora.forward()).loss == before
    losses = [await lora.step() for _ in range(40)]
    assert losses[-1] < losses[0] / 2
    assert (await full.forward()).loss == before
    saved = await lora.save("adapter")
    assert [file.path for file in saved.files][:2] == ["adapter_config.json", "adapter_model.safetensors"]
    assert (saved.lora, saved.base_model) == (lora.info.lora, MODEL)
    other = await Trainer.create(stub, lora=tp.LoraConfig(rank=3, alpha=6))
    await other.load(saved.uri)
    assert [await other.step() for _ in range(2)] == [await lora.step() for _ in range(2)]
    for unlike in (full, await Trainer.create(stub, lora=tp.LoraConfig(rank=2))):
        with refused(FailedPreconditionError, "CHECKPOINT_MISMATCH"):
            await unlike.load(saved.uri)


async def test_equal_requests_get_equal_answers(binding: Binding, context: AdapterContext) -> None:
    async def told(number: int) -> list[bytes]:
        folder = context.data_dir / str(number)
        folder.mkdir()
        stub = await binding.stub(FakeTraining(ToyOptions(**OPTIONS, seed=7), AdapterContext(data_dir=folder)))
        trainer = await Trainer.create(stub, request_id="2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11")
        answers = [trainer.info, await trainer.forward()]
        passed = await trainer.enqueue("ForwardBackward", data=DATA, loss_fn=CROSS_ENTROPY)
        answers += [await trainer.finished(passed), await trainer.call("OptimStep", adam=ADAM)]
        answers.append(await trainer.call("SaveCheckpoint", name="a", ttl={"seconds": 9}))
        return [each.SerializeToString(deterministic=True) for each in answers]

    assert await told(1) == await told(2)


async def test_the_engine_ends_with_those_who_use_it(context: AdapterContext) -> None:
    options = ToyOptions(**OPTIONS)
    first, second = FakeTraining(options, context), FakeTraining(options, context)
    assert first.engine is second.engine
    await first.close()
    third = FakeTraining(options, context)
    assert third.engine is second.engine
    await second.close()
    await third.close()
    other = ToyEngine.join(options, context)
    assert other is not third.engine
    await other.leave()
