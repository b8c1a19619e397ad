"""BlobStore: bytes come back as they were stored, or an error says that they are not."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from crucible.port.blob.v1 import blob_pb2
from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.fsspec import FsspecBlobOptions, FsspecBlobStore
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.fakes.blob import FakeBlobOptions, FakeBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from tests.contract.conftest import BINDINGS, Binding
from tests.contract.processes import HAS_NODE, WHY_NOT_NODE, node
from tests.contract.refusals import refused

CHUNK = 256 * 1024
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]
RANGES = [(0, 1), (7, 0), (CHUNK - 1, 2), (CHUNK, CHUNK), (1, 2 * CHUNK), (2 * CHUNK + 9, 99), (3, 10**12)]
NO_KEYS = ["/a", "../a", "a/../b", "a//b", "a/", "./a", "..", "a\nb", "a\0b", "x" * 256]
TYPESCRIPT = pytest.param(("typescript", "unix"), marks=pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE))
ON_DISK: list[Any] = [*(("local", binding) for binding in BINDINGS), TYPESCRIPT]
IN_MEMORY = [*(("fake", binding) for binding in BINDINGS), ("memory", "object")]


@dataclass(frozen=True)
class Store:
    """A blob store over a binding.

    Attributes:
        root: folder of its files; there is none when it keeps its blobs elsewhere.
    """

    stub: Any
    binding: Binding
    root: Path

    def files(self) -> list[str]:
        """Files below its folder."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())


async def open_store(request: pytest.FixtureRequest, root: Path, context: AdapterContext) -> AsyncIterator[Store]:
    adapter, kind = request.param
    binding = Binding(kind)
    if adapter == "typescript":
        stub = await binding.stub_of_process("blob", node("blob_store.mjs", "--root", str(root)))
    elif adapter == "memory":
        stub = await binding.stub(FsspecBlobStore(FsspecBlobOptions(url=f"memory:/{root}"), context))
    elif adapter == "fake":
        stub = await binding.stub(FakeBlobStore(FakeBlobOptions(), context))
    else:
        stub = await binding.stub(LocalBlobStore(LocalBlobOptions(root=root), context))
    yield Store(stub, binding, root)
    await binding.stop()


@pytest.fixture(params=[*ON_DISK, *IN_MEMORY], ids="-".join)
async def store(request: pytest.FixtureRequest, tmp_path: Path, context: AdapterContext) -> AsyncIterator[Store]:
    """Every adapter."""
    async for store in open_store(request, tmp_path / "blobs", context):
        yield store


@pytest.fixture(params=ON_DISK, ids="-".join)
async def disk(request: pytest.FixtureRequest, tmp_path: Path, context: AdapterContext) -> AsyncIterator[Store]:
    """Those that keep a blob as a file at its key."""
    async for store in open_store(request, tmp_path / "blobs", context):
        yield store


@pytest.fixture
def stub(store: Store) -> Any:
    return store.stub


def some_bytes(size: int, seed: int = 0) -> bytes:
    pattern = hashlib.sha256(str(seed).encode()).digest()
    return (pattern * (size // len(pattern) + 1))[:size]


def header(key: str, **fields: Any) -> blob_pb2.WriteBlobRequest:
    return blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key, **fields))


def chunk(offset: int, data: bytes, crc: int | None = None) -> blob_pb2.WriteBlobRequest:
    crc = zlib.crc32(data) if crc is None else crc
    return blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(offset=offset, crc32=crc, data=data))


def finish(data: bytes, size: int | None = None) -> blob_pb2.WriteBlobRequest:
    size = len(data) if size is None else size
    sha256 = hashlib.sha256(data).hexdigest()
    return blob_pb2.WriteBlobRequest(finish=blob_pb2.WriteBlobFinish(sha256=sha256, size_bytes=size))


async def sent(requests: Iterable[blob_pb2.WriteBlobRequest]) -> AsyncIterator[blob_pb2.WriteBlobRequest]:
    for request in requests:
        yield request


async def write(stub: Any, key: str, data: bytes, **fields: Any) -> tensor_pb2.BlobRef:
    chunks = [chunk(place, data[place : place + CHUNK]) for place in range(0, len(data), CHUNK)]
    return (await stub.WriteBlob(sent([header(key, **fields), *chunks, finish(data)]))).blob


async def read(stub: Any, key: str, offset: int = 0, limit: int = 0) -> bytes:
    data = b""
    async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key=key, offset=offset, limit=limit)):
        data += response.data
    return data


async def stat(stub: Any, key: str) -> tensor_pb2.BlobRef:
    return (await stub.StatBlob(blob_pb2.StatBlobRequest(key=key))).blob


async def test_bytes_come_back_as_written(stub: Any) -> None:
    for size in SIZES:
        key, data = f"runs/r 1/\u00e9-{size}.bin", some_bytes(size)
        ref = await write(stub, key, data, media_type="application/json")
        assert (ref.size_bytes, ref.sha256) == (size, hashlib.sha256(data).hexdigest())
        assert ref.media_type == "application/json"
        assert await read(stub, key) == data
        assert await stat(stub, key) == ref


async def test_a_blob_is_a_plain_file_at_its_key_and_at_its_address(disk: Store) -> None:
    key, data = "runs/r 1/\u00e9.bin", some_bytes(CHUNK + 1)
    ref = await write(disk.stub, key, data)
    assert (disk.root / key).read_bytes() == data
    assert Path(unquote(urlparse(ref.uri).path)).read_bytes() == data


async def test_chunks_are_contiguous_checked_and_at_most_256_kib(stub: Any) -> None:
    data = some_bytes(2 * CHUNK + 5)
    ref = await write(stub, "k", data)
    responses = [response async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"))]
    assert [(r.offset, len(r.data)) for r in responses] == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, 5)]
    assert [r.crc32 for r in responses] == [zlib.crc32(r.data) for r in responses]
    assert [r.HasField("blob") for r in responses] == [True, False, False]
    assert responses[0].blob == ref


async def test_ranges_are_slices(stub: Any) -> None:
    data = some_bytes(2 * CHUNK + 10)
    await write(stub, "k", data)
    for offset, limit in RANGES:
        assert await read(stub, "k", offset, limit) == data[offset : offset + limit if limit else None]


async def test_the_end_is_an_empty_chunk_and_past_it_is_refused(stub: Any) -> None:
    await write(stub, "k", b"abc")
    responses = [response async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k", offset=3))]
    assert [(r.offset, r.data) for r in responses] == [(3, b"")]
    with refused(OutOfRangeError, "RANGE", says="4"):
        await read(stub, "k", 4)


async def test_what_is_not_there_is_not_found(stub: Any) -> None:
    with refused(NotFoundError, "BLOB_NOT_FOUND", says="'runs/x'"):
        await stat(stub, "runs/x")
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await read(stub, "runs/x")
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="runs/x"))
    await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="runs/x", allow_missing=True))


async def test_what_is_no_key_is_refused(stub: Any, tmp_path: Path) -> None:
    await refuse_keys(stub, NO_KEYS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_the_names_of_a_store_s_own_files_are_no_keys(disk: Store) -> None:
    await refuse_keys(disk.stub, [".meta", ".meta/a"])


async def refuse_keys(stub: Any, keys: Iterable[str]) -> None:
    for key in keys:
        for call in (stat, read):
            with refused(InvalidArgumentError, "FIELD_INVALID", field="key"):
                await call(stub, key)
        with refused(InvalidArgumentError, "FIELD_INVALID", field="header.key"):
            await write(stub, key, b"x")
        with refused(InvalidArgumentError, "FIELD_INVALID", field="key"):
            await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key))


BROKEN_WRITES = {
    "no message": ([], "header"),
    "no header": ([chunk(0, b"abc")], "header"),
    "two headers": ([header("k"), header("k")], "header"),
    "no finish": ([header("k"), chunk(0, b"abc")], "finish"),
    "nothing in a message": ([header("k"), blob_pb2.WriteBlobRequest()], "part"),
    "a gap": ([header("k"), chunk(0, b"abc"), chunk(4, b"e"), finish(b"abc")], "chunk.offset"),
    "a repeat": ([header("k"), chunk(0, b"abc"), chunk(0, b"abc"), finish(b"abc")], "chunk.offset"),
    "a chunk after the finish": ([header("k"), finish(b""), chunk(0, b"abc")], "chunk"),
    "two finishes": ([header("k"), finish(b""), finish(b"")], "finish"),
}


async def test_a_broken_stream_stores_nothing(store: Store) -> None:
    for requests, field in BROKEN_WRITES.values():
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await store.stub.WriteBlob(sent(requests))
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stat(store.stub, "k")
    await store.binding.stop()
    assert store.files() == []


DAMAGED_WRITES = {
    "size": [header("k"), chunk(0, b"new"), finish(b"new", size=4)],
    "hash": [header("k"), chunk(0, b"new"), finish(b"won")],
    "crc": [header("k"), chunk(0, b"new", crc=1), finish(b"new")],
    "short": [header("k"), chunk(0, b"ne"), finish(b"new")],
}


async def test_damaged_content_leaves_what_was_there(store: Store) -> None:
    stub = store.stub
    await write(stub, "k", b"old")
    before = store.files()
    for requests in DAMAGED_WRITES.values():
        with refused(DataLossError, "BLOB_CORRUPT", says="nothing was stored"):
            await stub.WriteBlob(sent(requests))
    assert await read(stub, "k") == b"old"
    await store.binding.stop()
    assert store.files() == before


async def test_a_sender_that_fails_half_way_stores_nothing(store: Store) -> None:
    await write(store.stub, "k", b"old")
    before = store.files()

    async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield header("k")
        yield chunk(0, b"new")
        raise LookupError("the checkpoint's file is gone")

    with pytest.raises(LookupError, match="the checkpoint's file is gone"):
        await store.stub.WriteBlob(requests())
    assert await read(store.stub, "k") == b"old"
    await store.binding.stop()
    assert store.files() == before


async def test_a_cancelled_write_stores_nothing(store: Store) -> None:
    arrived = asyncio.Event()

    async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield header("k")
        yield chunk(0, some_bytes(CHUNK))
        arrived.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(store.stub.WriteBlob(requests()))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stat(store.stub, "k")
    await store.binding.stop()
    assert store.files() == []


async def test_a_whole_read_of_changed_bytes_fails_before_its_last_chunk(disk: Store) -> None:
    stub, root = disk.stub, disk.root
    for size in (1, CHUNK, 2 * CHUNK + 1):
        data = some_bytes(size)
        await write(stub, "k", data)
        (root / "k").write_bytes(bytes([data[0] ^ 1]) + data[1:])
        arrived = 0
        with refused(DataLossError, "BLOB_CORRUPT", says=hashlib.sha256(data).hexdigest()):
            async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k")):
                arrived += len(response.data)
        assert arrived < size


async def test_a_cut_blob_is_corrupt_for_every_reader(disk: Store) -> None:
    stub, root = disk.stub, disk.root
    await write(stub, "k", b"abcdef")
    (root / "k").write_bytes(b"abc")
    for call in (stat(stub, "k"), read(stub, "k"), read(stub, "k", 1, 1)):
        with refused(DataLossError, "BLOB_CORRUPT"):
            await call


async def test_a_damaged_record_is_corrupt(disk: Store) -> None:
    stub, root = disk.stub, disk.root
    await write(stub, "k", b"abc")
    [record] = (root / ".meta").rglob("*.json")
    record.write_bytes(b"{}")
    with refused(DataLossError, "BLOB_CORRUPT", says=str(record)):
        await read(stub, "k")


async def test_writes_replace_unless_create_only(stub: Any) -> None:
    await write(stub, "k", b"one", create_only=True)
    await write(stub, "k", b"one", create_only=True)
    with refused(AlreadyExistsError, "BLOB_EXISTS"):
        await write(stub, "k", b"two", create_only=True)
    assert await read(stub, "k") == b"one"
    ref = await write(stub, "k", b"three", media_type="text/plain")
    assert await read(stub, "k") == b"three"
    assert await stat(stub, "k") == ref


async def test_a_deleted_blob_is_gone_and_its_name_free(store: Store) -> None:
    stub = store.stub
    await write(stub, "a/b/c", b"x")
    await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="a/b/c"))
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await read(stub, "a/b/c")
    await write(stub, "a", b"y")
    assert await read(stub, "a") == b"y"
    await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="a"))
    await store.binding.stop()
    assert store.files() == []


async def test_a_name_is_a_blob_or_a_folder(disk: Store) -> None:
    stub = disk.stub
    await write(stub, "a/b", b"x")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="header.key", says="below it"):
        await write(stub, "a", b"y")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="header.key", says="'a/b/c'"):
        await write(stub, "a/b/c", b"y")
    assert await read(stub, "a/b") == b"x"


async def test_readers_beside_writers_see_one_whole_content(stub: Any) -> None:
    contents = [some_bytes(2 * CHUNK + 3, seed) for seed in range(2)]
    await write(stub, "k", contents[0])

    async def writer() -> None:
        for turn in range(10):
            await write(stub, "k", contents[turn % 2])

    async def reader() -> None:
        for _ in range(10):
            assert await read(stub, "k") in contents

    await asyncio.gather(writer(), *(reader() for _ in range(6)))


async def test_lists_page_through_every_key_once_by_key(stub: Any) -> None:
    keys = ["x", "x-1", "x.y/a", "y/a", "y/b/c", "y/b-c", "y0", "\u00e9/\U0001f389", "y/b/d"]
    refs = {key: await write(stub, key, key.encode()) for key in keys}

    async def pages(prefix: str, size: int) -> list[blob_pb2.BlobEntry]:
        found, token = [], ""
        while True:
            request = blob_pb2.ListBlobsRequest(prefix=prefix, page_size=size, page_token=token)
            response = await stub.ListBlobs(request)
            assert len(response.blobs) <= size
            found.extend(response.blobs)
            token = response.next_page_token
            if not token:
                return found

    for prefix in ("", "x", "x-", "y/", "y/b", "y/b/", "z"):
        for size in (1, 2, 100):
            listed = await pages(prefix, size)
            assert [each.key for each in listed] == sorted(key for key in keys if key.startswith(prefix))
            assert all(each.blob == refs[each.key] for each in listed)


async def test_page_tokens_belong_to_their_list(stub: Any) -> None:
    for key in ("a/1", "a/2", "b/1"):
        await write(stub, key, b"x")
    token = (await stub.ListBlobs(blob_pb2.ListBlobsRequest(prefix="a/", page_size=1))).next_page_token
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        await stub.ListBlobs(blob_pb2.ListBlobsRequest(prefix="b/", page_size=1, page_token=token))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="page_size"):
        await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=-1))


async def test_files_that_other_tools_put_there_are_blobs(disk: Store) -> None:
    stub, root = disk.stub, disk.root
    (root / "given").mkdir()
    (root / "given" / "weights.bin").write_bytes(b"weights")
    listed = (await stub.ListBlobs(blob_pb2.ListBlobsRequest())).blobs
    assert [(each.key, each.blob.size_bytes, each.blob.sha256) for each in listed] == [("given/weights.bin", 7, "")]
    ref = await stat(stub, "given/weights.bin")
    assert ref.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert await read(stub, "given/weights.bin") == b"weights"


async def test_a_full_disk_stores_nothing_and_says_so(
    binding: Binding, tmp_path: Path, context: AdapterContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "blobs"
    stub = await binding.stub(LocalBlobStore(LocalBlobOptions(root=root), context))

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with refused(ResourceExhaustedError, "DISK_FULL"):
            await write(stub, "k", b"abc")
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stat(stub, "k")
    await binding.stop()
    assert Store(stub, binding, root).files() == []
    full = await binding.stub(FakeBlobStore(FakeBlobOptions(max_bytes=5), context))
    await write(full, "k", b"abc")
    await write(full, "k", b"abcde")
    with refused(ResourceExhaustedError, "DISK_FULL"):
        await write(full, "l", b"f")
