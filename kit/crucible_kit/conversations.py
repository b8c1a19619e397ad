"""Rows of the accepted shapes as conversations. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crucible.type.v1 import message_pb2
from crucible_kit.errors import InvalidArgumentError

# (prompt field, answer field); the first pair whose fields a row has counts.
PAIRS = (
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("question", "answer"),
)
# What the contract's Message takes.
MAX_CHARACTERS = 1_048_576
SHAPES = "messages; " + "; ".join(f"{prompt} + {answer}" for prompt, answer in PAIRS) + "; instruction + input + output"


def to_conversation(row_json: str, index: int) -> message_pb2.Conversation:
    """One row as a conversation.

    Args:
        row_json: the row, a JSON object.
        index: its number, for messages.

    Raises:
        InvalidArgumentError: ROW_INVALID with the row's number, what is missing and the accepted shapes.
    """
    row = json.loads(row_json)
    if "messages" in row:
        return message_pb2.Conversation(messages=_messages(row["messages"], index))
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            question = _text(row, prompt, index)
            if prompt == "instruction" and row.get("input"):
                question = f"{question}\n\n{_text(row, 'input', index)}"
            return _turns(question, _text(row, answer, index))
    names = ", ".join(name[:40] for name in sorted(row)[:10]) + (", ..." if len(row) > 10 else "")
    raise _invalid(
        index,
        f"has the fields {names or 'none'}; accepted are {SHAPES}; name others with `fields`, all that are to be read",
    )


def _turns(question: str, answer: str) -> message_pb2.Conversation:
    return message_pb2.Conversation(
        messages=[
            message_pb2.Message(role="user", content=question),
            message_pb2.Message(role="assistant", content=answer),
        ]
    )


def _text(row: Mapping[str, Any], field: str, index: int) -> str:
    return _checked(row[field], f"field {field!r}", index)


def _checked(value: Any, what: str, index: int) -> str:
    if not isinstance(value, str):
        raise _invalid(index, f"{what} is {type(value).__name__}, not text")
    if len(value) > MAX_CHARACTERS:
        raise _invalid(index, f"{what} has {len(value)} characters, at most {MAX_CHARACTERS} are allowed")
    return value


def _messages(value: Any, index: int) -> list[message_pb2.Message]:
    if not isinstance(value, list) or not value:
        raise _invalid(index, "field 'messages' is not a list with at least one message")
    messages = []
    for number, each in enumerate(value):
        what = f"messages[{number}]"
        if not isinstance(each, dict) or not {"role", "content"} <= each.keys():
            raise _invalid(index, f"{what} is not an object with role and content")
        role = _checked(each["role"], f"{what}.role", index)
        if not 0 < len(role) <= 63:
            raise _invalid(index, f"{what}.role has {len(role)} characters; a role has 1 to 63, such as user")
        content = _checked(each["content"], f"{what}.content", index)
        message = message_pb2.Message(role=role, content=content, name=str(each.get("name") or "")[:63])
        if "trainable" in each:
            message.trainable = bool(each["trainable"])
        messages.append(message)
    return messages


def _invalid(index: int, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"row {index} {problem}", reason="ROW_INVALID", metadata={"row": index})
