"""A channel whose errors tell from which port's adapter they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible_kit.channel import Channel
from crucible_kitchen.ports.named import errors_of


class PortChannel:
    """A channel whose errors know the port."""

    def __init__(self, channel: Channel, port: str) -> None:
        self._channel = channel
        self._port = port

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """The call of a unary method."""
        return self._answering(self._channel.unary_unary(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes a stream."""
        return self._answering(self._channel.stream_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that answers with a stream."""
        return self._streaming(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes and answers with a stream."""
        return self._streaming(self._channel.stream_stream(*args, **kwargs))

    def _answering(self, inner: Any) -> Any:
        async def call(request: Any, **options: Any) -> Any:
            with errors_of(self._port):
                return await inner(request, **options)

        return call

    def _streaming(self, inner: Any) -> Any:
        def call(request: Any, **options: Any) -> AsyncIterator[Any]:
            return self._responses(inner(request, **options))

        return call

    async def _responses(self, stream: Any) -> AsyncIterator[Any]:
        try:
            with errors_of(self._port):
                async for each in stream:
                    yield each
        finally:
            await stream.aclose()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()
