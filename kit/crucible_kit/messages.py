"""Messages of conversations: their text, and the refusal of fields that a reader can't use. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from crucible.type.v1 import message_pb2
from crucible_kit.errors import FieldViolation, UnimplementedError, field_error

# The fields that not every reader can use, by the capability that names them.
_FIELDS = {
    "tools": ("tool_calls", "tool_call_id"),
    "thinking": ("thinking", "thinking_signature"),
    "media_input": ("parts",),
}


def message_text(message: message_pb2.Message) -> str:
    """The text of a message: its content, or its text parts one after the other."""
    if not message.parts:
        return message.content
    return "".join(part.text for part in message.parts)


def refuse_unusable(
    messages: Iterable[message_pb2.Message], *, port: str, usable: Iterable[str] = (), field: str = "messages"
) -> None:
    """Refuses messages that set what their reader can't use.

    Args:
        port: the reader's port, for the names of capabilities.
        usable: of tools, thinking and media_input. Parts of nothing but text may be used by everybody.
        field: path of the messages in the request.

    Raises:
        UnimplementedError: CAPABILITY_MISSING.
        InvalidArgumentError: FIELD_INVALID, a message with content and parts, or a part without anything.
    """
    lacking = {name: fields for name, fields in _FIELDS.items() if name not in usable}
    for number, message in enumerate(messages):
        where = f"{field}[{number}]"
        if message.content and message.parts:
            raise field_error(f"{where}.content", "must be empty where parts are given")
        for place, part in enumerate(message.parts):
            if part.WhichOneof("part") is None:
                raise field_error(f"{where}.parts[{place}]", "is empty: give text or media")
        for capability, names in lacking.items():
            for name in names:
                if not getattr(message, name) or (name == "parts" and not _has_media(message)):
                    continue
                raise _missing(f"{where}.{name}", port, f"{port}.{capability}")


def _has_media(message: message_pb2.Message) -> bool:
    return any(part.HasField("media") for part in message.parts)


def _missing(field: str, port: str, capability: str) -> UnimplementedError:
    problem = f"is set, but the {port} adapter does not declare the capability {capability}: leave it out"
    return UnimplementedError(
        f"{field}: {problem}",
        reason="CAPABILITY_MISSING",
        metadata={"port": port, "capability": capability, "field": field},
        fields=[FieldViolation(field, problem)],
    )
