"""The page of the adapter tells every option and every key of a manifest as the code has it."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import BaseModel

from crucible_adapters.python_bridge.manifest import Function, Library, Parameter, PythonClass
from crucible_adapters.python_bridge.options import WorkersOptions
from tests.option_tables import PAGES, check_table

PAGE = PAGES / "python_bridge.md"
SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("Options", WorkersOptions),
    ("Library", Library),
    ("Function", Function),
    ("Parameter", Parameter),
    ("Class", PythonClass),
]


@pytest.mark.parametrize(("heading", "model"), SECTIONS, ids=[heading for heading, _ in SECTIONS])
def test_every_option_is_told(heading: str, model: type[BaseModel]) -> None:
    check_table(PAGE.name, heading, model, types=model is WorkersOptions)


def test_the_example_is_a_manifest() -> None:
    blocks = re.findall(r"```yaml\n(.+?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (example,) = (each for each in map(yaml.safe_load, blocks) if "functions" in each)
    library = Library.model_validate(example)
    assert not library.problem()
    assert "overwrite_input: boolean = False" in library.functions["median"].signature
