"""The page of the adapters tells every option as the code has it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from crucible_adapters.llm.anthropic import AnthropicOptions
from crucible_adapters.llm.google_genai import GoogleGenAIOptions
from crucible_adapters.llm.openai import OpenAIOptions
from crucible_adapters.llm.options import ChatOptions, ModelPrice
from crucible_adapters.retries import RetryPolicy
from tests.option_tables import check_table

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
    check_table("llm.md", heading, model, elsewhere)
