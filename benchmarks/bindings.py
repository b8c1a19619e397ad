"""What each way to an adapter costs: an object in the process, a socket, and a tunnel that the adapter has opened.

All but the object are the same adapter in a process of its own. The peer is grpc.aio with the same stub, on a unix
socket, without the channel of ours around it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from benchmarks.binding_adapter import MemoryBlobs
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.training_step import rotated
from crucible.adapter.v1 import gateway_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.channel import ObjectChannel, connect, open_channel
from crucible_kit.ports import PORTS
from crucible_kit.serving import bind, new_server
from crucible_kitchen.api.gateway_service import AdapterGatewayService
from crucible_kitchen.ports.attachments import Attachments

_BARE, _AGAIN = "bare grpc.aio, unix socket", "bare grpc.aio, unix socket again (A/A)"
_OBJECT, _SERIALISED = "object", "object, serialised"
_UNIX, _TCP, _TUNNEL = "unix socket", "TCP", "tunnel (dialled out)"
_NAME = "benchmark"
_MIB = 1024 * 1024


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """Unary calls one after another and sixteen at a time, then a stream."""
    async with AsyncExitStack() as stack:
        stubs = await _stubs(stack, folder)
        return [
            await _calls(scale, stubs, at_once=1),
            await _calls(scale, stubs, at_once=16),
            await _streams(scale, stubs),
        ]


async def _stubs(stack: AsyncExitStack, folder: Path) -> dict[str, Any]:
    service = PORTS["blob"].service.full_name
    unix, tcp = (
        await _adapter(stack, "--listen", f"unix:{folder / 'a'}"),
        await _adapter(stack, "--listen", "127.0.0.1:0"),
    )
    attachments = Attachments()
    tunnel = attachments.add("blob", _NAME)
    gateway = await _gateway(stack, attachments, f"unix:{folder / 'g'}")
    await _adapter(stack, "--attach", gateway, "--name", _NAME)
    bare = {name: open_channel(unix) for name in (_BARE, _AGAIN)}
    channels: dict[str, Any] = {
        **bare,
        _OBJECT: ObjectChannel({service: MemoryBlobs()}),
        _SERIALISED: ObjectChannel({service: MemoryBlobs()}, serialise=True),
        _UNIX: connect(unix),
        _TCP: connect(tcp),
        _TUNNEL: tunnel.channel,
    }
    for channel in channels.values():
        stack.push_async_callback(channel.close)
    return {name: blob_pb2_grpc.BlobStoreServiceStub(channel) for name, channel in channels.items()}


async def _adapter(stack: AsyncExitStack, *arguments: str) -> str:
    """A process of the adapter, and where it serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.binding_adapter", *arguments), stdout=asyncio.subprocess.PIPE
    )

    async def end() -> None:
        process.terminate()
        await process.wait()

    stack.push_async_callback(end)
    assert process.stdout is not None
    announced = await process.stdout.readline()
    if not announced:
        raise RuntimeError("the adapter did not start")
    return str(json.loads(announced)["address"])


async def _gateway(stack: AsyncExitStack, attachments: Attachments, address: str) -> str:
    server: grpc.aio.Server = new_server([BoundaryInterceptor()])
    service = AdapterGatewayService(attachments, tokens=None, heartbeat_seconds=10.0)
    gateway_pb2_grpc.add_AdapterGatewayServiceServicer_to_server(service, server)
    bound = bind(server, address)
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    return bound


async def _calls(scale: Scale, stubs: dict[str, Any], *, at_once: int) -> Table:
    table = Table(
        title=f"A call of an adapter, {at_once} at a time",
        about=(
            f"Microseconds of a call (StatBlob), {scale.calls} in each turn, {at_once} at a time: the time of the turn "
            "over its calls. All but the objects are an adapter in a process of its own, which the kit serves."
        ),
        unit="us",
    )
    request = blob_pb2.StatBlobRequest(key="k")
    for number in range(-1, scale.rounds):
        for system, stub in rotated(list(stubs.items()), number):

            async def work(stub: Any = stub) -> None:
                for _ in range(scale.calls // at_once):
                    await stub.StatBlob(request)

            start = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(at_once)))
            seconds = time.perf_counter() - start
            if number >= 0:  # the round before the first warms up
                table.add(system, [seconds * 1e6 / (scale.calls // at_once * at_once)])
    table.ratio("A/A: bare grpc.aio over itself", _AGAIN, _BARE)
    for system in (_OBJECT, _SERIALISED, _UNIX, _TCP, _TUNNEL):
        table.ratio(f"{system} over bare grpc.aio", system, _BARE)
    return table


async def _streams(scale: Scale, stubs: dict[str, Any]) -> Table:
    size = scale.stream_mib * _MIB
    table = Table(
        title="A stream from an adapter",
        about=f"MiB per second of ReadBlob, {scale.stream_mib} MiB in chunks of 256 KiB, one stream at a time.",
        unit="MiB/s",
    )
    request = blob_pb2.ReadBlobRequest(key="k", limit=size)
    for number in range(-1, scale.rounds):
        for system, stub in rotated(list(stubs.items()), number):
            start = time.perf_counter()
            received = 0
            async for response in stub.ReadBlob(request):
                received += len(response.data)
            seconds = time.perf_counter() - start
            if received != size:
                raise RuntimeError(f"{system}: {received} bytes came of {size}")
            if number >= 0:
                table.add(system, [scale.stream_mib / seconds])
    table.ratio("A/A: bare grpc.aio over itself", _AGAIN, _BARE)
    for system in (_OBJECT, _SERIALISED, _UNIX, _TCP, _TUNNEL):
        table.ratio(f"{system} over bare grpc.aio", system, _BARE)
    return table
