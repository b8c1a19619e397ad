"""What is peculiar to a tunnel: back-pressure, limits, and frames that a bad end sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc, gateway_pb2
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import failure_pb2
from crucible_kit.channel import MAX_MESSAGE_BYTES, TunnelChannel
from crucible_kit.errors import KitchenError, NotFoundError, to_failure, to_status
from crucible_kit.tunnel_caller import CallerTunnel
from crucible_kit.tunnel_mux import MAX_PIECE_BYTES, WINDOW_BYTES, FrameError
from crucible_kit.tunnel_serving import ServingTunnel
from tests.kit.notes import SERVICE, ScriptedBlobs
from tests.kit.tunnels import tunnelled

CHUNK = 256 * 1024
STAT = f"/{SERVICE}/StatBlob"
# Exchanges on the same stream: after them everything has come that may come without credit.
ROUND_TRIPS = 30


class Blobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """Reads endlessly, writes when it is let, and answers with as many bytes as a key says."""

    def __init__(self) -> None:
        self.produced = 0
        self.taken = 0
        self.may_take = asyncio.Event()

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        response = blob_pb2.StatBlobResponse()
        if request.key.isdigit():
            response.blob.uri = "x" * int(request.key)
        return response

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        while not request.limit or self.produced < request.limit:
            self.produced += 1
            yield blob_pb2.ReadBlobResponse(offset=self.produced, data=bytes(CHUNK))

    async def WriteBlob(self, request_iterator: AsyncIterator[Any], context: Any) -> blob_pb2.WriteBlobResponse:
        await self.may_take.wait()
        async for _ in request_iterator:
            self.taken += 1
        return blob_pb2.WriteBlobResponse()


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
async def stub(blobs: Blobs) -> AsyncIterator[Any]:
    async with tunnelled({"blob": blobs}) as channels:
        yield blob_pb2_grpc.BlobStoreServiceStub(channels["blob"])


async def settle(stub: Any) -> None:
    for _ in range(ROUND_TRIPS):
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))


async def test_a_download_that_nobody_reads_stands_still_and_lets_others_pass(stub: Any, blobs: Blobs) -> None:
    limit = 40
    stream = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k", limit=limit))
    assert (await anext(stream)).offset == 1
    await settle(stub)
    # A window is on its way or here, one message waits to leave, and one to be made.
    held = WINDOW_BYTES // CHUNK + 3
    assert blobs.produced <= 1 + held < limit
    still = blobs.produced
    await settle(stub)
    assert blobs.produced == still
    assert [each.offset async for each in stream] == list(range(2, limit + 1))


async def test_an_endless_download_ends_with_its_reader(stub: Any, blobs: Blobs) -> None:
    stream = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"))
    await anext(stream)
    await stream.aclose()
    await settle(stub)
    still = blobs.produced
    await settle(stub)
    assert blobs.produced == still


async def test_an_upload_that_nobody_takes_stands_still(stub: Any, blobs: Blobs) -> None:
    total, sent = 40, 0

    async def chunks() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        nonlocal sent
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="k"))
        for _ in range(total):
            sent += 1
            yield blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(data=bytes(CHUNK)))

    writing = asyncio.create_task(stub.WriteBlob(chunks()))
    await settle(stub)
    assert 0 < sent <= WINDOW_BYTES // CHUNK + 3 < total
    still = sent
    await settle(stub)
    assert sent == still
    blobs.may_take.set()
    await writing
    assert (sent, blobs.taken) == (total, total + 1)


@pytest.mark.parametrize("size", [MAX_PIECE_BYTES - 8, WINDOW_BYTES + 1, MAX_MESSAGE_BYTES - 16])
async def test_large_answers(stub: Any, size: int) -> None:
    response = await stub.StatBlob(blob_pb2.StatBlobRequest(key=str(size)))
    assert len(response.blob.uri) == size


async def test_messages_past_the_limit(stub: Any) -> None:
    with pytest.raises(KitchenError) as answer:
        await stub.StatBlob(blob_pb2.StatBlobRequest(key=str(MAX_MESSAGE_BYTES)))
    assert (answer.value.code.name, answer.value.reason) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")
    await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))


async def test_calls_past_the_adapters_limit_are_refused_before_they_leave() -> None:
    scripted = ScriptedBlobs()
    async with tunnelled({"blob": scripted}, max_calls=1) as channels:
        stub = blob_pb2_grpc.BlobStoreServiceStub(channels["blob"])
        hanging = asyncio.create_task(stub.StatBlob(blob_pb2.StatBlobRequest(key="hang")))
        await scripted.entered.wait()
        with pytest.raises(KitchenError) as caught:
            await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))
        error = caught.value
        assert (error.code.name, error.reason, error.retryable) == ("RESOURCE_EXHAUSTED", "TOO_MANY_IN_FLIGHT", True)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))


async def test_metadata_that_a_tunnel_cannot_carry(stub: Any) -> None:
    for metadata in ([("blob-bin", b"\0")], [("twice", "1"), ("twice", "2")]):
        with pytest.raises(KitchenError) as caught:
            await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"), metadata=metadata)
        assert caught.value.reason == "METADATA_UNSUPPORTED"


class Peer:
    """The kitchen's end, whose other end is the test itself."""

    def __init__(self, **hello: Any) -> None:
        self.tunnel = CallerTunnel("peer", gateway_pb2.Hello(**hello))
        self._frames = self.tunnel.outgoing()
        self.stub = blob_pb2_grpc.BlobStoreServiceStub(TunnelChannel(self.tunnel))  # type: ignore[arg-type]

    async def call(self) -> tuple[asyncio.Task[Any], gateway_pb2.CallStart]:
        """A call that has begun, and its first frame; what else has left before is dropped."""
        calling = asyncio.create_task(self.stub.StatBlob(blob_pb2.StatBlobRequest(key="k")))
        while not (frame := await self.frame()).HasField("start"):
            pass
        return calling, frame.start

    async def frame(self) -> gateway_pb2.AttachResponse:
        return await anext(self._frames)

    def answer(self, **frame: Any) -> None:
        self.tunnel.dispatch(gateway_pb2.AttachRequest(**frame))


async def test_a_unary_call_leaves_in_one_frame_and_may_be_answered_in_one() -> None:
    peer = Peer()
    calling, start = await peer.call()
    assert (start.call_id, start.method, start.half_closed, start.more) == (1, STAT, True, False)
    assert blob_pb2.StatBlobRequest.FromString(start.message).key == "k"
    assert 59 < start.timeout.ToNanoseconds() / 1e9 <= 60
    peer.answer(output=gateway_pb2.CallOutput(call_id=1, message=b"", end=True))
    assert await calling == blob_pb2.StatBlobResponse()


async def test_the_ways_in_which_an_adapter_may_end_a_call() -> None:
    output, end = gateway_pb2.CallOutput, gateway_pb2.CallEnd
    told = to_failure(NotFoundError("no blob", reason="BLOB_NOT_FOUND"))
    bare = to_status(NotFoundError("no blob", reason="X"))
    del bare.details[:]
    message, last = output(call_id=1, message=b""), output(call_id=1, message=b"", end=True)
    outcomes: list[tuple[list[dict[str, Any]], str]] = [
        ([{"output": message}, {"output": output(call_id=1, end=True)}], ""),
        ([{"output": message}, {"end": end(call_id=1)}], ""),
        ([{"end": end(call_id=1, failure=told)}], "BLOB_NOT_FOUND"),
        ([{"output": message}, {"end": end(call_id=1, failure=told)}], "BLOB_NOT_FOUND"),
        # An adapter whose gRPC can't send details.
        ([{"end": end(call_id=1, failure=failure_pb2.Failure(status=bare, reason="MINE"))}], "MINE"),
        (
            [{"end": end(call_id=1, failure=failure_pb2.Failure(status=bare), trailers={"crucible-reason": "HERS"})}],
            "HERS",
        ),
        ([{"output": output(call_id=1, end=True)}], "ANSWER_INVALID"),
        ([{"output": message}, {"output": last}], "ANSWER_INVALID"),
        ([{"output": output(call_id=1, message=b"\x0a\xff", end=True)}], "MESSAGE_MALFORMED"),
    ]
    for frames, reason in outcomes:
        peer = Peer()
        calling, _ = await peer.call()
        for frame in frames:
            peer.answer(**frame)
        if not reason:
            assert await calling == blob_pb2.StatBlobResponse()
            continue
        with pytest.raises(KitchenError) as caught:
            await calling
        assert caught.value.reason == reason


async def test_what_comes_for_a_call_that_was_cancelled_is_ignored() -> None:
    peer = Peer()
    calling, _ = await peer.call()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert (await peer.frame()).cancel.call_id == 1
    peer.answer(output=gateway_pb2.CallOutput(call_id=1, message=b"", end=True))
    peer.answer(credit=gateway_pb2.Credit(call_id=1, bytes=7))
    peer.answer(end=gateway_pb2.CallEnd(call_id=1))


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"hello": gateway_pb2.Hello(name="again")},
        {"output": gateway_pb2.CallOutput(call_id=2, message=b"", end=True)},
        {"output": gateway_pb2.CallOutput(call_id=0, end=True)},
        {"output": gateway_pb2.CallOutput(call_id=1)},
        {"output": gateway_pb2.CallOutput(call_id=1, message=b"x", more=True, end=True)},
        {"output": gateway_pb2.CallOutput(call_id=1, message=b"", more=True)},
        {"output": gateway_pb2.CallOutput(call_id=1, message=bytes(MAX_PIECE_BYTES + 1))},
        {"end": gateway_pb2.CallEnd(call_id=9)},
        {"credit": gateway_pb2.Credit(call_id=9, bytes=1)},
    ],
    ids=str,
)
async def test_frames_that_an_adapter_must_not_send(frame: dict[str, Any]) -> None:
    peer = Peer()
    calling, _ = await peer.call()
    with pytest.raises(FrameError):
        peer.answer(**frame)
    peer.tunnel.detach("it broke the rules")
    with pytest.raises(KitchenError) as caught:
        await calling
    assert caught.value.reason == "ADAPTER_DETACHED"


async def test_an_adapter_that_sends_without_credit() -> None:
    peer = Peer()
    await peer.call()
    for _ in range(WINDOW_BYTES // MAX_PIECE_BYTES + 1):
        peer.answer(output=gateway_pb2.CallOutput(call_id=1, message=bytes(MAX_PIECE_BYTES)))
    with pytest.raises(FrameError, match="without credit"):
        peer.answer(output=gateway_pb2.CallOutput(call_id=1, message=b""))


async def test_an_answer_past_the_limit_fails_its_call_and_not_the_tunnel() -> None:
    peer = Peer()
    calling, _ = await peer.call()
    piece = gateway_pb2.CallOutput(call_id=1, message=bytes(MAX_PIECE_BYTES), more=True)
    for _ in range(MAX_MESSAGE_BYTES // MAX_PIECE_BYTES + 1):
        peer.answer(output=piece)
    with pytest.raises(KitchenError) as caught:
        await calling
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    peer.answer(output=piece)
    again, start = await peer.call()
    peer.answer(output=gateway_pb2.CallOutput(call_id=start.call_id, message=b"", end=True))
    await again


class Adapter:
    """The adapter's end, whose other end is the test itself."""

    def __init__(self, servicer: Any) -> None:
        self.tunnel = ServingTunnel({SERVICE: servicer}, gateway_pb2.Hello(name="peer", max_calls=2))
        self._frames = self.tunnel.outgoing()

    async def welcomed(self) -> Adapter:
        assert (await self.frame()).hello.name == "peer"
        self.send(welcome=gateway_pb2.Welcome())
        return self

    def send(self, **frame: Any) -> None:
        self.tunnel.dispatch(gateway_pb2.AttachResponse(**frame))

    def start(self, call_id: int, message: bytes | None, method: str = STAT, **fields: Any) -> None:
        fields = {"half_closed": True, **fields}
        self.send(start=gateway_pb2.CallStart(call_id=call_id, method=method, message=message, **fields))

    async def frame(self) -> gateway_pb2.AttachRequest:
        return await anext(self._frames)


def stat(key: str) -> bytes:
    return blob_pb2.StatBlobRequest(key=key).SerializeToString()


async def test_the_adapters_end_refuses_what_a_servers_boundary_refuses() -> None:
    adapter = await Adapter(ScriptedBlobs()).welcomed()
    requests: list[tuple[bytes | None, str, str]] = [
        (stat("k") + b"\xc0\x3e\x01", STAT, "FIELD_UNKNOWN"),
        (b"", STAT, "FIELD_INVALID"),
        (b"\x0a\xff", STAT, "MESSAGE_MALFORMED"),
        (None, STAT, "MESSAGE_MISSING"),
        (stat("k"), f"/{SERVICE}/Nothing", "METHOD_MISSING"),
        (stat("k"), "nonsense", "METHOD_MISSING"),
        (stat("missing"), STAT, "BLOB_NOT_FOUND"),
        (stat("bug"), STAT, "INTERNAL_BUG"),
    ]
    for number, (message, method, reason) in enumerate(requests, 1):
        adapter.start(number, message, method)
        end = (await adapter.frame()).end
        assert (end.call_id, end.failure.reason, end.failure.source) == (number, reason, "peer")
    await adapter.tunnel.close()


async def test_calls_past_the_limit_of_the_adapters_end() -> None:
    blobs = ScriptedBlobs()
    adapter = await Adapter(blobs).welcomed()
    for number in (1, 2, 3):
        adapter.start(number, stat("hang"))
    end = (await adapter.frame()).end
    assert (end.call_id, end.failure.reason) == (3, "TOO_MANY_IN_FLIGHT")
    await blobs.entered.wait()
    adapter.send(cancel=gateway_pb2.CallCancel(call_id=1))
    adapter.send(cancel=gateway_pb2.CallCancel(call_id=1))
    await blobs.left.wait()
    adapter.start(4, stat("k"))
    assert (await adapter.frame()).output.call_id == 4
    await adapter.tunnel.close()


async def test_the_adapters_end_ignores_what_it_does_not_know_and_answers_pings() -> None:
    adapter = await Adapter(ScriptedBlobs()).welcomed()
    adapter.send()
    adapter.send(drain=gateway_pb2.Drain(reason="DRAINING"))
    adapter.send(ping=gateway_pb2.Ping(nonce=5))
    assert (await adapter.frame()).pong.nonce == 5


async def test_a_request_past_the_limit_fails_its_call_alone() -> None:
    adapter = await Adapter(ScriptedBlobs()).welcomed()
    adapter.start(1, bytes(MAX_PIECE_BYTES), more=True, half_closed=False)
    piece = gateway_pb2.CallInput(call_id=1, message=bytes(MAX_PIECE_BYTES), more=True)
    for _ in range(MAX_MESSAGE_BYTES // MAX_PIECE_BYTES + 1):
        adapter.send(input=piece)
    while not (frame := await adapter.frame()).HasField("end"):
        assert frame.credit.call_id == 1
    assert frame.end.failure.reason == "MESSAGE_TOO_LARGE"
    adapter.start(2, stat("k"))
    assert (await adapter.frame()).output.end
    await adapter.tunnel.close()


@pytest.mark.parametrize("kind", ["start", "ping", "drain", "cancel"])
async def test_nothing_comes_before_welcome(kind: str) -> None:
    adapter = Adapter(ScriptedBlobs())
    frame = gateway_pb2.AttachResponse()
    getattr(frame, kind).SetInParent()
    with pytest.raises(FrameError, match="before Welcome"):
        adapter.tunnel.dispatch(frame)
    adapter.send(welcome=gateway_pb2.Welcome())
    with pytest.raises(FrameError, match="after Welcome"):
        adapter.send(welcome=gateway_pb2.Welcome())


IDS = st.integers(0, 3)
PAYLOADS = st.one_of(st.none(), st.binary(max_size=4), st.just(stat("k")))
FROM_KITCHEN = st.one_of(
    st.builds(
        lambda **fields: {"start": gateway_pb2.CallStart(**fields)},
        call_id=IDS,
        method=st.sampled_from([STAT, f"/{SERVICE}/WriteBlob", f"/{SERVICE}/ReadBlob", "", "/a/b/c"]),
        message=PAYLOADS,
        more=st.booleans(),
        half_closed=st.booleans(),
    ),
    st.builds(
        lambda **fields: {"input": gateway_pb2.CallInput(**fields)},
        call_id=IDS,
        message=PAYLOADS,
        more=st.booleans(),
        half_closed=st.booleans(),
    ),
    st.builds(lambda call_id: {"cancel": gateway_pb2.CallCancel(call_id=call_id)}, IDS),
    st.builds(lambda call_id: {"credit": gateway_pb2.Credit(call_id=call_id, bytes=1)}, IDS),
    st.just({"ping": gateway_pb2.Ping(nonce=1)}),
    st.just({}),
)
FROM_ADAPTER = st.one_of(
    st.builds(
        lambda **fields: {"output": gateway_pb2.CallOutput(**fields)},
        call_id=IDS,
        message=PAYLOADS,
        more=st.booleans(),
        end=st.booleans(),
    ),
    st.builds(
        lambda call_id, code: {
            "end": gateway_pb2.CallEnd(call_id=call_id, failure=failure_pb2.Failure(status={"code": code}))
        },
        IDS,
        st.integers(0, 99),
    ),
    st.builds(lambda call_id: {"credit": gateway_pb2.Credit(call_id=call_id, bytes=1)}, IDS),
    st.just({"pong": gateway_pb2.Pong()}),
    st.just({"drain": gateway_pb2.Drain()}),
    st.just({}),
)


@settings(deadline=None, max_examples=100)
@given(frames=st.lists(FROM_KITCHEN, max_size=12))
def test_no_order_of_frames_harms_the_adapters_end(frames: list[dict[str, Any]]) -> None:
    async def play() -> None:
        adapter = await Adapter(ScriptedBlobs()).welcomed()
        for frame in frames:
            try:
                adapter.send(**frame)
            except FrameError:
                break
            await asyncio.sleep(0)
        await adapter.tunnel.close()
        async for frame in adapter._frames:
            assert frame.WhichOneof("frame") in ("output", "end", "credit", "pong")

    asyncio.run(play())


@settings(deadline=None, max_examples=100)
@given(frames=st.lists(FROM_ADAPTER, max_size=12))
def test_no_order_of_frames_harms_the_kitchens_end(frames: list[dict[str, Any]]) -> None:
    async def play() -> None:
        peer = Peer()
        calling, _ = await peer.call()
        reading = asyncio.create_task(anext(peer.stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k")), None))
        await peer.frame()
        for frame in frames:
            try:
                peer.answer(**frame)
            except FrameError:
                break
        peer.tunnel.detach("the end")
        for outcome in await asyncio.gather(calling, reading, return_exceptions=True):
            assert outcome is None or isinstance(
                outcome, KitchenError | blob_pb2.StatBlobResponse | blob_pb2.ReadBlobResponse
            )

    asyncio.run(play())


async def test_the_callers_own_failure_cancels_its_call_at_the_adapter() -> None:
    blobs = ScriptedBlobs()

    async def broken() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="hang"))
        await blobs.entered.wait()
        raise OSError("disk gone")

    async with tunnelled({"blob": blobs}) as channels:
        with pytest.raises(OSError, match="disk gone"):
            await blob_pb2_grpc.BlobStoreServiceStub(channels["blob"]).WriteBlob(broken())
        await asyncio.wait_for(blobs.left.wait(), 10)


async def test_the_adapter_service_is_served_too() -> None:
    async with tunnelled({"blob": ScriptedBlobs()}) as channels:
        adapter = adapter_pb2_grpc.AdapterServiceStub(channels["blob"])  # type: ignore[arg-type]
        info = await adapter.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1]))
        assert [each.service for each in info.ports] == [SERVICE]
        assert (await adapter.Probe(adapter_pb2.ProbeRequest())).state == adapter_pb2.ProbeResponse.STATE_READY
        with pytest.raises(KitchenError) as caught:
            await adapter.Configure(adapter_pb2.ConfigureRequest(service=SERVICE, generation=1))
        assert (caught.value.code.name, caught.value.reason) == ("UNIMPLEMENTED", "CAPABILITY_MISSING")
