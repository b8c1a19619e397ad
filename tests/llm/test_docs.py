"""The page of the adapters tells every option as the code has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from crucible_adapters.llm.anthropic import AnthropicOptions
from crucible_adapters.llm.google_genai import GoogleGenAIOptions
from crucible_adapters.llm.openai import OpenAIOptions
from crucible_adapters.llm.options import ChatOptions, ModelPrice
from crucible_adapters.retries import RetryPolicy

_PAGE = Path(__file__).parents[2] / "docs/adapters/llm.md"
_SECTIONS: list[tuple[str, type[BaseModel], set[str]]] = [
    ("Options of all three", ChatOptions, set()),
    ("Prices", ModelPrice, set()),
    ("Retries", RetryPolicy, set()),
    ("`builtin:anthropic`", AnthropicOptions, set(ChatOptions.model_fields) - {"max_tokens"}),
    ("`builtin:openai`", OpenAIOptions, set(ChatOptions.model_fields)),
    ("`builtin:google_genai`", GoogleGenAIOptions, set(ChatOptions.model_fields)),
]


@pytest.mark.parametrize(("heading", "model", "elsewhere"), _SECTIONS, ids=[heading for heading, *_ in _SECTIONS])
def test_every_option_is_told(heading: str, model: type[BaseModel], elsewhere: set[str]) -> None:
    text = re.split(r"^## ", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(each for each in text if each.startswith(heading + "\n"))
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", section, flags=re.MULTILINE)
    fields = {name: each for name, each in model.model_fields.items() if name not in elsewhere}
    assert [name for name, *_ in rows] == list(fields)
    for name, kind, default, meaning in rows:
        field = fields[name]
        assert kind == _kind(field.annotation), name
        assert default == _default(field), name
        assert meaning == str(field.description).replace("|", "\\|"), name


def _kind(annotation: Any) -> str:
    arguments = [each for each in get_args(annotation) if each not in (type(None), ...)]
    if not arguments:
        return annotation.__name__
    if all(isinstance(each, str) for each in arguments):
        return ", ".join(f"`{each}`" for each in arguments)
    if get_origin(annotation) is dict:
        return f"{_kind(arguments[1])} by name"
    if get_origin(annotation) is tuple:
        return f"list of {_kind(arguments[0])}"
    return _kind(arguments[0])


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "" or value == {}:
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"
