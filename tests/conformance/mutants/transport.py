"""Servers with a defect that every port would show, around the toy blob store."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.adapter import AdapterInfoService, to_struct
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.channel import Channel, connect
from crucible_kit.errors import (
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
    field_error,
)
from crucible_kit.ports import PORTS
from crucible_kit.serving import server_options
from tests.conformance.mutants import statuses
from tests.conformance.mutants.mutant import Mutant, object_of
from tests.conformance.mutants.statuses import Change, ChangedStatus
from tests.conformance.toy.blob import ToyBlobs

NAME = "toy-blobs"


class Unchecked(BoundaryInterceptor):
    """A boundary that does not look at the options of the proto."""

    def _wrap(self, handler: Any, method: str) -> Any:
        # What the boundary takes for a method of somebody else's service.
        return super()._wrap(handler, f"/unchecked{method}")


@asynccontextmanager
async def served(
    blobs: Any,
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    info: AdapterInfoService | None = None,
    options: Sequence[tuple[str, int]] = (),
    generic: Sequence[grpc.GenericRpcHandler] = (),
) -> AsyncIterator[Channel]:
    """A server on a unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        server = grpc.aio.server(
            interceptors=tuple(interceptors), options=list({**dict(server_options()), **dict(options)}.items())
        )
        PORTS["blob"].register(blobs, server)
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(info or Info(), server)
        server.add_generic_rpc_handlers(tuple(generic))
        address = f"unix:{Path(folder) / 's'}"
        server.add_insecure_port(address)
        await server.start()
        channel = connect(address, retry=False)
        try:
            yield channel
        finally:
            await channel.close()
            await server.stop(0)


class Info(AdapterInfoService):
    """The handshake, its answer changed."""

    def __init__(self) -> None:
        super().__init__(name=NAME, capabilities={"blob": ()})

    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        """Changes the answer."""

    async def GetAdapterInfo(self, request: Any, context: Any) -> adapter_pb2.GetAdapterInfoResponse:
        info = await super().GetAdapterInfo(request, context)
        self.change(info)
        return info


class NoName(Info):
    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        info.name = ""


class PortUnlisted(Info):
    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        del info.ports[:]


class NewIds(Info):
    number = 0

    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        self.number += 1
        info.instance_id = str(self.number)


class AnyVersion(Info):
    async def GetAdapterInfo(self, request: Any, context: Any) -> adapter_pb2.GetAdapterInfoResponse:
        known = adapter_pb2.GetAdapterInfoRequest(host_version=request.host_version, host_contract_versions=[1])
        return await super().GetAdapterInfo(known, context)


class OnlyItsOwnVersion(Info):
    async def GetAdapterInfo(self, request: Any, context: Any) -> adapter_pb2.GetAdapterInfoResponse:
        if list(request.host_contract_versions) != [1]:
            raise FailedPreconditionError("only version 1", reason="CONTRACT_VERSION_UNSUPPORTED")
        return await super().GetAdapterInfo(request, context)


class NeverReady(Info):
    async def Probe(self, request: Any, context: Any) -> adapter_pb2.ProbeResponse:
        return adapter_pb2.ProbeResponse(state=adapter_pb2.ProbeResponse.STATE_STARTING)


class BadCapability(Info):
    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        info.ports[0].capabilities.append("Resumable-Writes")


class BadHash(Info):
    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        info.ports[0].descriptor_sha256 = "unknown"


class TakesAnySettings(Info):
    async def Configure(self, request: Any, context: Any) -> adapter_pb2.ConfigureResponse:
        return adapter_pb2.ConfigureResponse()


class Configurable(Info):
    """Takes a setting, counts generations as it should."""

    generation = 0

    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        schema = {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}
        info.ports[0].config_schema.CopyFrom(to_struct(schema))

    async def Configure(self, request: Any, context: Any) -> adapter_pb2.ConfigureResponse:
        for key in request.settings:
            if key != "x":
                raise field_error(f"settings.{key}", "unknown key")
        if request.generation < self.generation:
            raise FailedPreconditionError("an older generation", reason="STALE_GENERATION")
        self.generation = request.generation
        return adapter_pb2.ConfigureResponse()


class StaleSettings(Configurable):
    async def Configure(self, request: Any, context: Any) -> adapter_pb2.ConfigureResponse:
        self.generation = 0
        return await super().Configure(request, context)


class Full(Info):
    def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
        info.ports[0].max_in_flight = 4


class Crowded(ToyBlobs):
    """Takes so many calls at a time; refuses more with an error of its own choice."""

    running = 0
    limit = 8
    error: Exception = ResourceExhaustedError("too many", reason="TOO_MANY_IN_FLIGHT")

    async def ListBlobs(self, request: Any, context: Any) -> blob_pb2.ListBlobsResponse:
        if self.running >= self.limit:
            raise self.error
        self.running += 1
        try:
            await asyncio.sleep(0.05)
            return await super().ListBlobs(request, context)
        finally:
            self.running -= 1


class CrowdedWithAnotherCode(Crowded):
    limit = 4
    error = FailedPreconditionError("too many", reason="TOO_MANY_IN_FLIGHT")


class DiesOfCancelling(ToyBlobs):
    dead = False

    async def ListBlobs(self, request: Any, context: Any) -> blob_pb2.ListBlobsResponse:
        if self.dead:
            raise UnavailableError("somebody left", reason="DEAD")
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.dead = True
            raise
        return await super().ListBlobs(request, context)


class DiesOfShortDeadlines(ToyBlobs):
    dead = False

    def check_key(self, key: str, field: str) -> None:
        if self.dead:
            raise InternalError("nobody is left", reason="DEAD")
        super().check_key(key, field)

    async def StatBlob(self, request: Any, context: Any) -> blob_pb2.StatBlobResponse:
        self.live_with(context)
        return await super().StatBlob(request, context)

    async def DeleteBlob(self, request: Any, context: Any) -> blob_pb2.DeleteBlobResponse:
        self.live_with(context)
        return await super().DeleteBlob(request, context)

    def live_with(self, context: Any) -> None:
        """Dies when there is hardly any time."""
        self.dead = self.dead or (context.time_remaining() or 0.0) < 0.01


class LacksAMethod(ToyBlobs):
    StatBlob = blob_pb2_grpc.BlobStoreServiceServicer.StatBlob  # type: ignore[assignment]


class Raises(ToyBlobs):
    async def ListBlobs(self, request: Any, context: Any) -> blob_pb2.ListBlobsResponse:
        if request.page_token:
            raise ValueError("secret detail of page_token")
        return await super().ListBlobs(request, context)


class AnswersEverything(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        async def answer(request: Any, context: Any) -> adapter_pb2.ProbeResponse:
            return adapter_pb2.ProbeResponse()

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=adapter_pb2.ProbeRequest.FromString,
            response_serializer=adapter_pb2.ProbeResponse.SerializeToString,
        )


def _mutant(defect: str, *red: str, others: int = 0, blobs: Callable[[], Any] = ToyBlobs, **serving: Any) -> Mutant:
    settings = serving.pop("settings", {})
    serving.setdefault("interceptors", [BoundaryInterceptor()])
    made = {name: value() if isinstance(value, type) else value for name, value in serving.items()}
    return Mutant(
        defect=defect,
        port="blob",
        open=lambda: served(blobs(), **made),
        red=red,
        others=others,
        settings=settings,
        transport=True,
    )


def _status(change: Change, defect: str, *red: str, others: int = 0) -> Mutant:
    return _mutant(defect, *red, others=others, interceptors=[ChangedStatus(change), BoundaryInterceptor()])


def _info(kind: type[Info], defect: str, *red: str, others: int = 0, **serving: Any) -> Mutant:
    return _mutant(defect, *red, others=others, info=kind, **serving)


_FIELDS = ("XPT-FIELD-01", "XPT-FIELD-02", "XPT-FIELD-04", "XPT-FIELD-07")
TRANSPORT_MUTANTS = (
    _status(statuses.no_reason, "no reason in the trailer", "XPT-ERROR-01", others=1),
    _status(statuses.no_error_info, "no ErrorInfo", "XPT-ERROR-02"),
    _status(statuses.two_error_infos, "two ErrorInfos", "XPT-ERROR-02"),
    _status(statuses.no_domain, "an ErrorInfo without a domain", "XPT-ERROR-03"),
    _status(statuses.another_reason, "another reason in the details", "XPT-ERROR-03", others=8),
    _status(statuses.another_message, "another message in the details", "XPT-ERROR-04"),
    _status(statuses.stack_trace, "a stack trace in the message", "XPT-ERROR-05"),
    _status(statuses.large_trailers, "trailers of 9 KB", "XPT-ERROR-07", others=8),
    _status(statuses.two_bad_requests, "two BadRequests", "XPT-ERROR-08"),
    _status(statuses.bad_precondition, "another code for a bad field", *_FIELDS, others=2),
    _status(statuses.no_field, "the bad field is not named", "XPT-FIELD-09"),
    _mutant("nobody catches exceptions", "XPT-ERROR-05", "XPT-ERROR-06", others=8, interceptors=[]),
    _mutant("constraints are not checked", *_FIELDS, others=2, interceptors=[Unchecked()]),
    _mutant("a method is missing", "XPT-METHOD-02", others=2, blobs=LacksAMethod),
    _mutant("any method is answered", "XPT-METHOD-01", generic=[AnswersEverything()]),
    Mutant(
        defect="a short deadline ends the service",
        port="blob",
        # Not over a socket: there a call may be late before it is sent.
        open=object_of("blob", DiesOfShortDeadlines),
        red=("XPT-DEADLINE-01",),
        others=13,
        transport=True,
    ),
    _mutant("a cancelled call ends the service", "XPT-CANCEL-01", others=4, blobs=DiesOfCancelling),
    _mutant(
        "messages are limited to less than is said",
        "XPT-SIZE-01",
        options=[("grpc.max_receive_message_length", 4 * 1024 * 1024)],
        settings={"largest_message_bytes": 8 * 1024 * 1024},
    ),
    _mutant("fewer calls at a time than it says", "XPT-LOAD-01", blobs=Crowded),
    _info(Full, "too many calls get another code", "XPT-LOAD-02", blobs=CrowdedWithAnotherCode),
    _info(NoName, "no name", "HSK-INFO-01"),
    _info(PortUnlisted, "the port is not listed", "HSK-INFO-02"),
    _info(NewIds, "a new instance id each time", "HSK-INFO-03"),
    _info(AnyVersion, "accepts a contract version it lacks", "HSK-VERSION-01"),
    _info(OnlyItsOwnVersion, "refuses hosts that know more", "HSK-VERSION-02"),
    _info(NeverReady, "is never ready", "HSK-PROBE-01"),
    _info(BadCapability, "a capability of no port", "HSK-CAP-01"),
    _info(BadHash, "a hash that is none", "HSK-DESCRIPTOR-01"),
    _info(TakesAnySettings, "takes settings it does not know", "HSK-CONFIG-01"),
    _info(StaleSettings, "takes settings of an older generation", "HSK-CONFIG-02"),
)
