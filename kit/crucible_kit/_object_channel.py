"""A channel to servicers in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from crucible_kit._remote_channel import DEFAULT_UNARY_TIMEOUT, prepared
from crucible_kit.constraints import check_message
from crucible_kit.errors import KitchenError, from_status, to_status
from crucible_kit.outcomes import (
    deadline_exceeded,
    hidden,
    interrupted,
    is_generated_default,
    method_missing,
    task_is_cancelled,
)

_END = object()


class ObjectContext:
    """What a servicer may ask of its call when no wire is between."""

    def __init__(self, deadline: float | None, metadata: Iterable[tuple[str, str]], *, peer: str = "object:") -> None:
        self._deadline = deadline
        self._metadata = tuple(metadata)
        self._peer = peer

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The caller's metadata."""
        return self._metadata

    def peer(self) -> str:
        """Where the call came from."""
        return self._peer


class Servicers:
    """Calls servicers by the full name of a method, as a server does: deadlines, cancellation, and errors that tell
    nothing. Requests are taken as they come.

    Args:
        servicers: by full service name.
        serialise: as in ObjectChannel.
        peer: what the servicers are told of their caller.
    """

    def __init__(self, servicers: Mapping[str, Any], *, serialise: bool = False, peer: str = "object:") -> None:
        self._servicers = dict(servicers)
        self._serialise = serialise
        self._peer = peer

    def _handler(self, method: str) -> Any:
        _, service, name = method.split("/")
        handler = getattr(self._servicers.get(service), name, None)
        if handler is None or is_generated_default(handler):
            raise method_missing(method)
        return handler

    def copy(self, message: Message) -> Message:
        """The message as the other side gets it."""
        return type(message).FromString(message.SerializeToString()) if self._serialise else message

    def _error(self, method: str, error: Exception) -> KitchenError:
        known = error if isinstance(error, KitchenError) else hidden(method, error)
        return from_status(to_status(known)) if self._serialise else known

    async def answer(
        self, method: str, request: Any, timeout: float, metadata: Any, failures: Sequence[Exception] = ()
    ) -> Message:
        """The answer to a request, or to a stream of them, within `timeout` seconds.

        `failures` is looked at when the handler fails: what the caller's own request stream has raised comes first.
        """
        context = ObjectContext(time.monotonic() + timeout, metadata or (), peer=self._peer)
        clock = asyncio.timeout(timeout)
        try:
            async with clock:
                return self.copy(await self._handler(method)(request, context))
        except asyncio.CancelledError as error:
            if task_is_cancelled():
                raise
            raise interrupted(method) from error
        except Exception as error:
            if failures:
                raise failures[0] from None
            if clock.expired():
                raise deadline_exceeded(method, timeout) from error
            raise self._error(method, error) from error

    async def stream(
        self, method: str, request: Any, timeout: float | None, metadata: Any, failures: Sequence[Exception] = ()
    ) -> AsyncGenerator[Message, None]:
        """The stream of answers. `failures` as in `answer`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        context = ObjectContext(deadline, metadata or (), peer=self._peer)
        responses: Any = None
        try:
            responses = self._handler(method)(request, context)
            while (response := await self._next(method, responses, timeout, context)) is not _END:
                yield self.copy(response)
        except asyncio.CancelledError as error:
            if task_is_cancelled():
                raise
            raise interrupted(method) from error
        except Exception as error:
            if failures:
                raise failures[0] from None
            raise self._error(method, error) from error
        finally:
            if hasattr(responses, "aclose"):
                await responses.aclose()

    async def _next(self, method: str, responses: Any, timeout: float | None, context: ObjectContext) -> Any:
        # The clock runs only while the servicer works: one that spans a yield would cancel the caller's own await.
        if timeout is None:
            return await anext(responses, _END)
        clock = asyncio.timeout(context.time_remaining())
        try:
            async with clock:
                if not context.time_remaining():
                    raise TimeoutError
                return await anext(responses, _END)
        except TimeoutError as error:
            if clock.expired() or not context.time_remaining():
                raise deadline_exceeded(method, timeout) from error
            raise


class ObjectChannel:
    """Calls servicers in this process.

    Args:
        servicers: by full service name.
        serialise: send every message through its bytes, and every error through its status, as a wire would.
            Messages are otherwise handed over as they are: neither side may change one after sending it.
    """

    def __init__(self, servicers: Mapping[str, Any], *, serialise: bool = False) -> None:
        self._servicers = Servicers(servicers, serialise=serialise)

    def _request(self, message: Message) -> Message:
        check_message(message)
        return self._servicers.copy(message)

    async def _answer(
        self, method: str, request: Any, timeout: float | None, metadata: Any, failures: Sequence[Exception] = ()
    ) -> Message:
        limit = DEFAULT_UNARY_TIMEOUT if timeout is None else timeout
        return await self._servicers.answer(method, request, limit, metadata, failures)

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """The call of a unary method."""

        async def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> Message:
            return await self._answer(method, self._request(request), timeout, metadata)

        return call

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Any:
        """The call of a method that answers with a stream."""

        def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Message]:
            return self._servicers.stream(method, self._request(request), timeout, metadata)

        return call

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        """The call of a method that takes a stream."""

        async def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> Message:
            failures: list[Exception] = []
            incoming = prepared(requests, self._request, failures)
            return await self._answer(method, incoming, timeout, metadata, failures)

        return call

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        """The call of a method that takes and answers with a stream."""

        def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> AsyncIterator[Message]:
            failures: list[Exception] = []
            incoming = prepared(requests, self._request, failures)
            return self._servicers.stream(method, incoming, timeout, metadata, failures)

        return call

    async def close(self) -> None:
        """Nothing to free: the servicers belong to whoever made them."""
