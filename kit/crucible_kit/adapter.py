"""What an adapter is: a generated servicer with a description, or a process that serves several ports."""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import BaseModel, ConfigDict

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import (
    FailedPreconditionError,
    UnimplementedError,
    field_error,
)
from crucible_kit.ports import PORTS
from crucible_kit.redaction import Secrets

CONTRACT_VERSIONS = (1,)
MAX_FOLDER_BYTES = 3839
"""Of a folder's path: behind it a file's name still fits into the 4096 bytes that the system takes."""


def distribution_version() -> str:
    """Version of the installed distribution; 0 when it runs from sources that are not installed."""
    try:
        return version("crucible-kitchen")
    except PackageNotFoundError:
        return "0"


class AdapterOptions(BaseModel):
    """Base of an adapter's settings: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class AdapterContext:
    """What the host lends an adapter.

    Attributes:
        data_dir: folder for the adapter's own files; exists.
        read_roots: the only folders that requests may name paths in; None: any path.
        secrets: this adapter's secrets by name, such as api_key. The host keeps their values out of logs and errors.
    """

    data_dir: Path
    read_roots: tuple[Path, ...] | None = None
    secrets: Mapping[str, str] = field(default_factory=Secrets)

    def readable(self, path: str, *, field: str) -> Path:
        """The resolved path, which may name nothing.

        Raises INVALID_ARGUMENT PATH_NOT_ALLOWED when it is relative, outside the roots, or not a path that the system
        can look at (a link to itself, a zero byte, too long, no permission).
        """
        given = Path(path)
        if not given.is_absolute():
            raise field_error(
                field,
                f"{path!r} is not absolute: give the full path on the server's machine",
                reason="PATH_NOT_ALLOWED",
            )
        try:
            resolved = given.resolve()
            resolved.exists()
        # pathlib raises RuntimeError for a link to itself and ValueError for a zero byte.
        except (OSError, RuntimeError, ValueError) as error:
            raise field_error(
                field, f"{path[:256]!r} can't be looked at: {error.__class__.__name__}", reason="PATH_NOT_ALLOWED"
            ) from error
        if len(os.fsencode(resolved)) > MAX_FOLDER_BYTES:
            problem = f"{path[:256]!r} is longer than {MAX_FOLDER_BYTES} bytes"
            raise field_error(field, problem, reason="PATH_NOT_ALLOWED")
        if self.read_roots is not None and not any(resolved.is_relative_to(root.resolve()) for root in self.read_roots):
            roots = ", ".join(str(root) for root in self.read_roots) or "none"
            raise field_error(
                field, f"{path!r} is outside the server's allowed folders ({roots})", reason="PATH_NOT_ALLOWED"
            )
        return resolved


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """What an in-process adapter says of itself; a class attribute `description` of the servicer.

    Attributes:
        name: such as local-blobs.
        port: the port it serves.
        capabilities: optional behaviour it has.
        options: type of its settings.
        secrets: names of the secrets it takes; a manifest that gives another is refused.
    """

    name: str
    port: str
    capabilities: tuple[str, ...] = ()
    options: type[AdapterOptions] = AdapterOptions
    secrets: tuple[str, ...] = ()


class InProcessAdapter(Protocol):
    """A generated servicer that the host makes, calls through an object channel and closes. It may be a
    ProviderAdapter too.
    """

    description: AdapterDescription

    def __init__(self, options: Any, context: AdapterContext) -> None: ...

    async def close(self) -> None:
        """Frees what it holds."""
        ...


@runtime_checkable
class ProviderAdapter(Protocol):
    """One that asks somebody elsewhere. A run whose call fails with the reason PROVIDER_UNAVAILABLE or RATE_LIMITED
    waits until a probe finds nothing in the way.
    """

    async def probe(self) -> str:
        """What keeps it from serving now; empty: nothing. No side effects; answers within 2 seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProcessAdapter:
    """A child process that the host starts, supervises and reaches over a unix socket; it serves AdapterService too.

    The host appends `--listen unix:PATH --work-dir DIR --parent-pipe`, and closes the child's stdin to end it. What the
    module has to do for that is crucible_kit.adapter_process.run_process.

    Attributes:
        name: such as torch-engine.
        ports: the ports it serves; one process serves all that a manifest maps to it with the same options.
        module: run as `python -m module`.
        options: type of its settings; each becomes `--name value`.
        environment: added to the child's environment unless set there.
        capabilities: what it declares by port, for hosts that need not start it to know. Empty: it has to be asked.
        packages: Python packages that it needs; a mapping to it is refused where one is not installed.
        extra: of crucible-kitchen, which brings them.
        stateless: nothing is lost with a process: a call that loses it is sent again to the next.
    """

    name: str
    ports: tuple[str, ...]
    module: str
    options: type[AdapterOptions] = AdapterOptions
    environment: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    extra: str = ""
    stateless: bool = False

    def check_packages(self) -> None:
        """Raises FAILED_PRECONDITION PACKAGE_MISSING where one is not installed. Loads none."""
        for package in self.packages:
            if find_spec(package) is None:
                raise FailedPreconditionError(
                    f"{self.name} needs the Python package {package}, which is not installed: "
                    f"pip install 'crucible-kitchen[{self.extra}]'",
                    reason="PACKAGE_MISSING",
                    metadata={"package": package, "extra": self.extra},
                )

    def arguments(self, options: AdapterOptions) -> list[str]:
        """The settings as command-line arguments."""
        given = options.model_dump(mode="json", exclude_none=True)
        return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


class Configuration(Protocol):
    """What of an adapter takes settings from its host; see crucible_kit.configuration."""

    def describe(self, port: adapter_pb2.PortSupport) -> None:
        """Adds the schema of the port's settings, if it takes any."""
        ...

    async def configure(self, request: adapter_pb2.ConfigureRequest) -> adapter_pb2.ConfigureResponse:
        """Answers Configure."""
        ...


class AdapterInfoService(adapter_pb2_grpc.AdapterServiceServicer):
    """AdapterService for a set of ports.

    Args:
        name: the adapter's.
        capabilities: by port name.
        version: the adapter's; None: that of this distribution.
        configuration: takes the settings that the host sends; None: they are given when it is started.
        probe: tells what keeps the adapter from serving now; None: nothing ever does.
    """

    def __init__(
        self,
        *,
        name: str,
        capabilities: Mapping[str, tuple[str, ...]],
        version: str | None = None,
        configuration: Configuration | None = None,
        probe: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._name = name
        self._capabilities = dict(capabilities)
        self._version = distribution_version() if version is None else version
        self._configuration = configuration
        self._probe = probe
        self._instance_id = uuid.uuid4().hex

    @classmethod
    def of(cls, adapter: InProcessAdapter) -> AdapterInfoService:
        """That of an adapter in this process."""
        description = adapter.description
        return cls(
            name=description.name,
            capabilities={description.port: description.capabilities},
            probe=adapter.probe if isinstance(adapter, ProviderAdapter) else None,
        )

    def describe(self) -> adapter_pb2.GetAdapterInfoResponse:
        """What it answers to the handshake."""
        info = adapter_pb2.GetAdapterInfoResponse(
            name=self._name,
            version=self._version,
            language="python",
            contract_versions=CONTRACT_VERSIONS,
            ports=[port_support(port, self._capabilities[port]) for port in sorted(self._capabilities)],
            instance_id=self._instance_id,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        if self._configuration is not None:
            for port in info.ports:
                self._configuration.describe(port)
        return info

    async def GetAdapterInfo(
        self, request: adapter_pb2.GetAdapterInfoRequest, context: Any
    ) -> adapter_pb2.GetAdapterInfoResponse:
        if not set(request.host_contract_versions) & set(CONTRACT_VERSIONS):
            raise FailedPreconditionError(
                f"no common contract version: the host speaks {sorted(request.host_contract_versions)}, "
                f"{self._name} speaks {list(CONTRACT_VERSIONS)}: update the older side",
                reason="CONTRACT_VERSION_UNSUPPORTED",
            )
        return self.describe()

    async def Configure(self, request: adapter_pb2.ConfigureRequest, context: Any) -> adapter_pb2.ConfigureResponse:
        if self._configuration is None:
            raise UnimplementedError(
                f"{self._name} takes its settings when it is started: set them in the manifest",
                reason="CAPABILITY_MISSING",
            )
        return await self._configuration.configure(request)

    async def Probe(self, request: adapter_pb2.ProbeRequest, context: Any) -> adapter_pb2.ProbeResponse:
        problem = await self._probe() if self._probe is not None else ""
        if problem:
            return adapter_pb2.ProbeResponse(state=adapter_pb2.ProbeResponse.STATE_DEGRADED, detail=problem)
        return adapter_pb2.ProbeResponse(state=adapter_pb2.ProbeResponse.STATE_READY)


def port_support(port: str, capabilities: tuple[str, ...]) -> adapter_pb2.PortSupport:
    """What an adapter declares of one port."""
    return adapter_pb2.PortSupport(
        service=PORTS[port].service.full_name,
        descriptor_sha256=PORTS[port].descriptor_sha256,
        capabilities=sorted(capabilities),
    )


def to_struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    """A JSON object as a Struct."""
    return ParseDict(dict(value), struct_pb2.Struct())


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as a JSON object. Its numbers travel as doubles: whole ones come back as int."""
    return _whole(MessageToDict(struct))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
