"""The pages tell every option as the code has it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from crucible_adapters.retries import RetryPolicy
from crucible_adapters.vector.chroma import ChromaOptions
from crucible_adapters.vector.memory import MemoryOptions
from tests.option_tables import check_table

_TABLES: list[tuple[str, str, type[BaseModel]]] = [
    ("memory.md", "Vectors in memory: `builtin:memory`", MemoryOptions),
    ("chroma.md", "Vectors in Chroma: `builtin:chroma`", ChromaOptions),
    ("chroma.md", "Retries", RetryPolicy),
]


@pytest.mark.parametrize(("page", "heading", "model"), _TABLES)
def test_a_page_has_the_table_of_the_options(page: str, heading: str, model: type[BaseModel]) -> None:
    check_table(page, heading, model)
