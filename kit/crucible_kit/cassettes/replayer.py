"""Serves recordings as an adapter: handlers that work on bytes, in the place of any port's service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import CONTRACT_VERSIONS, distribution_version
from crucible_kit.cassettes.codec import code_name
from crucible_kit.cassettes.format import Call, Cassette, Step
from crucible_kit.cassettes.methods import ADAPTER_SERVICE, Method, find_method, services
from crucible_kit.cassettes.playback import Playback, Turn
from crucible_kit.cassettes.tracks import Track
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.constraints import check_no_unknown_fields
from crucible_kit.errors import (
    DETAILS_TRAILER,
    REASON_TRAILER,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    UnimplementedError,
    to_status,
)
from crucible_kit.outcomes import hidden
from crucible_kit.serving import bind, new_server

_END: Any = vars(grpc.aio)["EOF"]


class Replayer:
    """Recordings on an address.

    Beside the recorded services it serves AdapterService with what the recorded adapter said of itself, reflection and
    health.

    Attributes:
        playback: what has come, and what did not fit.
        address: where it listens, once it has started.
    """

    def __init__(self, playback: Playback) -> None:
        self.playback = playback
        self.address = ""
        cassettes = [track.cassette for track in playback.tracks]
        self._services = sorted({name for each in cassettes for name in each.header.services} - {ADAPTER_SERVICE})
        # No interceptor says how calls end: the handlers do it, because they send recorded ends too.
        self._server = new_server([])
        self._server.add_generic_rpc_handlers((_Handlers(playback, self._services),))
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(_RecordedAdapter(cassettes, self._services), self._server)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._services, ADAPTER_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )

    async def start(self, listen: str) -> str:
        """Takes calls; returns the address with the port that port 0 became.

        Raises:
            UnavailableError: ADDRESS_IN_USE.
        """
        self.address = bind(self._server, listen)
        await self._server.start()
        for name in ("", *self._services, ADAPTER_SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self.address

    async def stop(self, grace: float = 1.0) -> None:
        """Takes no more calls and cuts off those still there after `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, playback: Playback, served: Sequence[str]) -> None:
        self._playback = playback
        self._served = frozenset(served)

    def service(self, handler_call_details: Any) -> Any:
        method = find_method(handler_call_details.method)
        if method is None or method.service not in self._served:
            return None
        metadata = {
            key: value for key, value in handler_call_details.invocation_metadata or () if isinstance(value, str)
        }

        async def play(_: Any, context: Any) -> AsyncIterator[bytes]:
            # On the wire all shapes are streams both ways.
            try:
                async for response in _play(self._playback.begin(method, metadata), method, context):
                    yield response
            except KitchenError as error:
                await _end(context, to_status(error), error.reason)
            except (asyncio.CancelledError, GeneratorExit, grpc.aio.BaseError):
                raise  # the call is over
            except Exception as error:
                bug = hidden(method.full_name, error)
                await _end(context, to_status(bug), bug.reason)

        return grpc.stream_stream_rpc_method_handler(play)


async def _play(turn: Turn, method: Method, context: Any) -> AsyncIterator[bytes]:
    while True:
        data = await context.read()
        if data is _END:
            await turn.end_of_requests()
        else:
            await turn.request(_parsed(method, data))
        for step in turn.steps():
            if step.kind == "response":
                yield turn.track.fill(step).SerializeToString(deterministic=True)
            elif step.kind == "status":
                await _end(context, *_recorded_end(turn.track, step))
                return
            else:
                # The recorded caller hung up here; this one will, or its deadline does it.
                await asyncio.Event().wait()


def _parsed(method: Method, data: bytes) -> Message:
    try:
        request = method.request.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"the request of {method.full_name} is not a valid protobuf message", reason="MESSAGE_MALFORMED"
        ) from error
    # The recording could not show them.
    check_no_unknown_fields(request)
    return request


def _recorded_end(track: Track, step: Step) -> tuple[status_pb2.Status, str]:
    assert step.status is not None
    filled = track.filled(step.status)
    assert isinstance(filled, status_pb2.Status)
    return filled, step.reason


async def _end(context: Any, status: status_pb2.Status, reason: str) -> None:
    """Ends the call with a status."""
    context.set_code(grpc.StatusCode[code_name(status.code)])
    context.set_details(status.message)
    trailers: list[tuple[str, str | bytes]] = []
    if status.details:
        trailers.append((DETAILS_TRAILER, status.SerializeToString()))
    if reason:
        trailers.append((REASON_TRAILER, reason.encode("ascii", "replace").decode()))
    context.set_trailing_metadata(tuple(trailers))


class _RecordedAdapter(adapter_pb2_grpc.AdapterServiceServicer):
    """AdapterService as the recorded adapters answered it; every call may come at any time and any number of times."""

    def __init__(self, cassettes: Sequence[Cassette], served: Sequence[str]) -> None:
        self._calls = [call for each in cassettes for call in each.calls if call.method.service == ADAPTER_SERVICE]
        self._info = self._merged(cassettes, served)

    def _recorded(self, name: str) -> list[Call]:
        return [call for call in self._calls if call.method.name == name and call.responses]

    def _merged(self, cassettes: Sequence[Cassette], served: Sequence[str]) -> adapter_pb2.GetAdapterInfoResponse:
        """One handshake for all: as the first adapter said it, with every service that is served."""
        recorded: list[Any] = [call.responses[0] for call in self._recorded("GetAdapterInfo")]
        info = adapter_pb2.GetAdapterInfoResponse(
            name="replay", version=distribution_version(), language="python", max_message_bytes=MAX_MESSAGE_BYTES
        )
        if recorded:
            info.CopyFrom(recorded[0])
        del info.ports[:]
        ports = {port.service: port for each in reversed(recorded) for port in each.ports}
        for name in served:
            info.ports.append(ports.get(name) or _declared(name, cassettes))
        del info.contract_versions[:]
        info.contract_versions.extend(CONTRACT_VERSIONS)
        # Its sessions are gone with the process, like any adapter's.
        info.instance_id = uuid.uuid4().hex
        return info

    async def GetAdapterInfo(
        self, request: adapter_pb2.GetAdapterInfoRequest, context: Any
    ) -> adapter_pb2.GetAdapterInfoResponse:
        if not set(request.host_contract_versions) & set(CONTRACT_VERSIONS):
            return await _refuse(
                context,
                FailedPreconditionError(
                    f"no common contract version: the host speaks {sorted(request.host_contract_versions)}, "
                    f"the recording {list(CONTRACT_VERSIONS)}",
                    reason="CONTRACT_VERSION_UNSUPPORTED",
                ),
            )
        return self._info

    async def Configure(self, request: adapter_pb2.ConfigureRequest, context: Any) -> adapter_pb2.ConfigureResponse:
        for call in self._recorded("Configure"):
            recorded: Any = call.requests[0]
            if (recorded.service, recorded.instance) == (request.service, request.instance):
                response: Any = call.responses[0]
                return response
        missing = UnimplementedError(
            "the recording has no settings: leave options and secrets out of the manifest", reason="CAPABILITY_MISSING"
        )
        return await _refuse(context, missing)

    async def Probe(self, request: adapter_pb2.ProbeRequest, context: Any) -> adapter_pb2.ProbeResponse:
        return adapter_pb2.ProbeResponse(state=adapter_pb2.ProbeResponse.STATE_READY)


def _declared(service: str, cassettes: Sequence[Cassette]) -> adapter_pb2.PortSupport:
    """A service whose adapter was not asked about itself: with what its recordings need."""
    name = services()[service].full_name
    needed = {each for cassette in cassettes if name in cassette.header.services for each in cassette.header.requires}
    hashes = {each.header.descriptor_sha256.get(name, "") for each in cassettes} - {""}
    return adapter_pb2.PortSupport(
        service=name, capabilities=sorted(needed), descriptor_sha256=min(hashes) if hashes else ""
    )


async def _refuse(context: Any, error: KitchenError) -> Any:
    await _end(context, to_status(error), error.reason)
    return None
