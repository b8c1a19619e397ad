"""The gRPC side of a server: its services behind the boundary, on one address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crucible.adapter.v1 import gateway_pb2, gateway_pb2_grpc
from crucible.kitchen.v1 import (
    adapter_admin_pb2,
    adapter_admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.errors import UnavailableError
from crucible_kit.serving import bind, new_server
from crucible_kitchen.api.access import AccessGuard, Tokens
from crucible_kitchen.api.adapter_admin_service import AdapterAdminService, Adapters
from crucible_kitchen.api.catalog_service import Catalog, CatalogService
from crucible_kitchen.api.gateway_service import AdapterGatewayService
from crucible_kitchen.api.run_service import Runs, RunService
from crucible_kitchen.api.watch import Watches
from crucible_kitchen.ports.attachments import Attachments
from crucible_kitchen.relay.methods import PORT_SERVICES
from crucible_kitchen.relay.relay import Relay
from crucible_kitchen.store.store import Store

MAX_REQUEST_BYTES = 4 * 1024 * 1024
# A frame is below 256 KiB; the Hello before it holds the schemas of an adapter's settings.
MAX_FRAME_BYTES = 1024 * 1024
KITCHEN_SERVICES = tuple(
    descriptor.full_name
    for file in (run_pb2, catalog_pb2, adapter_admin_pb2, gateway_pb2)
    for descriptor in file.DESCRIPTOR.services_by_name.values()
)
SERVICES = (
    *KITCHEN_SERVICES,
    *PORT_SERVICES,
    health.SERVICE_NAME,
    reflection.SERVICE_NAME,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
)


class Endpoint:
    """Bind, start, drain, stop: in this order, each once."""

    def __init__(
        self,
        *,
        store: Store,
        runs: Runs,
        adapters: Adapters,
        catalog: Catalog,
        relay: Relay,
        tokens: Tokens | None = None,
        max_watchers_per_run: int = 64,
        heartbeat_seconds: float = 15.0,
        attachments: Attachments | None = None,
        attach_heartbeat_seconds: float = 10.0,
    ) -> None:
        """`tokens` None: no token is asked for. `heartbeat_seconds`: silence of a watch before an empty response.
        `attachments` None: no adapter may attach. `attach_heartbeat_seconds`: between two signs of life of one.
        """
        self._guard = AccessGuard(tokens)
        self._watches = Watches(store, max_per_run=max_watchers_per_run, heartbeat_seconds=heartbeat_seconds)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._gateway = AdapterGatewayService(
            attachments or Attachments(), tokens=tokens, heartbeat_seconds=attach_heartbeat_seconds
        )
        limits = {"/crucible.kitchen.v1.": MAX_REQUEST_BYTES, "/crucible.adapter.v1.": MAX_FRAME_BYTES}
        boundary = BoundaryInterceptor(guard=self._guard, max_bytes=limits)
        self._server = new_server([boundary])
        run_pb2_grpc.add_RunServiceServicer_to_server(RunService(store, runs, self._watches), self._server)
        catalog_pb2_grpc.add_CatalogServiceServicer_to_server(CatalogService(catalog), self._server)
        adapter_admin_pb2_grpc.add_AdapterAdminServiceServicer_to_server(AdapterAdminService(adapters), self._server)
        gateway_pb2_grpc.add_AdapterGatewayServiceServicer_to_server(self._gateway, self._server)
        relay.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        # It serves whatever protos are loaded, google.rpc's error details too: clients without any can show them.
        reflection.enable_server_reflection(SERVICES, self._server)

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Takes the address and returns it with the port that port 0 became. A unix socket is for this user alone.

        Raises:
            UnavailableError: ADDRESS_IN_USE.
        """
        if not address.startswith("unix:"):
            return bind(self._server, address, credentials)
        _refuse_live_socket(address)
        mask = os.umask(0o177)
        try:
            return bind(self._server, address, credentials)
        finally:
            os.umask(mask)

    async def start(self) -> None:
        """Takes calls and reports SERVING."""
        await self._server.start()
        for service in (*KITCHEN_SERVICES, *PORT_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Reports NOT_SERVING and refuses mutations from now on; reading and watching go on."""
        self._guard.draining = True
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Ends watches and attachments with DRAINING, takes no more calls, and cuts off those still there after `grace`
        seconds.
        """
        self._watches.drain()
        self._gateway.drain()
        await self._server.stop(grace)


def _refuse_live_socket(address: str) -> None:
    """gRPC unlinks a socket that is in its way, even one that a server still listens on."""
    path = Path(address.removeprefix("unix:"))
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return  # left behind by a server that died
    raise UnavailableError(
        f"cannot listen on {address}: another server listens there; choose another with --listen",
        reason="ADDRESS_IN_USE",
        metadata={"address": address},
    )
