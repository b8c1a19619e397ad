"""Errors as statuses and back, what foreign peers send, and that a status always fits its headers."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from crucible_kit import errors
from crucible_kit.errors import (
    FieldViolation,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    UnavailableError,
    from_failure,
    from_rpc_error,
    from_status,
    to_failure,
    to_status,
)

KINDS = [kind for kind in KitchenError.__subclasses__() if kind is not errors.UnknownError]


def facts(error: KitchenError) -> tuple[Any, ...]:
    return type(error), error.message, error.reason, error.metadata, error.fields, error.retry_delay


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_survives_the_wire(kind: type[KitchenError]) -> None:
    error = kind(
        "config.lr: -1 is negative",
        reason="CONFIG_INVALID",
        metadata={"value": -1},
        fields=[FieldViolation("config.lr", "negative")],
        retry_delay=0.25,
    )
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    assert status.code == kind.code.value[0]
    assert facts(from_status(status)) == facts(error)
    assert facts(from_failure(to_failure(error))) == facts(error)


def test_the_status_holds_what_the_contract_says() -> None:
    error = InvalidArgumentError("m", reason="R", fields=[FieldViolation("f", "d")], retry_delay=2)
    names = [detail.TypeName() for detail in to_status(error).details]
    assert names == ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"]
    info = error_details_pb2.ErrorInfo()
    assert to_status(error).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("R", "crucible.kitchen")


def test_callers_can_catch_the_standard_exceptions() -> None:
    for kind, standard in (
        (errors.InvalidArgumentError, ValueError),
        (errors.NotFoundError, LookupError),
        (errors.UnavailableError, ConnectionError),
        (errors.DeadlineExceededError, TimeoutError),
        (errors.UnauthenticatedError, PermissionError),
    ):
        assert issubclass(kind, standard)


def test_only_unavailable_and_a_retry_delay_promise_that_a_retry_helps() -> None:
    assert errors.UnavailableError("m", reason="R").retryable
    assert errors.ResourceExhaustedError("m", reason="R", retry_delay=1).retryable
    assert not errors.ResourceExhaustedError("m", reason="R").retryable


def rpc_error(
    code: grpc.StatusCode, details: str = "", trailers: tuple[tuple[str, str | bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


def test_a_peer_without_details_is_understood_by_its_trailer() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "no", (("crucible-reason", "BLOB_NOT_FOUND"),)))
    assert facts(error) == (NotFoundError, "no", "BLOB_NOT_FOUND", {}, (), None)


def test_a_peer_without_anything_is_understood_by_its_code() -> None:
    assert from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "no")).reason == "NOT_FOUND"
    assert type(from_rpc_error(rpc_error(grpc.StatusCode.UNKNOWN))) is errors.UnknownError


@pytest.mark.parametrize("packed", [b"\xff\xff\xff", status_pb2.Status(code=13, message="other").SerializeToString()])
def test_details_that_cannot_be_read_or_contradict_the_code_are_ignored(packed: bytes) -> None:
    trailers = (("grpc-status-details-bin", packed), ("crucible-reason", "R"))
    error = from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "no", trailers))
    assert facts(error) == (NotFoundError, "no", "R", {}, (), None)


def test_a_damaged_detail_counts_as_absent() -> None:
    status = to_status(NotFoundError("no", reason="R"))
    status.details[0].value = b"\xff\xff"
    assert facts(from_status(status, reason_hint="HINT")) == (NotFoundError, "no", "HINT", {}, (), None)


def test_the_cores_size_refusal_is_not_retryable() -> None:
    text = "CLIENT: Received message larger than max (5 vs. 4)"
    error = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
    assert (type(error), error.reason, error.retryable) == (InvalidArgumentError, "MESSAGE_TOO_LARGE", False)


def test_a_call_that_the_transport_gave_up_may_be_tried_again() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.CANCELLED, "Cancelling all calls"))
    assert (type(error), error.retryable) == (UnavailableError, True)


def test_a_status_that_grpc_lost_while_the_client_still_wrote_may_be_asked_for_again() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert (type(error), error.reason, error.retryable) == (UnavailableError, "CONNECTION_LOST", True)
    # A server of ours says why.
    trailers = (("crucible-reason", "INTERNAL_BUG"),)
    error = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "internal error 1f", trailers))
    assert (type(error), error.reason) == (errors.InternalError, "INTERNAL_BUG")


@pytest.mark.parametrize("letter", ["x", "é", "字", "%", "\n"])
def test_a_status_always_fits_into_its_headers(letter: str) -> None:
    error = InvalidArgumentError(
        letter * 10_000,
        reason="R",
        metadata={f"key{index}": letter * 1000 for index in range(40)},
        fields=[FieldViolation(letter * 1000, letter * 1000)] * 20,
    )
    status = to_status(error)
    # gRPC percent-encodes the message and sends the details in base64; 8 KiB is where receivers begin to drop.
    encoded = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in status.message.encode())
    assert encoded + (status.ByteSize() + 2) // 3 * 4 < 8 * 1024 - 512
    back = from_status(status)
    assert (back.reason, len(back.fields), len(back.metadata)) == ("R", 5, 16)
    assert back.message.endswith("…")


def test_an_ordinary_message_is_sent_whole() -> None:
    message = "learning_rate: -1 must be at least 0; " * 20
    assert to_status(InvalidArgumentError(message, reason="R")).message == message
