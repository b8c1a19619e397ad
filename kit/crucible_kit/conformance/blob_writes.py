"""Blob stores: a write is stored as a whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from crucible.port.blob.v1 import blob_pb2 as pb
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.conformance.blob import (
    SUITE,
    Blobs,
    check_absent,
    check_content,
    chunk,
    chunks,
    finish,
    header,
    new_key,
    read,
    sent,
    stat,
    write,
)
from crucible_kit.conformance.chunks import EDGES, LARGE_EDGES, StalledCall, check_bytes, some_bytes
from crucible_kit.conformance.expect import check, check_equal, check_refused

_STALL_SECONDS = 0.2


@SUITE.requirement(
    "BLB-WRITE-01",
    "Bytes of any size MUST come back as they were written.",
    quote="WriteBlob stores a blob: a header, chunks, and a finish with size and hash.",
)
async def _bytes_come_back(context: Blobs) -> None:
    for size in (*EDGES, *LARGE_EDGES):
        key, data = new_key(context), some_bytes(size)
        ref = await write(context, key, data, media_type="application/json")
        check_equal(ref.size_bytes, size, "size_bytes of the answer to a write")
        check_equal(ref.sha256, hashlib.sha256(data).hexdigest(), "sha256 of the answer to a write")
        check(bool(ref.uri), "an address in the answer to a write", "an empty one")
        check_equal(ref.media_type, "application/json", "media_type of the answer to a write")
        await check_content(context, key, data)


@SUITE.requirement(
    "BLB-WRITE-02",
    "A write whose content has another hash than its finish says MUST be DATA_LOSS BLOB_CORRUPT and store nothing.",
    quote="DATA_LOSS BLOB_CORRUPT when size, CRC or hash differ (nothing is stored)",
)
async def _wrong_hash(context: Blobs) -> None:
    await _check_damaged(context, [chunk(0, b"new"), finish(b"won")], "with another hash")


@SUITE.requirement(
    "BLB-WRITE-03",
    "A write whose content has another size than its finish says MUST be DATA_LOSS BLOB_CORRUPT and store nothing.",
    quote="DATA_LOSS BLOB_CORRUPT when size, CRC or hash differ (nothing is stored)",
)
async def _wrong_size(context: Blobs) -> None:
    await _check_damaged(context, [chunk(0, b"new"), finish(b"new", size=4)], "with another size")


@SUITE.requirement(
    "BLB-WRITE-04",
    "A chunk whose bytes do not have its CRC-32 MUST make the write DATA_LOSS BLOB_CORRUPT and store nothing.",
    quote="DATA_LOSS BLOB_CORRUPT when size, CRC or hash differ (nothing is stored)",
)
async def _wrong_crc(context: Blobs) -> None:
    await _check_damaged(context, [chunk(0, b"new", crc=crc32(b"new") ^ 1), finish(b"new")], "with another CRC")


async def _check_damaged(context: Blobs, messages: list[pb.WriteBlobRequest], what: str) -> None:
    fresh, used = new_key(context), new_key(context)
    await write(context, used, b"old")
    for key in (fresh, used):
        call = context.stub.WriteBlob(sent([header(key), *messages]))
        await check_refused(call, "DATA_LOSS", "BLOB_CORRUPT", what=f"a write {what}")
    await check_absent(context, fresh, f"after a refused write {what}")
    await check_content(context, used, b"old")


@SUITE.requirement(
    "BLB-WRITE-05",
    "A write that ends without a finish MUST be INVALID_ARGUMENT FIELD_INVALID and store nothing.",
    quote="a stream that ends without it stores nothing.",
)
async def _no_finish(context: Blobs) -> None:
    await _check_broken(context, lambda key: [header(key), chunk(0, b"abc")], "without a finish")
    await _check_broken(context, lambda key: [header(key)], "of a header alone")


@SUITE.requirement(
    "BLB-WRITE-06",
    "Chunks MUST be contiguous from 0: a gap or a repeat is INVALID_ARGUMENT FIELD_INVALID and stores nothing.",
    quote="Place of the chunk in the blob, in bytes; contiguous from 0.",
)
async def _chunks_out_of_place(context: Blobs) -> None:
    data = b"abc"
    await _check_broken(context, lambda key: [header(key), chunk(1, data), finish(data)], "that begins at 1")
    await _check_broken(context, lambda key: [header(key), chunk(0, b"ab"), chunk(3, b"c"), finish(data)], "with a gap")
    await _check_broken(
        context, lambda key: [header(key), chunk(0, data), chunk(0, data), finish(data)], "with a chunk twice"
    )


@SUITE.requirement(
    "BLB-WRITE-07",
    "The header MUST come first and once, the finish last and once; otherwise the write is INVALID_ARGUMENT "
    "FIELD_INVALID and "
    "stores nothing.",
    quote="The first message, exactly once.",
)
async def _parts_out_of_order(context: Blobs) -> None:
    data = b"abc"
    await _check_broken(context, lambda key: [chunk(0, data), header(key), finish(data)], "whose header comes late")
    await _check_broken(
        context, lambda key: [header(key), header(key), chunk(0, data), finish(data)], "with two headers"
    )
    await _check_broken(
        context, lambda key: [header(key), pb.WriteBlobRequest(), finish(b"")], "with a message of nothing"
    )
    await _check_broken(
        context, lambda key: [header(key), finish(b""), chunk(0, data), finish(data)], "that goes on after its finish"
    )


async def _check_broken(context: Blobs, messages: Any, what: str) -> None:
    key = new_key(context)
    call = context.stub.WriteBlob(sent(messages(key)))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"a write {what}")
    await check_absent(context, key, f"after a refused write {what}")


@SUITE.requirement(
    "BLB-WRITE-08",
    "A write that is under way MUST show nothing of itself: until its answer there is no blob, or the one before.",
    quote="A blob appears as a whole or not at all.",
)
async def _unfinished_writes(context: Blobs) -> None:
    fresh, used = new_key(context), new_key(context)
    await write(context, used, b"old")
    data = some_bytes(2 * CHUNK_BYTES + 5)
    for key in (fresh, used):
        async with StalledCall([header(key), *chunks(data)], [finish(data)]) as stalled:
            await stalled.begin(context.stub.WriteBlob)
            if key == fresh:
                await check_absent(context, key, "while its first write is under way")
            else:
                await check_content(context, key, b"old")
            await stalled.end()
        await check_content(context, key, data)


@SUITE.requirement(
    "BLB-WRITE-09",
    "A write MUST replace the blob that is there, its media type too; an empty media type is application/octet-stream.",
    quote="It replaces what stood there, unless create_only.",
)
async def _replaces(context: Blobs) -> None:
    key = new_key(context)
    await write(context, key, some_bytes(1000), media_type="text/plain")
    ref = await write(context, key, b"short")
    check_equal(ref.media_type, "application/octet-stream", "media_type where none was given")
    await check_content(context, key, b"short")
    check_equal(await stat(context, key), ref, "the blob's description")


@SUITE.requirement(
    "BLB-WRITE-10",
    "With create_only other content MUST be ALREADY_EXISTS BLOB_EXISTS and leave what is there; the same content is "
    "OK.",
    quote="Refuse to replace a blob that is there with other content; the same content is OK.",
)
async def _create_only(context: Blobs) -> None:
    key = new_key(context)
    for _ in range(2):
        await write(context, key, b"one", create_only=True)
    call = write(context, key, b"two", create_only=True)
    await check_refused(call, "ALREADY_EXISTS", "BLOB_EXISTS", what="other content with create_only")
    await check_content(context, key, b"one")


@SUITE.requirement(
    "BLB-WRITE-11",
    "A write that its caller cancels, or whose deadline passes, MUST store nothing.",
    quote="A blob appears as a whole or not at all.",
)
async def _cancelled_writes(context: Blobs) -> None:
    data = some_bytes(CHUNK_BYTES + 1)
    cancelled, late = new_key(context), new_key(context)
    async with StalledCall([header(cancelled), *chunks(data)]) as stalled:
        call = await stalled.begin(context.stub.WriteBlob)
        call.cancel()
        await asyncio.wait({call})
    await check_absent(context, cancelled, "after its only write was cancelled")
    async with StalledCall([header(late), *chunks(data)]) as stalled:
        call = await stalled.begin(context.stub.WriteBlob, timeout=_STALL_SECONDS)
        await check_refused(call, "DEADLINE_EXCEEDED", what="a write that never ends")
    await check_absent(context, late, "after the deadline of its only write")


@SUITE.requirement(
    "BLB-WRITE-12",
    "Of several writes of one key at a time one MUST win, whole.",
    quote="A blob appears as a whole or not at all.",
)
async def _writes_beside_each_other(context: Blobs) -> None:
    key = new_key(context)
    contents = {hashlib.sha256(data).hexdigest(): data for data in (some_bytes(CHUNK_BYTES + 9, n) for n in range(8))}
    await asyncio.gather(*(write(context, key, data) for data in contents.values()))
    winner = (await stat(context, key)).sha256
    check(winner in contents, "the hash of one of the contents", winner)
    check_bytes(await read(context, key), contents[winner], "the content of several writers")
