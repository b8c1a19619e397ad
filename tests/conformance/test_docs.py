"""The list of requirements in the docs is that of the suites."""

from __future__ import annotations

from crucible_kit.conformance import all_requirements
from scripts.list_requirements import DOCS, written


def test_the_docs_list_every_requirement() -> None:
    page = DOCS.read_text("utf-8")
    assert page == written(page), "run python scripts/list_requirements.py"
    assert all(f"| {each.id} |" in page for each in all_requirements())
