"""Secrets and where they must not show: values are registered once and replaced in every text that leaves the process.

What leaves: the log (RedactingFilter), errors (KitchenError redacts its texts when it is made and when it is sent),
events (redact_message), and the stderr of child processes.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MIN_CHARACTERS = 6
"""A shorter value stands in too many innocent texts to be kept out of them."""
MARK = "[redacted]"
# Of a secret with several lines, such as a key file, each line shows by itself in a log; short ones say nothing.
_MIN_LINE_CHARACTERS = 16

_lock = threading.Lock()
_forms: set[str] = set()
_pattern: re.Pattern[str] | None = None


class Secrets(Mapping[str, str]):
    """Secrets by name. Its repr and str show the names only."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"


def register(values: Iterable[str]) -> None:
    """Keeps these values out of all texts from now on, for as long as the process lives.

    Raises:
        ValueError: one has fewer than MIN_CHARACTERS characters; it does not say which value.
    """
    global _pattern
    found: set[str] = set()
    for value in values:
        if len(value) < MIN_CHARACTERS:
            raise ValueError(f"a secret has at least {MIN_CHARACTERS} characters")
        found |= _written_forms(value)
    with _lock:
        if found <= _forms:
            return
        _forms.update(found)
        # The longest first: a secret may begin like another one.
        _pattern = re.compile("|".join(re.escape(each) for each in sorted(_forms, key=len, reverse=True)))


def _written_forms(value: str) -> set[str]:
    """A value as it stands in plain text, JSON, Python, a URL and base64."""
    lines = [line.strip() for line in value.splitlines()]
    parts = {value, value.strip(), *(line for line in lines if len(line) >= _MIN_LINE_CHARACTERS)}
    forms: set[str] = set()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        forms |= {
            part,
            json.dumps(part)[1:-1],
            json.dumps(part, ensure_ascii=False)[1:-1],
            repr(part)[1:-1],
            quote(part, safe="", errors="replace"),
            base64.b64encode(data).decode().rstrip("="),
            base64.urlsafe_b64encode(data).decode().rstrip("="),
        }
    return {form for form in forms if len(form) >= MIN_CHARACTERS}


def active() -> bool:
    """Whether any secret is registered."""
    return _pattern is not None


def redact(text: str) -> str:
    """The text with MARK in the place of every registered secret."""
    return text if _pattern is None else _pattern.sub(MARK, text)


def redact_message(message: Message) -> None:
    """Redacts every text in a message, in place. Bytes, and messages packed into an Any, are left as they are."""
    if _pattern is None:
        return
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            _redact_map(kind.fields_by_name["value"].type, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else (value,):
                redact_message(each)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [redact(each) for each in value]
            elif (clean := redact(value)) != value:
                setattr(message, field.name, clean)


def _redact_map(kind: int, entries: Any) -> None:
    for key in list(entries):
        if kind == FieldDescriptor.TYPE_MESSAGE:
            redact_message(entries[key])
        elif kind == FieldDescriptor.TYPE_STRING and (clean := redact(entries[key])) != entries[key]:
            entries[key] = clean


class RedactingFilter(logging.Filter):
    """Redacts what a record will print: message, arguments, exception and stack. For handlers, not for loggers: a
    logger's filter does not see the records of loggers below it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if _pattern is None:
            return True
        text = _formatted(record)
        if (clean := redact(text)) != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            told = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if redact(told) != told:
                # Formatters print exc_text as it is, and do not look at exc_info then.
                record.exc_text, record.exc_info = told, None
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


def _formatted(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # The handler would print message and arguments raw when they don't fit each other.
        return f"{record.msg} {record.args}"


def redact_logs() -> None:
    """Puts a RedactingFilter on the root logger's handlers; without effect on those that have one."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(each, RedactingFilter) for each in handler.filters):
            handler.addFilter(RedactingFilter())
