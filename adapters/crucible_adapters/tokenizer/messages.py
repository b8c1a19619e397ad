"""Messages as tokenizers take them: a role, a name and a text."""

from __future__ import annotations

from collections.abc import Iterable

from crucible.type.v1 import message_pb2
from crucible_kit.errors import capability_missing

_UNUSED = ("tool_calls", "thinking", "parts", "tool_call_id", "thinking_signature")


def check_plain(conversations: Iterable[message_pb2.Conversation]) -> None:
    """Raises UNIMPLEMENTED CAPABILITY_MISSING for a message with a field that would not be rendered."""
    for number, conversation in enumerate(conversations):
        for index, message in enumerate(conversation.messages):
            for name in _UNUSED:
                if getattr(message, name):
                    field = f"conversations[{number}].messages[{index}].{name}"
                    raise capability_missing(
                        "tokenizer", f"tokenizer.{name}", f"{field} would not be rendered: put it into the content"
                    )
