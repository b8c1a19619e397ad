"""A channel that has its calls recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from google.rpc import status_pb2

from crucible_kit.cassettes.methods import Method, find_method
from crucible_kit.cassettes.writer import CallWriter, CassetteWriter
from crucible_kit.channel import Channel
from crucible_kit.errors import KitchenError, to_status

_LARGE_BYTES = 64 * 1024


class RecordingChannel:
    """A channel whose calls go through another one and are recorded.

    Calls of services that are no port's pass by unrecorded. What a call brought is written before its caller has it.
    """

    def __init__(self, channel: Channel, writer: CassetteWriter) -> None:
        """Neither is closed with this one."""
        self._channel = channel
        self._writer = writer

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a unary method."""
        return self._unary(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that answers with a stream."""
        return self._stream(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes a stream."""
        return self._unary(method, self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes and answers with a stream."""
        return self._stream(method, self._channel.stream_stream(method, *args, **kwargs))

    def _unary(self, method: str, inner: Callable[..., Awaitable[Message]]) -> Any:
        found = find_method(method)
        if found is None:
            return inner

        async def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> Message:
            entry = self._writer.start(found, metadata or (), timeout)
            async with _ending(entry):
                sent = await self._sent(entry, found, request)
                response = await inner(sent, timeout=timeout, metadata=metadata)
                await _written(entry.response, response)
            return response

        return call

    def _stream(self, method: str, inner: Callable[..., AsyncIterator[Message]]) -> Any:
        found = find_method(method)
        if found is None:
            return inner

        async def call(request: Any, *, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Message]:
            entry = self._writer.start(found, metadata or (), timeout)
            async with _ending(entry):
                sent = await self._sent(entry, found, request)
                responses = inner(sent, timeout=timeout, metadata=metadata)
                try:
                    async for each in responses:
                        await _written(entry.response, each)
                        yield each
                finally:
                    close = getattr(responses, "aclose", None)
                    if close is not None:
                        await close()

        return call

    async def _sent(self, entry: CallWriter, method: Method, request: Any) -> Any:
        """What to hand on: the request, written, or the stream that is written as it goes."""
        if method.client_streaming:
            return _written_stream(entry, request)
        await _written(entry.request, request)
        return request

    async def close(self) -> None:
        """Nothing to free: channel and cassette belong to whoever made them."""


async def _written_stream(entry: CallWriter, requests: AsyncIterable[Message]) -> AsyncIterator[Message]:
    async for each in requests:
        await _written(entry.request, each)
        yield each
    entry.half_close()


async def _written(write: Callable[[Message], None], message: Message) -> None:
    if message.ByteSize() < _LARGE_BYTES:
        write(message)
    else:
        # The event loop has others to serve meanwhile.
        await asyncio.to_thread(write, message)


@asynccontextmanager
async def _ending(entry: CallWriter) -> AsyncIterator[None]:
    """Writes how the block ended as the call's end."""
    try:
        yield
    except KitchenError as error:
        entry.status(to_status(error))
        raise
    except BaseException:
        # Cancelled, a reader that left, or the caller's own stream of requests that failed.
        entry.cancel()
        raise
    entry.status(status_pb2.Status())
