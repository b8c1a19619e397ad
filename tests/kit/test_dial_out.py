"""An adapter that dials out: it comes back whatever happens, until it is told to end or can't be wanted."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible.adapter.v1 import gateway_pb2, gateway_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.errors import KitchenError, UnavailableError
from crucible_kit.serving import bind, new_server
from crucible_kit.tunnel_dial import pause_seconds
from crucible_kitchen.ports.attachments import Attachments
from tests.kit.notes import SERVICE, ScriptedBlobs
from tests.kit.tunnels import NAME, attached, dial_out, gateway

Script = Callable[[AsyncIterator[gateway_pb2.AttachRequest]], AsyncIterator[gateway_pb2.AttachResponse]]


def welcome(lease: str = "7", heartbeat_seconds: float = 10.0) -> gateway_pb2.AttachResponse:
    frame = gateway_pb2.AttachResponse(welcome=gateway_pb2.Welcome(lease_token=lease, contract_version=1))
    frame.welcome.heartbeat.FromNanoseconds(int(heartbeat_seconds * 1e9))
    return frame


class Kitchen(gateway_pb2_grpc.AdapterGatewayServiceServicer):
    """Plays a script with each adapter that attaches, the last one for ever."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.hellos: list[gateway_pb2.Hello] = []

    async def Attach(
        self, request_iterator: AsyncIterator[gateway_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[gateway_pb2.AttachResponse]:
        self.hellos.append((await anext(request_iterator)).hello)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        async for frame in script(request_iterator):
            yield frame


@asynccontextmanager
async def serving(kitchen: Kitchen) -> AsyncIterator[str]:
    server = new_server([BoundaryInterceptor()])
    gateway_pb2_grpc.add_AdapterGatewayServiceServicer_to_server(kitchen, server)
    with tempfile.TemporaryDirectory() as folder:
        address = bind(server, f"unix:{Path(folder) / 's'}")
        await server.start()
        try:
            yield address
        finally:
            await server.stop(0)


async def then_hang(_: Any) -> AsyncIterator[gateway_pb2.AttachResponse]:
    yield welcome()
    await asyncio.Event().wait()


class Dialling:
    """A DialOut at work.

    Attributes:
        failures: what `pause` was asked with.
    """

    def __init__(self, address: str, blobs: Any = None) -> None:
        self.failures: list[int] = []
        self._paused: asyncio.Queue[None] = asyncio.Queue()
        self._arrived: asyncio.Queue[None] = asyncio.Queue()
        settings = {"pause": self._pause, "on_attached": lambda: self._arrived.put_nowait(None)}
        self.dial = dial_out(address, {"blob": blobs or ScriptedBlobs()}, **settings)
        self.running = asyncio.create_task(self.dial.run())

    def _pause(self, failures: int) -> float:
        self.failures.append(failures)
        self._paused.put_nowait(None)
        return 0.01

    async def attached(self) -> None:
        """It was accepted once more."""
        await asyncio.wait_for(self._arrived.get(), 20)

    async def failed(self, times: int) -> None:
        """It has failed so many times more."""
        for _ in range(times):
            await asyncio.wait_for(self._paused.get(), 20)

    async def end(self) -> None:
        self.dial.end()
        await self.running


async def after(first: Script) -> tuple[Kitchen, Dialling]:
    """An adapter whose first tunnel went by a script, once it has come back."""
    kitchen = Kitchen(first, then_hang)
    async with serving(kitchen) as address:
        dialling = Dialling(address)
        await dialling.attached()
        await dialling.attached()
        dialling.running.cancel()
        await asyncio.gather(dialling.running, return_exceptions=True)
    return kitchen, dialling


async def test_it_comes_back_with_its_lease_after_the_tunnel_ended() -> None:
    async def end(_: Any) -> AsyncIterator[gateway_pb2.AttachResponse]:
        yield welcome("41")

    kitchen, dialling = await after(end)
    assert [each.lease_token for each in kitchen.hellos] == ["", "41"]
    assert [each.info.instance_id for each in kitchen.hellos] == [kitchen.hellos[0].info.instance_id] * 2
    assert dialling.failures == [1]


async def test_it_comes_back_when_the_kitchen_falls_silent() -> None:
    async def fall_silent(_: Any) -> AsyncIterator[gateway_pb2.AttachResponse]:
        yield welcome(heartbeat_seconds=0.02)
        await asyncio.Event().wait()

    assert len((await after(fall_silent))[0].hellos) == 2


async def test_it_comes_back_after_frames_that_make_no_sense() -> None:
    async def nonsense(_: Any) -> AsyncIterator[gateway_pb2.AttachResponse]:
        yield welcome()
        yield gateway_pb2.AttachResponse(input=gateway_pb2.CallInput(call_id=9, message=b""))
        await asyncio.Event().wait()

    assert len((await after(nonsense))[0].hellos) == 2


async def test_a_refusal_after_it_was_attached_is_tried_again() -> None:
    attachments = Attachments()
    port = attachments.add("blob", NAME)
    async with gateway(attachments) as address:
        dialling = Dialling(address)
        await dialling.attached()
        await port.close()
        await dialling.failed(3)
        port = attachments.add("blob", NAME)
        await dialling.attached()
        await dialling.end()


async def test_a_refusal_before_that_ends_it() -> None:
    async with gateway(Attachments()) as address:
        with pytest.raises(KitchenError) as caught:
            await dial_out(address, {"blob": ScriptedBlobs()}).run()
    assert (caught.value.code.name, caught.value.reason) == ("NOT_FOUND", "ATTACHMENT_NOT_MAPPED")


async def test_it_ends_when_another_has_its_name() -> None:
    attachments = Attachments()
    attachments.add("blob", NAME)
    async with gateway(attachments) as address:
        older = Dialling(address)
        await older.attached()
        async with attached(address, {"blob": ScriptedBlobs()}):
            with pytest.raises(KitchenError) as caught:
                await older.running
    assert caught.value.reason == "ATTACHMENT_SUPERSEDED"


async def test_a_kitchen_that_is_not_there_is_tried_for_ever() -> None:
    dialling = Dialling("unix:/nonexistent/socket")
    await dialling.failed(4)
    assert dialling.failures[:4] == [1, 2, 3, 4]
    await dialling.end()


async def test_ending_while_it_waits_takes_no_pause() -> None:
    asked = asyncio.Event()

    def pause(_: int) -> float:
        asked.set()
        return 3600.0

    dialling = dial_out("unix:/nonexistent/socket", {"blob": ScriptedBlobs()}, pause=pause)
    running = asyncio.create_task(dialling.run())
    await asked.wait()
    dialling.end()
    await asyncio.wait_for(running, 10)


async def test_calls_are_cancelled_at_the_adapter_when_the_tunnel_breaks() -> None:
    blobs = ScriptedBlobs()

    async def call_and_go(_: Any) -> AsyncIterator[gateway_pb2.AttachResponse]:
        yield welcome()
        message = blob_pb2.StatBlobRequest(key="hang").SerializeToString()
        start = gateway_pb2.CallStart(call_id=1, method=f"/{SERVICE}/StatBlob", message=message, half_closed=True)
        yield gateway_pb2.AttachResponse(start=start)
        await blobs.entered.wait()

    async with serving(Kitchen(call_and_go, then_hang)) as address:
        dialling = Dialling(address, blobs)
        await asyncio.wait_for(blobs.left.wait(), 10)
        dialling.running.cancel()
        await asyncio.gather(dialling.running, return_exceptions=True)


async def test_a_call_that_outlives_the_grace_is_cut_off() -> None:
    attachments = Attachments()
    port = attachments.add("blob", NAME, wait_seconds=0.05)
    blobs = ScriptedBlobs()
    async with gateway(attachments) as address:
        async with attached(address, {"blob": blobs}, grace=0.05):
            calling = asyncio.create_task(
                blob_pb2_grpc.BlobStoreServiceStub(port.channel).StatBlob(blob_pb2.StatBlobRequest(key="hang"))
            )
            await blobs.entered.wait()
        with pytest.raises(UnavailableError) as caught:
            await calling
        assert caught.value.reason == "ADAPTER_DETACHED"
        assert blobs.left.is_set()


def test_pauses_grow_and_differ() -> None:
    for failures, longest in ((1, 0.2), (2, 0.4), (5, 3.2), (7, 12.8), (8, 15.0), (1000, 15.0)):
        pauses = [pause_seconds(failures) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1
