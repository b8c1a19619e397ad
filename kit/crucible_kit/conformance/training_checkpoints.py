"""Training adapters: checkpoints are exact, whole, and go where they are taken."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.conformance.chunks import read_chunks
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused
from crucible_kit.conformance.training_session import (
    SUITE,
    Session,
    Training,
    check_same,
    check_same_logprobs,
    open_session,
)

_FILES = "training.checkpoint_files"


async def trained(context: Training, steps: int = 2) -> Session:
    """A session some steps from its beginning, so that it has an optimizer's state."""
    session = await open_session(context)
    for seed in range(steps):
        await session.train(session.data(2, seed=seed))
    return session


async def read_file(context: Training, uri: str, path: str) -> bytes:
    """One file of a checkpoint, its chunks looked at."""
    request = pb.ReadCheckpointFileRequest(uri=uri, path=path)
    return await read_chunks(context.stub.ReadCheckpointFile(request), what=path)


async def read_files(context: Training, checkpoint: pb.CheckpointResult) -> dict[str, bytes]:
    """All files by path, the manifest last."""
    paths = [*(file.path for file in checkpoint.files), checkpoint.manifest_path]
    return {path: await read_file(context, checkpoint.uri, path) for path in paths}


def upload_messages(name: str, files: dict[str, bytes]) -> list[pb.UploadCheckpointRequest]:
    """The messages that bring these files."""
    described = [
        pb.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]
    messages = [pb.UploadCheckpointRequest(header=pb.UploadCheckpointHeader(name=name, files=described))]
    for index, data in enumerate(files.values()):
        for offset in range(0, len(data), CHUNK_BYTES):
            part = data[offset : offset + CHUNK_BYTES]
            chunk = pb.UploadCheckpointChunk(file_index=index, offset=offset, crc32=crc32(part), data=part)
            messages.append(pb.UploadCheckpointRequest(chunk=chunk))
    return messages


async def upload(context: Training, messages: Iterable[pb.UploadCheckpointRequest]) -> pb.CheckpointResult:
    """Brings a checkpoint, which is deleted after the check."""

    async def stream() -> AsyncIterator[pb.UploadCheckpointRequest]:
        for each in messages:
            yield each

    checkpoint = (await context.stub.UploadCheckpoint(stream())).checkpoint
    forget = pb.DeleteCheckpointRequest(uri=checkpoint.uri)
    context.defer(lambda: context.stub.DeleteCheckpoint(forget))
    return checkpoint


@SUITE.requirement(
    "TRN-CKPT-01",
    "SaveCheckpoint MUST list the files, sorted by path, with sizes and hashes, the manifest's hash, and the steps "
    "taken.",
    quote="Its files, sorted by path, without the manifest.",
)
async def _described(context: Training) -> None:
    session = await trained(context)
    saved = await session.save(context.name())
    check(bool(saved.uri), "an address", "an empty one")
    paths = [file.path for file in saved.files]
    check_equal(paths, sorted(paths), "the order of files")
    check(len(paths) > 0 and len(set(paths)) == len(paths), "files, each once", paths)
    check(saved.manifest_path not in paths, "the manifest apart from the files", paths)
    check(all(file.size_bytes >= 0 and len(file.sha256) == 64 for file in saved.files), "sizes and hashes", saved.files)
    check_equal(len(saved.manifest_sha256), 64, "digits of manifest_sha256")
    check_equal((saved.optim_steps, saved.weights_version), (2, 2), "(optim_steps, weights_version)")
    check(not saved.HasField("expire_time"), "no expire_time without a ttl", saved.expire_time)
    check_equal(saved.HasField("lora"), session.created.HasField("lora"), "whether the checkpoint holds an adapter")


@SUITE.requirement(
    "TRN-CKPT-02",
    "A loaded checkpoint MUST give the logprobs that the session had when it was saved.",
    quote="LoadCheckpoint enqueues the replacement of the session's weights",
)
async def _same_weights(context: Training) -> None:
    session = await trained(context)
    data = session.data(3, seed=9)
    expected = await session.logprobs(data)
    saved = await session.save(context.name())
    await session.train(session.lesson(), learning_rate=0.1)
    await session.load(saved.uri)
    check_same_logprobs(context, await session.logprobs(data), expected, "logprobs after going back")
    other = await open_session(context)
    loaded = await other.load(saved.uri)
    check_equal(loaded.manifest_sha256, saved.manifest_sha256, "manifest_sha256 of what was loaded")
    check_same_logprobs(context, await other.logprobs(data), expected, "logprobs in another session")
    check_equal((await other.info()).optim_steps, 2, "optim_steps after loading a checkpoint of step 2")


@SUITE.requirement(
    "TRN-CKPT-03",
    "A checkpoint MUST hold the optimizer's state: training goes on from it with the same losses and steps.",
    quote="Leave the optimizer's state out and start a new optimizer.",
)
async def _same_steps(context: Training) -> None:
    session = await trained(context)
    saved = await session.save(context.name())
    resumed = await open_session(context)
    await resumed.load(saved.uri)
    for seed in range(20, 23):
        data = session.data(2, seed=seed)
        losses = [(await each.forward_backward(data)).loss for each in (resumed, session)]
        steps = [await each.step() for each in (resumed, session)]
        check_same(context, losses[0], losses[1], "the loss of a session that was saved and loaded")
        check_same(context, steps[0].grad_norm, steps[1].grad_norm, "its grad_norm")
        check_same(context, steps[0].update_norm, steps[1].update_norm, "its update_norm")
        check_equal(steps[0].optim_steps, steps[1].optim_steps, "its optim_steps")


@SUITE.requirement(
    "TRN-CKPT-04",
    "A checkpoint with weights_only MUST hold no optimizer's state: loading it with one is refused with "
    "FAILED_PRECONDITION "
    "CHECKPOINT_MISMATCH, without one it starts a new optimizer.",
    quote="Otherwise a checkpoint without it is refused.",
)
async def _weights_only(context: Training) -> None:
    session = await trained(context)
    whole, bare = await session.save(context.name()), await session.save(context.name(), weights_only=True)
    sizes = [sum(file.size_bytes for file in each.files) for each in (whole, bare)]
    check(sizes[1] < sizes[0], f"a smaller checkpoint than the {sizes[0]} bytes with the optimizer", sizes[1])
    other = await open_session(context)
    refused = other.load(bare.uri)
    await check_refused(
        refused, "FAILED_PRECONDITION", "CHECKPOINT_MISMATCH", what="loading an optimizer that is not there"
    )
    data = session.data(2, seed=30)
    expected = await session.logprobs(data)
    steps = []
    for uri in (whole.uri, bare.uri):
        await other.load(uri, weights_only=True)
        check_same_logprobs(context, await other.logprobs(data), expected, "logprobs of a checkpoint's weights")
        steps.append((await other.train(data)).update_norm)
    check_same(context, steps[0], steps[1], "update_norm of a new optimizer")
    going_on = (await session.train(data)).update_norm
    check(abs(steps[0] - going_on) > 1e-4 * going_on, "another step than that of the old optimizer", steps[0])


@SUITE.requirement(
    "TRN-CKPT-05",
    "Saving to a name that exists with other content MUST fail with ALREADY_EXISTS CHECKPOINT_EXISTS and leave what "
    "is there.",
    quote="Saving to a name that exists with other content is ALREADY_EXISTS CHECKPOINT_EXISTS.",
)
async def _names(context: Training) -> None:
    session = await trained(context)
    name, data = context.name(), session.data(2, seed=9)
    expected = await session.logprobs(data)
    saved = await session.save(name)
    await session.train(session.lesson(), learning_rate=0.1)
    await check_refused(session.save(name), "ALREADY_EXISTS", "CHECKPOINT_EXISTS", what="a name that exists")
    await session.load(saved.uri)
    check_same_logprobs(context, await session.logprobs(data), expected, "logprobs of the first checkpoint")


@SUITE.requirement(
    "TRN-CKPT-06",
    "Loading what is not there MUST fail with NOT_FOUND CHECKPOINT_NOT_FOUND and leave the weights.",
    quote="NOT_FOUND CHECKPOINT_NOT_FOUND",
)
async def _missing(context: Training) -> None:
    session = await trained(context)
    data = session.data(2)
    before = await session.logprobs(data)
    call = session.load(f"no-such-checkpoint/{context.name()}")
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="a checkpoint that is not there")
    check_same_logprobs(context, await session.logprobs(data), before, "logprobs after a failed load")


@SUITE.requirement(
    "TRN-CKPT-07",
    "LoadCheckpoint MUST zero the pending gradients.",
    quote="Pending gradients are zeroed.",
)
async def _gradients_go(context: Training) -> None:
    session = await trained(context)
    saved = await session.save(context.name())
    await session.send_pass(session.data(2))
    await session.load(saved.uri)
    step = session.step()
    await check_refused(step, "FAILED_PRECONDITION", "NO_GRADIENTS", what="a step right after loading")


@SUITE.requirement(
    "TRN-CKPT-08",
    "DeleteCheckpoint MUST free a checkpoint; one that is absent is OK.",
    quote="DeleteCheckpoint frees the adapter's copy of a checkpoint. Absent is OK.",
)
async def _deletes(context: Training) -> None:
    session = await trained(context, steps=1)
    saved = await session.save(context.name())
    for _ in range(2):
        await context.stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(uri=saved.uri))
    call = session.load(saved.uri)
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="loading a deleted checkpoint")


@SUITE.requirement(
    "TRN-CKPT-09",
    "A checkpoint with a ttl MUST say when it expires.",
    quote="When it will be deleted. Absent: never by itself.",
)
async def _expires(context: Training) -> None:
    session = await trained(context, steps=1)
    request = session.request("SaveCheckpoint", name=context.name())
    request.ttl.seconds = 3600
    response = await session.result(await session.enqueue("SaveCheckpoint", request))
    forget = pb.DeleteCheckpointRequest(uri=response.checkpoint.uri)
    context.defer(lambda: context.stub.DeleteCheckpoint(forget))
    created = response.operation.create_time.ToNanoseconds()
    kept = (response.checkpoint.expire_time.ToNanoseconds() - created) / 1e9
    check(3590 <= kept <= 3720, "an expire_time about 3,600 s after the call", f"{kept} s")


@SUITE.requirement(
    "TRN-FILES-01",
    "The files of a checkpoint MUST be read in chunks of at most 256 KiB and have the sizes and hashes that were told.",
    quote="ReadCheckpointFile streams one file of a checkpoint that this adapter holds, in chunks of at most 256 KiB.",
    capability=_FILES,
)
async def _files(context: Training) -> None:
    session = await trained(context)
    saved = await session.save(context.name())
    files = await read_files(context, saved)
    for file in saved.files:
        data = files[file.path]
        check_equal(len(data), file.size_bytes, f"the size of {file.path}")
        check_equal(hashlib.sha256(data).hexdigest(), file.sha256, f"the hash of {file.path}")
    manifest = files[saved.manifest_path]
    check_equal(hashlib.sha256(manifest).hexdigest(), saved.manifest_sha256, "the hash of the manifest")
    for file in saved.files:
        check(file.sha256.encode() in manifest, f"the hash of {file.path} in the manifest", "none")


@SUITE.requirement(
    "TRN-FILES-02",
    "What is no file of a checkpoint MUST be NOT_FOUND CHECKPOINT_FILE_NOT_FOUND, wherever the path leads.",
    quote="NOT_FOUND CHECKPOINT_NOT_FOUND or CHECKPOINT_FILE_NOT_FOUND.",
    capability=_FILES,
)
async def _no_files(context: Training) -> None:
    session = await trained(context, steps=1)
    saved = await session.save(context.name())
    for path in ("no-such-file", "../../../../../../etc/passwd", "/etc/passwd"):
        call = read_file(context, saved.uri, path)
        await check_refused(
            call,
            "NOT_FOUND|INVALID_ARGUMENT",
            "CHECKPOINT_FILE_NOT_FOUND",
            "FIELD_INVALID",
            what=f"the file {path!r}",
        )
    call = read_file(context, f"no-such-checkpoint/{context.name()}", saved.manifest_path)
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="a file of a checkpoint that is not there")


@SUITE.requirement(
    "TRN-FILES-03",
    "An uploaded checkpoint MUST be the one it was read from: the same hashes, weights and steps.",
    quote="UploadCheckpoint brings a checkpoint to the adapter",
    capability=_FILES,
)
async def _uploads(context: Training) -> None:
    session = await trained(context)
    saved = await session.save(context.name())
    files = await read_files(context, saved)
    uploaded = await upload(context, upload_messages(context.name(), files))
    check_equal(list(uploaded.files), list(saved.files), "the files of an uploaded checkpoint")
    check_equal(uploaded.manifest_sha256, saved.manifest_sha256, "its manifest_sha256")
    check_equal(uploaded.optim_steps, saved.optim_steps, "its optim_steps")
    other = await open_session(context)
    await other.load(uploaded.uri)
    data = session.data(2, seed=30)
    step, expected = await other.train(data), await session.train(data)
    check_same(context, step.grad_norm, expected.grad_norm, "grad_norm after an uploaded checkpoint")
    check_same(context, step.update_norm, expected.update_norm, "update_norm after an uploaded checkpoint")


@SUITE.requirement(
    "TRN-FILES-04",
    "A damaged upload MUST be DATA_LOSS CHECKPOINT_CORRUPT and leave nothing: the name stays free.",
    quote="DATA_LOSS CHECKPOINT_CORRUPT with file, expected and actual hash.",
    capability=_FILES,
)
async def _damaged_uploads(context: Training) -> None:
    session = await trained(context, steps=1)
    files = await read_files(context, await session.save(context.name()))
    name = context.name()
    for what, damage in (("a changed byte", _change_byte), ("no last chunk", _cut_off)):
        messages = upload_messages(name, files)
        damage(messages)
        call = upload(context, messages)
        await check_refused(call, "DATA_LOSS", "CHECKPOINT_CORRUPT", what=f"an upload with {what}")
    await upload(context, upload_messages(name, files))


def _change_byte(messages: list[Any]) -> None:
    chunk = next(each.chunk for each in messages if each.WhichOneof("part") == "chunk")
    chunk.data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
    chunk.crc32 = crc32(chunk.data)


def _cut_off(messages: list[Any]) -> None:
    del messages[-1]


@SUITE.requirement(
    "TRN-FILES-05",
    "An upload whose parts come out of order MUST be INVALID_ARGUMENT FIELD_INVALID and leave nothing.",
    quote="The first message, exactly once.",
    capability=_FILES,
)
async def _disordered_uploads(context: Training) -> None:
    session = await trained(context, steps=1)
    files = await read_files(context, await session.save(context.name()))
    name = context.name()

    def without_header(messages: list[Any]) -> None:
        del messages[0]

    def two_headers(messages: list[Any]) -> None:
        messages.insert(1, messages[0])

    def gap(messages: list[Any]) -> None:
        messages[1].chunk.offset += 1

    for what, change in (("no header", without_header), ("two headers", two_headers), ("a gap", gap)):
        messages = upload_messages(name, files)
        if len(messages) < 3:
            raise CheckSkipped("the adapter's checkpoints have no content")
        change(messages)
        call = upload(context, messages)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"an upload with {what}")
    await upload(context, upload_messages(name, files))
