"""AdapterAdminService over the host of the adapters."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from crucible.kitchen.v1 import adapter_admin_pb2, adapter_admin_pb2_grpc


class Adapters(Protocol):
    """What holds the adapters."""

    def adapters(self) -> Awaitable[Sequence[adapter_admin_pb2.Adapter]]: ...
    def probe(self, port: str) -> Awaitable[adapter_admin_pb2.Adapter]: ...


class AdapterAdminService(adapter_admin_pb2_grpc.AdapterAdminServiceServicer):
    """See adapter_admin.proto."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def ListAdapters(
        self, request: adapter_admin_pb2.ListAdaptersRequest, context: Any
    ) -> adapter_admin_pb2.ListAdaptersResponse:
        adapters = sorted(await self._adapters.adapters(), key=lambda each: each.port)
        return adapter_admin_pb2.ListAdaptersResponse(adapters=adapters)

    async def ProbeAdapter(
        self, request: adapter_admin_pb2.ProbeAdapterRequest, context: Any
    ) -> adapter_admin_pb2.ProbeAdapterResponse:
        return adapter_admin_pb2.ProbeAdapterResponse(adapter=await self._adapters.probe(request.port))
