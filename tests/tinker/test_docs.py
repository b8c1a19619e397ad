"""The adapter's page tells every option as the code has it."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from crucible_adapters.tinker.errors import FAILED, REFUSED
from crucible_adapters.tinker.options import TinkerModel, TinkerOptions
from crucible_adapters.tinker.requests import LOSSES
from crucible_adapters.tinker.sampling import TinkerSampling
from crucible_adapters.tinker.training import TinkerTraining
from tests.option_tables import PAGES, check_table

_PAGE = (PAGES / "tinker.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("heading", "model"), [("Options", TinkerOptions), ("Models", TinkerModel)])
def test_every_option_is_told(heading: str, model: type[BaseModel]) -> None:
    check_table("tinker.md", heading, model)


def test_capabilities_losses_and_reasons_are_told() -> None:
    declared = {*TinkerTraining.description.capabilities, *TinkerSampling.description.capabilities}
    assert set(re.findall(r"^\| `(\w+\.\w+)` \| yes", _PAGE, flags=re.MULTILINE)) == declared
    assert all(f"`{name}`" in _PAGE for name in LOSSES)
    assert FAILED in _PAGE and REFUSED in _PAGE
