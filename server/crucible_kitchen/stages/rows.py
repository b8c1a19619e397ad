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
SHAPES = "messages; " + "; ".join(f"{prompt} + {answer}" for prompt, answer in PAIRS) + "; instruction + input + output"


def to_conversation(row_json: str, index: int, mapping: Mapping[str, str]) -> message_pb2.Conversation:
    """One row as a conversation.

    Args:
        row_json: the row, a JSON object.
        index: its number, for messages.
        mapping: field of the accepted shapes -> the row's own field.

    Raises:
        InvalidArgumentError: ROW_INVALID with the row's number, what is missing and the accepted shapes.
    """
    row = json.loads(row_json)
    row |= {name: row[own] for name, own in mapping.items() if own in row}
    if "messages" in row:
        return message_pb2.Conversation(messages=_messages(row["messages"], index))
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            question = _text(row, prompt, index)
            if prompt == "instruction" and row.get("input"):
                question = f"{question}\n\n{_text(row, 'input', index)}"
            return _turns(question, _text(row, answer, index))
    raise _invalid(
        index, f"has the fields {', '.join(sorted(row)) or 'none'}; accepted are {SHAPES}; map others with `fields`"
    )


def _turns(question: str, answer: str) -> message_pb2.Conversation:
    return message_pb2.Conversation(
        messages=[
            message_pb2.Message(role="user", content=question),
            message_pb2.Message(role="assistant", content=answer),
        ]
    )


def _text(row: Mapping[str, Any], field: str, index: int) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise _invalid(index, f"field {field!r} is {type(value).__name__}, not text")
    return value


def _messages(value: Any, index: int) -> list[message_pb2.Message]:
    if not isinstance(value, list) or not value:
        raise _invalid(index, "field 'messages' is not a list with at least one message")
    messages = []
    for number, each in enumerate(value):
        if (
            not isinstance(each, dict)
            or not isinstance(each.get("role"), str)
            or not isinstance(each.get("content"), str)
        ):
            raise _invalid(index, f"messages[{number}] is not an object with the texts role and content")
        message = message_pb2.Message(role=each["role"], content=each["content"], name=str(each.get("name") or ""))
        if "trainable" in each:
            message.trainable = bool(each["trainable"])
        messages.append(message)
    return messages


def _invalid(index: int, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"row {index} {problem}", reason="ROW_INVALID", metadata={"row": index})
