"""Servicers behind a tunnel that they have opened themselves, on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crucible.adapter.v1 import gateway_pb2_grpc
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.channel import Channel
from crucible_kit.serving import adapter_info, bind, by_service, new_server
from crucible_kit.tunnel_dial import DialOut
from crucible_kitchen.api.endpoint import MAX_FRAME_BYTES
from crucible_kitchen.api.gateway_service import AdapterGatewayService
from crucible_kitchen.ports.attachments import Attachments

NAME = "laptop"


def dial_out(
    address: str,
    servicers: Mapping[str, Any],
    *,
    name: str = NAME,
    capabilities: Mapping[str, tuple[str, ...]] | None = None,
    **settings: Any,
) -> DialOut:
    """An adapter for the servicers by port name; the settings are DialOut's. `capabilities` by port name too."""
    info = adapter_info(servicers, name="scripted", capabilities=capabilities or dict.fromkeys(servicers, ()))
    settings.setdefault("pause", lambda failures: 0.01)
    return DialOut(address, name=name, servicers=by_service(servicers, info), info=info.describe(), **settings)


@asynccontextmanager
async def gateway(attachments: Attachments, **settings: Any) -> AsyncIterator[str]:
    """A server that adapters can attach to, and its address; the settings are AdapterGatewayService's."""
    service = AdapterGatewayService(attachments, **{"tokens": None, "heartbeat_seconds": 10.0, **settings})
    server = new_server([BoundaryInterceptor(max_bytes={"/crucible.adapter.v1.": MAX_FRAME_BYTES})])
    gateway_pb2_grpc.add_AdapterGatewayServiceServicer_to_server(service, server)
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        address = bind(server, f"unix:{Path(folder) / 's'}")
        await server.start()
        try:
            yield address
        finally:
            service.drain()
            await server.stop(5)


@asynccontextmanager
async def attached(address: str, servicers: Mapping[str, Any], **settings: Any) -> AsyncIterator[DialOut]:
    """An adapter that is attached for the length of a block; the settings are DialOut's."""
    arrived = asyncio.Event()
    dialling = dial_out(address, servicers, on_attached=arrived.set, **settings)
    running = asyncio.create_task(dialling.run())
    waiting = asyncio.create_task(arrived.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield dialling
    finally:
        waiting.cancel()
        dialling.end()
        await running


@asynccontextmanager
async def tunnelled(servicers: Mapping[str, Any], **settings: Any) -> AsyncIterator[dict[str, Channel]]:
    """Channels by port to servicers by port; the settings are DialOut's."""
    attachments = Attachments()
    channels: dict[str, Channel] = {port: attachments.add(port, NAME).channel for port in servicers}
    async with gateway(attachments) as address, attached(address, servicers, **settings):
        yield channels
