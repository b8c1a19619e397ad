"""The bindings that every suite runs over. Another way to reach an adapter is one more entry of BINDINGS."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import AdapterInfoService
from crucible_kit.channel import Channel, ObjectChannel, connect
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from tests.kit.tunnels import tunnelled

Servicers = Mapping[str, Any]
"""Implementations by port name."""
Capabilities = Mapping[str, tuple[str, ...]]
"""Declared capabilities by port name."""
Open = Callable[[Servicers, Capabilities], AbstractAsyncContextManager[Channel]]

_HANDSHAKE = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name
NAME = "under-test"


@asynccontextmanager
async def to_object(
    servicers: Servicers, capabilities: Capabilities, *, serialise: bool = False
) -> AsyncIterator[Channel]:
    """As the host reaches an adapter in its own process."""
    services = {PORTS[port].service.full_name: servicer for port, servicer in servicers.items()}
    info = AdapterInfoService(name=NAME, capabilities=capabilities)
    yield ObjectChannel({**services, _HANDSHAKE: info}, serialise=serialise)


@asynccontextmanager
async def to_serialised_object(servicers: Servicers, capabilities: Capabilities) -> AsyncIterator[Channel]:
    """The same, every message through its bytes."""
    async with to_object(servicers, capabilities, serialise=True) as channel:
        yield channel


@asynccontextmanager
async def to_socket(servicers: Servicers, capabilities: Capabilities) -> AsyncIterator[Channel]:
    """gRPC over a unix socket."""
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        served = await serve_ports(servicers, f"unix:{Path(folder) / 's'}", name=NAME, capabilities=capabilities)
        channel = connect(served.address, retry=False)
        try:
            yield channel
        finally:
            await channel.close()
            await served.stop(0)


@asynccontextmanager
async def to_tunnel(servicers: Servicers, capabilities: Capabilities) -> AsyncIterator[Channel]:
    """Through the tunnel of an adapter that has dialled out."""
    async with tunnelled(servicers, capabilities=capabilities) as channels:
        yield next(iter(channels.values()))


BINDINGS: dict[str, Open] = {
    "object": to_object,
    "serialised object": to_serialised_object,
    "unix socket": to_socket,
    "tunnel": to_tunnel,
}
