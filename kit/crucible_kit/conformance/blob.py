"""Blob stores: bytes come back as they were stored, as a whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from pydantic import Field

from crucible.port.blob.v1 import blob_pb2 as pb
from crucible.type.v1 import tensor_pb2
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.conformance.chunks import StalledCall, check_bytes, read_chunks, some_bytes
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_equal, check_refused, collect, one_by_one
from crucible_kit.conformance.paging import Page, check_pages
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings

_NO_KEYS = ("/a", "../a", "a/../b", "a//b", "a/", "./a", "..", "a/.")
_STALL_SECONDS = 0.3


class BlobSettings(SuiteSettings):
    """Settings of the suite of blob stores."""

    prefix: str = Field(
        default="conformance/", pattern="([^/]+/)*", description="Keys that the suite writes begin with it."
    )


SUITE = Suite(port="blob", settings=BlobSettings)
Blobs = Context[BlobSettings]


def header(key: str, **fields: Any) -> pb.WriteBlobRequest:
    """The first message of a write."""
    return pb.WriteBlobRequest(header=pb.WriteBlobHeader(key=key, **fields))


def chunk(offset: int, data: bytes, crc: int | None = None) -> pb.WriteBlobRequest:
    """A chunk of a write."""
    return pb.WriteBlobRequest(chunk=pb.BlobChunk(offset=offset, crc32=crc32(data) if crc is None else crc, data=data))


def chunks(data: bytes) -> list[pb.WriteBlobRequest]:
    """All chunks of a write."""
    return [chunk(place, data[place : place + CHUNK_BYTES]) for place in range(0, len(data), CHUNK_BYTES)]


def finish(data: bytes, size: int | None = None) -> pb.WriteBlobRequest:
    """The last message of a write."""
    size = len(data) if size is None else size
    return pb.WriteBlobRequest(finish=pb.WriteBlobFinish(sha256=hashlib.sha256(data).hexdigest(), size_bytes=size))


async def sent(messages: Iterable[pb.WriteBlobRequest]) -> AsyncIterator[pb.WriteBlobRequest]:
    """A stream of messages."""
    for each in messages:
        yield each


def new_key(context: Blobs, name: str = "blob") -> str:
    """A key nobody has used; what is stored there goes after the check."""
    key = f"{context.settings.prefix}{context.name()}/{name}"
    forget(context, key)
    return key


def forget(context: Blobs, key: str) -> None:
    """Deletes a blob after the check."""
    context.defer(lambda: context.stub.DeleteBlob(pb.DeleteBlobRequest(key=key, allow_missing=True)))


async def write(context: Blobs, key: str, data: bytes, **fields: Any) -> tensor_pb2.BlobRef:
    """Stores a blob."""
    return (await context.stub.WriteBlob(sent([header(key, **fields), *chunks(data), finish(data)]))).blob


async def stat(context: Blobs, key: str) -> tensor_pb2.BlobRef:
    """Describes a blob."""
    return (await context.stub.StatBlob(pb.StatBlobRequest(key=key))).blob


async def read(context: Blobs, key: str, offset: int = 0, limit: int = 0) -> bytes:
    """Reads a range of a blob, looking at its chunks."""
    request = pb.ReadBlobRequest(key=key, offset=offset, limit=limit)
    return await read_chunks(context.stub.ReadBlob(request), start=offset, what=f"blob {key!r}")


async def check_content(context: Blobs, key: str, expected: bytes) -> None:
    """The blob has this content; its description, too."""
    described = await stat(context, key)
    check_equal(described.size_bytes, len(expected), f"size_bytes of {key!r}")
    check_equal(described.sha256, hashlib.sha256(expected).hexdigest(), f"sha256 of {key!r}")
    check_bytes(await read(context, key), expected, f"blob {key!r}")


async def check_absent(context: Blobs, key: str, what: str) -> None:
    """There is no such blob, and no list has it."""
    await check_refused(stat(context, key), "NOT_FOUND", "BLOB_NOT_FOUND", what=f"StatBlob {what}")
    await check_refused(read(context, key), "NOT_FOUND", "BLOB_NOT_FOUND", what=f"ReadBlob {what}")
    listed = (await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=key))).blobs
    check_equal([each.key for each in listed], [], f"the list of blobs {what}")


@SUITE.samples
async def _samples(context: Blobs) -> Samples:
    key, data = new_key(context), b"sample"
    await write(context, key, data)
    return {
        "StatBlob": pb.StatBlobRequest(key=key),
        "ReadBlob": pb.ReadBlobRequest(key=key),
        "WriteBlob": [header(key), chunk(0, data), finish(data)],
        "ListBlobs": pb.ListBlobsRequest(prefix=key),
        "DeleteBlob": pb.DeleteBlobRequest(key=key),
    }


@SUITE.pings
async def _ping(context: Blobs) -> Any:
    return await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=context.settings.prefix, page_size=1))


@SUITE.requirement(
    "BLB-READ-01",
    "A read MUST be chunks of at most 256 KiB, contiguous, each with its CRC-32; the first describes the blob.",
    quote="ReadBlob streams a byte range in chunks of at most 256 KiB.",
)
async def _read_in_chunks(context: Blobs) -> None:
    key, data = new_key(context), some_bytes(2 * CHUNK_BYTES + 5)
    ref = await write(context, key, data)
    responses = await collect(context.stub.ReadBlob(pb.ReadBlobRequest(key=key)))
    check_equal(responses[0].blob, ref, "the description in the first chunk")
    check_equal([each.HasField("blob") for each in responses[1:]].count(True), 0, "descriptions in later chunks")
    await check_content(context, key, data)


@SUITE.requirement(
    "BLB-READ-02",
    "A read from `offset` of at most `limit` bytes MUST be exactly that slice; limit 0 is to the end.",
    quote="At most so many bytes. 0: to the end.",
)
async def _ranges(context: Blobs) -> None:
    key, data = new_key(context), some_bytes(2 * CHUNK_BYTES + 10)
    await write(context, key, data)
    ranges = [
        *((0, 1), (7, 0), (CHUNK_BYTES - 1, 2), (CHUNK_BYTES, CHUNK_BYTES), (1, 2 * CHUNK_BYTES)),
        *((2 * CHUNK_BYTES + 9, 99), (2 * CHUNK_BYTES + 9, 1), (3, 2**62), (0, len(data)), (0, len(data) - 1)),
    ]
    for offset, limit in ranges:
        expected = data[offset : offset + limit] if limit else data[offset:]
        check_bytes(await read(context, key, offset, limit), expected, f"the range of offset {offset}, limit {limit}")


@SUITE.requirement(
    "BLB-READ-03",
    "A read at the end MUST be one chunk without bytes; a read past the end is OUT_OF_RANGE RANGE.",
    quote="OUT_OF_RANGE RANGE when offset is past the end.",
)
async def _ends(context: Blobs) -> None:
    for data in (b"", b"abc"):
        key = new_key(context)
        await write(context, key, data)
        check_bytes(await read(context, key, len(data)), b"", "a read at the end")
        for offset in (len(data) + 1, 2**63 - 1):
            past = read(context, key, offset)
            await check_refused(past, "OUT_OF_RANGE", "RANGE", what=f"a read at {offset}, past the end,")


@SUITE.requirement(
    "BLB-READ-04",
    "A reader that goes away in the middle MUST leave the blob readable for others.",
)
async def _readers_that_leave(context: Blobs) -> None:
    key, data = new_key(context), some_bytes(4 * CHUNK_BYTES)
    await write(context, key, data)
    for _ in range(8):
        async with aclosing(context.stub.ReadBlob(pb.ReadBlobRequest(key=key))) as stream:
            await anext(stream)
    await check_content(context, key, data)


@SUITE.requirement(
    "BLB-MISSING-01",
    "What is not there MUST be NOT_FOUND BLOB_NOT_FOUND.",
    quote="Errors common to all: NOT_FOUND BLOB_NOT_FOUND.",
)
async def _what_is_not_there(context: Blobs) -> None:
    key = new_key(context)
    await check_absent(context, key, "of a key that nobody wrote")
    call = context.stub.DeleteBlob(pb.DeleteBlobRequest(key=key))
    await check_refused(call, "NOT_FOUND", "BLOB_NOT_FOUND", what="DeleteBlob of a key that nobody wrote")


@SUITE.requirement(
    "BLB-KEY-01",
    "What is no key MUST be INVALID_ARGUMENT FIELD_INVALID everywhere.",
    quote="Keys are relative paths with '/', without '.', '..' or empty parts; anything else is INVALID_ARGUMENT "
    "FIELD_INVALID.",
)
async def _what_is_no_key(context: Blobs) -> None:
    for key in _NO_KEYS:
        calls = {
            "StatBlob": stat(context, key),
            "ReadBlob": read(context, key),
            "WriteBlob": write(context, key, b"x"),
            "DeleteBlob": context.stub.DeleteBlob(pb.DeleteBlobRequest(key=key)),
        }
        for name, call in one_by_one(calls):
            await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=f"{name} of {key!r}")


@SUITE.requirement(
    "BLB-KEY-02",
    "Keys MUST be kept as they are: letters of any script, spaces and case.",
)
async def _keys_of_any_letters(context: Blobs) -> None:
    folder = f"{context.settings.prefix}{context.name()}"
    keys = [f"{folder}/{name}" for name in ("A b", "a b", "\u00e9\U0001f389", "x.y-z_0~", "%41", "a+b", "#?&=")]
    for number, key in enumerate(keys):
        forget(context, key)
        await write(context, key, str(number).encode())
    for number, key in enumerate(keys):
        await check_content(context, key, str(number).encode())
    listed = (await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=f"{folder}/"))).blobs
    check_equal(sorted(each.key for each in listed), sorted(keys), "the list of these keys")


@SUITE.requirement(
    "BLB-LIST-01",
    "ListBlobs MUST list exactly the blobs whose key begins with the prefix, sorted by key, with size and address.",
    quote="ListBlobs lists blobs by prefix, sorted by key.",
)
async def _lists(context: Blobs) -> None:
    names = ["b", "x/c", "x-", "x.b", "B", "C", "x/a"]
    folder = await _folder_of(context, names)
    expected = sorted(f"{folder}/{name}" for name in names)
    response = await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=f"{folder}/"))
    check_equal([each.key for each in response.blobs], expected, "the keys of a folder")
    for each in response.blobs:
        check_equal(each.blob.size_bytes, len(each.key.encode()), f"size_bytes of {each.key!r} in a list")
        check(bool(each.blob.uri), f"an address of {each.key!r} in a list", "an empty one")
    for prefix in ("x", "x/", "x/a", "x.", "y", "x/a/"):
        found = await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=f"{folder}/{prefix}"))
        beginning = [key for key in expected if key.startswith(f"{folder}/{prefix}")]
        check_equal([each.key for each in found.blobs], beginning, f"the keys that begin with {prefix!r}")


async def _folder_of(context: Blobs, names: list[str]) -> str:
    """A folder of blobs, each with its own key as content."""
    folder = f"{context.settings.prefix}{context.name()}"
    keys = [f"{folder}/{name}" for name in names]

    async def forget_all() -> None:
        requests = [pb.DeleteBlobRequest(key=key, allow_missing=True) for key in keys]
        await asyncio.gather(*map(context.stub.DeleteBlob, requests))

    context.defer(forget_all)
    await asyncio.gather(*(write(context, key, key.encode()) for key in keys))
    return folder


@SUITE.requirement(
    "BLB-LIST-02",
    "Pages of any size MUST give every blob once, in order.",
    quote="At most so many, up to 500. 0: 50.",
)
async def _pages(context: Blobs) -> None:
    names = [f"n{number:02}" for number in range(53)]
    folder = await _folder_of(context, names)

    async def page(size: int, token: str) -> Page:
        request = pb.ListBlobsRequest(prefix=f"{folder}/", page_size=size, page_token=token)
        response = await context.stub.ListBlobs(request)
        return Page([each.key for each in response.blobs], response.next_page_token)

    await check_pages(page, [f"{folder}/{name}" for name in names], "the blobs of a folder")


@SUITE.requirement(
    "BLB-LIST-03",
    "A page token MUST be taken only for the list it comes from: otherwise INVALID_ARGUMENT PAGE_TOKEN_INVALID.",
    quote="Where to go on, from the response before.",
)
async def _tokens(context: Blobs) -> None:
    folder = await _folder_of(context, ["a1", "a2", "a3"])
    first = await context.stub.ListBlobs(pb.ListBlobsRequest(prefix=f"{folder}/a", page_size=1))
    for prefix, token in ((f"{folder}/", first.next_page_token), (f"{folder}/a", "no-token-of-yours")):
        call = context.stub.ListBlobs(pb.ListBlobsRequest(prefix=prefix, page_size=1, page_token=token))
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"the token {token!r} of another list")


@SUITE.requirement(
    "BLB-DELETE-01",
    "A deleted blob MUST be gone and its key free; allow_missing is OK with what is not there.",
    quote="Answer OK when it is not there.",
)
async def _deletes(context: Blobs) -> None:
    key = new_key(context)
    await write(context, key, b"one")
    await context.stub.DeleteBlob(pb.DeleteBlobRequest(key=key))
    await check_absent(context, key, "after DeleteBlob")
    await context.stub.DeleteBlob(pb.DeleteBlobRequest(key=key, allow_missing=True))
    await write(context, key, b"two", create_only=True)
    await check_content(context, key, b"two")


@SUITE.requirement(
    "BLB-RESTART-01",
    "A blob whose write was answered MUST be there after the adapter was killed, and one whose write was not MUST not.",
    quote="WriteBlobResponse confirms the blob; it is durable.",
    stage=Stage.RESTART,
)
async def _survives(context: Blobs) -> None:
    kept, cut = new_key(context), new_key(context)
    data = some_bytes(CHUNK_BYTES + 3)
    await write(context, kept, data, media_type="text/plain")
    async with StalledCall([header(cut), chunk(0, data[:CHUNK_BYTES])]) as stalled:
        await stalled.begin(context.stub.WriteBlob)
        await context.restart()
    await check_content(context, kept, data)
    check_equal((await stat(context, kept)).media_type, "text/plain", "media_type after a restart")
    await check_absent(context, cut, "whose write the restart cut off")
