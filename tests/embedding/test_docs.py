"""The page tells every option as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from crucible_adapters.embedding.google_genai import GoogleEmbeddingModel, GoogleGenAIEmbeddingOptions
from crucible_adapters.embedding.openai import OpenAIEmbeddingOptions
from crucible_adapters.embedding.provider import ProvidedModel
from crucible_adapters.retries import RetryPolicy
from tests.kit.option_tables import table

_PAGE = Path(__file__).parents[2] / "docs/adapters/embedding.md"


@pytest.mark.parametrize(
    "model", [OpenAIEmbeddingOptions, ProvidedModel, GoogleGenAIEmbeddingOptions, GoogleEmbeddingModel, RetryPolicy]
)
def test_the_page_has_the_tables_of_the_options(model: type[BaseModel]) -> None:
    # With the line after it: the table of a model that another one extends begins like that one's.
    assert f"{table(model)}\n\n" in _PAGE.read_text(encoding="utf-8")
