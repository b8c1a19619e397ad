"""The one error tree, and its two-way mapping to google.rpc.Status.

Raise an error where the fact is known, with a reason in UPPER_SNAKE_CASE, a message that names field, value and fix,
and the facts again as metadata. The serving side turns it into a status in one place; the calling side turns it back.
To add a kind: subclass KitchenError, set `code`, and inherit the standard exception that callers catch already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from crucible.type.v1 import failure_pb2
from crucible_kit.redaction import redact

DOMAIN = "crucible.kitchen"
REASON_TRAILER = "crucible-reason"
DETAILS_TRAILER = "grpc-status-details-bin"
_MAX_MESSAGE_CHARACTERS = 2000
_MAX_METADATA = 16
_MAX_FIELDS = 5
# Message and details travel as headers, and a receiver may drop more than 8 KiB of them, the status with it.
_MAX_WIRE_BYTES = 7 * 1024
# What grpc.aio makes of a call that ends while its client still writes, in place of the server's own status.
_WRITE_FAILED = "Internal error from Core"
# What grpc-message holds unquoted.
_PLAIN = bytes(range(0x20, 0x7F)).replace(b"%", b"")


class FieldViolation(NamedTuple):
    """One bad field: its path in the request, such as config.learning_rate, and what is wrong with it."""

    field: str
    description: str


class KitchenError(Exception):
    """An outcome that is not OK. Registered secrets are taken out of its texts (see redaction).

    Args:
        message: for people; names the field, the value and the fix.
        reason: for programs; UPPER_SNAKE_CASE, stable.
        metadata: the facts of the message by name.
        fields: the request's bad fields, if that is what it is about.
        retry_delay: seconds after which the same call may succeed; None: no promise.

    Attributes:
        port: the port whose adapter it came from, where the host has noted it; does not travel.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, object] | None = None,
        fields: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
    ) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.reason = redact(reason)
        self.metadata = {redact(key): redact(str(value)) for key, value in (metadata or {}).items()}
        self.fields = tuple(FieldViolation(redact(each.field), redact(each.description)) for each in fields)
        self.retry_delay = retry_delay
        self.port = ""

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed unchanged."""
        return self.code is grpc.StatusCode.UNAVAILABLE or self.retry_delay is not None

    def __str__(self) -> str:
        return self.message


class InvalidArgumentError(KitchenError, ValueError):
    """The request is wrong whatever the state."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(KitchenError, LookupError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(KitchenError):
    """What the request would create exists with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(KitchenError):
    """The request is right, the state is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(KitchenError):
    """Lost against a concurrent change: read again and redo."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(KitchenError, IndexError):
    """A position past the end."""

    code = grpc.StatusCode.OUT_OF_RANGE


class UnavailableError(KitchenError, ConnectionError):
    """The other side is not there now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(KitchenError, TimeoutError):
    """Not finished in time; it may have taken effect."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ResourceExhaustedError(KitchenError):
    """A limit is reached; retry only when a retry delay is given."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnimplementedError(KitchenError, NotImplementedError):
    """The adapter does not have this capability; never retry."""

    code = grpc.StatusCode.UNIMPLEMENTED


class UnauthenticatedError(KitchenError, PermissionError):
    """No token, or a wrong one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(KitchenError, PermissionError):
    """The token's role does not allow this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class DataLossError(KitchenError):
    """Stored bytes differ from their hash."""

    code = grpc.StatusCode.DATA_LOSS


class OperationCancelledError(KitchenError):
    """Stopped because somebody asked for it."""

    code = grpc.StatusCode.CANCELLED


class InternalError(KitchenError, RuntimeError):
    """A defect of ours; the message holds no exception text, the log does, under error_id."""

    code = grpc.StatusCode.INTERNAL


class UnknownError(KitchenError):
    """An error of a peer that says no more."""


CONNECTION_LOST = ("CONNECTION_LOST", "UNAVAILABLE")
"""Reasons of a call that broke on the way: the transport's, not the other side's answer."""

_BY_CODE: dict[int, type[KitchenError]] = {
    kind.code.value[0]: kind for kind in KitchenError.__subclasses__() if kind is not UnknownError
}


def field_error(field: str, description: str, *, reason: str = "FIELD_INVALID") -> InvalidArgumentError:
    """An INVALID_ARGUMENT about one field; the message is `field: description`."""
    return InvalidArgumentError(
        f"{field}: {description}", reason=reason, metadata={"field": field}, fields=[FieldViolation(field, description)]
    )


def capability_missing(port: str, capability: str, fix: str) -> UnimplementedError:
    """The UNIMPLEMENTED of an optional behaviour that an adapter does not declare."""
    return UnimplementedError(
        f"the {port} adapter does not declare the capability {capability}: {fix}",
        reason="CAPABILITY_MISSING",
        metadata={"port": port, "capability": capability},
    )


def to_status(error: KitchenError) -> status_pb2.Status:
    """The wire form: code, message, one ErrorInfo, and BadRequest and RetryInfo where they apply.

    Texts are cut until the whole fits into the headers that it travels in.
    """
    divisor = 1
    status = _to_status(error, divisor)
    while _wire_bytes(status) > _MAX_WIRE_BYTES and divisor < _MAX_MESSAGE_CHARACTERS:
        divisor *= 2
        status = _to_status(error, divisor)
    return status


def _wire_bytes(status: status_pb2.Status) -> int:
    """Bytes of the headers: the message percent-encoded, the whole status in base64."""
    return len(quote(status.message, safe=_PLAIN)) + status.ByteSize() * 4 // 3


def _to_status(error: KitchenError, divisor: int) -> status_pb2.Status:
    def cut(text: str, limit: int) -> str:
        # Before the cut, which would leave the beginning of a secret.
        text = redact(text)
        most = max(1, limit // divisor)
        return text if len(text) <= most else text[: most - 1] + "…"

    status = status_pb2.Status(code=error.code.value[0], message=cut(error.message, _MAX_MESSAGE_CHARACTERS))
    metadata = {key[:64]: cut(value, 256) for key, value in list(error.metadata.items())[:_MAX_METADATA]}
    _attach(status, error_details_pb2.ErrorInfo(reason=error.reason[:64], domain=DOMAIN, metadata=metadata))
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=cut(each.field, 256), description=cut(each.description, 512)
            )
            for each in error.fields[:_MAX_FIELDS]
        ]
        _attach(status, error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_delay is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_delay * 1e9))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def from_status(status: status_pb2.Status, *, reason_hint: str = "") -> KitchenError:
    """The error a status stands for. `reason_hint` (the crucible-reason trailer) counts where details are missing."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    bad = _detail(status, error_details_pb2.BadRequest)
    retry = _detail(status, error_details_pb2.RetryInfo)
    kind = _BY_CODE.get(status.code, UnknownError)
    return kind(
        status.message,
        reason=(info.reason if info else "") or reason_hint or _code_name(status.code),
        metadata=info.metadata if info else {},
        fields=[FieldViolation(each.field, each.description) for each in bad.field_violations] if bad else (),
        retry_delay=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
    )


_Detail = TypeVar("_Detail", bound=Message)


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    """The first detail of a kind; one that can't be read counts as absent: a peer wrote it."""
    for packed in status.details:
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            try:
                return kind.FromString(packed.value)
            except DecodeError:
                return None
    return None


def _code_name(code: int) -> str:
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), f"CODE_{code}")


def from_rpc_error(error: grpc.aio.AioRpcError) -> KitchenError:
    """The error a failed call stands for: details first, then the reason trailer, then the code alone."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    packed = trailers.get(DETAILS_TRAILER)
    if isinstance(packed, bytes):
        try:
            parsed = status_pb2.Status.FromString(packed)
        except DecodeError:
            parsed = status  # a peer wrote it; code and message came apart from it
        if parsed.code == status.code:
            status = parsed
    hint = trailers.get(REASON_TRAILER, "")
    hint = hint if isinstance(hint, str) else hint.decode("ascii", "replace")
    if status.code == grpc.StatusCode.CANCELLED.value[0] and not status.details and not hint:
        # The caller's own cancellation never gets here: the other side's transport gave the call up.
        return UnavailableError(status.message or "the other side ended the call", reason="CONNECTION_LOST")
    if status.code == grpc.StatusCode.INTERNAL.value[0] and status.message == _WRITE_FAILED and not status.details:
        return UnavailableError(
            "the other side ended the call before it had taken the whole request, and its reason got lost on the way: "
            "send it again",
            reason="CONNECTION_LOST",
        )
    if status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and "larger than max" in status.message:
        # The core refuses before any handler runs and names no reason; a retry can't help.
        return InvalidArgumentError(f"{status.message}: send less in one message", reason="MESSAGE_TOO_LARGE")
    return from_status(status, reason_hint=hint)


def to_failure(error: KitchenError, *, source: str = "") -> failure_pb2.Failure:
    """The error as data, for events and operations."""
    failure = failure_pb2.Failure(
        status=to_status(error), reason=error.reason, source=redact(source), retryable=error.retryable
    )
    if error.retry_delay is not None:
        failure.retry_delay.FromNanoseconds(int(error.retry_delay * 1e9))
    return failure


def from_failure(failure: failure_pb2.Failure) -> KitchenError:
    """The error that a failure carries."""
    return from_status(failure.status, reason_hint=failure.reason)
