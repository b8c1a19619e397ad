"""Blobs in S3: what boto3 finds in the bucket, and what becomes of the server's refusals."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from crucible.port.blob.v1 import blob_pb2
from crucible_adapters.blob import objects, s3
from crucible_adapters.blob.fsspec import FsspecBlobOptions, FsspecBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Verdict, run_suite, settings_of
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from crucible_kit.redaction import Secrets
from tests.conformance.bindings import BINDINGS
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.test_blob import chunk, finish, header, read, sent, some_bytes, stat, write
from tests.kit.clocks import Waits
from tests.kit.s3 import BUCKET, KEYS, S3, refusal, s3_server
from tests.kit.scripted import Answer, Request, answer

MIB = 1024 * 1024
PREFIX = "runs/of mine"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3) -> S3:
    server.empty()
    return server


@pytest.fixture
def waits() -> Waits:
    return Waits()


@cache
def session() -> Any:
    """One for all tests: each of its own would read botocore's description of S3 again."""
    from aiobotocore.session import get_session

    return get_session()


def make(bucket: S3, context: AdapterContext, waits: Waits, **config: Any) -> FsspecBlobStore:
    times = {
        "connect_timeout": 100,
        "read_timeout": 100,
    }  # a machine that stands still is no server that does not answer
    options = FsspecBlobOptions(
        url=f"s3://{BUCKET}/{PREFIX}/",
        storage_options={
            "endpoint_url": bucket.address,
            "config_kwargs": {**times, **config},
            "session": session(),
        },
    )
    return FsspecBlobStore(options, AdapterContext(data_dir=context.data_dir, secrets=Secrets(KEYS)), clock=waits.clock)


@pytest.fixture
async def stub(bucket: S3, context: AdapterContext, waits: Waits, local: Binding) -> AsyncIterator[Any]:
    yield await local.stub(make(bucket, context, waits))


def content(bucket: S3, key: str) -> bytes:
    return bucket.oracle.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")["Body"].read()


def put(bucket: S3, key: str, data: bytes) -> None:
    bucket.oracle.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}", Body=data)


def names(bucket: S3) -> list[str]:
    return [each["Key"] for each in bucket.oracle.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def uploads(bucket: S3) -> list[Any]:
    return bucket.oracle.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])


async def test_the_suite_passes(bucket: S3, context: AdapterContext, waits: Waits) -> None:
    store = make(bucket, context, waits)
    async with BINDINGS["object"]({"blob": store}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", settings_of("blob", {}), only=["BLB-"])
    await store.close()
    assert {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED} == {}
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2


async def test_a_blob_is_an_object_at_its_key(bucket: S3, stub: Any) -> None:
    ref = await write(stub, "a b/\u00e9?versionId=1", b"content", media_type="text/plain")
    assert ref.uri == f"s3://{BUCKET}/{PREFIX}/a b/\u00e9?versionId=1"
    assert names(bucket) == [f"{PREFIX}/a b/\u00e9?versionId=1"]
    found = bucket.oracle.get_object(Bucket=BUCKET, Key=names(bucket)[0])
    assert (found["Body"].read(), found["ContentType"]) == (b"content", "text/plain")
    assert await stat(stub, "a b/\u00e9?versionId=1") == ref


async def test_large_blobs_go_in_parts_and_come_in_blocks(
    bucket: S3, stub: Any, context: AdapterContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)  # the least that S3 takes
    monkeypatch.setattr(objects, "BLOCK_BYTES", 2 * MIB)
    data = some_bytes(11 * MIB + 3)
    ref = await write(stub, "big", data, create_only=True)
    assert content(bucket, "big") == data
    assert sum("partNumber=" in each.query for each in bucket.requests) == 3
    assert await stat(stub, "big") == ref
    bucket.requests.clear()
    assert await read(stub, "big") == data
    assert sum(each.method == "GET" for each in bucket.requests) == 6
    assert await read(stub, "big", 2 * MIB - 1, 2 * MIB + 2) == data[2 * MIB - 1 : 4 * MIB + 1]
    with refused(AlreadyExistsError, "BLOB_EXISTS"):
        await write(stub, "big", data[1:], create_only=True)
    assert list((context.data_dir / "blob_staging").iterdir()) == []


async def test_a_cancelled_upload_is_taken_back(bucket: S3, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    data, loop = some_bytes(11 * MIB), asyncio.get_running_loop()
    arrived, cancelled = asyncio.Event(), threading.Event()

    def second_part(request: Request) -> None:
        if "partNumber=2" in request.query:
            loop.call_soon_threadsafe(arrived.set)
            cancelled.wait()

    bucket.before = second_part
    call = asyncio.ensure_future(write(stub, "big", data))
    await arrived.wait()
    call.cancel()
    # The cancelling reaches the adapter, through all tasks between, before the server goes on.
    for _ in range(100):
        await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not any("partNumber=3" in each.query for each in bucket.requests)
    assert (names(bucket), uploads(bucket)) == ([], [])


async def test_a_cancelled_wait_for_another_try_ends(
    bucket: S3, context: AdapterContext, waits: Waits, local: Binding
) -> None:
    waiting = asyncio.Event()

    async def forever(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    waits.clock = replace(waits.clock, sleep=forever)
    stub = await local.stub(make(bucket, context, waits))
    bucket.before = lambda request: refusal("500 Internal Server Error", "InternalError")
    call = asyncio.ensure_future(write(stub, "k", b"abc"))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert list((context.data_dir / "blob_staging").iterdir()) == []


async def test_an_upload_that_fails_is_taken_back_and_tried_again(
    bucket: S3, stub: Any, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    data, left = some_bytes(6 * MIB), [refusal("500 Internal Server Error", "InternalError")]

    def second_part(request: Request) -> Answer | None:
        return left.pop() if left and "partNumber=2" in request.query else None

    bucket.before = second_part
    await write(stub, "big", data)
    assert content(bucket, "big") == data
    assert uploads(bucket) == []
    assert waits.seconds == [0.5]


async def test_create_only_is_the_bucket_s_to_decide(bucket: S3, stub: Any) -> None:
    """Another writer comes between the look and the put."""

    def other(request: Request) -> None:
        if request.method == "PUT":
            bucket.before = lambda request: None
            put(bucket, "k", b"other")

    bucket.before = other
    with refused(AlreadyExistsError, "BLOB_EXISTS", says=hashlib.sha256(b"other").hexdigest()[:12]):
        await write(stub, "k", b"mine", create_only=True)
    assert content(bucket, "k") == b"other"


async def test_a_read_never_mixes_two_contents(bucket: S3, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BLOCK_BYTES", MIB)
    await write(stub, "k", some_bytes(2 * MIB, 1))
    arrived = b""
    with refused(UnavailableError, "BLOB_REPLACED"):
        async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k")):
            if not arrived:
                put(bucket, "k", some_bytes(2 * MIB, 2))
            arrived += response.data
    assert arrived == some_bytes(2 * MIB, 1)[:MIB]


async def test_objects_that_other_tools_put_there_are_blobs(
    bucket: S3, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    bucket.oracle.put_object(Bucket=BUCKET, Key="elsewhere", Body=b"x")
    for key in ("a/", "a/2", "b", "c", "d"):
        put(bucket, key, key.encode())
    listed = (await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=3))).blobs
    assert [(each.key, each.blob.size_bytes, each.blob.sha256) for each in listed] == [
        ("a/2", 3, ""),
        ("b", 1, ""),
        ("c", 1, ""),
    ]
    assert (await stat(stub, "a/2")).sha256 == hashlib.sha256(b"a/2").hexdigest()
    assert await read(stub, "a/2") == b"a/2"
    put(bucket, "a/2", b"new")
    assert (await stat(stub, "a/2")).sha256 == hashlib.sha256(b"new").hexdigest()


async def test_changed_bytes_fail_a_whole_read(bucket: S3, stub: Any) -> None:
    ref = await write(stub, "k", b"abc")
    bucket.oracle.put_object(Bucket=BUCKET, Key=f"{PREFIX}/k", Body=b"abd", Metadata={"crucible-sha256": ref.sha256})
    with refused(DataLossError, "BLOB_CORRUPT"):
        await read(stub, "k")


REFUSALS: dict[str, tuple[Answer, type[KitchenError], str, int]] = {
    "no such key id": (refusal("403 Forbidden", "InvalidAccessKeyId"), UnauthenticatedError, "STORE_CREDENTIALS", 1),
    "bad token": (refusal("401 Unauthorized", "Unauthorized"), UnauthenticatedError, "STORE_CREDENTIALS", 1),
    "not allowed": (refusal("403 Forbidden", "AccessDenied"), PermissionDeniedError, "STORE_FORBIDDEN", 1),
    "no bucket": (refusal("404 Not Found", "NoSuchBucket"), FailedPreconditionError, "STORE_REFUSED", 1),
    "too fast": (refusal("503 Slow Down", "SlowDown", Retry_After="7"), ResourceExhaustedError, "RATE_LIMITED", 4),
    "429": (refusal("429 Too Many", "TooManyRequests", Retry_After="7"), ResourceExhaustedError, "RATE_LIMITED", 4),
    "500": (refusal("500 Internal Server Error", "InternalError"), UnavailableError, "STORE_UNAVAILABLE", 4),
    # botocore takes a body that is no XML for one that was cut, and for a status of 500.
    "no XML": (answer("200 OK", b"<html>Sign in</html"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "other XML": (answer("200 OK", b"<html>Sign in</html>"), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "bad request": (refusal("400 Bad Request", "InvalidBucketName"), FailedPreconditionError, "STORE_REFUSED", 1),
}


async def test_refusals(bucket: S3, stub: Any, waits: Waits) -> None:
    for name, (told, kind, reason, tries) in REFUSALS.items():
        bucket.forget()
        waits.seconds.clear()
        bucket.before = lambda request, told=told: told
        with refused(kind, reason) as caught:
            await stub.ListBlobs(blob_pb2.ListBlobsRequest())
        assert len(bucket.requests) == tries, name
        if kind is ResourceExhaustedError:
            assert (waits.seconds, caught.value.retry_delay) == ([7.0] * 3, 7.0), name
        assert not any(secret in str(caught.value) for secret in KEYS.values()), name


async def test_a_write_beyond_its_rights_stores_nothing(bucket: S3, stub: Any) -> None:
    bucket.before = lambda request: refusal("403 Forbidden", "AccessDenied") if request.method == "PUT" else None
    with refused(PermissionDeniedError, "STORE_FORBIDDEN"):
        await write(stub, "k", b"abc")
    bucket.before = lambda request: None
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stat(stub, "k")


async def test_a_broken_stream_is_read_again_before_its_first_chunk(bucket: S3, stub: Any, waits: Waits) -> None:
    await write(stub, "k", b"abcdef")
    broken = [answer("200 OK", b"abc", length=6)]
    bucket.before = lambda request: broken.pop() if broken and request.method == "GET" else None
    assert await read(stub, "k") == b"abcdef"
    assert waits.seconds == [0.5]
    bucket.before = lambda request: answer("200 OK", b"abc", length=6) if request.method == "GET" else None
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await read(stub, "k")


async def test_a_server_that_does_not_answer_is_a_time_out(
    bucket: S3, context: AdapterContext, waits: Waits, local: Binding
) -> None:
    stub = await local.stub(make(bucket, context, waits, read_timeout=0.2))
    ended = threading.Event()

    def silent(request: Request) -> Answer:
        ended.wait()
        return refusal("500 Internal Server Error", "InternalError")

    bucket.before = silent
    try:
        with refused(DeadlineExceededError, "STORE_TIMEOUT"):
            await stub.ListBlobs(blob_pb2.ListBlobsRequest())
    finally:
        ended.set()


async def test_a_server_that_is_not_there_is_unavailable(
    bucket: S3, context: AdapterContext, waits: Waits, local: Binding, unused_address: str
) -> None:
    options = FsspecBlobOptions(url=f"s3://{BUCKET}", storage_options={"endpoint_url": unused_address})
    given = AdapterContext(data_dir=context.data_dir, secrets=Secrets(KEYS))
    stub = await local.stub(FsspecBlobStore(options, given, clock=waits.clock))
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await stub.WriteBlob(sent([header("k"), chunk(0, b"abc"), finish(b"abc")]))


async def test_without_credentials_it_says_which(
    bucket: S3, tmp_path: Path, context: AdapterContext, waits: Waits, local: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    options = FsspecBlobOptions(url=f"s3://{BUCKET}", storage_options={"endpoint_url": bucket.address})
    stub = await local.stub(FsspecBlobStore(options, context, clock=waits.clock))
    with refused(UnauthenticatedError, "STORE_CREDENTIALS", says="secrets: {key: VARIABLE, secret: VARIABLE}"):
        await stat(stub, "k")
