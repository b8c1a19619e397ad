"""Adapters that dial out: who may attach, who holds the name, and what becomes of calls meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible.adapter.v1 import adapter_pb2, gateway_pb2, gateway_pb2_grpc
from crucible.kitchen.v1 import adapter_admin_pb2, adapter_admin_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.channel import connect
from crucible_kit.errors import InvalidArgumentError, KitchenError, UnavailableError
from crucible_kit.ports import PORTS
from crucible_kitchen.api import gateway_service
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.attach_kind import attach_kind
from crucible_kitchen.ports.attachments import Attachments
from crucible_kitchen.ports.host import PortHost
from crucible_kitchen.server import KitchenServer
from tests.kit.notes import ScriptedBlobs
from tests.kit.tunnels import NAME, attached, dial_out, gateway
from tests.server.fakes import serve, tokens

READ, ADMIN, OWN = "read-token-0123456789", "admin-token-0123456789", "own-token-0123456789"


def hello(name: str = NAME, port: str = "blob", *, version: int = 1, lease_token: str = "") -> gateway_pb2.Hello:
    info = adapter_pb2.GetAdapterInfoResponse(name="mine", contract_versions=[version, 7], instance_id="i")
    info.ports.add(service=PORTS[port].service.full_name)
    return gateway_pb2.Hello(name=name, info=info, lease_token=lease_token)


class Tunnel:
    """A tunnel by hand."""

    def __init__(self, channel: Any, *frames: gateway_pb2.AttachRequest) -> None:
        self._outgoing: asyncio.Queue[gateway_pb2.AttachRequest | None] = asyncio.Queue()
        for frame in frames:
            self._outgoing.put_nowait(frame)
        self._incoming = gateway_pb2_grpc.AdapterGatewayServiceStub(channel).Attach(self._frames())

    async def _frames(self) -> AsyncIterator[gateway_pb2.AttachRequest]:
        while (frame := await self._outgoing.get()) is not None:
            yield frame

    def send(self, **frame: Any) -> None:
        self._outgoing.put_nowait(gateway_pb2.AttachRequest(**frame))

    def half_close(self) -> None:
        self._outgoing.put_nowait(None)

    async def next(self, kind: str) -> Any:
        """The content of the next frame of a kind; those before it are dropped."""
        while not (frame := await anext(self._incoming)).HasField(kind):
            pass
        return getattr(frame, kind)

    async def end(self) -> KitchenError | None:
        """How the stream ends; None: with OK."""
        try:
            async for _ in self._incoming:
                pass
        except KitchenError as error:
            return error
        return None


@asynccontextmanager
async def by_hand(address: str, *frames: gateway_pb2.AttachRequest, token: str = "") -> AsyncIterator[Tunnel]:
    channel = connect(address, token=token)
    try:
        yield Tunnel(channel, *frames)
    finally:
        await channel.close()


async def refused(address: str, *frames: gateway_pb2.AttachRequest, token: str = "") -> tuple[str, str]:
    async with by_hand(address, *frames, token=token) as tunnel:
        error = await tunnel.end()
    assert error is not None
    return error.code.name, error.reason


def greeting(*arguments: Any, **fields: Any) -> gateway_pb2.AttachRequest:
    return gateway_pb2.AttachRequest(hello=hello(*arguments, **fields))


def stat(key: str) -> blob_pb2.StatBlobRequest:
    return blob_pb2.StatBlobRequest(key=key)


@pytest.fixture
def attachments() -> Attachments:
    return Attachments()


async def test_the_handshake(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    async with gateway(attachments) as address, by_hand(address, greeting()) as tunnel:
        welcome = await tunnel.next("welcome")
        assert (welcome.heartbeat.seconds, welcome.contract_version) == (10, 1)
        assert welcome.attachment_id and welcome.lease_token and welcome.window_bytes
        assert port.info is not None and port.info.name == "mine"


@pytest.mark.parametrize(
    ("frame", "outcome"),
    [
        (greeting("other"), ("NOT_FOUND", "ATTACHMENT_NOT_MAPPED")),
        (greeting(version=2), ("FAILED_PRECONDITION", "CONTRACT_VERSION_UNSUPPORTED")),
        (greeting(NAME, "metrics"), ("FAILED_PRECONDITION", "PORT_NOT_SERVED")),
        (greeting(lease_token="mine"), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (greeting(lease_token="1" * 30), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (greeting("No Name"), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (gateway_pb2.AttachRequest(hello=gateway_pb2.Hello(name=NAME)), ("INVALID_ARGUMENT", "FIELD_INVALID")),
        (gateway_pb2.AttachRequest(pong=gateway_pb2.Pong()), ("INVALID_ARGUMENT", "FRAME_INVALID")),
        (gateway_pb2.AttachRequest(), ("INVALID_ARGUMENT", "FRAME_INVALID")),
        (
            gateway_pb2.AttachRequest(output=gateway_pb2.CallOutput(call_id=1, message=bytes(2**20))),
            ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE"),
        ),
    ],
)
async def test_refusals(attachments: Attachments, frame: gateway_pb2.AttachRequest, outcome: tuple[str, str]) -> None:
    port = attachments.add("blob", NAME)
    async with gateway(attachments) as address:
        assert await refused(address, frame) == outcome
        assert port.info is None


async def test_a_caller_that_says_nothing_is_sent_away(
    attachments: Attachments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_service, "_HELLO_SECONDS", 0.05)
    async with gateway(attachments) as address:
        assert await refused(address) == ("UNAVAILABLE", "HELLO_MISSING")


async def test_a_frame_that_breaks_the_rules_ends_the_tunnel_and_its_calls(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    async with gateway(attachments) as address:
        for bad in ({"hello": hello()}, {"end": gateway_pb2.CallEnd(call_id=99)}):
            async with by_hand(address, greeting()) as tunnel:
                await tunnel.next("welcome")
                calling = asyncio.create_task(stub.StatBlob(stat("k")))
                await tunnel.next("start")
                tunnel.send(**bad)
                error = await tunnel.end()
                assert error is not None and error.reason == "FRAME_INVALID"
                with pytest.raises(UnavailableError) as caught:
                    await calling
                assert (caught.value.reason, caught.value.retry_delay) == ("ADAPTER_DETACHED", 1.0)


async def outcome(address: str, name: str, token: str) -> str:
    """What comes of attaching with a token."""
    async with by_hand(address, greeting(name), token=token) as tunnel:
        try:
            await tunnel.next("welcome")
        except KitchenError as error:
            assert not token or token not in error.message
            return error.reason
        return "OK"


async def test_who_may_attach(tmp_path: Path) -> None:
    known = tokens(read=READ, admin=ADMIN)
    for given, own, expected in (
        # The server has no tokens, the mapping none: everybody. With one of the mapping: whoever has that.
        (None, "", {"": "OK", OWN: "OK"}),
        (None, OWN, {"": "TOKEN_MISSING", READ: "TOKEN_INVALID", OWN: "OK"}),
        # The server has tokens: an admin's, unless the mapping has its own, which is then the only one.
        (known, "", {"": "TOKEN_MISSING", OWN: "TOKEN_INVALID", READ: "ROLE_MISSING", ADMIN: "OK"}),
        (known, OWN, {"": "TOKEN_MISSING", ADMIN: "TOKEN_INVALID", OWN: "OK"}),
    ):
        attachments = Attachments()
        attachments.add("blob", NAME, token=own)
        async with gateway(attachments, tokens=given) as address:
            assert {token: await outcome(address, NAME, token) for token in expected} == expected
            # A name tells nobody whether it exists who could not have it.
            unknown = {"": "TOKEN_MISSING", ADMIN: "ATTACHMENT_NOT_MAPPED"} if given else {"": "ATTACHMENT_NOT_MAPPED"}
            assert {token: await outcome(address, "other", token) for token in unknown} == unknown


async def test_the_guard_lets_attach_through_to_its_own_rules(tmp_path: Path) -> None:
    attachments = Attachments()
    attachments.add("blob", NAME, token=OWN)
    async with serve(tmp_path, tokens=tokens(admin=ADMIN), attachments=attachments) as api:
        assert await outcome(api.address, NAME, OWN) == "OK"
        assert await outcome(api.address, NAME, "") == "TOKEN_MISSING"


async def test_ports_of_one_name_expect_one_token(attachments: Attachments) -> None:
    attachments.add("blob", NAME, token=OWN)
    with pytest.raises(InvalidArgumentError, match="token_env") as caught:
        attachments.add("metrics", NAME)
    assert caught.value.reason == "MANIFEST_INVALID"


async def test_the_newest_adapter_takes_the_name_over(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    older, newer = ScriptedBlobs(), ScriptedBlobs()
    async with gateway(attachments) as address, by_hand(address, greeting()) as first:
        lease = (await first.next("welcome")).lease_token
        calling = asyncio.create_task(stub.StatBlob(stat("hang")))
        await first.next("start")
        async with attached(address, {"blob": newer}):
            with pytest.raises(UnavailableError) as caught:
                await calling
            assert caught.value.reason == "ADAPTER_DETACHED"
            assert (await first.next("drain")).reason == "ATTACHMENT_SUPERSEDED"
            ended = await first.end()
            assert ended is not None and (ended.code.name, ended.reason) == (
                "FAILED_PRECONDITION",
                "ATTACHMENT_SUPERSEDED",
            )
            await stub.StatBlob(stat("k"))
            # The older one can't fight back, not even when the newer one is gone.
            assert (await refused(address, greeting(lease_token=lease)))[1] == "ATTACHMENT_SUPERSEDED"
        assert (await refused(address, greeting(lease_token=lease)))[1] == "ATTACHMENT_SUPERSEDED"
        assert older.seen == {}


async def test_an_adapter_that_comes_back_takes_its_own_place(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    async with gateway(attachments) as address, by_hand(address, greeting()) as first:
        lease = (await first.next("welcome")).lease_token
        # Its old connection hangs; the server does not know yet.
        async with by_hand(address, greeting(lease_token=lease)) as again:
            assert (await again.next("welcome")).lease_token == lease
            assert await first.end() is None
            assert port.info is not None


async def test_a_lease_of_another_server_counts(attachments: Attachments) -> None:
    attachments.add("blob", NAME)
    later = Attachments()
    later.add("blob", NAME)
    async with gateway(attachments) as address, by_hand(address, greeting()) as tunnel:
        older = (await tunnel.next("welcome")).lease_token
        async with by_hand(address, greeting()) as other:
            newer = (await other.next("welcome")).lease_token
    async with gateway(later) as address, by_hand(address, greeting(lease_token=older)) as tunnel:
        assert (await tunnel.next("welcome")).lease_token == older
        async with by_hand(address, greeting(lease_token=newer)) as other:
            assert (await other.next("welcome")).lease_token == newer
            ended = await tunnel.end()
            assert ended is not None and ended.reason == "ATTACHMENT_SUPERSEDED"


class Beats:
    """Heartbeats that come when a test says so."""

    def __init__(self) -> None:
        self._due: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        assert seconds == 10
        await self._due.get()

    def beat(self) -> None:
        self._due.put_nowait(None)


async def test_silence_for_three_heartbeats_detaches(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    beats = Beats()
    async with gateway(attachments, sleep=beats.sleep) as address, by_hand(address, greeting()) as tunnel:
        for nonce in range(1, 7):
            assert (await tunnel.next("ping")).nonce == nonce
            if nonce % 2 == 0:
                tunnel.send(pong=gateway_pb2.Pong(nonce=nonce))
                # What comes behind it on the same stream is answered: it has been seen.
                seen = asyncio.create_task(stub.StatBlob(stat("k")))
                call_id = (await tunnel.next("start")).call_id
                tunnel.send(output=gateway_pb2.CallOutput(call_id=call_id, message=b"", end=True))
                await seen
            beats.beat()
        await tunnel.next("ping")
        calling = asyncio.create_task(stub.StatBlob(stat("k")))
        await tunnel.next("start")
        for nonce in (8, 9):
            beats.beat()
            assert (await tunnel.next("ping")).nonce == nonce
        beats.beat()
        error = await tunnel.end()
        assert error is not None and (error.code.name, error.reason) == ("UNAVAILABLE", "HEARTBEAT_MISSED")
        with pytest.raises(UnavailableError) as caught:
            await calling
        assert caught.value.reason == "ADAPTER_DETACHED"


async def test_an_adapter_of_the_kit_answers_heartbeats(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    beats = Beats()
    async with gateway(attachments, sleep=beats.sleep) as address, attached(address, {"blob": ScriptedBlobs()}):
        before = port.info
        for _ in range(8):
            beats.beat()
            await stub.StatBlob(stat("k"))
        assert port.info is before is not None


async def test_calls_wait_for_an_adapter_that_is_away(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME, wait_seconds=30)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    async with gateway(attachments) as address:
        calling = asyncio.create_task(stub.StatBlob(stat("k")))
        await asyncio.sleep(0)
        async with attached(address, {"blob": ScriptedBlobs()}):
            assert (await calling).blob.uri == "k"


@pytest.mark.parametrize(("wait_seconds", "timeout"), [(0.05, 30), (30, 0.05), (0.05, None)])
async def test_and_no_longer_than_they_may(
    attachments: Attachments, wait_seconds: float, timeout: float | None
) -> None:
    port = attachments.add("blob", NAME, wait_seconds=wait_seconds)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    for call in (
        lambda: stub.StatBlob(stat("k"), timeout=timeout),
        lambda: anext(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"), timeout=timeout)),
    ):
        with pytest.raises(UnavailableError) as caught:
            await call()
        error = caught.value
        assert (error.reason, error.metadata, error.retry_delay) == ("ADAPTER_DETACHED", {"attachment": NAME}, 1.0)
        assert "0.05 s" in error.message


async def test_an_adapter_that_is_told_to_end_finishes_its_calls(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    entered, release = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedBlobs):
        async def StatBlob(self, request: Any, context: Any) -> Any:
            entered.set()
            await release.wait()
            return await super().StatBlob(request, context)

    async with gateway(attachments) as address, attached(address, {"blob": Slow()}) as dialling:
        calling = asyncio.create_task(stub.StatBlob(stat("first")))
        await entered.wait()
        dialling.end()
        release.set()
        assert (await calling).blob.uri == "first"


async def test_an_adapter_that_is_about_to_go_gets_no_more_calls(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    async with gateway(attachments) as address:
        async with by_hand(address, greeting()) as tunnel:
            await tunnel.next("welcome")
            calling = asyncio.create_task(stub.StatBlob(stat("first")))
            call_id = (await tunnel.next("start")).call_id
            tunnel.send(drain=gateway_pb2.Drain(reason="DRAINING"))
            await tunnel.next("drain")
            assert port.info is None
            later = asyncio.create_task(stub.StatBlob(stat("later")))
            tunnel.send(output=gateway_pb2.CallOutput(call_id=call_id, message=b"", end=True))
            assert await calling == blob_pb2.StatBlobResponse()
            assert await tunnel.end() is None
        assert not later.done()
        async with attached(address, {"blob": ScriptedBlobs()}):
            assert (await later).blob.uri == "later"


async def test_a_server_that_drains_sends_adapters_away_when_their_calls_are_done(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    service = gateway_service.AdapterGatewayService(attachments, tokens=None, heartbeat_seconds=10)
    async with gateway(attachments) as address, by_hand(address, greeting()) as tunnel:
        await tunnel.next("welcome")
        calling = asyncio.create_task(stub.StatBlob(stat("k")))
        call_id = (await tunnel.next("start")).call_id
        service.drain()
        assert (await tunnel.next("drain")).reason == "DRAINING"
        tunnel.send(output=gateway_pb2.CallOutput(call_id=call_id, message=b"", end=True))
        assert await calling == blob_pb2.StatBlobResponse()
        error = await tunnel.end()
        assert error is not None and (error.code.name, error.reason) == ("UNAVAILABLE", "DRAINING")
        assert await refused(address, greeting()) == ("UNAVAILABLE", "DRAINING")


async def test_an_adapter_that_goes_without_a_word(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    async with gateway(attachments) as address:
        for leave in ("half_close", "hang up"):
            async with by_hand(address, greeting()) as tunnel:
                await tunnel.next("welcome")
                reading = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"))
                first = asyncio.create_task(anext(reading))
                call_id = (await tunnel.next("start")).call_id
                message = blob_pb2.ReadBlobResponse(offset=1).SerializeToString()
                tunnel.send(output=gateway_pb2.CallOutput(call_id=call_id, message=message))
                assert (await first).offset == 1
                if leave == "half_close":
                    tunnel.half_close()
                    assert await tunnel.end() is None
            with pytest.raises(UnavailableError) as caught:
                await anext(reading)
            assert caught.value.reason == "ADAPTER_DETACHED"


def host_of(tmp_path: Path, manifest: str, attachments: Attachments) -> PortHost:
    path = tmp_path / "kitchen.yaml"
    path.write_text(f"profile: local\nports:\n{manifest}")
    context = AdapterContext(data_dir=tmp_path)
    return PortHost.open(path, context, kinds={"attach": attach_kind(attachments)})


async def test_the_host_sees_who_is_attached(tmp_path: Path, attachments: Attachments) -> None:
    host = host_of(tmp_path, f"  blob: {{adapter: 'attach:{NAME}', wait_seconds: 0.05}}\n", attachments)
    try:
        assert host.attached("blob") is None
        (adapter,) = [each for each in await host.adapters() if each.port == "blob"]
        assert (adapter.target, adapter.state) == (f"attach:{NAME}", adapter_admin_pb2.ADAPTER_STATE_DEGRADED)
        with pytest.raises(UnavailableError) as caught:
            await host.stub("blob")
        assert (caught.value.reason, caught.value.port) == ("ADAPTER_DETACHED", "blob")
        seen = []
        async with gateway(attachments) as address:
            for _ in range(2):
                async with attached(address, {"blob": ScriptedBlobs()}):
                    stub = await host.stub("blob")
                    assert (await stub.StatBlob(stat("k"))).blob.uri == "k"
                    now = host.attached("blob")
                    assert now is not None
                    seen.append(now.instance_id)
                    probed = await host.probe("blob")
                    assert (probed.state, probed.name) == (adapter_admin_pb2.ADAPTER_STATE_READY, "scripted")
                    assert await host.capabilities("blob") == frozenset() == await host.known_capabilities("blob")
            assert host.attached("blob") is None
            with pytest.raises(UnavailableError) as caught:
                await stub.StatBlob(stat("k"))
            assert (caught.value.reason, caught.value.port) == ("ADAPTER_DETACHED", "blob")
            assert len(set(seen)) == 2
            assert (await host.probe("blob")).state == adapter_admin_pb2.ADAPTER_STATE_DEGRADED
    finally:
        await host.close()


async def test_an_adapter_without_an_instance_id_is_a_new_one_each_time(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    seen = set()
    async with gateway(attachments) as address:
        for _ in range(2):
            frame = greeting()
            frame.hello.info.instance_id = ""
            async with by_hand(address, frame) as tunnel:
                await tunnel.next("welcome")
                assert port.info is not None
                seen.add(port.info.instance_id)
    assert len(seen) == 2 and "" not in seen


class Configured(ScriptedBlobs):
    """Takes settings, and says which it has when it is asked for its blobs."""

    class options(AdapterOptions):
        size: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.settings: list[int] = []

    async def configure(self, options: Any, secrets: Any) -> None:
        self.settings.append(options.size)

    async def StatBlob(self, request: Any, context: Any) -> Any:
        assert self.settings, "called before it was configured"
        return await super().StatBlob(request, context)


async def test_an_adapter_gets_its_settings_before_its_first_call(tmp_path: Path, attachments: Attachments) -> None:
    manifest = f"  blob: {{adapter: 'attach:{NAME}', options: {{size: 7}}, wait_seconds: 60}}\n"
    host = host_of(tmp_path, manifest, attachments)
    stub = host._ports["blob"].stub
    try:
        async with gateway(attachments) as address:
            for _ in range(2):
                blobs = Configured()
                async with attached(address, {"blob": blobs}):
                    await asyncio.gather(*(stub.StatBlob(stat(str(number))) for number in range(5)))
                    await stub.StatBlob(stat("k"))
                assert blobs.settings == [7]
            async with attached(address, {"blob": ScriptedBlobs()}):
                with pytest.raises(KitchenError) as caught:
                    await stub.StatBlob(stat("k"))
                assert caught.value.reason == "MANIFEST_INVALID"
    finally:
        await host.close()


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("  blob: 'attach:No Name'\n", "small letters"),
        ("  blob: 'attach:'\n", "attach:NAME"),
        (
            "  blob: {adapter: 'attach:x', token_env: CRUCIBLE_TEST_NOT_SET}\n",
            "CRUCIBLE_TEST_NOT_SET, the token of the port blob, is not set",
        ),
        ("  blob: {adapter: 'attach:x', wait_seconds: 0}\n", "wait_seconds"),
    ],
)
def test_mappings_that_are_refused(tmp_path: Path, manifest: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        host_of(tmp_path, manifest, Attachments())
    assert caught.value.reason == "MANIFEST_INVALID"


async def test_a_token_from_the_environment(
    tmp_path: Path, attachments: Attachments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAPTOP_TOKEN", OWN)
    host = host_of(tmp_path, f"  blob: {{adapter: 'attach:{NAME}', token_env: LAPTOP_TOKEN}}\n", attachments)
    try:
        async with gateway(attachments) as address:
            assert await outcome(address, NAME, "wrong") == "TOKEN_INVALID"
            async with attached(address, {"blob": ScriptedBlobs()}, token=OWN):
                await (await host.stub("blob")).StatBlob(stat("k"))
    finally:
        await host.close()


async def test_a_port_that_is_mapped_elsewhere_lets_the_adapter_go(attachments: Attachments) -> None:
    port = attachments.add("blob", NAME)
    async with gateway(attachments) as address, by_hand(address, greeting()) as tunnel:
        await tunnel.next("welcome")
        await port.close()
        assert await tunnel.end() is None
        assert await refused(address, greeting()) == ("NOT_FOUND", "ATTACHMENT_NOT_MAPPED")


async def test_an_adapter_waits_for_the_next_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A whole server that stops: the adapter is told, and comes back to the one that takes its place."""
    manifest = tmp_path / "kitchen.yaml"
    manifest.write_text(f"profile: local\nports:\n  blob: 'attach:{NAME}'\n")
    first = KitchenServer(ServerOptions(listen="127.0.0.1:0", data=tmp_path / "data", manifest=manifest))
    await first.start()
    arrivals: asyncio.Queue[None] = asyncio.Queue()
    dialling = dial_out(first.address, {"blob": ScriptedBlobs()}, on_attached=lambda: arrivals.put_nowait(None))
    running = asyncio.create_task(dialling.run())
    try:
        await asyncio.wait_for(arrivals.get(), 20)
        with caplog.at_level(logging.WARNING, "crucible_kit.tunnel_dial"):
            await first.stop()
            second = KitchenServer(ServerOptions(listen=first.address, data=tmp_path / "data", manifest=manifest))
            await second.start()
            await asyncio.wait_for(arrivals.get(), 20)
        assert "DRAINING" in caplog.text
        channel = connect(second.address)
        admin = adapter_admin_pb2_grpc.AdapterAdminServiceStub(channel)
        probed = await admin.ProbeAdapter(adapter_admin_pb2.ProbeAdapterRequest(port="blob"))
        assert probed.adapter.state == adapter_admin_pb2.ADAPTER_STATE_READY
        # Clients of the server reach the adapter through it.
        assert (await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(stat("k"))).blob.uri == "k"
        await channel.close()
        await second.stop()
    finally:
        dialling.end()
        await running
