"""AdapterAdminService over the administration of the adapters."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Protocol

from crucible.kitchen.v1 import adapter_admin_pb2, adapter_admin_pb2_grpc
from crucible_kit.adapter import from_struct
from crucible_kit.errors import field_error
from crucible_kit.settings import parse_settings
from crucible_kitchen.ports.mapping import PortMapping

_WHERE = "mapping"


class Adapters(Protocol):
    """What holds the adapters."""

    def adapters(self) -> Awaitable[Sequence[adapter_admin_pb2.Adapter]]: ...
    def probe(self, port: str) -> Awaitable[adapter_admin_pb2.Adapter]: ...
    def add(
        self, port: str, mapping: PortMapping, *, where: str, validate_only: bool, force: bool
    ) -> Awaitable[adapter_admin_pb2.Adapter | None]: ...
    def remove(self, port: str, *, force: bool) -> Awaitable[adapter_admin_pb2.Adapter | None]: ...


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

    async def AddAdapter(
        self, request: adapter_admin_pb2.AddAdapterRequest, context: Any
    ) -> adapter_admin_pb2.AddAdapterResponse:
        mapping = parse_mapping(request.mapping)
        adapter = await self._adapters.add(
            request.port, mapping, where=_WHERE, validate_only=request.validate_only, force=request.force
        )
        return adapter_admin_pb2.AddAdapterResponse(adapter=adapter)

    async def RemoveAdapter(
        self, request: adapter_admin_pb2.RemoveAdapterRequest, context: Any
    ) -> adapter_admin_pb2.RemoveAdapterResponse:
        adapter = await self._adapters.remove(request.port, force=request.force)
        return adapter_admin_pb2.RemoveAdapterResponse(adapter=adapter)


def parse_mapping(message: adapter_admin_pb2.AdapterMapping) -> PortMapping:
    """The mapping of a request. Raises INVALID_ARGUMENT MANIFEST_INVALID with the bad fields."""
    given: dict[str, Any] = {
        name: value
        for name in ("adapter", "token_env", "insecure")
        if (value := getattr(message, name)) != message.DESCRIPTOR.fields_by_name[name].default_value
    }
    if message.command:
        given["command"] = list(message.command)
    if message.HasField("options"):
        given["options"] = from_struct(message.options)
    if message.secrets:
        given["secrets"] = dict(message.secrets)
    if message.HasField("wait_seconds"):
        given["wait_seconds"] = message.wait_seconds
    if message.HasField("tls"):
        given["tls"] = _tls(message.tls)
    return parse_settings(PortMapping, given, where=_WHERE, reason="MANIFEST_INVALID")


def _tls(message: adapter_admin_pb2.AdapterTls) -> dict[str, str]:
    given = {name: getattr(message, name) for name in ("ca", "cert", "key", "server_name") if getattr(message, name)}
    for name, path in given.items():
        if name != "server_name" and not Path(path).is_absolute():
            raise field_error(
                f"{_WHERE}.tls.{name}",
                f"{path!r} is not absolute: give the full path on the server's machine",
                reason="MANIFEST_INVALID",
            )
    return given
