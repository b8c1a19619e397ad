"""The adapters of a server: made from the manifest, started when first needed, closed with it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kit.adapter import (
    CONTRACT_VERSIONS,
    AdapterContext,
    AdapterDescription,
    AdapterInfoService,
    AdapterOptions,
    InProcessAdapter,
    ProcessAdapter,
    distribution_version,
)
from crucible_kit.channel import Channel, ObjectChannel, connect
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, KitchenError, NotFoundError
from crucible_kit.ports import PORTS
from crucible_kit.settings import parse_settings, unknown_key
from crucible_kitchen.ports.manifest import PortMapping, load_manifest
from crucible_kitchen.ports.named import PortChannel, errors_of
from crucible_kitchen.ports.process import AdapterProcess
from crucible_kitchen.ports.sockets import close_socket_folder, open_socket_folder

ENTRY_POINTS = "crucible_kitchen.adapters"
_HANDSHAKE_SECONDS = 10.0


class Attached(NamedTuple):
    """An adapter that runs.

    Attributes:
        stub: the port's generated stub.
        instance_id: differs after every start of the adapter.
    """

    stub: Any
    instance_id: str


class PortHost:
    """Stubs by port. In-process adapters are called through an object channel, others over gRPC."""

    def __init__(self, mappings: Mapping[str, PortMapping], context: AdapterContext) -> None:
        self._mappings = dict(mappings)
        self._context = context
        self._socket_dir = open_socket_folder(context.data_dir)
        self._objects: dict[str, InProcessAdapter] = {}
        self._processes: dict[str, AdapterProcess] = {}
        self._port_processes: dict[str, AdapterProcess] = {}
        self._channels: dict[str, Channel] = {}
        self._stubs: dict[str, Any] = {}
        self._infos: dict[str, adapter_pb2.GetAdapterInfoResponse] = {}

    @classmethod
    def open(cls, manifest: Path | None, context: AdapterContext) -> PortHost:
        """The host of a manifest's adapters; in-process ones are made now, so that bad options are found now.

        Raises:
            InvalidArgumentError: MANIFEST_INVALID naming port and key.
        """
        host = cls(load_manifest(manifest), context)
        try:
            for port in sorted(host._mappings):
                host._prepare(port)
                host._stubs[port] = PORTS[port].stub(PortChannel(host._channels[port], port))
        except BaseException:
            close_socket_folder(context.data_dir, host._socket_dir)
            raise
        return host

    def _prepare(self, port: str) -> None:
        mapping = self._mappings[port]
        if mapping.kind == "grpc":
            self._channels[port] = connect(mapping.target, ready_seconds=mapping.wait_seconds)
            return
        target = _load(port, mapping)
        if isinstance(target, ProcessAdapter):
            options = _options(port, target.options, mapping)
            key = f"{target.name}:{options.model_dump_json()}"
            if key not in self._processes:
                self._processes[key] = AdapterProcess(
                    target,
                    options,
                    socket=self._socket_dir / f"{len(self._processes)}.sock",
                    work_dir=self._context.data_dir / "adapters" / target.name,
                )
            self._channels[port] = self._processes[key].channel
            self._port_processes[port] = self._processes[key]
            return
        description: AdapterDescription = target.description
        if description.port != port:
            raise _bad_mapping(port, mapping, f"serves the port {description.port}")
        adapter = target(_options(port, description.options, mapping), self._context)
        self._objects[port] = adapter
        info = AdapterInfoService(name=description.name, capabilities={port: description.capabilities})
        self._channels[port] = ObjectChannel(
            {
                PORTS[port].service.full_name: adapter,
                adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name: info,
            }
        )

    def require(self, port: str) -> None:
        """Raises FAILED_PRECONDITION PORT_NOT_MAPPED when no adapter is to serve the port."""
        if port not in self._mappings:
            raise _not_mapped(port)

    async def stub(self, port: str) -> Any:
        """The generated stub of a port; starts its adapter and shakes hands when needed.

        Raises:
            KitchenError: the adapter does not start or answer; CONTRACT_VERSION_UNSUPPORTED; PORT_NOT_SERVED;
                PORT_NOT_MAPPED.
        """
        with errors_of(port):
            await self.info(port)
        return self._stubs[port]

    def attached(self, port: str) -> Attached | None:
        """The port's adapter as its last handshake left it; None when there was none yet or its process has ended.
        Starts nothing and asks nobody: a call may still find it gone.
        """
        process = self._port_processes.get(port)
        info = self._infos.get(port) if process is None else process.info if process.running else None
        return None if info is None else Attached(self._stubs[port], info.instance_id)

    async def known_capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares for all the ports it serves; starts no process that says so beforehand."""
        process = self._port_processes.get(port)
        if process is not None and process.info is None and process.declared:
            return process.declared
        info = process.info if process is not None and process.info is not None else await self.info(port)
        return frozenset(capability for each in info.ports for capability in each.capabilities)

    async def info(self, port: str) -> adapter_pb2.GetAdapterInfoResponse:
        """What the port's adapter answered to the handshake. Raises FAILED_PRECONDITION PORT_NOT_MAPPED."""
        self.require(port)
        process = self._port_processes.get(port)
        if process is not None:
            info = await process.ensure()
        else:
            info = self._infos.get(port)
            if info is None:
                request = adapter_pb2.GetAdapterInfoRequest(
                    host_version=distribution_version(), host_contract_versions=CONTRACT_VERSIONS
                )
                stub = adapter_pb2_grpc.AdapterServiceStub(self._channels[port])
                timeout = self._mappings[port].wait_seconds + _HANDSHAKE_SECONDS
                info = await stub.GetAdapterInfo(request, timeout=timeout)
                self._infos[port] = info
        if not any(each.service == PORTS[port].service.full_name for each in info.ports):
            raise FailedPreconditionError(
                f"the adapter {info.name} ({self._mappings[port].adapter}) does not serve "
                f"{PORTS[port].service.full_name}: map the port {port} to one that does",
                reason="PORT_NOT_SERVED",
                metadata={"port": port, "adapter": info.name},
            )
        return info

    def is_remote(self, port: str) -> bool:
        """Whether the port's adapter is somebody else's to start: neither in this process nor a child of it."""
        return port not in self._objects and port not in self._port_processes

    async def capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares."""
        service = PORTS[port].service.full_name
        with errors_of(port):
            info = await self.info(port)
        support = next(each for each in info.ports if each.service == service)
        return frozenset(support.capabilities)

    async def adapters(self) -> list[adapter_admin_pb2.Adapter]:
        """The ports with their adapters, sorted; starts nothing."""
        return [self._describe(port) for port in sorted(self._mappings)]

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        """The port's adapter after asking it whether it can serve.

        Raises NOT_FOUND PORT_NOT_FOUND, FAILED_PRECONDITION PORT_NOT_MAPPED.
        """
        if port not in PORTS:
            raise NotFoundError(f"port {port!r}: {unknown_key(port, PORTS)}", reason="PORT_NOT_FOUND")
        self.require(port)
        self._infos.pop(port, None)
        try:
            await self.info(port)
            stub = adapter_pb2_grpc.AdapterServiceStub(self._channels[port])
            state = await stub.Probe(adapter_pb2.ProbeRequest(), timeout=_HANDSHAKE_SECONDS)
        except KitchenError as error:
            adapter = self._describe(port)
            adapter.state = adapter_admin_pb2.ADAPTER_STATE_DEGRADED
            adapter.detail = error.message
            return adapter
        adapter = self._describe(port)
        adapter.state = _STATES[state.state]
        adapter.detail = state.detail
        return adapter

    def _describe(self, port: str) -> adapter_admin_pb2.Adapter:
        service = PORTS[port].service.full_name
        process = self._port_processes.get(port)
        info = self._infos.get(port) if process is None else process.info
        adapter = adapter_admin_pb2.Adapter(
            port=port,
            target=self._mappings[port].adapter,
            service=service,
            state=adapter_admin_pb2.ADAPTER_STATE_READY if info is not None else adapter_admin_pb2.ADAPTER_STATE_IDLE,
        )
        if info is not None:
            adapter.name, adapter.version = info.name, info.version
            adapter.capabilities.extend(
                sorted(c for each in info.ports if each.service == service for c in each.capabilities)
            )
        return adapter

    async def close(self) -> None:
        """Ends child processes and closes adapters and channels."""
        for process in self._processes.values():
            await process.close()
        for adapter in self._objects.values():
            await adapter.close()
        for port, channel in self._channels.items():
            if port not in self._port_processes:
                await channel.close()
        close_socket_folder(self._context.data_dir, self._socket_dir)


_STATES = {
    adapter_pb2.ProbeResponse.STATE_UNSPECIFIED: adapter_admin_pb2.ADAPTER_STATE_STARTING,
    adapter_pb2.ProbeResponse.STATE_READY: adapter_admin_pb2.ADAPTER_STATE_READY,
    adapter_pb2.ProbeResponse.STATE_STARTING: adapter_admin_pb2.ADAPTER_STATE_STARTING,
    adapter_pb2.ProbeResponse.STATE_DEGRADED: adapter_admin_pb2.ADAPTER_STATE_DEGRADED,
}


def _load(port: str, mapping: PortMapping) -> Any:
    """The adapter's class, or its ProcessAdapter."""
    if mapping.kind == "builtin":
        known = _builtin_adapters()
        entry = known.get(f"{port}.{mapping.target}")
        if entry is None:
            names = ", ".join(sorted(name.partition(".")[2] for name in known if name.startswith(f"{port}.")))
            raise _bad_mapping(port, mapping, f"is not installed; builtin adapters of this port: {names or 'none'}")
        return entry.load()
    module, _, name = mapping.target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _bad_mapping(port, mapping, f"can't be imported ({error}); write python:package.module:Class") from error


def _options(port: str, model: type[AdapterOptions], mapping: PortMapping) -> AdapterOptions:
    return parse_settings(model, mapping.options, where=f"manifest.ports.{port}.options", reason="MANIFEST_INVALID")


def _not_mapped(port: str) -> FailedPreconditionError:
    names = sorted(name for name in _builtin_adapters() if name.partition(".")[0] == port)
    real = [name.partition(".")[2] for name in names if ".fake_" not in name]
    example = f"builtin:{real[0]}" if real else "grpc:HOST:PORT"
    others = f" (installed: {', '.join(real)})" if real else ""
    return FailedPreconditionError(
        f"no adapter serves the port {port}, which has none by default: write `ports: {{{port}: "
        f'"{example}"}}` into the manifest{others} and start the server with --manifest',
        reason="PORT_NOT_MAPPED",
        metadata={"port": port, "service": PORTS[port].service.full_name},
    )


@cache
def _builtin_adapters() -> dict[str, EntryPoint]:
    """The installed adapters by port.name."""
    return {each.name: each for each in entry_points(group=ENTRY_POINTS)}


def _bad_mapping(port: str, mapping: PortMapping, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"manifest.ports.{port}: {mapping.adapter} {problem}", reason="MANIFEST_INVALID", metadata={"port": port}
    )
