"""What commands print: protojson lines for programs, short texts and tables for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from crucible_kit.errors import KitchenError

# What would steer a terminal or break a line: control characters, line separators, reversals of the direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """A text of anybody's as it may be shown: its lines with " | " between them, as libraries tell of what they can't
    read in several, and what is no plain text escaped, such as \\x1b.
    """
    lines = (line.replace("\t", " ").strip() for line in text.splitlines())
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), " | ".join(filter(None, lines)))


def json_line(message: Message) -> str:
    """A message as one line of protojson with the proto's field names."""
    return json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True, ensure_ascii=False)


def print_json(message: Message) -> None:
    """Writes that line to stdout."""
    click.echo(json_line(message))


def print_messages(messages: Iterable[Message]) -> None:
    """Writes a line for each message."""
    for each in messages:
        print_json(each)


def error_facts(error: KitchenError) -> dict[str, Any]:
    """An error as JSON: code, reason, message, and fields, metadata and retry_delay_seconds where there are any."""
    facts: dict[str, Any] = {"code": error.code.name, "reason": error.reason, "message": error.message}
    if error.fields:
        facts["fields"] = [each._asdict() for each in error.fields]
    if error.metadata:
        facts["metadata"] = error.metadata
    if error.retry_delay is not None:
        facts["retry_delay_seconds"] = error.retry_delay
    return facts


def print_error(error: KitchenError, *, as_json: bool) -> None:
    """Writes an error to stderr."""
    if as_json:
        click.echo(json.dumps(error_facts(error), ensure_ascii=False), err=True)
        return
    click.echo(f"error: {one_line(error.message)}", err=True)
    click.echo(f"  {error.code.name} {one_line(error.reason)}", err=True)
    # The message says what most errors have to say; a field stands alone only when it is not in there.
    for field, description in error.fields:
        if description not in error.message:
            click.echo(f"  {one_line(field)}: {one_line(description)}", err=True)
    if error.retry_delay is not None:
        click.echo(f"  try again in {round(error.retry_delay, 1):g} s", err=True)


def note(text: str) -> None:
    """Writes a line for people to stderr."""
    click.echo(text, err=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes aligned columns to stdout; the last one is not padded."""
    lines = [list(header), *([one_line(text) for text in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for line in lines:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
        click.echo("  ".join([*padded, line[-1]]).rstrip())
