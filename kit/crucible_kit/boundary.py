"""The one outermost server interceptor: who may call, what a request may be, how long it may take, how errors leave."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from crucible_kit.errors import DETAILS_TRAILER, REASON_TRAILER, KitchenError, to_status
from crucible_kit.outcomes import (
    deadline_exceeded,
    hidden,
    interrupted,
    is_generated_default,
    method_missing,
    task_is_cancelled,
)
from crucible_kit.parsing import Parser, parse_in_turn, request_parser

# Called with the full method name and the call's metadata; raises a KitchenError to refuse.
Guard = Callable[[str, Mapping[str, str | bytes]], None]


class _WireStatus(NamedTuple):
    """What grpc's abort_with_status reads."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


class BoundaryInterceptor(grpc.aio.ServerInterceptor):
    """Checks requests on their way in and maps errors on their way out. What the options of a proto say, and that no
    field is unknown, is asked of the services of the package crucible; others, such as health, have rules of their own.

    Args:
        guard: refuses calls by method and metadata (tokens, roles, draining). None: everybody may call.
        max_bytes: most bytes of one request message by method prefix; the first prefix that fits counts.
        unary_timeout: seconds after which a unary call without a deadline of its own is ended.
    """

    def __init__(
        self, *, guard: Guard | None = None, max_bytes: Mapping[str, int] | None = None, unary_timeout: float = 600.0
    ) -> None:
        self._guard = guard
        self._max_bytes = dict(max_bytes or {})
        self._unary_timeout = unary_timeout

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        refusal = self._refusal(method, handler_call_details.invocation_metadata)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(_refuse(refusal or method_missing(method)))
        if refusal is None and is_generated_default(_inner(handler)):
            refusal = method_missing(method)
        if refusal is not None:
            return _same_shape(handler, _refuse(refusal), _refuse_stream(refusal))
        return self._wrap(handler, method)

    def _refusal(self, method: str, metadata: Any) -> KitchenError | None:
        if self._guard is None:
            return None
        try:
            self._guard(method, dict(metadata or ()))
        except KitchenError as error:
            return error
        except Exception as error:
            return hidden(method, error)
        return None

    def _wrap(self, handler: Any, method: str) -> Any:
        limit = next((size for prefix, size in self._max_bytes.items() if method.startswith(prefix)), None)
        parse = request_parser(method, handler.request_deserializer, max_bytes=limit)
        inner = _inner(handler)

        async def incoming(data: Any) -> Any:
            return _parsed(data, parse) if handler.request_streaming else await parse_in_turn(parse, data)

        # The context is untyped: the stubs of grpc lack abort_with_status.
        async def answer(data: Any, context: Any) -> Message:
            clock = asyncio.timeout(self._unary_timeout if context.time_remaining() is None else None)
            try:
                async with clock:
                    return await inner(await incoming(data), context)
            except BaseException as error:
                late = clock.expired() and isinstance(error, TimeoutError)
                await _abort(context, method, deadline_exceeded(method, self._unary_timeout) if late else error)
                raise

        async def stream(data: Any, context: Any) -> AsyncIterator[Message]:
            responses: Any = None
            try:
                responses = inner(await incoming(data), context)
                if inspect.iscoroutine(responses):
                    await responses  # it writes to the context itself, as health's does
                else:
                    async for each in responses:
                        yield each
            except GeneratorExit:
                raise
            except BaseException as error:
                await _abort(context, method, error)
                raise
            finally:
                if inspect.isasyncgen(responses):
                    await responses.aclose()

        return _same_shape(handler, answer, stream)


def _inner(handler: Any) -> Any:
    """The function of a method handler."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(each for each in kinds if each is not None)


async def _parsed(messages: AsyncIterator[bytes], parse: Parser) -> AsyncIterator[Message]:
    async for each in messages:
        yield await parse_in_turn(parse, each)


def _same_shape(handler: Any, unary: Any, stream: Any) -> Any:
    """A method handler that takes raw bytes and has the same shape as `handler`."""
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, response_serializer=handler.response_serializer)
    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(unary, response_serializer=handler.response_serializer)


def _refuse(error: KitchenError) -> Any:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort_with_status(_wire_status(error))

    return refuse


def _refuse_stream(error: KitchenError) -> Any:
    async def refuse(_: Any, context: Any) -> AsyncIterator[Message]:
        await context.abort_with_status(_wire_status(error))
        yield  # pyright: ignore[reportReturnType]  # makes it a generator

    return refuse


def _wire_status(error: KitchenError) -> Any:
    status: status_pb2.Status = to_status(error)
    return _WireStatus(
        code=error.code,
        details=status.message,
        trailing_metadata=(
            (DETAILS_TRAILER, status.SerializeToString()),
            # Clients whose gRPC can't read details (elixir-grpc before 1.0) get the reason in clear.
            (REASON_TRAILER, error.reason.encode("ascii", "replace").decode()),
        ),
    )


async def _abort(context: Any, method: str, error: BaseException) -> None:
    """Ends the call with the error's status. Returns only when the call needs no status: it ended already.

    Raises:
        CancelledError: the caller left while it was told, which is how a call that it leaves ends.
    """
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError):
        return
    if isinstance(error, asyncio.CancelledError):
        if context.cancelled() or task_is_cancelled():
            return
        # Without a status of our own the client would wait for its deadline.
        error = interrupted(method)
    elif not isinstance(error, KitchenError):
        error = hidden(method, error)
    try:
        await context.abort_with_status(_wire_status(error))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
