"""Registered secrets leave no text: not the log, not errors, not messages."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.struct_pb2 import Struct

from crucible.kitchen.v1 import event_pb2
from crucible_kit import redaction
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    FieldViolation,
    InvalidArgumentError,
    UnavailableError,
    from_status,
    to_failure,
    to_status,
)
from crucible_kit.redaction import MARK, RedactingFilter, Secrets, redact, redact_message, register

SECRET = 'sk-"quoted\\ & more/0123456789'


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redaction, "_forms", set())
    monkeypatch.setattr(redaction, "_pattern", None)
    register([SECRET])
    yield


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        repr(SECRET)[1:-1],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        f"{SECRET}{SECRET}",
    ],
)
def test_a_secret_is_taken_out_however_it_is_written(written: str) -> None:
    assert SECRET not in redact(f"key={written};")
    assert redact(f"key={written};").replace(MARK, "").replace("=", "") in ("key;",)


def test_one_that_begins_like_another_is_taken_out_whole() -> None:
    register([f"{SECRET}-and-more"])
    assert redact(f"a {SECRET}-and-more b {SECRET} c") == f"a {MARK} b {MARK} c"


def test_each_line_of_a_key_file_is_a_secret() -> None:
    lines = ["-----BEGIN PRIVATE KEY-----", "MIGHAgEAMBMGByqGSM49AgEG", "CCqGSM49AwEHBG0wawIBAQQg", "}"]
    register(["\n".join([*lines, "-----END PRIVATE KEY-----", ""])])
    assert redact("child: CCqGSM49AwEHBG0wawIBAQQg") == f"child: {MARK}"
    assert redact("a } stays") == "a } stays"


def test_short_values_are_refused_without_showing_them() -> None:
    with pytest.raises(ValueError, match="at least 6") as caught:
        register(["abcde"])
    assert "abcde" not in str(caught.value)
    assert redact("abcde") == "abcde"


def test_errors_hold_no_secret_wherever_it_was_put() -> None:
    error = UnavailableError(
        f"the service said: bad key {SECRET}", reason=f"KEY_{SECRET}", metadata={SECRET: f"at {SECRET}"}
    )
    violation = InvalidArgumentError("x", reason="R", fields=[FieldViolation(f"f.{SECRET}", f"is {SECRET}")])
    wire = [to_status(error), to_status(violation), to_failure(error, source=SECRET)]
    assert str(error) == f"the service said: bad key {MARK}" == error.args[0]
    for told in (repr(error), repr(error.metadata), repr(violation.fields), *(repr(each) for each in wire)):
        assert "0123456789" not in told
    assert SECRET.encode() not in b"".join(each.SerializeToString() for each in wire)


def test_a_secret_at_a_cut_leaves_no_beginning() -> None:
    error = UnavailableError("", reason="R")
    # As an adapter in this process may do after it has made its error.
    error.message = "x" * 1990 + SECRET
    error.metadata = {"detail": "y" * 250 + SECRET}
    status = to_status(error)
    assert "sk-" not in status.message
    assert "sk-" not in from_status(status).metadata["detail"]


def test_texts_in_messages_are_redacted_in_place() -> None:
    event = event_pb2.RunEvent(stage_path=f"a/{SECRET}", log_recorded=event_pb2.LogRecorded(message=f"b {SECRET}"))
    redact_message(event)
    assert (event.stage_path, event.log_recorded.message) == (f"a/{MARK}", f"b {MARK}")
    struct = _struct({"a": {"b": [1, SECRET]}, "c": "d"})
    redact_message(struct)
    assert struct == _struct({"a": {"b": [1, MARK]}, "c": "d"})


def _struct(value: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(value)
    return struct


def logged(emit: Callable[[logging.Logger], None]) -> str:
    """What a handler with the filter writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("tests.redaction")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        emit(logger)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_the_log_holds_no_secret_in_message_arguments_or_traceback() -> None:
    def emit(logger: logging.Logger) -> None:
        logger.warning("key %s of %d", SECRET, 3)
        try:
            try:
                raise KeyError(f"no {SECRET}")
            except KeyError as error:
                raise RuntimeError(f"refused {SECRET}") from error
        except RuntimeError:
            logger.exception("it failed", stack_info=True)

    text = logged(emit)
    assert "0123456789" not in text
    assert f"key {MARK} of 3" in text
    assert f"RuntimeError: refused {MARK}" in text
    assert "Traceback" in text and "KeyError" in text


def test_a_record_whose_arguments_don_t_fit_shows_no_secret() -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, "one %s two %s", (SECRET,), None)
    assert RedactingFilter().filter(record)
    assert record.getMessage().startswith("one %s two %s") and "0123456789" not in record.getMessage()


def test_records_without_secrets_stay_as_they_are() -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, "a %s", ("b",), None)
    assert RedactingFilter().filter(record)
    assert (record.msg, record.args) == ("a %s", ("b",))


def test_secrets_show_their_names_only(tmp_path: Path) -> None:
    secrets = Secrets({"api_key": SECRET, "other": "value-of-it"})
    assert repr(secrets) == str(secrets) == f"{secrets}" == "Secrets(api_key, other)"
    assert secrets["api_key"] == SECRET and len(secrets) == 2
    assert SECRET not in repr(AdapterContext(data_dir=tmp_path, secrets=secrets))
