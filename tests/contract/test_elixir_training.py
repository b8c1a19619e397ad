"""TrainingService of the Elixir adapter over a socket: numbers, order, repeats, refusals, checkpoints."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from safetensors.numpy import load_file

from crucible.port.training.v1 import training_pb2 as tp
from crucible.port.training.v1 import training_pb2_grpc
from crucible.type.v1 import operation_pb2
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.chunks import CHUNK_BYTES, crc32, sha256_file
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
)
from crucible_kit.tensors import from_tensor
from crucible_kit.training import TrainingSession
from tests.contract.elixir import ElixirAdapter, needs_elixir
from tests.contract.elixir_data import CROSS_ENTROPY, MODEL, VOCABULARY, random_data, to_proto
from tests.contract.toy_reference import ToyReference, first_weights

pytestmark = needs_elixir

ADAM = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "weight_decay": 0.1, "grad_clip_norm": 0.5}


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elixir")


@pytest.fixture(scope="module")
def adapter(work_dir: Path) -> Iterator[ElixirAdapter]:
    running = ElixirAdapter(work_dir, "--work-dir", str(work_dir), listen="127.0.0.1:0")
    yield running
    running.end()


@pytest.fixture
async def channel(adapter: ElixirAdapter) -> AsyncIterator[RemoteChannel]:
    opened = connect(adapter.address)
    yield opened
    await opened.close()


@pytest.fixture
def stub(channel: RemoteChannel) -> Any:
    return training_pb2_grpc.TrainingServiceStub(channel)  # pyright: ignore[reportArgumentType]


async def train(session: TrainingSession, steps: range, rate: float = 1e-2) -> list[tp.OptimStepResult]:
    """Steps sent one behind the other."""
    sent = []
    for step in steps:
        await session.enqueue_forward_backward(to_proto(random_data([9, 4], seed=step)), CROSS_ENTROPY)
        sent.append(await session.enqueue_optim_step(tp.AdamParams(learning_rate=rate, **ADAM)))
    return [(await session.result(each)).optim_step for each in sent]


async def test_numbers_are_those_of_numpy(stub: Any, work_dir: Path):
    session = await TrainingSession.create(stub, base_model=MODEL)
    info = session.info
    assert (info.vocab_size, info.max_sequence_tokens, info.trainable_parameters) == (VOCABULARY, 2048, 9 * VOCABULARY)
    assert (info.dtype, info.device, info.optim_steps, info.next_sequence) == ("float64", "cpu", 0, 1)
    reference = ToyReference(first_weights(MODEL, VOCABULARY))
    for step in range(5):
        data = random_data([9, 5, 1], seed=step)
        passes = [
            await session.enqueue_forward_backward(to_proto(part), CROSS_ENTROPY) for part in (data[:2], data[2:])
        ]
        taken = await session.enqueue_optim_step(tp.AdamParams(learning_rate=0.05, **ADAM))
        losses, logprobs = [], []
        for (operation,) in passes:
            result = (await session.result(operation)).forward
            losses.append(result.loss)
            logprobs += [from_tensor(each.logprobs) for each in result.outputs]
        for each, ours in zip(data, logprobs, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, reference.logprobs(each.tokens, each.targets), rtol=1e-6)
        np.testing.assert_allclose(sum(losses), reference.forward_backward(data), rtol=1e-13)
        norms = reference.optim_step(0.05, beta1=0.8, beta2=0.9, eps=1e-7, decay=0.1, clip=0.5)
        result = (await session.result(taken)).optim_step
        np.testing.assert_allclose((result.grad_norm, result.update_norm), norms, rtol=1e-12)
        assert (result.optim_steps, result.weights_version, result.learning_rate) == (step + 1, step + 1, 0.05)
    saved = await session.save_checkpoint("numbers/step-5", weights_only=False)
    folder = work_dir / "checkpoints" / "numbers" / "step-5"
    np.testing.assert_allclose(
        load_file(folder / "model.safetensors")["weights"], reference.weights, rtol=1e-12, atol=1e-15
    )
    optimizer = load_file(folder / "optimizer.safetensors")
    np.testing.assert_allclose(optimizer["first"], reference.first.ravel(), rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(optimizer["second"], reference.second.ravel(), rtol=1e-9, atol=1e-18)
    assert optimizer["step"] == [5.0]
    assert saved.optim_steps == 5
    for file in saved.files:
        assert (sha256_file(folder / file.path), (folder / file.path).stat().st_size) == (file.sha256, file.size_bytes)
    manifest = (folder / saved.manifest_path).read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == saved.manifest_sha256
    assert sorted(json.loads(manifest)["files"]) == [file.path for file in saved.files]


async def test_absent_adam_fields_are_the_documented_defaults(stub: Any):
    norms = []
    for given in ({}, {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}):
        session = await TrainingSession.create(stub, base_model=MODEL)
        for step in range(2):
            await session.enqueue_forward_backward(to_proto(random_data([7], seed=step)), CROSS_ENTROPY)
            taken = await session.enqueue_optim_step(tp.AdamParams(learning_rate=1e-2, **given))
        norms.append((await session.result(taken)).optim_step.update_norm)
    assert norms[0] == norms[1]


async def test_forward_gives_no_gradients(stub: Any):
    session = await TrainingSession.create(stub, base_model=MODEL)
    assert (await session.forward(to_proto(random_data([5])), CROSS_ENTROPY)).loss != 0
    with pytest.raises(FailedPreconditionError) as caught:
        await session.result(await session.enqueue_optim_step(tp.AdamParams(learning_rate=0.1)))
    assert caught.value.reason == "NO_GRADIENTS"


async def test_order_repeats_and_gaps(stub: Any):
    session = await TrainingSession.create(stub, base_model=MODEL)
    data = to_proto(random_data([4]))

    def a_pass(sequence: int) -> tp.ForwardBackwardRequest:
        return tp.ForwardBackwardRequest(
            session_id=session.session_id, sequence=sequence, data=data, loss_fn=CROSS_ENTROPY
        )

    def a_step(sequence: int, rate: float = 0.1) -> tp.OptimStepRequest:
        adam = tp.AdamParams(learning_rate=rate)
        return tp.OptimStepRequest(session_id=session.session_id, sequence=sequence, adam=adam)

    early = [asyncio.ensure_future(stub.OptimStep(a_step(number))) for number in (4, 2)]
    first = await stub.ForwardBackward(a_pass(1))
    second = await early[1]
    await stub.ForwardBackward(a_pass(3))
    fourth = await early[0]
    assert (await session.result(second.operation.id)).optim_step.optim_steps == 1
    assert (await session.result(fourth.operation.id)).optim_step.optim_steps == 2
    assert (await stub.ForwardBackward(a_pass(1))).operation.id == first.operation.id
    assert (await stub.OptimStep(a_step(2))).operation.id == second.operation.id
    with pytest.raises(InvalidArgumentError) as reused:
        await stub.OptimStep(a_step(2, rate=0.5))
    assert reused.value.reason == "SEQUENCE_REUSED"
    with pytest.raises(FailedPreconditionError) as gap:
        await stub.OptimStep(a_step(5 + 65))
    assert (gap.value.reason, gap.value.metadata["expected"]) == ("SEQUENCE_GAP", "5")
    now = (await stub.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session.session_id))).session
    assert (now.optim_steps, now.weights_version, now.next_sequence) == (2, 2, 5)


async def test_create_is_idempotent_and_close_ends_it(stub: Any):
    request = tp.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model=MODEL)
    first, again = await asyncio.gather(stub.CreateTrainingSession(request), stub.CreateTrainingSession(request))
    session_id = first.session.session_id
    assert again.session.session_id == session_id
    request.base_model = "toy-65"
    with pytest.raises(InvalidArgumentError) as reused:
        await stub.CreateTrainingSession(request)
    assert reused.value.reason == "REQUEST_ID_REUSED"
    for _ in range(2):
        await stub.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))
    with pytest.raises(NotFoundError) as gone:
        await stub.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session_id))
    assert gone.value.reason == "SESSION_NOT_FOUND"


async def test_await_and_cancel_tell_the_state(stub: Any):
    session = await TrainingSession.create(stub, base_model=MODEL)
    (operation,) = await session.enqueue_forward_backward(to_proto(random_data([4])), CROSS_ENTROPY)
    finished = (await session.result(operation)).operation
    assert finished.expire_time.ToNanoseconds() > finished.create_time.ToNanoseconds() > 0
    request = tp.CancelOperationRequest(session_id=session.session_id, operation_id=operation)
    assert (await stub.CancelOperation(request)).operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    request.operation_id = "unknown"
    with pytest.raises(NotFoundError) as caught:
        await stub.CancelOperation(request)
    assert caught.value.reason == "OPERATION_NOT_FOUND"


async def test_a_call_that_waits_ends_at_its_deadline(stub: Any):
    session = await TrainingSession.create(stub, base_model=MODEL)
    request = tp.OptimStepRequest(session_id=session.session_id, sequence=2, adam=tp.AdamParams(learning_rate=0.1))
    with pytest.raises(KitchenError) as caught:
        await stub.OptimStep(request, timeout=0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    # Held until then, it is gone: its number is free for another one.
    await session.enqueue_forward_backward(to_proto(random_data([4])), CROSS_ENTROPY)
    taken = await session.enqueue_optim_step(tp.AdamParams(learning_rate=0.2))
    assert (await session.result(taken)).optim_step.learning_rate == 0.2


async def test_a_checkpoint_goes_on_with_the_same_bytes(stub: Any):
    session = await TrainingSession.create(stub, base_model=MODEL)
    await train(session, range(3))
    middle = await session.save_checkpoint("resume/step-3", weights_only=False)
    await train(session, range(3, 6))
    end = await session.save_checkpoint("resume/end", weights_only=False)

    other = await TrainingSession.create(stub, base_model=MODEL)
    await train(other, range(7, 9))
    loaded = await other.load_checkpoint(middle.uri, weights_only=False)
    assert (loaded.manifest_sha256, loaded.optim_steps) == (middle.manifest_sha256, 3)
    last = (await train(other, range(3, 6)))[-1]
    assert (last.optim_steps, last.weights_version) == (6, 2 + 1 + 3)
    again = await other.save_checkpoint("resume/again", weights_only=False)
    assert [(file.path, file.sha256) for file in again.files] == [(file.path, file.sha256) for file in end.files]

    # Without the optimizer it is another way, and a checkpoint without one says so.
    await other.load_checkpoint(middle.uri, weights_only=True)
    await train(other, range(3, 6))
    fresh = await other.save_checkpoint("resume/fresh", weights_only=True)
    assert [file.path for file in fresh.files] == ["config.json", "model.safetensors"]
    assert fresh.files[1].sha256 != end.files[1].sha256
    with pytest.raises(FailedPreconditionError) as caught:
        await other.load_checkpoint(fresh.uri, weights_only=False)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"
    with pytest.raises(AlreadyExistsError) as exists:
        await other.save_checkpoint("resume/end", weights_only=True)
    assert exists.value.reason == "CHECKPOINT_EXISTS"
    bigger = await TrainingSession.create(stub, base_model="toy-65")
    with pytest.raises(FailedPreconditionError) as mismatch:
        await bigger.load_checkpoint(middle.uri, weights_only=True)
    assert mismatch.value.reason == "CHECKPOINT_MISMATCH"


async def read(session: TrainingSession, uri: str, path: str) -> bytes:
    """A file, its chunks checked."""
    data = b""
    async for chunk in session.read_checkpoint_file(uri, path):
        assert chunk.offset == len(data)
        assert chunk.crc32 == crc32(chunk.data)
        assert len(chunk.data) <= CHUNK_BYTES
        data += chunk.data
    return data


async def test_a_checkpoint_travels(stub: Any, work_dir: Path):
    session = await TrainingSession.create(stub, base_model="toy-20000")
    saved = await session.save_checkpoint("travel/large", weights_only=True)
    manifest = tp.CheckpointFile(path=saved.manifest_path, sha256=saved.manifest_sha256)
    files = {file.path: await read(session, saved.uri, file.path) for file in (*saved.files, manifest)}
    assert len(files["model.safetensors"]) > 5 * CHUNK_BYTES
    for file in (*saved.files, manifest):
        assert hashlib.sha256(files[file.path]).hexdigest() == file.sha256
    with pytest.raises(NotFoundError) as no_file:
        await read(session, saved.uri, "nope")
    assert no_file.value.reason == "CHECKPOINT_FILE_NOT_FOUND"
    await session.delete_checkpoint(saved.uri)
    await session.delete_checkpoint(saved.uri)
    with pytest.raises(NotFoundError) as gone:
        await read(session, saved.uri, manifest.path)
    assert gone.value.reason == "CHECKPOINT_NOT_FOUND"

    manifest.size_bytes = len(files[manifest.path])
    declared = [*saved.files, manifest]

    async def upload(name: str, contents: dict[str, bytes], *, crc: int = 0) -> tp.CheckpointResult:
        async def requests() -> AsyncIterator[tp.UploadCheckpointRequest]:
            yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name=name, files=declared))
            for index, file in enumerate(declared):
                data = contents[file.path]
                for offset in range(0, len(data), CHUNK_BYTES):
                    part = data[offset : offset + CHUNK_BYTES]
                    chunk = tp.UploadCheckpointChunk(
                        file_index=index, offset=offset, crc32=crc32(part) ^ crc, data=part
                    )
                    yield tp.UploadCheckpointRequest(chunk=chunk)

        return await session.upload_checkpoint(requests())

    uploaded = await upload("travel/back", files)
    assert uploaded.manifest_sha256 == saved.manifest_sha256
    assert await read(session, uploaded.uri, "model.safetensors") == files["model.safetensors"]
    assert (await session.load_checkpoint(uploaded.uri, weights_only=True)).uri == uploaded.uri
    damaged = files | {"config.json": files["config.json"].replace(b"8", b"9")}
    with pytest.raises(DataLossError) as corrupt:
        await upload("travel/damaged", damaged)
    assert corrupt.value.reason == "CHECKPOINT_CORRUPT"
    assert corrupt.value.metadata["file"] == "config.json"
    assert corrupt.value.metadata["expected"] == saved.files[0].sha256
    with pytest.raises(DataLossError) as chunk:
        await upload("travel/damaged", files, crc=1)
    assert chunk.value.reason == "CHUNK_CORRUPT"
    assert not (work_dir / "checkpoints" / "travel" / "damaged").exists()
    assert not list((work_dir / "checkpoints").glob(".partial*"))
    path = work_dir / "checkpoints" / "travel" / "back" / "config.json"
    path.write_bytes(damaged["config.json"])
    with pytest.raises(DataLossError) as on_disk:
        await session.load_checkpoint(uploaded.uri, weights_only=True)
    assert on_disk.value.metadata["file"] == "config.json"


async def test_an_upload_of_something_else_is_refused(stub: Any):
    async def send(*requests: tp.UploadCheckpointRequest) -> InvalidArgumentError:
        async def stream() -> AsyncIterator[tp.UploadCheckpointRequest]:
            for each in requests:
                yield each

        with pytest.raises(InvalidArgumentError) as caught:
            await stub.UploadCheckpoint(stream())
        return caught.value

    def header(*paths: str) -> tp.UploadCheckpointRequest:
        files = [tp.CheckpointFile(path=path, sha256="0" * 64) for path in paths]
        return tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name="else/x", files=files))

    chunk = tp.UploadCheckpointRequest(chunk=tp.UploadCheckpointChunk())
    assert (await send()).metadata["field"] == "header"
    assert (await send(chunk)).metadata["field"] == "header"
    assert (await send(header("adapter_config.json"))).metadata["field"] == "header.files"
    assert (await send(header("crucible_manifest.json", "a"))).metadata["field"] == "header.files[1].path"
    assert (await send(header("a", "a", "crucible_manifest.json"))).metadata["field"] == "header.files[1].path"


async def test_time_to_live_outlives_the_process(tmp_path: Path):
    def started() -> ElixirAdapter:
        return ElixirAdapter(tmp_path, "--listen", "127.0.0.1:0", "--work-dir", str(tmp_path))

    first = started()
    channel = connect(first.address)
    session = await TrainingSession.create(training_pb2_grpc.TrainingServiceStub(channel), base_model=MODEL)  # pyright: ignore[reportArgumentType]
    request = tp.SaveCheckpointRequest(session_id=session.session_id, ttl=duration_pb2.Duration(nanos=1), name="a/b")
    operation = await session._enqueue(session._stub.SaveCheckpoint, request)
    assert (await session.result(operation)).checkpoint.HasField("expire_time")
    kept = await session.save_checkpoint("a/kept", weights_only=False, ttl_seconds=3600)
    assert kept.expire_time.seconds > 3600
    await channel.close()
    # Nothing gets a chance to tidy up.
    first.kill()
    (tmp_path / "checkpoints" / ".partial-left").mkdir()
    second = started()
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "a").iterdir()) == ["kept"]
    assert not (tmp_path / "checkpoints" / ".partial-left").exists()
    assert second.terminate() == 0
