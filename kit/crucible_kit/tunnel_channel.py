"""A channel for the generated stubs whose calls go through a tunnel that an adapter has opened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from crucible_kit._remote_channel import DEFAULT_UNARY_TIMEOUT, prepared
from crucible_kit.constraints import check_message
from crucible_kit.errors import InternalError, InvalidArgumentError, KitchenError, OperationCancelledError
from crucible_kit.outcomes import deadline_exceeded
from crucible_kit.parsing import check_aside
from crucible_kit.tunnel_caller import CallerTunnel, CallStream

_Outgoing = Callable[[Message], bytes]
_Incoming = Callable[[bytes], Message]
Received = TypeVar("Received")


class TunnelSource(Protocol):
    """Where a channel finds a tunnel for each call."""

    async def tunnel(self, seconds: float | None) -> CallerTunnel:
        """A tunnel that takes calls, waited for as long as that makes sense and at most `seconds`.

        Raises:
            UnavailableError: ADAPTER_DETACHED.
        """
        ...


class TunnelChannel:
    """Calls the servicers at the other end of a tunnel. As any channel of ours does, it checks requests, gives unary
    calls a deadline, and raises KitchenError.
    """

    def __init__(self, source: TunnelSource) -> None:
        self._source = source

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """The call of a unary method."""

        async def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> Message:
            await check_aside(request)
            handling = _Handling(method, timeout, metadata, request_serializer, response_deserializer)
            return await handling.answer(self._source, request)

        return call

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """The call of a method that answers with a stream."""

        def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Message]:
            check_message(request)
            handling = _Handling(method, timeout, metadata, request_serializer, response_deserializer)
            return handling.stream(self._source, request)

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """The call of a method that takes a stream."""

        async def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> Message:
            handling = _Handling(method, timeout, metadata, request_serializer, response_deserializer)
            return await handling.answer(self._source, requests)

        return call

    def stream_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """The call of a method that takes and answers with a stream."""

        def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> AsyncIterator[Message]:
            handling = _Handling(method, timeout, metadata, request_serializer, response_deserializer)
            return handling.stream(self._source, requests)

        return call

    async def close(self) -> None:
        """Nothing to free: the tunnel belongs to the adapter."""


class _Handling:
    """One call."""

    def __init__(
        self, method: str, timeout: float | None, metadata: Any, serialise: _Outgoing, deserialise: _Incoming
    ) -> None:
        self._method = method
        self._timeout = timeout
        self._metadata = _text_metadata(metadata)
        self._serialise = serialise
        self._deserialise = deserialise
        # What the caller's own request stream has raised: it comes first.
        self._failures: list[Exception] = []

    async def answer(self, source: TunnelSource, request: Any) -> Message:
        """The one message of the answer."""
        self._timeout = DEFAULT_UNARY_TIMEOUT if self._timeout is None else self._timeout
        deadline = time.monotonic() + self._timeout
        tunnel = await source.tunnel(self._timeout)
        stream = tunnel.call(self._method, deadline=deadline, metadata=self._metadata)
        pump = None
        try:
            pump = self._send(tunnel, stream, request)
            data = await self._received(_only(stream, self._method), deadline)
            return self._parsed(data)
        finally:
            await self._leave(tunnel, stream, pump)

    async def stream(self, source: TunnelSource, request: Any) -> AsyncIterator[Message]:
        """The messages of the answer."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        tunnel = await source.tunnel(self._timeout)
        stream = tunnel.call(self._method, deadline=deadline, metadata=self._metadata)
        pump = None
        try:
            pump = self._send(tunnel, stream, request)
            while (data := await self._received(stream.receive(), deadline)) is not None:
                yield self._parsed(data)
        finally:
            await self._leave(tunnel, stream, pump)

    def _send(self, tunnel: CallerTunnel, stream: CallStream, request: Any) -> asyncio.Task[None] | None:
        """Sends a request, or begins to send a stream of them."""
        if not isinstance(request, Message):
            return asyncio.create_task(self._pump(tunnel, stream, request))
        stream.push(self._serialise(request))
        stream.finish()
        return None

    async def _pump(self, tunnel: CallerTunnel, stream: CallStream, requests: AsyncIterable[Message]) -> None:
        failures: list[Exception] = []
        try:
            async for request in prepared(requests, _checked, failures):
                await stream.send(self._serialise(request))
            stream.finish()
        except Exception as error:
            self._failures = failures or [error]
            broken = OperationCancelledError("the caller's request stream has failed", reason="CANCELLED")
            tunnel.cancel(stream, broken)

    async def _received(self, receiving: Coroutine[Any, Any, Received], deadline: float | None) -> Received:
        # The clock runs only while the adapter works: one that spans a yield would cancel the caller's own await.
        clock = asyncio.timeout_at(deadline)
        try:
            async with clock:
                return await receiving
        except (KitchenError, TimeoutError) as error:
            if self._failures:
                raise self._failures[0] from None
            if clock.expired() and not isinstance(error, KitchenError):
                raise deadline_exceeded(self._method, self._timeout or 0.0) from error
            raise

    def _parsed(self, data: bytes) -> Message:
        try:
            return self._deserialise(data)
        except (DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InternalError(
                f"{self._method} was answered with what is not a valid protobuf message: its adapter has a defect",
                reason="MESSAGE_MALFORMED",
                metadata={"method": self._method},
            ) from error

    async def _leave(self, tunnel: CallerTunnel, stream: CallStream, pump: asyncio.Task[None] | None) -> None:
        tunnel.cancel(stream)
        if pump is not None:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)


async def _only(stream: CallStream, method: str) -> bytes:
    """The one message of an answer that is no stream."""
    message = await stream.receive()
    if message is None or await stream.receive() is not None:
        count = "no" if message is None else "more than one"
        raise InternalError(
            f"{method} was answered with {count} message: its adapter has a defect",
            reason="ANSWER_INVALID",
            metadata={"method": method},
        )
    return message


def _checked(message: Message) -> Message:
    check_message(message)
    return message


def _text_metadata(metadata: Any) -> dict[str, str]:
    pairs: list[tuple[str, Any]] = list(metadata or ())
    result = {key: value for key, value in pairs if isinstance(value, str)}
    if len(result) < len(pairs):
        raise InvalidArgumentError(
            "metadata: a tunnel carries text, each key once: leave binary values and repeated keys out",
            reason="METADATA_UNSUPPORTED",
        )
    return result
