"""Serving ports on an address, with the boundary in front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import AdapterInfoService
from crucible_kit.boundary import BoundaryInterceptor, Guard
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.configuration import ServicerConfiguration
from crucible_kit.errors import UnavailableError
from crucible_kit.ports import PORTS


def server_options() -> list[tuple[str, int]]:
    """Options every server of ours has."""
    return [
        # On by default, it lets a second server take the same port and swallow calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # 8 KiB of error details must fit beside the other trailers.
        ("grpc.max_metadata_size", 32 * 1024),
    ]


def new_server(interceptors: Iterable[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """A server with our options; the first interceptor is the outermost."""
    return grpc.aio.server(interceptors=tuple(interceptors), options=server_options())


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Binds and returns the address to connect to, with the port that port 0 became.

    Raises:
        UnavailableError: ADDRESS_IN_USE when it can't be bound.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address}: it is in use or not an address of this machine; choose another with --listen",
            reason="ADDRESS_IN_USE",
            metadata={"address": address},
        ) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


@dataclass(frozen=True)
class ServedAdapter:
    """A running adapter server."""

    server: grpc.aio.Server
    address: str

    async def stop(self, grace: float = 5.0) -> None:
        """Refuses new calls and ends running ones after `grace` seconds."""
        await self.server.stop(grace)


def adapter_info(
    servicers: Mapping[str, Any], *, name: str, capabilities: Mapping[str, tuple[str, ...]], version: str | None = None
) -> AdapterInfoService:
    """AdapterService for port implementations, which takes the settings of those that have `configure`.

    Args:
        servicers: by port name.
        name: the adapter's name.
        capabilities: by port name.
        version: the adapter's; None: that of this distribution.
    """
    configuration = ServicerConfiguration(servicers)
    return AdapterInfoService(name=name, capabilities=capabilities, version=version, configuration=configuration)


def by_service(servicers: Mapping[str, Any], info: AdapterInfoService) -> dict[str, Any]:
    """Port implementations and AdapterService by full service name, as channels and tunnels to objects take them.

    Args:
        servicers: by port name.
    """
    services = {PORTS[port].service.full_name: servicer for port, servicer in servicers.items()}
    return services | {adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name: info}


async def serve_ports(
    servicers: Mapping[str, Any],
    address: str,
    *,
    name: str,
    capabilities: Mapping[str, tuple[str, ...]],
    version: str | None = None,
    credentials: grpc.ServerCredentials | None = None,
    guard: Guard | None = None,
) -> ServedAdapter:
    """Serves port implementations, and AdapterService beside them, on an address.

    Args:
        servicers: by port name.
        address: host:port (0 chooses a port) or unix:PATH.
        name: the adapter's name.
        capabilities: by port name.
        version: the adapter's; None: that of this distribution.
        credentials: TLS; None is plain text.
        guard: refuses calls.
    """
    server = new_server([BoundaryInterceptor(guard=guard)])
    for port, servicer in servicers.items():
        PORTS[port].register(servicer, server)
    info = adapter_info(servicers, name=name, capabilities=capabilities, version=version)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(info, server)
    bound = bind(server, address, credentials)
    await server.start()
    return ServedAdapter(server, bound)
