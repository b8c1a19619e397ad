"""The first calls to an adapter that is another process: who it is, its settings, whether it can serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import CONTRACT_VERSIONS, distribution_version, from_struct, to_struct
from crucible_kit.channel import Channel
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError, UnimplementedError
from crucible_kit.ports import PORTS
from crucible_kit.redaction import Secrets, redact
from crucible_kitchen.ports.single_flight import SingleFlight

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
RETRY_SECONDS = 2.0
"""After which a call to an adapter that is away may be sent again."""
_STARTING_POLL_SECONDS = 0.5
_MAX_PROBLEMS = 5


async def get_info(channel: Channel, *, timeout: float = HANDSHAKE_SECONDS) -> adapter_pb2.GetAdapterInfoResponse:
    """Who the adapter is. Raises FailedPreconditionError CONTRACT_VERSION_UNSUPPORTED with the versions of both."""
    request = adapter_pb2.GetAdapterInfoRequest(
        host_version=distribution_version(), host_contract_versions=CONTRACT_VERSIONS
    )
    info = await _stub(channel).GetAdapterInfo(request, timeout=timeout)
    if not set(info.contract_versions) & set(CONTRACT_VERSIONS):
        raise FailedPreconditionError(
            f"no common contract version: the host speaks {list(CONTRACT_VERSIONS)}, {info.name or 'the adapter'} "
            f"speaks {sorted(info.contract_versions)}: update the older side",
            reason="CONTRACT_VERSION_UNSUPPORTED",
            metadata={"host": list(CONTRACT_VERSIONS), "adapter": sorted(info.contract_versions)},
        )
    return info


def check_serves(port: str, adapter: str, info: adapter_pb2.GetAdapterInfoResponse) -> None:
    """Raises FailedPreconditionError PORT_NOT_SERVED when an adapter lacks the port's service."""
    service = PORTS[port].service.full_name
    if not any(each.service == service for each in info.ports):
        raise FailedPreconditionError(
            f"the adapter {info.name} ({adapter}) does not serve {service}: map the port {port} to one that does",
            reason="PORT_NOT_SERVED",
            metadata={"port": port, "adapter": info.name},
        )


async def probe(channel: Channel, *, timeout: float = HANDSHAKE_SECONDS) -> adapter_pb2.ProbeResponse:
    """Whether the adapter can serve now; one that has no Probe can."""
    try:
        return await _stub(channel).Probe(adapter_pb2.ProbeRequest(), timeout=timeout)
    except UnimplementedError:
        return adapter_pb2.ProbeResponse(state=adapter_pb2.ProbeResponse.STATE_READY)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a mapping gives an adapter.

    Attributes:
        where: path of the mapping for messages, such as manifest.ports.llm.
        adapter: how the mapping names it.
        generation: counts the changes.
        wait_seconds: how long the adapter may be starting.
    """

    where: str
    adapter: str
    options: Mapping[str, Any]
    secrets: Secrets
    generation: int
    wait_seconds: float


class Configurator:
    """Brings an adapter the settings of the ports that it serves, once to each of its instances, and waits until it
    can serve.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Settings] = {}
        self._done: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._instance_id: str | None = None
        self._configuring: dict[str, SingleFlight[None]] = {}

    def add(self, port: str, settings: Settings) -> None:
        """Takes in the settings of one more port."""
        self._settings[port] = settings
        self._configuring[port] = SingleFlight()
        self._done.discard(port)

    def forget(self) -> None:
        """The adapter may have lost its settings: it gets them again."""
        self._done.clear()

    def is_done(self, port: str) -> bool:
        """Whether the port's settings are there."""
        return port in self._done

    async def ensure(self, channel: Channel, info: adapter_pb2.GetAdapterInfoResponse, port: str) -> None:
        """Configures the adapter for a port unless this instance of it is.

        Raises:
            InvalidArgumentError: MANIFEST_INVALID, naming the port, when the settings don't fit the adapter.
            UnavailableError: ADAPTER_UNAVAILABLE, it says that it can't serve.
        """
        if self._instance_id != info.instance_id:
            self._instance_id = info.instance_id
            self._done.clear()
        if port not in self._done:
            await self._configuring[port].run(lambda: self._make_ready(channel, info, port))

    async def _make_ready(self, channel: Channel, info: adapter_pb2.GetAdapterInfoResponse, port: str) -> None:
        settings = self._settings[port]
        if settings.options or settings.secrets:
            check_options(settings, info, port)
            await self._configure(channel, settings, port)
        await _wait_until_ready(channel, settings)
        self._tell_other_contract(settings, info, port)
        if self._instance_id == info.instance_id:
            self._done.add(port)

    def _tell_other_contract(self, settings: Settings, info: adapter_pb2.GetAdapterInfoResponse, port: str) -> None:
        """Logs once that the adapter was built with other protos than the server."""
        support, ours = _support(info, port), PORTS[port].descriptor_sha256
        theirs = "" if support is None else support.descriptor_sha256
        if theirs in ("", ours) or (port, theirs) in self._told:
            return
        self._told.add((port, theirs))
        logger.warning(
            "%s: %s was built with another contract of the port %s than this server: its descriptor has the SHA-256 "
            "%s, the server's %s; what only one of them knows is refused or missing: update the older side",
            *(settings.where, settings.adapter, port, redact(theirs), ours),
        )

    async def cancel(self) -> None:
        """Ends what is under way."""
        for each in self._configuring.values():
            await each.cancel()

    async def _configure(self, channel: Channel, settings: Settings, port: str) -> None:
        request = adapter_pb2.ConfigureRequest(
            service=PORTS[port].service.full_name,
            generation=settings.generation,
            settings=to_struct(settings.options),
            secrets=dict(settings.secrets),
        )
        try:
            response = await _stub(channel).Configure(request, timeout=settings.wait_seconds)
        except UnimplementedError as error:
            given = " and ".join(name for name in ("options", "secrets") if getattr(settings, name))
            raise _refused(settings, port, f"takes no settings, but {given} are given: leave them out") from error
        except InvalidArgumentError as error:
            raise _refused(settings, port, f"refuses its settings: {error.message}") from error
        except FailedPreconditionError as error:
            if error.reason != "STALE_GENERATION":
                raise
            problem = (
                f"has settings of a later generation than {settings.generation}: another kitchen uses it, or this data "
                "folder is older than the adapter's process. Start the adapter anew, or use one of your own"
            )
            raise _refused(settings, port, problem) from error
        for warning in response.warnings:
            logger.warning("%s: %s: %s", settings.where, settings.adapter, redact(warning))


async def _wait_until_ready(channel: Channel, settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + settings.wait_seconds
    while True:
        answer = await probe(channel)
        if answer.state == adapter_pb2.ProbeResponse.STATE_READY:
            return
        starting = answer.state != adapter_pb2.ProbeResponse.STATE_DEGRADED
        if not starting or loop.time() >= end:
            what = "is still starting" if starting else "can't serve now"
            raise adapter_unavailable(f"{settings.adapter} {what}: {answer.detail or 'it does not say why'}")
        await asyncio.sleep(_STARTING_POLL_SECONDS)


def adapter_unavailable(message: str, **metadata: str) -> UnavailableError:
    """The UNAVAILABLE ADAPTER_UNAVAILABLE of an adapter that is away."""
    return UnavailableError(message, reason="ADAPTER_UNAVAILABLE", metadata=metadata, retry_delay=RETRY_SECONDS)


def check_options(settings: Settings, info: adapter_pb2.GetAdapterInfoResponse, port: str) -> None:
    """Checks options against the JSON Schema that the adapter gave, if it gave one. Raises MANIFEST_INVALID."""
    schema = config_schema(info, port)
    if not schema:
        return
    try:
        Draft202012Validator.check_schema(schema)
        # An empty registry: a schema must not make the server fetch others.
        found = sorted(
            Draft202012Validator(schema, registry=Registry()).iter_errors(dict(settings.options)),
            key=lambda each: [str(part) for part in each.absolute_path],
        )
    except (SchemaError, Unresolvable) as error:
        raise _refused(settings, port, f"has a config_schema that is no JSON Schema: {error}") from error
    if found:
        problems = [
            ".".join(["options", *(str(part) for part in each.absolute_path)]) + f": {each.message[:200]}"
            for each in found[:_MAX_PROBLEMS]
        ]
        raise _refused(settings, port, f"does not take these options: {'; '.join(problems)}")


def config_schema(info: adapter_pb2.GetAdapterInfoResponse, port: str) -> dict[str, Any]:
    """The JSON Schema of the port's settings; empty: the adapter gave none."""
    support = _support(info, port)
    return {} if support is None else from_struct(support.config_schema)


def _support(info: adapter_pb2.GetAdapterInfoResponse, port: str) -> adapter_pb2.PortSupport | None:
    service = PORTS[port].service.full_name
    return next((each for each in info.ports if each.service == service), None)


def _refused(settings: Settings, port: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{settings.where}: {settings.adapter}, which serves the port {port}, {problem}",
        reason="MANIFEST_INVALID",
        metadata={"field": settings.where, "port": port, "adapter": settings.adapter},
    )


def _stub(channel: Channel) -> Any:
    return adapter_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[arg-type]
