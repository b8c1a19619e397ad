"""Rows of every accepted shape, and rows of none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crucible_kit.constraints import check_message
from crucible_kit.conversations import to_conversation
from crucible_kit.errors import InvalidArgumentError


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    conversation = to_conversation(json.dumps(row), 7)
    check_message(conversation)  # what a tokenizer's server would check
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "response": "a"},
        {"instruction": "q", "output": "a"},
        {"input": "q", "output": "a"},
        {"question": "q", "answer": "a", "id": 3},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_every_shape_is_the_same_conversation(row: dict[str, Any]):
    assert turns(row) == [("user", "q"), ("assistant", "a")]


def test_an_instruction_s_input_follows_it():
    assert turns({"instruction": "q", "input": "x", "output": "a"})[0] == ("user", "q\n\nx")
    assert turns({"instruction": "q", "input": "", "output": "a"})[0] == ("user", "q")


def test_trainable_marks_are_kept():
    row = {"messages": [{"role": "user", "content": "q", "trainable": False}, {"role": "assistant", "content": "a"}]}
    messages = to_conversation(json.dumps(row), 0).messages
    assert (messages[0].HasField("trainable"), messages[0].trainable) == (True, False)
    assert not messages[1].HasField("trainable")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "has the fields none"),
        ({"text": "q"}, "has the fields text"),
        ({str(number): 0 for number in range(1000)}, "..."),
        ({"prompt": {"a": 1}, "completion": "a"}, "field 'prompt' is dict"),
        ({"prompt": "q" * 1_048_577, "completion": "a"}, "1048577 characters"),
        ({"messages": []}, "not a list with at least one message"),
        ({"messages": ["hello"]}, "messages[0] is not an object"),
        ({"messages": [{"role": "user"}]}, "messages[0] is not an object with role and content"),
        ({"messages": [{"role": "", "content": "q"}]}, "messages[0].role has 0 characters"),
        ({"messages": [{"role": "r" * 64, "content": "q"}]}, "messages[0].role has 64 characters"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is NoneType"),
    ],
)
def test_a_row_of_no_shape_is_named_by_its_number(row: dict[str, Any], told: str):
    with pytest.raises(InvalidArgumentError) as caught:
        turns(row)
    assert caught.value.reason == "ROW_INVALID"
    assert caught.value.metadata["row"] == "7"
    assert told in caught.value.message
    assert len(caught.value.message) < 600
