"""A channel that sends requests as they are and keeps how every call ended."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from crucible_kit.channel import Channel
from crucible_kit.errors import DETAILS_TRAILER, REASON_TRAILER, KitchenError, to_status

# Made by gRPC itself on one of the two sides, whatever the adapter is: they carry no reason.
_CORE_TEXTS = (
    "larger than max",
    "Internal error from Core",
    "Socket closed",
    # A method that nobody has registered: gRPC for Python and Java, for Node, for Go.
    "Method not found",
    "The server does not implement the method",
    "unknown method ",
)
_CORE_CODES = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A call that did not end with OK, as it came over the wire.

    Attributes:
        method: full name, /package.Service/Method.
        code: gRPC's status code.
        message: gRPC's status message.
        details: google.rpc.Status of the details trailer; None: the adapter sent none, or it can't be read.
        reason: the trailer crucible-reason; empty: the adapter sent none.
        trailer_bytes: size of names and values of all trailers.
        by_core: made by gRPC, not by the adapter.
    """

    method: str
    code: grpc.StatusCode
    message: str
    details: status_pb2.Status | None
    reason: str
    trailer_bytes: int
    by_core: bool

    def __str__(self) -> str:
        return f"{self.method.rpartition('/')[2]}: {self.code.name} {self.reason}: {self.message}"


class ProbeChannel:
    """Lends stubs a channel, gives every call a deadline, and notes what comes of it.

    Attributes:
        refusals: calls that did not end with OK, in order.
        unary_seconds: time of each unary call that was answered while no other call was under way.
    """

    def __init__(self, channel: Channel, *, call_seconds: float) -> None:
        self._call_seconds = call_seconds
        self.refusals: list[Refusal] = []
        self.unary_seconds: list[float] = []
        self._calls = 0
        self._under_way = 0
        self.attach(channel)

    def attach(self, channel: Channel) -> None:
        """Goes on with another channel; stubs are to be made anew."""
        # What leaves unchecked is the adapter's to refuse. A channel to an object checks in the adapter's place.
        unchecked = getattr(channel, "unchecked", None)
        self._channel: Channel = channel if unchecked is None else unchecked()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a unary method."""
        inner = self._channel.unary_unary(method, *args, **kwargs)

        async def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> Any:
            start, alone = time.perf_counter(), self._under_way == 0
            number = self._calls
            with self._noting(method):
                answer = await inner(request, timeout=timeout or self._call_seconds, metadata=metadata)
            if alone and self._calls == number + 1:
                self.unary_seconds.append(time.perf_counter() - start)
            return answer

        return call

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes a stream."""
        inner = self._channel.stream_unary(method, *args, **kwargs)

        async def call(requests: Any, *, timeout: float | None = None, metadata: Any = None) -> Any:
            with self._noting(method):
                return await inner(requests, timeout=timeout or self._call_seconds, metadata=metadata)

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that answers with a stream."""
        return self._streaming(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes and answers with a stream."""
        return self._streaming(method, self._channel.stream_stream(method, *args, **kwargs))

    def _streaming(self, method: str, inner: Any) -> Any:
        def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Any]:
            limit = timeout or self._call_seconds
            # A channel that checks may raise at once: that is an end of the call, too.
            return self._responses(method, lambda: inner(request, timeout=limit, metadata=metadata))

        return call

    async def _responses(self, method: str, start: Callable[[], Any]) -> AsyncIterator[Any]:
        with self._noting(method):
            async with aclosing(start()) as stream:
                async for each in stream:
                    yield each

    @contextmanager
    def _noting(self, method: str) -> Any:
        self._calls += 1
        self._under_way += 1
        try:
            yield
        except KitchenError as error:
            self.refusals.append(_refusal(method, error))
            raise
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _refusal(method: str, error: KitchenError) -> Refusal:
    cause = error.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError):
        # No wire was between: this is what the adapter's side would have put on it.
        return Refusal(
            method=method,
            code=error.code,
            message=error.message,
            details=to_status(error),
            reason=error.reason,
            trailer_bytes=0,
            by_core=error.code in _CORE_CODES,
        )
    trailers = list(cause.trailing_metadata() or ())
    found: dict[str, Any] = dict(trailers)
    message = cause.details() or ""
    reason = found.get(REASON_TRAILER, "")
    bare = not reason and DETAILS_TRAILER not in found
    return Refusal(
        method=method,
        code=cause.code(),
        message=message,
        details=_parsed(found.get(DETAILS_TRAILER)),
        reason=reason if isinstance(reason, str) else reason.decode("ascii", "replace"),
        trailer_bytes=sum(len(key) + len(value) for key, value in trailers),
        by_core=bare and (cause.code() in _CORE_CODES or _connection_lost(cause, message)),
    )


def _connection_lost(cause: grpc.aio.AioRpcError, message: str) -> bool:
    return cause.code() is grpc.StatusCode.UNAVAILABLE or any(text in message for text in _CORE_TEXTS)


def _parsed(packed: Any) -> status_pb2.Status | None:
    if not isinstance(packed, bytes):
        return None
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
