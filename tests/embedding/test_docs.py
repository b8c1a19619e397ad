"""The page tells every option as the code has it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from crucible_adapters.embedding.google_genai import GoogleEmbeddingModel, GoogleGenAIEmbeddingOptions
from crucible_adapters.embedding.minilm.spec import MiniLMOptions
from crucible_adapters.embedding.openai import OpenAIEmbeddingOptions
from crucible_adapters.embedding.provider import ProvidedModel
from crucible_adapters.retries import RetryPolicy
from tests.option_tables import check_table

_TABLES: list[tuple[str, type[BaseModel]]] = [
    ("`builtin:openai`", OpenAIEmbeddingOptions),
    ("Models of `builtin:openai`", ProvidedModel),
    ("`builtin:google_genai`", GoogleGenAIEmbeddingOptions),
    ("Models of `builtin:google_genai`", GoogleEmbeddingModel),
    ("`builtin:minilm`", MiniLMOptions),
    ("Retries", RetryPolicy),
]


@pytest.mark.parametrize(("heading", "model"), _TABLES)
def test_the_page_has_the_table_of_the_options(heading: str, model: type[BaseModel]) -> None:
    check_table("embedding.md", heading, model)
