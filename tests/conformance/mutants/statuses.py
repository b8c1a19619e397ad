"""Changes of an error on its way out of a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from crucible_kit.errors import (
    DETAILS_TRAILER,
    REASON_TRAILER,
)


class WireStatus(NamedTuple):
    """What grpc's abort_with_status reads."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


Change = Callable[[WireStatus], WireStatus]


class _Context:
    """A call's context that ends the call with another status."""

    def __init__(self, context: Any, change: Change) -> None:
        self._context = context
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def abort_with_status(self, status: Any) -> None:
        """Ends the call."""
        await self._context.abort_with_status(
            self._change(WireStatus(status.code, status.details, status.trailing_metadata))
        )


class ChangedStatus(grpc.aio.ServerInterceptor):
    """Changes every error on its way out."""

    def __init__(self, change: Change) -> None:
        self._change = change

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(each for each in kinds if getattr(handler, each) is not None)
        inner = getattr(handler, kind)

        async def answer(request: Any, context: Any) -> Any:
            return await inner(request, _Context(context, self._change))

        async def stream(request: Any, context: Any) -> Any:
            async for each in inner(request, _Context(context, self._change)):
                yield each

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        function = stream if handler.response_streaming else answer
        return make(
            function,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def details(status: WireStatus) -> status_pb2.Status:
    """The status of the details trailer."""
    return status_pb2.Status.FromString(dict(status.trailing_metadata)[DETAILS_TRAILER])  # type: ignore[arg-type]


def with_details(status: WireStatus, changed: status_pb2.Status) -> WireStatus:
    """The same with other details."""
    rest = [each for each in status.trailing_metadata if each[0] != DETAILS_TRAILER]
    return status._replace(trailing_metadata=(*rest, (DETAILS_TRAILER, changed.SerializeToString())))


def _is(packed: any_pb2.Any, kind: type[Message]) -> bool:
    return packed.TypeName() == kind.DESCRIPTOR.full_name


def no_details(status: WireStatus) -> WireStatus:
    """As a gRPC that can't send details."""
    return status._replace(trailing_metadata=tuple(e for e in status.trailing_metadata if e[0] == REASON_TRAILER))


def no_reason(status: WireStatus) -> WireStatus:
    return status._replace(trailing_metadata=tuple(e for e in status.trailing_metadata if e[0] != REASON_TRAILER))


def no_error_info(status: WireStatus) -> WireStatus:
    changed = details(status)
    kept = [each for each in changed.details if not _is(each, error_details_pb2.ErrorInfo)]
    return with_details(status, status_pb2.Status(code=changed.code, message=changed.message, details=kept))


def two_error_infos(status: WireStatus) -> WireStatus:
    changed = details(status)
    changed.details.append(changed.details[0])
    return with_details(status, changed)


def two_bad_requests(status: WireStatus) -> WireStatus:
    changed = details(status)
    changed.details.extend([each for each in changed.details if _is(each, error_details_pb2.BadRequest)])
    return with_details(status, changed)


def _changed_info(status: WireStatus, **fields: str) -> WireStatus:
    changed = details(status)
    info = error_details_pb2.ErrorInfo.FromString(changed.details[0].value)
    for name, value in fields.items():
        setattr(info, name, value)
    changed.details[0].Pack(info)
    return with_details(status, changed)


def no_domain(status: WireStatus) -> WireStatus:
    return _changed_info(status, domain="")


def another_reason(status: WireStatus) -> WireStatus:
    return _changed_info(status, reason="SOMETHING_ELSE")


def another_message(status: WireStatus) -> WireStatus:
    changed = details(status)
    changed.message = "something else"
    return with_details(status, changed)


def large_trailers(status: WireStatus) -> WireStatus:
    return status._replace(trailing_metadata=(*status.trailing_metadata, ("x-everything", "x" * 9000)))


def stack_trace(status: WireStatus) -> WireStatus:
    text = f'{status.details} Traceback (most recent call last): File "/srv/app.py", line 7'
    changed = details(status)
    changed.message = text
    return with_details(status, changed)._replace(details=text)


def bad_precondition(status: WireStatus) -> WireStatus:
    """FIELD_INVALID under another code."""
    if status.code is not grpc.StatusCode.INVALID_ARGUMENT:
        return status
    changed = details(status)
    changed.code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
    return with_details(status, changed)._replace(code=grpc.StatusCode.FAILED_PRECONDITION)


def no_field(status: WireStatus) -> WireStatus:
    changed = details(status)
    kept = [each for each in changed.details if not _is(each, error_details_pb2.BadRequest)]
    return with_details(status, status_pb2.Status(code=changed.code, message=changed.message, details=kept))
