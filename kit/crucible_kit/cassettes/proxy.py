"""A server between any client and any adapter that hands every byte on and has the calls recorded.

It stands on gRPC's threads and not on asyncio: when an adapter ends a call while its client still writes, grpc.aio
tells the status of its own failed write in place of the adapter's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from crucible_kit.cassettes.caller import status_of
from crucible_kit.cassettes.methods import Method, find_method
from crucible_kit.cassettes.writer import CallWriter, CassetteWriter
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import UnavailableError
from crucible_kit.serving import server_options

logger = logging.getLogger(__name__)

_MAX_CALLS = 512
_LONGEST_DEADLINE_SECONDS = 366 * 86400
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    # 8 KiB of error details must fit beside the other trailers.
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.enable_retries", 0),
]
# Made anew for the next hop.
_OWN_METADATA = ("user-agent", "te", "content-type", "grpc-")


class RecordingProxy:
    """Serves on an address, forwards every call to a target, and writes those of ports' services.

    Other services, such as reflection and health, pass by unrecorded.

    Args:
        target: host:port or unix:PATH of the adapter.
        services: full names of the services to record. None: all that this build knows.
        credentials: TLS to the target; None is plain text.
    """

    def __init__(
        self,
        writer: CassetteWriter,
        target: str,
        *,
        services: Iterable[str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._writer = writer
        self._services = None if services is None else frozenset(services)
        self._channel = (
            grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
        )
        # A thread for each call under way: one that polls waits half a minute.
        self._threads = ThreadPoolExecutor(_MAX_CALLS, "recording")
        self._server = grpc.server(self._threads, options=server_options())
        self._server.add_generic_rpc_handlers((_Handlers(self),))

    def start(self, listen: str) -> str:
        """Takes calls; returns the address with the port that port 0 became.

        Raises:
            UnavailableError: ADDRESS_IN_USE.
        """
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {listen}: it is in use or not an address of this machine; choose another",
                reason="ADDRESS_IN_USE",
                metadata={"address": listen},
            ) from error
        self._server.start()
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    def stop(self, grace: float = 1.0) -> None:
        """Takes no more calls, cuts off those still there after `grace` seconds, and completes the cassette."""
        self._server.stop(grace).wait()
        self._channel.close()
        self._threads.shutdown()
        self._writer.close()

    def recorded(self, path: str) -> Method | None:
        """The method of a call that is to be written; None for one that passes by."""
        method = find_method(path)
        if method is None or (self._services is not None and method.service not in self._services):
            return None
        return method

    def forward(self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One call, whatever its shape: on the wire all are streams both ways."""
        method = self.recorded(path)
        metadata = tuple(
            (key, value) for key, value in context.invocation_metadata() if not key.startswith(_OWN_METADATA)
        )
        left = _time_remaining(context)
        entry = None if method is None else _Entry(self._writer.start(method, metadata, left), method)
        line = _Line()
        if not context.add_callback(line.hang_up):
            line.hang_up()
        incoming = _until_hung_up(requests, line)
        call: Any = self._channel.stream_stream(path)(
            incoming if entry is None else entry.requests(incoming, line), timeout=left, metadata=metadata
        )
        line.connect(call)
        try:
            for response in call:
                if entry is not None:
                    entry.response(response)
                yield response
        except grpc.RpcError:
            pass  # its status is the call's
        finally:
            if entry is not None:
                entry.end(call, line)
        context.set_code(call.code())
        context.set_details(call.details() or "")
        context.set_trailing_metadata(tuple(call.trailing_metadata() or ()))


class _Line:
    """The way from a caller to the target's call, which ends when the caller goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: Any = None
        self.hung_up = False

    def connect(self, call: Any) -> None:
        """The target's call, now that it is there."""
        with self._lock:
            self._call = call
        if self.hung_up:
            call.cancel()

    def hang_up(self) -> None:
        """The caller has gone."""
        with self._lock:
            self.hung_up = True
        if self._call is not None:
            self._call.cancel()


def _until_hung_up(requests: Iterator[bytes], line: _Line) -> Iterator[bytes]:
    """The requests of a caller. One that goes must not look like one that has said all."""
    try:
        yield from requests
    except grpc.RpcError:
        line.hang_up()


def _time_remaining(context: grpc.ServicerContext) -> float | None:
    """Seconds to a call's deadline; None without one, which gRPC's threads tell as centuries."""
    left = context.time_remaining()
    return None if left is None or left > _LONGEST_DEADLINE_SECONDS else left


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, proxy: RecordingProxy) -> None:
        self._proxy = proxy

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._proxy.forward(path, requests, context)
        )


class _Entry:
    """What is written of one call."""

    def __init__(self, writer: CallWriter, method: Method) -> None:
        self._writer = writer
        self._method = method

    def requests(self, requests: Iterator[bytes], line: _Line) -> Iterator[bytes]:
        """The stream, written as it goes on."""
        for data in requests:
            self._write(self._writer.request, self._method.request, data)
            yield data
        if self._method.client_streaming and not line.hung_up:
            self._writer.half_close()

    def response(self, data: bytes) -> None:
        """Writes a response."""
        self._write(self._writer.response, self._method.response, data)

    def _write(self, write: Any, kind: type[Message], data: bytes) -> None:
        try:
            write(kind.FromString(data))
        except DecodeError:
            logger.warning("a message of %s is none of %s: not recorded", self._method.name, kind.DESCRIPTOR.full_name)

    def end(self, call: Any, line: _Line) -> None:
        """Writes how the call ended, once it has."""
        code: grpc.StatusCode = call.code()
        if line.hung_up and code is grpc.StatusCode.CANCELLED:
            self._writer.cancel()
        else:
            self._writer.status(*status_of(call))
