"""The pages tell every option as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from crucible_adapters.retries import RetryPolicy
from crucible_adapters.vector.chroma import ChromaOptions
from crucible_adapters.vector.memory import MemoryOptions
from tests.kit.option_tables import table

_PAGES = Path(__file__).parents[2] / "docs/adapters"
_TABLES: list[tuple[str, type[BaseModel]]] = [
    ("memory.md", MemoryOptions),
    ("chroma.md", ChromaOptions),
    ("chroma.md", RetryPolicy),
]


@pytest.mark.parametrize(("page", "model"), _TABLES)
def test_a_page_has_the_table_of_the_options(page: str, model: type[BaseModel]) -> None:
    assert table(model) in (_PAGES / page).read_text(encoding="utf-8")
