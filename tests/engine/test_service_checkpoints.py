"""Checkpoints over the wire: read, uploaded to another engine, resumed, corrupted, refused, deleted."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine import checkpoint_store
from crucible_adapters.torch_engine.engine import Engine
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.engine.tiny import random_data
from tests.engine.wire import Wire, serve

CHUNK = 10_000


async def read_file(wire: Wire, uri: str, path: str) -> bytes:
    data = b""
    request = tp.ReadCheckpointFileRequest(uri=uri, path=path)
    async for chunk in wire.training.ReadCheckpointFile(request):
        assert chunk.offset == len(data)
        assert chunk.crc32 == zlib.crc32(chunk.data)
        data += chunk.data
    return data


async def read_all(wire: Wire, saved: tp.CheckpointResult) -> dict[str, bytes]:
    """Every file by path, the manifest last."""
    paths = [file.path for file in saved.files] + [saved.manifest_path]
    return {path: await read_file(wire, saved.uri, path) for path in paths}


async def upload_messages(name: str, files: dict[str, bytes]) -> AsyncIterator[tp.UploadCheckpointRequest]:
    described = [
        tp.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]
    yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name=name, files=described))
    for index, data in enumerate(files.values()):
        for offset in range(0, len(data), CHUNK):
            part = data[offset : offset + CHUNK]
            chunk = tp.UploadCheckpointChunk(file_index=index, offset=offset, crc32=zlib.crc32(part), data=part)
            yield tp.UploadCheckpointRequest(chunk=chunk)


async def load(wire: Wire, session_id: str, sequence: int, uri: str, **fields: bool) -> tp.CheckpointResult:
    request = tp.LoadCheckpointRequest(session_id=session_id, sequence=sequence, uri=uri, **fields)
    operation = (await wire.training.LoadCheckpoint(request)).operation
    return (await wire.result(session_id, operation)).checkpoint


async def saved_checkpoint(wire: Wire, folder: Path, name: str = "run-1/step-1") -> tuple[str, tp.CheckpointResult]:
    session_id = await wire.open(folder)
    await wire.train(session_id, 1, random_data([9, 5]))
    return session_id, await wire.save(session_id, 3, name)


async def test_a_file_that_is_read_is_whole_though_the_checkpoint_is_deleted(
    wire: Wire, engine: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, saved = await saved_checkpoint(wire, tiny_folder)
    path = max(saved.files, key=lambda file: file.size_bytes).path
    whole = await read_file(wire, saved.uri, path)
    read = checkpoint_store.read_manifest

    def deleting(folder: Path) -> Any:
        with pytest.raises(FailedPreconditionError) as caught:
            engine.store.delete(saved.uri)
        assert caught.value.reason == "CHECKPOINT_IN_USE"
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "read_manifest", deleting)
        chunks = engine.store.read_file(saved.uri, path)
        first = next(chunks)
    engine.store.delete(saved.uri)
    assert b"".join(data for _, data in [first, *chunks]) == whole
    with pytest.raises(NotFoundError) as caught:
        await read_file(wire, saved.uri, path)
    assert caught.value.reason == "CHECKPOINT_NOT_FOUND"


async def test_checkpoint_moves_to_another_engine_and_resumes_exactly(
    wire: Wire, tiny_folder: Path, tmp_path: Path
) -> None:
    session_id, saved = await saved_checkpoint(wire, tiny_folder)
    assert (saved.optim_steps, saved.weights_version) == (1, 1)
    files = await read_all(wire, saved)
    for file in saved.files:
        assert hashlib.sha256(files[file.path]).hexdigest() == file.sha256
        assert len(files[file.path]) == file.size_bytes
    assert hashlib.sha256(files[saved.manifest_path]).hexdigest() == saved.manifest_sha256
    expected = await wire.train(session_id, 4, random_data([7], seed=9))

    async with serve(tmp_path / "other") as (_, other):
        uploaded = (await other.training.UploadCheckpoint(upload_messages("copy", files))).checkpoint
        assert list(uploaded.files) == list(saved.files)
        assert uploaded.manifest_sha256 == saved.manifest_sha256
        resumed = await other.open(tiny_folder)
        await load(other, resumed, 1, uploaded.uri)
        info = await other.info(resumed)
        assert (info.optim_steps, info.weights_version) == (1, 1)
        result = await other.train(resumed, 2, random_data([7], seed=9))

    assert result.optim_steps == 2
    assert (result.grad_norm, result.update_norm) == (expected.grad_norm, expected.update_norm)


async def test_repeated_upload_is_answered_without_the_bytes(wire: Wire, tiny_folder: Path) -> None:
    _, saved = await saved_checkpoint(wire, tiny_folder)
    files = await read_all(wire, saved)

    async def header_only() -> AsyncIterator[tp.UploadCheckpointRequest]:
        yield await anext(upload_messages("run-1/step-1", files))

    assert (await wire.training.UploadCheckpoint(header_only())).checkpoint == saved
    changed = {**files, "tokenizer.json": b"{}"}
    with pytest.raises(DataLossError):  # the manifest tells other hashes than the header
        await wire.training.UploadCheckpoint(upload_messages("run-1/other", changed))


def flip_byte(messages: list[tp.UploadCheckpointRequest]) -> None:
    chunk = messages[3].chunk
    chunk.data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
    chunk.crc32 = zlib.crc32(chunk.data)


def break_crc(messages: list[tp.UploadCheckpointRequest]) -> None:
    messages[3].chunk.crc32 ^= 1


def cut_off(messages: list[tp.UploadCheckpointRequest]) -> None:
    del messages[-1]


def skip_bytes(messages: list[tp.UploadCheckpointRequest]) -> None:
    messages[3].chunk.offset += 1


def no_header(messages: list[tp.UploadCheckpointRequest]) -> None:
    del messages[0]


def second_header(messages: list[tp.UploadCheckpointRequest]) -> None:
    messages.insert(1, messages[0])


def manifest_first(messages: list[tp.UploadCheckpointRequest]) -> None:
    files = list(messages[0].header.files)
    del messages[0].header.files[:]
    messages[0].header.files.extend(reversed(files))


def twice_the_same(messages: list[tp.UploadCheckpointRequest]) -> None:
    messages[0].header.files.insert(0, messages[0].header.files[0])


@pytest.mark.parametrize(
    ("damage", "kind", "text"),
    [
        (flip_byte, DataLossError, "expected"),
        (break_crc, DataLossError, "CRC-32"),
        (cut_off, DataLossError, "crucible_manifest.json"),
        (skip_bytes, InvalidArgumentError, "chunk.offset"),
        (no_header, InvalidArgumentError, "header"),
        (second_header, InvalidArgumentError, "chunk"),
        (manifest_first, InvalidArgumentError, "the last file is crucible_manifest.json"),
        (twice_the_same, InvalidArgumentError, "each once"),
    ],
)
async def test_damaged_upload_leaves_nothing(
    wire: Wire,
    tiny_folder: Path,
    tmp_path: Path,
    damage: Callable[[list[tp.UploadCheckpointRequest]], None],
    kind: type[Exception],
    text: str,
) -> None:
    _, saved = await saved_checkpoint(wire, tiny_folder, name="good")
    messages = [message async for message in upload_messages("bad", await read_all(wire, saved))]
    damage(messages)

    async def send() -> AsyncIterator[tp.UploadCheckpointRequest]:
        for message in messages:
            yield message

    with pytest.raises(kind, match=text):
        await wire.training.UploadCheckpoint(send())
    assert [path.name for path in (tmp_path / "work" / "checkpoints").iterdir()] == ["good"]


async def test_corrupt_checkpoint_is_named_and_harms_nothing(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    session_id, saved = await saved_checkpoint(wire, tiny_folder)
    path = tmp_path / "work" / "checkpoints" / "run-1" / "step-1" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataLossError) as caught:
        await load(wire, session_id, 4, saved.uri)
    assert caught.value.reason == "CHECKPOINT_CORRUPT"
    assert caught.value.metadata["file"] == "optimizer.safetensors"
    with pytest.raises(DataLossError):
        await wire.open_sampling(checkpoint_uri=saved.uri)
    await wire.train(session_id, 5, random_data([4]))


async def test_weights_only_checkpoint(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    await wire.train(session_id, 1, random_data([9]))
    saved = await wire.save(session_id, 3, "release", weights_only=True)
    assert "optimizer.safetensors" not in [file.path for file in saved.files]
    with pytest.raises(FailedPreconditionError) as caught:
        await load(wire, session_id, 4, saved.uri)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"
    await load(wire, session_id, 5, saved.uri, weights_only=True)


async def test_names_do_not_collide(wire: Wire, tiny_folder: Path) -> None:
    session_id, _ = await saved_checkpoint(wire, tiny_folder, name="a/b")
    await wire.train(session_id, 4, random_data([4], seed=8))
    for sequence, name in enumerate(("a/b", "a/b/c", "a"), start=6):
        with pytest.raises(AlreadyExistsError) as caught:
            await wire.save(session_id, sequence, name)
        assert caught.value.reason == "CHECKPOINT_EXISTS"
    await wire.save(session_id, 9, "a/d")


async def test_delete_frees_unless_it_is_sampled_from(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    _, saved = await saved_checkpoint(wire, tiny_folder)
    sampling = await wire.open_sampling(checkpoint_uri=saved.uri)
    delete = tp.DeleteCheckpointRequest(uri=saved.uri)
    with pytest.raises(FailedPreconditionError) as caught:
        await wire.training.DeleteCheckpoint(delete)
    assert caught.value.reason == "CHECKPOINT_IN_USE"
    await engine.sampling.close(sampling)
    await wire.training.DeleteCheckpoint(delete)
    await wire.training.DeleteCheckpoint(delete)
    with pytest.raises(NotFoundError) as gone:
        await read_file(wire, saved.uri, saved.manifest_path)
    assert gone.value.reason == "CHECKPOINT_NOT_FOUND"


@pytest.mark.parametrize("uri", ["torch-engine:nothing", "torch-engine:../outside", "/etc", "torch-engine:"])
async def test_unknown_addresses_are_not_found(wire: Wire, tiny_folder: Path, tmp_path: Path, uri: str) -> None:
    session_id, _ = await saved_checkpoint(wire, tiny_folder, name="inside")
    shutil.copytree(tmp_path / "work" / "checkpoints" / "inside", tmp_path / "work" / "outside")
    with pytest.raises(NotFoundError) as by_load:
        await load(wire, session_id, 4, uri)
    with pytest.raises(NotFoundError) as by_read:
        await read_file(wire, uri, "config.json")
    assert by_load.value.reason == by_read.value.reason == "CHECKPOINT_NOT_FOUND"


@pytest.mark.parametrize("path", ["nothing.json", "../step-1/config.json", "/etc/passwd"])
async def test_files_outside_the_manifest_are_not_read(wire: Wire, tiny_folder: Path, path: str) -> None:
    _, saved = await saved_checkpoint(wire, tiny_folder)
    with pytest.raises(NotFoundError) as caught:
        await read_file(wire, saved.uri, path)
    assert caught.value.reason == "CHECKPOINT_FILE_NOT_FOUND"
