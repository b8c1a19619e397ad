"""The channel that a port's stub calls through: it makes the adapter ready, and its errors tell the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from crucible_kit import redaction
from crucible_kit.channel import Channel
from crucible_kit.errors import KitchenError, UnavailableError, from_failure, to_failure
from crucible_kit.outcomes import task_is_cancelled
from crucible_kitchen.ports.binding import Binding
from crucible_kitchen.ports.handshake import adapter_unavailable
from crucible_kitchen.ports.named import errors_of

_REPLACED_RETRY_SECONDS = 1.0


class BoundChannel:
    """A channel to the adapter behind a binding. A call finds the adapter ready, or makes it so first; one that loses a
    program on its way is sent again to the next, unless it is a stream of requests.

    Attributes:
        calls: at work now.
    """

    def __init__(self, binding: Binding, port: str) -> None:
        self._binding = binding
        self._port = port
        self._retired = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.calls = 0

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a unary method."""
        return self._answering(lambda channel: channel.unary_unary(method, *args, **kwargs), repeats=True)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes a stream."""
        return self._answering(lambda channel: channel.stream_unary(method, *args, **kwargs), repeats=False)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that answers with a stream."""
        return self._streaming(lambda channel: channel.unary_stream(method, *args, **kwargs), repeats=True)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes and answers with a stream."""
        return self._streaming(lambda channel: channel.stream_stream(method, *args, **kwargs), repeats=False)

    def _answering(self, make: Callable[[Channel], Any], *, repeats: bool) -> Any:
        inner = _Latest(self._binding, make)

        async def call(request: Any, **options: Any) -> Any:
            with self._at_work():
                if not self._binding.is_ready(self._port):
                    await self._make_ready(options.get("timeout"))
                instance_id = self._instance_id
                try:
                    response = await inner()(request, **options)
                except KitchenError as error:
                    if not await self._binding.failed(self._port, error, instance_id) or not repeats:
                        raise
                    await self._make_ready(options.get("timeout"))
                    response = await inner()(request, **options)
            return _without_secrets(response)

        return call

    def _streaming(self, make: Callable[[Channel], Any], *, repeats: bool) -> Any:
        inner = _Latest(self._binding, make)

        def call(request: Any, **options: Any) -> AsyncIterator[Any]:
            return self._responses(lambda: inner()(request, **options), options.get("timeout"), repeats=repeats)

        return call

    async def _responses(self, start: Callable[[], Any], timeout: float | None, *, repeats: bool) -> AsyncIterator[Any]:
        with self._at_work():
            if not self._binding.is_ready(self._port):
                await self._make_ready(timeout)
            while True:
                instance_id = self._instance_id
                stream = start()
                try:
                    async for each in stream:
                        repeats = False
                        yield each
                    return
                except KitchenError as error:
                    if not await self._binding.failed(self._port, error, instance_id) or not repeats:
                        raise
                finally:
                    await stream.aclose()
                repeats = False
                await self._make_ready(timeout)

    @property
    def _instance_id(self) -> str:
        info = self._binding.info
        return "" if info is None else info.instance_id

    async def _make_ready(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._binding.ensure(self._port)
        except KitchenError:
            raise  # some of them are a TimeoutError, too
        except TimeoutError as error:
            raise adapter_unavailable(f"the adapter of the port {self._port} was away for {timeout:g} s") from error

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Counts the call; its errors know the port, and when another adapter has taken this one's place."""
        if self._retired:
            raise self._replaced()
        self.calls += 1
        self._idle.clear()
        try:
            with errors_of(self._port):
                yield
        except asyncio.CancelledError as error:
            # Closing a channel cancels its calls as if their callers had hung up.
            if self._retired and not task_is_cancelled():
                raise self._replaced() from error
            raise
        except Exception as error:
            if self._retired:
                raise self._replaced() from error
            raise
        finally:
            self.calls -= 1
            if not self.calls:
                self._idle.set()

    def _replaced(self) -> UnavailableError:
        error = UnavailableError(
            f"another adapter has taken over the port {self._port}: what was open at the earlier one is lost, begin "
            "anew",
            reason="ADAPTER_REPLACED",
            metadata={"port": self._port},
            retry_delay=_REPLACED_RETRY_SECONDS,
        )
        error.port = self._port
        return error

    async def retire(self, seconds: float) -> None:
        """Refuses calls from now on, and waits up to so many seconds for those at work."""
        self._retired = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self) -> None:
        """Nothing to free: the channel belongs to the binding."""


class _Latest:
    """A method's call on the channel that the binding has now."""

    def __init__(self, binding: Binding, make: Callable[[Channel], Callable[..., Awaitable[Any]]]) -> None:
        self._binding = binding
        self._make = make
        self._channel: Channel | None = None
        self._call: Any = None

    def __call__(self) -> Any:
        channel = self._binding.channel
        if channel is not self._channel:
            self._channel, self._call = channel, self._make(channel)
        return self._call


def _without_secrets(response: Any) -> Any:
    """An operation that failed holds an error's texts, which the adapter may have put secrets into."""
    operation = getattr(response, "operation", None) if redaction.active() else None
    if operation is None or not operation.HasField("failure"):
        return response
    clean = type(response)()
    clean.CopyFrom(response)
    failure = clean.operation.failure
    redaction.redact_message(failure)
    # Its details are packed: they are made anew.
    failure.status.CopyFrom(to_failure(from_failure(failure)).status)
    return clean
