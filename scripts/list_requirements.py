"""Writes the list of requirements into docs/conformance.md, behind its heading."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from crucible_kit.conformance import Requirement, all_requirements

DOCS = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
# The last line that people write.
MARK = "(`python scripts/list_requirements.py`), and a test keeps it in step.\n"


def listed() -> str:
    """The list as Markdown, one table a port."""
    lines: list[str] = []
    for port, found in groupby(all_requirements(), key=lambda each: each.port):
        lines += ["", f"### {port}", "", "| id | requirement |", "|---|---|"]
        lines += [f"| {each.id} | {_text(each)} |" for each in found]
    return "\n".join(lines) + "\n"


def _text(requirement: Requirement) -> str:
    text = requirement.text.replace("|", "\\|")
    if requirement.capability:
        text += f" [{requirement.capability}]"
    if requirement.without:
        text += f" [not {requirement.without}]"
    return text


def written(page: str) -> str:
    """The page with the list as it is now."""
    return page[: page.index(MARK) + len(MARK)] + listed()


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text("utf-8")), "utf-8")
