"""The page of the adapter tells every option and every key of a manifest as the code has it."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from crucible_adapters.python_bridge.manifest import Function, Library, Parameter, PythonClass
from crucible_adapters.python_bridge.options import WorkersOptions
from tests.python_bridge.conftest import ROOT

PAGE = ROOT / "docs/adapters/python_bridge.md"
SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("Options", WorkersOptions),
    ("Library", Library),
    ("Function", Function),
    ("Parameter", Parameter),
    ("Class", PythonClass),
]


def rows(model: type[BaseModel]) -> list[str]:
    """The table of a model."""
    lines = []
    for name, field in model.model_fields.items():
        kind = [_kind(field.annotation)] if model is WorkersOptions else []
        cells = [f"`{name}`", *kind, _default(field), str(field.description).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@pytest.mark.parametrize(("heading", "model"), SECTIONS, ids=[heading for heading, _ in SECTIONS])
def test_every_option_is_told(heading: str, model: type[BaseModel]) -> None:
    sections = re.split(r"^###? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(each for each in sections if each.startswith(heading + "\n"))
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows(model)


def test_the_example_is_a_manifest() -> None:
    blocks = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (example,) = (each for each in map(yaml.safe_load, blocks) if "functions" in each)
    library = Library.model_validate(example)
    assert not library.problem()
    assert "overwrite_input: boolean = False" in library.functions["median"].signature


def _kind(annotation: Any) -> str:
    arguments = [each for each in get_args(annotation) if each not in (type(None), ...)]
    if not arguments:
        return annotation.__name__
    if all(isinstance(each, str) for each in arguments):
        return ", ".join(f"`{each}`" for each in arguments)
    return f"list of {_kind(arguments[0])}" if annotation.__class__.__name__ == "GenericAlias" else _kind(arguments[0])


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", {}, ()) or type(value) is object:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else f"{value:.12g}"
