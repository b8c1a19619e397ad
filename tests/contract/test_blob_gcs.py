"""Blobs in Google Cloud Storage: what is in the bucket, and what becomes of the server's refusals."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from crucible.port.blob.v1 import blob_pb2
from crucible_adapters.blob import gcs, objects
from crucible_adapters.blob.fsspec import FsspecBlobOptions, FsspecBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Verdict, run_suite, settings_of
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
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
from tests.contract.test_blob import read, some_bytes, stat, write
from tests.kit.clocks import Waits
from tests.kit.gcs import BUCKET, TOKEN, Gcs, gcs_server, refusal
from tests.kit.scripted import Answer, Request, answer

MIB = 1024 * 1024
PREFIX = "runs/of mine"
PATIENT = {"connect_timeout": 100, "read_timeout": 100}  # a machine that stands still is no server that is silent


@pytest.fixture(scope="module")
def server() -> Iterator[Gcs]:
    with gcs_server() as server:
        yield server


@pytest.fixture
def bucket(server: Gcs) -> Gcs:
    server.empty()
    return server


@pytest.fixture
def waits() -> Waits:
    return Waits()


def make(
    bucket: Gcs, context: AdapterContext, waits: Waits, secrets: dict[str, str] | None = None, **storage: Any
) -> FsspecBlobStore:
    options = FsspecBlobOptions(
        url=f"gs://{BUCKET}/{PREFIX}/", storage_options={"endpoint_url": bucket.address, **PATIENT, **storage}
    )
    given = Secrets({"token": TOKEN} if secrets is None else secrets)
    return FsspecBlobStore(options, AdapterContext(data_dir=context.data_dir, secrets=given), clock=waits.clock)


@pytest.fixture
async def stub(bucket: Gcs, context: AdapterContext, waits: Waits, local: Binding) -> AsyncIterator[Any]:
    yield await local.stub(make(bucket, context, waits))


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads of more than 4 MiB in pieces of 1 MiB."""
    monkeypatch.setattr(gcs, "PART_BYTES", MIB)
    monkeypatch.setattr(gcs, "AT_ONCE_BYTES", 4 * MIB)
    monkeypatch.setattr("google.cloud.storage.blob._MAX_MULTIPART_SIZE", 4 * MIB)


async def test_the_suite_passes(bucket: Gcs, context: AdapterContext, waits: Waits) -> None:
    store = make(bucket, context, waits)
    async with BINDINGS["object"]({"blob": store}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", settings_of("blob", {}), only=["BLB-"])
    await store.close()
    assert {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED} == {}
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2
    assert set(bucket.authorizations) == {f"Bearer {TOKEN}"}
    # The library asks nothing by itself, such as for the bucket.
    assert [each.path for each in bucket.requests if "/o" not in each.path.partition(BUCKET)[2]] == []


async def test_a_blob_is_an_object_at_its_key(bucket: Gcs, stub: Any) -> None:
    key = "a b/\u00e9?generation=1#x%2F"
    ref = await write(stub, key, b"content\r\n", media_type="text/plain")
    assert ref.uri == f"gs://{BUCKET}/{PREFIX}/{key}"
    [(name, found)] = bucket.objects.items()
    assert (name, found.content) == (f"{PREFIX}/{key}", b"content\r\n")
    assert found.about == {"contentType": "text/plain", "metadata": {"crucible-sha256": ref.sha256}}
    assert await stat(stub, key) == ref
    assert await read(stub, key) == b"content\r\n"


async def test_large_blobs_go_in_pieces_and_come_in_blocks(
    bucket: Gcs, stub: Any, context: AdapterContext, in_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "BLOCK_BYTES", 2 * MIB)
    data = some_bytes(5 * MIB + 3)
    ref = await write(stub, "big", data, create_only=True, media_type="text/plain")
    assert bucket.objects[f"{PREFIX}/big"].content == data
    assert [each.method for each in bucket.requests] == ["GET", "POST"] + ["PUT"] * 6
    assert await stat(stub, "big") == ref
    bucket.requests.clear()
    assert await read(stub, "big") == data
    assert sum(each.path.startswith("/download") for each in bucket.requests) == 3
    assert await read(stub, "big", 2 * MIB - 1, 2 * MIB + 2) == data[2 * MIB - 1 : 4 * MIB + 1]
    with refused(AlreadyExistsError, "BLOB_EXISTS"):
        await write(stub, "big", data[1:], create_only=True)
    assert list((context.data_dir / "blob_staging").iterdir()) == []


async def test_a_cancelled_upload_stores_nothing(bucket: Gcs, stub: Any, in_pieces: None) -> None:
    loop, arrived, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    pieces: list[Request] = []

    def second_piece(request: Request) -> None:
        if request.method == "PUT":
            pieces.append(request)
            if len(pieces) == 2:
                loop.call_soon_threadsafe(arrived.set)
                cancelled.wait()

    bucket.before = second_piece
    call = asyncio.ensure_future(write(stub, "big", some_bytes(5 * MIB)))
    await arrived.wait()
    call.cancel()
    # The cancelling reaches the adapter, through all tasks between, before the server goes on.
    for _ in range(100):
        await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (len(pieces), bucket.objects) == (2, {})


async def test_an_upload_that_fails_is_sent_again(bucket: Gcs, stub: Any, waits: Waits, in_pieces: None) -> None:
    data = some_bytes(5 * MIB)
    fewer = answer("308 Resume Incomplete", b"", Range=f"bytes=0-{MIB // 2 - 1}")
    none = answer("308 Resume Incomplete", b"")
    left = [refusal("503 Service Unavailable", "backendError", Retry_After="7"), fewer, none]
    bucket.before = lambda request: left.pop() if left and request.method == "PUT" else None
    await write(stub, "big", data)
    assert bucket.objects[f"{PREFIX}/big"].content == data
    assert waits.seconds == [0.5, 1.0, 7.0]


async def test_bytes_that_changed_on_their_way_are_no_blob(
    bucket: Gcs, stub: Any, in_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gcs, "altered", staticmethod(lambda content: b"x" + content[1:]))
    for data in (b"abc", some_bytes(5 * MIB)):
        with refused(FailedPreconditionError, "STORE_REFUSED", says="(invalid, 400)"):
            await write(stub, "k", data)
        assert bucket.objects == {}


async def test_create_only_is_the_bucket_s_to_decide(bucket: Gcs, stub: Any, waits: Waits) -> None:
    """Another writer comes between the look and the put."""

    def other(request: Request) -> None:
        if request.method == "POST":
            bucket.before = lambda request: None
            bucket.put(f"{PREFIX}/k", b"other")

    bucket.before = other
    with refused(AlreadyExistsError, "BLOB_EXISTS", says=hashlib.sha256(b"other").hexdigest()[:12]):
        await write(stub, "k", b"mine", create_only=True)
    assert bucket.objects[f"{PREFIX}/k"].content == b"other"

    def own(request: Request) -> Answer | None:
        if request.method != "POST":
            return None
        bucket.before = lambda request: None
        bucket.put(f"{PREFIX}/own", b"mine")
        return refusal("502 Bad Gateway", "backendError")

    bucket.before = own  # the answer to the put is lost
    ref = await write(stub, "own", b"mine", create_only=True)
    assert (ref.sha256, waits.seconds) == (hashlib.sha256(b"mine").hexdigest(), [0.5])


async def test_a_read_never_mixes_two_contents(bucket: Gcs, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BLOCK_BYTES", MIB)
    await write(stub, "k", some_bytes(2 * MIB, 1))
    arrived = b""
    with refused(UnavailableError, "BLOB_REPLACED"):
        async for response in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k")):
            if not arrived:
                bucket.put(f"{PREFIX}/k", some_bytes(2 * MIB, 2))
            arrived += response.data
    assert arrived == some_bytes(2 * MIB, 1)[:MIB]


async def test_objects_that_other_tools_put_there_are_blobs(bucket: Gcs, stub: Any) -> None:
    bucket.page = 2
    for name in ("elsewhere", *(f"{PREFIX}/{key}" for key in ("a/", "a/2", "b", "c", "d"))):
        bucket.put(name, name.encode())
    page = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2))
    listed = [(each.key, each.blob.size_bytes, each.blob.sha256) for each in page.blobs]
    assert listed == [("a/2", len(f"{PREFIX}/a/2"), ""), ("b", len(f"{PREFIX}/b"), "")]
    page = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2, page_token=page.next_page_token))
    assert ([each.key for each in page.blobs], page.next_page_token) == (["c", "d"], "")
    assert (await stat(stub, "a/2")).sha256 == hashlib.sha256(f"{PREFIX}/a/2".encode()).hexdigest()
    assert await read(stub, "a/2") == f"{PREFIX}/a/2".encode()
    bucket.put(f"{PREFIX}/a/2", b"new")
    assert (await stat(stub, "a/2")).sha256 == hashlib.sha256(b"new").hexdigest()


async def test_changed_bytes_fail_a_whole_read(bucket: Gcs, stub: Any) -> None:
    ref = await write(stub, "k", b"abc")
    bucket.put(f"{PREFIX}/k", b"abd", metadata={"crucible-sha256": ref.sha256})
    with refused(DataLossError, "BLOB_CORRUPT"):
        await read(stub, "k")


def told(value: Any) -> Answer:
    return answer("200 OK", json.dumps(value).encode(), Content_Type="application/json")


REFUSALS: dict[str, tuple[Answer, type[KitchenError], str, int]] = {
    "bad token": (refusal("401 Unauthorized", "authError"), UnauthenticatedError, "STORE_CREDENTIALS", 1),
    "not allowed": (refusal("403 Forbidden", "forbidden"), PermissionDeniedError, "STORE_FORBIDDEN", 1),
    "no bucket": (refusal("404 Not Found", "notFound"), FailedPreconditionError, "STORE_REFUSED", 1),
    "429": (
        refusal("429 Too Many", "rateLimitExceeded", Retry_After="7"),
        ResourceExhaustedError,
        "RATE_LIMITED",
        4,
    ),
    "500": (refusal("500 Internal Server Error", "backendError"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "500 of a proxy": (answer("502 Bad Gateway", b"<html>"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "408": (refusal("408 Request Timeout", "uploadBrokenConnection"), UnavailableError, "STORE_UNAVAILABLE", 4),
    "cut": (answer("200 OK", b'{"items": [', length=100), UnavailableError, "STORE_UNAVAILABLE", 4),
    "no JSON": (answer("200 OK", b"<html>Sign in</html>"), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "a list": (told([1]), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "no size": (told({"items": [{"name": f"{PREFIX}/a"}]}), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "no name": (told({"items": [{"size": "1"}]}), DataLossError, "STORE_REPLY_MALFORMED", 1),
    "bad request": (refusal("400 Bad Request", "invalid"), FailedPreconditionError, "STORE_REFUSED", 1),
}


async def test_refusals(bucket: Gcs, stub: Any, waits: Waits) -> None:
    for name, (given, kind, reason, tries) in REFUSALS.items():
        bucket.forget()
        waits.seconds.clear()
        bucket.before = lambda request, given=given: given
        with refused(kind, reason) as caught:
            await stub.ListBlobs(blob_pb2.ListBlobsRequest())
        assert len(bucket.requests) == tries, name
        if kind is ResourceExhaustedError:
            assert (waits.seconds, caught.value.retry_delay) == ([7.0] * 3, 7.0), name
        assert TOKEN not in f"{caught.value} {caught.value.metadata}", name


async def test_refusals_of_reads_and_writes(bucket: Gcs, stub: Any, waits: Waits) -> None:
    await write(stub, "k", b"abc")
    for method, given, kind, reason in (
        ("POST", refusal("403 Forbidden", "forbidden"), PermissionDeniedError, "STORE_FORBIDDEN"),
        ("POST", refusal("404 Not Found", "notFound"), FailedPreconditionError, "STORE_REFUSED"),
        ("POST", answer("200 OK", b"<html>"), DataLossError, "STORE_REPLY_MALFORMED"),
        ("/storage", told({"size": "3", "generation": "now"}), DataLossError, "STORE_REPLY_MALFORMED"),
        ("/download", refusal("403 Forbidden", "forbidden"), PermissionDeniedError, "STORE_FORBIDDEN"),
        ("/download", answer("200 OK", b"the whole object"), DataLossError, "STORE_REPLY_MALFORMED"),
        ("/download", answer("206 Partial Content", b"ab", length=3), UnavailableError, "STORE_UNAVAILABLE"),
    ):
        bucket.before = lambda request, method=method, given=given: (
            given if method == request.method or request.path.startswith(method) else None
        )
        with refused(kind, reason) as caught:
            await (write(stub, "other", b"abc") if method == "POST" else read(stub, "k"))
        assert TOKEN not in f"{caught.value} {caught.value.metadata}"
    bucket.before = lambda request: None
    with refused(NotFoundError, "BLOB_NOT_FOUND"):
        await stat(stub, "other")
    waits.seconds.clear()
    broken = [answer("206 Partial Content", b"ab", length=3)]
    bucket.before = lambda request: broken.pop() if broken and request.path.startswith("/download") else None
    assert await read(stub, "k") == b"abc"
    assert waits.seconds == [0.5]


async def test_a_server_that_does_not_answer_is_a_time_out(
    bucket: Gcs, context: AdapterContext, waits: Waits, local: Binding
) -> None:
    stub = await local.stub(make(bucket, context, waits, read_timeout=0.2))
    ended = threading.Event()

    def silent(request: Request) -> Answer:
        ended.wait()
        return refusal("500 Internal Server Error", "backendError")

    bucket.before = silent
    try:
        with refused(DeadlineExceededError, "STORE_TIMEOUT"):
            await stub.ListBlobs(blob_pb2.ListBlobsRequest())
    finally:
        ended.set()


async def test_a_server_that_is_not_there_is_unavailable(
    bucket: Gcs, context: AdapterContext, waits: Waits, local: Binding, unused_address: str
) -> None:
    stub = await local.stub(make(bucket, context, waits, endpoint_url=unused_address))
    with refused(UnavailableError, "STORE_UNAVAILABLE"):
        await write(stub, "k", b"abc")
    assert len(waits.seconds) == 3


async def test_a_service_account_signs_its_own_tokens(
    bucket: Gcs, context: AdapterContext, waits: Waits, local: Binding
) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(65537, 1024 * 2)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "client_email": "kitchen@example.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": pem,
        "token_uri": "http://127.0.0.1:1/never-asked",
    }
    stub = await local.stub(make(bucket, context, waits, {"service_account": json.dumps(account)}))
    await write(stub, "k", b"abc")
    [authorization] = set(bucket.authorizations)
    assert authorization is not None
    claims = json.loads(base64.urlsafe_b64decode(authorization.split(".")[1] + "=="))
    assert claims["iss"] == claims["sub"] == account["client_email"]
    assert claims["scope"].endswith("devstorage.read_write")
    bad = json.dumps({**account, "private_key": "no key at all"})
    stub = await local.stub(make(bucket, context, waits, {"service_account": bad}))
    with refused(UnauthenticatedError, "STORE_CREDENTIALS", says="service_account") as caught:
        await stat(stub, "k")
    assert "no key at all" not in str(caught.value)


async def test_credentials_are_found_left_out_or_missed(
    bucket: Gcs, context: AdapterContext, waits: Waits, local: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = await local.stub(make(bucket, context, waits, {}, anon=True))
    await write(stub, "k", b"abc")
    assert set(bucket.authorizations) == {None}
    bucket.before = lambda request: refusal("401 Unauthorized", "required")
    with refused(UnauthenticatedError, "STORE_CREDENTIALS"):
        await stat(stub, "k")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(context.data_dir / "none.json"))
    stub = await local.stub(make(bucket, context, waits, {}))
    with refused(UnauthenticatedError, "STORE_CREDENTIALS", says="{service_account: VARIABLE}"):
        await stat(stub, "k")


@pytest.mark.parametrize(
    ("secrets", "field"),
    [
        ({"service_account": "/etc/key.json"}, "secrets.service_account"),
        (
            {"service_account": '{"type": "authorized_user", "refresh_token": "/etc/key.json"}'},
            "secrets.service_account",
        ),
        ({"service_account": '{"type": "service_account"}', "token": TOKEN}, "secrets"),
        ({"key": "/etc/key.json"}, "secrets.key"),
    ],
    ids=["a path", "another kind", "two", "of s3"],
)
def test_secrets_that_are_none_are_refused(
    secrets: dict[str, str], field: str, bucket: Gcs, context: AdapterContext, waits: Waits
) -> None:
    with refused(InvalidArgumentError, "FIELD_INVALID", field=field) as caught:
        make(bucket, context, waits, secrets)
    assert not any(secret in str(caught.value) for secret in ("/etc/key.json", TOKEN))
