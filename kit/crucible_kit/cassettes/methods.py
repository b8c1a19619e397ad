"""The methods that a recording may hold: those of every port and of AdapterService, by descriptor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from crucible.adapter.v1 import adapter_pb2
from crucible.type.v1 import operation_pb2
from crucible_kit.errors import field_error
from crucible_kit.ports import PORTS

ADAPTER_SERVICE = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name
FINISHED_STATES = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)
"""Of an operation: polls for it answer the same from then on."""
_OPERATION = operation_pb2.Operation.DESCRIPTOR.full_name


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        service: full name of its service.
        name: such as StatBlob.
        request, response: message classes.
        client_streaming, server_streaming: whether that side sends any number of messages.
        is_poll: it waits for an operation, so a caller may repeat it at will.
    """

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    is_poll: bool

    @property
    def full_name(self) -> str:
        """As cassettes write it: package.Service/Method."""
        return f"{self.service}/{self.name}"

    @property
    def path(self) -> str:
        """As gRPC writes it: /package.Service/Method."""
        return f"/{self.full_name}"


@cache
def services() -> dict[str, ServiceDescriptor]:
    """Every service that can be recorded, by full name."""
    adapter = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"]
    return {each.full_name: each for each in (*(port.service for port in PORTS.values()), adapter)}


@cache
def _methods() -> dict[str, Method]:
    found = {}
    for service in services().values():
        for descriptor in service.methods:
            operation = descriptor.output_type.fields_by_name.get("operation")
            method = Method(
                service=service.full_name,
                name=descriptor.name,
                request=message_factory.GetMessageClass(descriptor.input_type),
                response=message_factory.GetMessageClass(descriptor.output_type),
                client_streaming=descriptor.client_streaming,
                server_streaming=descriptor.server_streaming,
                is_poll=(
                    {"operation_id", "wait"} <= set(descriptor.input_type.fields_by_name)
                    and operation is not None
                    and operation.message_type is not None
                    and operation.message_type.full_name == _OPERATION
                ),
            )
            found[method.full_name] = method
    return found


def find_method(name: str) -> Method | None:
    """The method of a full name or a gRPC path; None when this build does not know it."""
    return _methods().get(name.removeprefix("/"))


def service_name(name: str) -> str:
    """The full name of a service, given as a port's name or as its own.

    Raises:
        InvalidArgumentError: SERVICE_UNKNOWN.
    """
    if name in PORTS:
        return PORTS[name].service.full_name
    if name in services():
        return name
    raise field_error(
        "service",
        f"{name!r} is neither a port ({', '.join(PORTS)}) nor the full name of a port's service",
        reason="SERVICE_UNKNOWN",
    )


def descriptor_sha256(service: str) -> str:
    """SHA-256 of the file that defines a service, 64 hex digits, as the handshake tells it."""
    return hashlib.sha256(services()[service].file.serialized_pb).hexdigest()
