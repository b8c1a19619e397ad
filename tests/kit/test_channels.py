"""Whoever holds a stub can't tell an object from a wire: same answers, errors, deadlines, cancellation, streams."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit import errors
from crucible_kit.channel import Channel, ObjectChannel, connect, repeated
from crucible_kit.errors import KitchenError
from crucible_kit.serving import ServedAdapter, serve_ports
from tests.kit.notes import SECRET, SERVICE, ScriptedBlobs
from tests.stalls import longer

# key -> type, reason, message, metadata, fields, retry delay. None: holds a fresh error_id.
FAILURES: dict[str, tuple[Any, ...]] = {
    "missing": (errors.NotFoundError, "BLOB_NOT_FOUND", "no blob 'missing'", {"key": "missing"}, (), None),
    "fields": (errors.InvalidArgumentError, "FIELD_INVALID", "bad key", {}, (("key", "bad"), ("x", "y")), None),
    "busy": (errors.ResourceExhaustedError, "QUEUE_FULL", "full", {}, (), 1.5),
    "bug": (errors.InternalError, "INTERNAL_BUG", None, None, (), None),
    "own-timeout": (errors.InternalError, "INTERNAL_BUG", None, None, (), None),
    "cancelled": (
        errors.UnavailableError,
        "INTERRUPTED",
        "/crucible.port.blob.v1.BlobStoreService/{rpc} was interrupted: try again",
        {"method": "/crucible.port.blob.v1.BlobStoreService/{rpc}"},
        (),
        None,
    ),
}


@pytest.fixture
def stub(channel: Channel) -> blob_pb2_grpc.BlobStoreServiceStub:
    return blob_pb2_grpc.BlobStoreServiceStub(channel)


async def chunks(*sizes: int, key: str = "k") -> AsyncIterator[blob_pb2.WriteBlobRequest]:
    yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
    for size in sizes:
        yield blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(data=b"x" * size))


async def call(stub: Any, rpc: str, key: str) -> list[Any]:
    """The answers of one call, whatever its kind."""
    if rpc == "StatBlob":
        return [await stub.StatBlob(blob_pb2.StatBlobRequest(key=key))]
    if rpc == "WriteBlob":
        return [await stub.WriteBlob(chunks(3, key=key))]
    return [each async for each in stub.ReadBlob(blob_pb2.ReadBlobRequest(key=key, limit=2))]


@pytest.mark.parametrize("rpc", ["StatBlob", "ReadBlob", "WriteBlob"])
async def test_answers(stub: Any, rpc: str) -> None:
    answers = await call(stub, rpc, "fine")
    match rpc:
        case "StatBlob":
            assert answers[0].blob.uri == "fine"
        case "ReadBlob":
            assert [each.offset for each in answers] == [0, 1]
        case "WriteBlob":
            assert answers[0].blob.size_bytes == 3


@pytest.mark.parametrize("rpc", ["StatBlob", "ReadBlob", "WriteBlob"])
@pytest.mark.parametrize("key", FAILURES)
async def test_failures(stub: Any, rpc: str, key: str) -> None:
    kind, reason, message, metadata, fields, retry_delay = FAILURES[key]
    with pytest.raises(KitchenError) as caught:
        await call(stub, rpc, key)
    error = caught.value
    assert (type(error), error.reason, error.fields, error.retry_delay) == (kind, reason, fields, retry_delay)
    if metadata is None:
        assert SECRET not in error.message + str(error.metadata)
        assert error.metadata["error_id"] in error.message
    else:
        assert error.message == message.format(rpc=rpc)
        assert error.metadata == {name: value.format(rpc=rpc) for name, value in metadata.items()}


async def test_what_a_stream_sent_before_it_failed_arrives(stub: Any) -> None:
    stream = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="missing", limit=3))
    assert [(await anext(stream)).offset for _ in range(3)] == [0, 1, 2]
    with pytest.raises(errors.NotFoundError):
        await anext(stream)


async def test_a_method_that_nobody_wrote(stub: Any) -> None:
    for rpc, request in (
        ("ListBlobs", blob_pb2.ListBlobsRequest()),
        ("DeleteBlob", blob_pb2.DeleteBlobRequest(key="k")),
    ):
        with pytest.raises(errors.UnimplementedError) as caught:
            await getattr(stub, rpc)(request)
        assert (caught.value.reason, caught.value.metadata) == ("METHOD_MISSING", {"method": f"/{SERVICE}/{rpc}"})


async def test_a_service_that_nobody_serves(channel: Channel) -> None:
    missing = channel.unary_unary(
        "/crucible.port.blob.v1.Other/Do",
        request_serializer=blob_pb2.StatBlobRequest.SerializeToString,
        response_deserializer=blob_pb2.StatBlobResponse.FromString,
    )
    with pytest.raises(errors.UnimplementedError) as caught:
        await missing(blob_pb2.StatBlobRequest(key="k"))
    assert caught.value.reason == "METHOD_MISSING"


async def test_a_request_that_breaks_its_contract_never_leaves(stub: Any, blobs: ScriptedBlobs) -> None:
    for start in (
        lambda: stub.StatBlob(blob_pb2.StatBlobRequest()),
        lambda: anext(stub.ReadBlob(blob_pb2.ReadBlobRequest())),
        lambda: stub.WriteBlob(chunks(300_000)),
    ):
        with pytest.raises(errors.InvalidArgumentError) as caught:
            await start()
        assert caught.value.reason == "FIELD_INVALID"
    assert caught.value.fields[0].field == "chunk.data"


async def test_what_the_callers_own_stream_raises_comes_back_to_it(stub: Any) -> None:
    async def broken() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="k"))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        await stub.WriteBlob(broken())


async def test_deadlines(stub: Any, blobs: ScriptedBlobs) -> None:
    for seconds in longer(0.05):
        with pytest.raises(errors.DeadlineExceededError) as unary:
            await stub.StatBlob(blob_pb2.StatBlobRequest(key="hang"), timeout=seconds)
        assert unary.value.reason == "DEADLINE_EXCEEDED"
        if blobs.entered.is_set():
            break
    await asyncio.wait_for(blobs.left.wait(), 10)
    with pytest.raises(errors.DeadlineExceededError):
        async for _ in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang", limit=1), timeout=0.05):
            pass


async def test_a_deadline_while_the_request_is_sent_is_a_deadline(stub: Any) -> None:
    """gRPC cancels such a call by itself now and then, which must not look as if somebody had cancelled the caller."""
    # The connection itself is not waited for below.
    await stub.WriteBlob(chunks(1))
    for number in range(300):
        try:
            await stub.WriteBlob(chunks(1000), timeout=0.0002 + 0.0002 * (number % 5))
        except errors.DeadlineExceededError as error:
            assert error.reason == "DEADLINE_EXCEEDED"


async def test_a_unary_call_has_a_deadline_by_itself_and_a_stream_has_none(stub: Any, blobs: ScriptedBlobs) -> None:
    await stub.StatBlob(blob_pb2.StatBlobRequest(key="fine"))
    assert blobs.remaining is not None
    assert 0 < blobs.remaining < 61  # gRPC rounds it up
    await call(stub, "ReadBlob", "fine")
    assert blobs.remaining is None


async def test_a_slow_reader_is_not_interrupted_outside_its_reads(stub: Any) -> None:
    """The deadline of a stream that is late shows at the next read, not in whatever the caller awaits meanwhile."""
    for seconds in longer(0.05):
        stream = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang", limit=1), timeout=seconds)
        try:
            first = await anext(stream)
        except errors.DeadlineExceededError:
            continue
        break
    else:
        pytest.fail("no deadline was long enough for the first message")
    assert first.offset == 0
    past_deadline = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds + 0.05, past_deadline.set)
    await past_deadline.wait()
    with pytest.raises(errors.DeadlineExceededError):
        await anext(stream)


@pytest.mark.parametrize("rpc", ["StatBlob", "ReadBlob", "WriteBlob"])
async def test_cancelling_the_caller_reaches_the_handlers_finally(stub: Any, blobs: ScriptedBlobs, rpc: str) -> None:
    task = asyncio.create_task(call(stub, rpc, "hang"))
    await asyncio.wait_for(blobs.entered.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(blobs.left.wait(), 10)


async def test_leaving_a_stream_early_reaches_the_handlers_finally(stub: Any, blobs: ScriptedBlobs) -> None:
    stream = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang", limit=1))
    await anext(stream)
    reader = asyncio.create_task(anext(stream))
    await asyncio.wait_for(blobs.entered.wait(), 10)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await stream.aclose()
    await asyncio.wait_for(blobs.left.wait(), 10)


async def test_metadata_reaches_the_servicer(stub: Any, blobs: ScriptedBlobs) -> None:
    await stub.StatBlob(blob_pb2.StatBlobRequest(key="fine"), metadata=(("crucible-instance", "a"),))
    assert blobs.seen["crucible-instance"] == "a"


class Echo:
    """Answers each request of a two-way stream."""

    async def Talk(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for each in request_iterator:
            yield each


async def test_a_two_way_stream_over_an_object() -> None:
    talk = ObjectChannel({"test.Echo": Echo()}, serialise=True).stream_stream("/test.Echo/Talk")
    sizes = [len(each.chunk.data) async for each in talk(chunks(1, 2))]
    assert sizes == [0, 1, 2]


async def test_serialising_hands_over_copies_and_an_object_the_message_itself() -> None:
    kept: list[Any] = []

    class Keeper:
        async def StatBlob(self, request: Any, context: Any) -> Any:
            kept.append(request)
            return blob_pb2.StatBlobResponse()

    request = blob_pb2.StatBlobRequest(key="k")
    for serialise in (False, True):
        channel = ObjectChannel({SERVICE: Keeper()}, serialise=serialise)
        await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(request)
    assert kept[0] is request
    assert kept[1] is not request
    assert kept[1] == request


async def test_without_waiting_a_missing_server_fails_at_once() -> None:
    channel = connect("unix:/nonexistent/socket", wait_for_ready=False)
    with pytest.raises(errors.UnavailableError):
        await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(blob_pb2.StatBlobRequest(key="k"), timeout=10)
    await channel.close()


@pytest.mark.parametrize(("timeout", "ready_seconds"), [(3600.0, 0.2), (0.2, 3600.0)])
async def test_a_missing_server_is_waited_for_no_longer_than_is_said(timeout: float, ready_seconds: float) -> None:
    channel = connect("unix:/nonexistent/socket", ready_seconds=ready_seconds)
    stub: Any = blob_pb2_grpc.BlobStoreServiceStub(channel)
    for start in (
        lambda: stub.StatBlob(blob_pb2.StatBlobRequest(key="k"), timeout=timeout),
        lambda: stub.WriteBlob(chunks(1), timeout=timeout),
        lambda: anext(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"), timeout=timeout)),
    ):
        with pytest.raises(errors.UnavailableError, match="unix:/nonexistent/socket") as caught:
            await start()
        assert (caught.value.reason, caught.value.metadata) == (
            "ADAPTER_UNAVAILABLE",
            {"address": "unix:/nonexistent/socket"},
        )
        assert caught.value.retry_delay
    await channel.close()


class Restarts:
    """A server that is taken down and put up again on one address.

    Attributes:
        calls: how many calls have arrived.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.calls = 0

    async def serve(self, servicer: blob_pb2_grpc.BlobStoreServiceServicer) -> ServedAdapter:
        return await serve_ports({"blob": servicer}, self.address, name="again", capabilities={"blob": ()})

    async def died_of(self, blobs: ScriptedBlobs, served: ServedAdapter) -> None:
        """Takes the server down once a call hangs in it."""
        await asyncio.wait_for(blobs.entered.wait(), 10)
        blobs.entered.clear()
        self.calls += 1
        await served.stop(0)


@pytest.fixture
def restarts() -> Iterator[Restarts]:
    with tempfile.TemporaryDirectory() as folder:
        yield Restarts(f"unix:{Path(folder) / 's'}")


class Answers(blob_pb2_grpc.BlobStoreServiceServicer):
    """Answers what ScriptedBlobs would hang on."""

    async def StatBlob(self, request: Any, context: Any) -> blob_pb2.StatBlobResponse:
        return blob_pb2.StatBlobResponse(blob=tensor_pb2.BlobRef(uri="second"))

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        yield blob_pb2.ReadBlobResponse(data=b"second")


async def test_a_unary_call_whose_server_dies_is_made_again_and_a_stream_is_its_callers(
    restarts: Restarts, blobs: ScriptedBlobs
) -> None:
    channel = connect(restarts.address)
    stub: Any = blob_pb2_grpc.BlobStoreServiceStub(channel)
    first = await restarts.serve(blobs)
    unary = asyncio.create_task(stub.StatBlob(blob_pb2.StatBlobRequest(key="hang")))
    await restarts.died_of(blobs, first)

    second = await restarts.serve(Answers())
    assert (await unary).blob.uri == "second"
    await second.stop(0)

    async def read() -> list[bytes]:
        return [each.data async for each in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang"))]

    third = await restarts.serve(blobs)
    stream = asyncio.create_task(read())
    again = asyncio.create_task(repeated(read))
    await restarts.died_of(blobs, third)
    with pytest.raises(errors.UnavailableError) as caught:
        await stream
    assert caught.value.reason in errors.CONNECTION_LOST
    fourth = await restarts.serve(Answers())
    assert await again == [b"second"]
    await channel.close()
    await fourth.stop(0)


async def test_a_call_that_its_server_dies_of_each_time_is_given_up(restarts: Restarts, blobs: ScriptedBlobs) -> None:
    # Without gRPC's own tries, of which each may reach the server too.
    channel = connect(restarts.address, retry=False)
    call = asyncio.create_task(
        blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(blob_pb2.StatBlobRequest(key="hang"))  # type: ignore
    )
    while restarts.calls < 3:
        await restarts.died_of(blobs, await restarts.serve(blobs))
    with pytest.raises(errors.UnavailableError) as caught:
        await call
    assert caught.value.reason in errors.CONNECTION_LOST
    await channel.close()


async def test_over_a_unix_socket_the_authority_is_one_that_every_server_takes() -> None:
    received = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # an HTTP/2 server's first words: settings, none
        data = b""
        while b":authority" not in data and (more := await reader.read(65536)):
            data += more
        received.set_result(data)
        writer.close()

    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.start_unix_server(accept, f"{folder}/s")
        channel = connect(f"unix:{folder}/s", wait_for_ready=False, retry=False)
        with pytest.raises(errors.UnavailableError):
            await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(blob_pb2.StatBlobRequest(key="k"), timeout=10)
        await channel.close()
        server.close()
    assert b":authority\x09localhost" in await received
