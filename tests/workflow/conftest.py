from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tokenizer_folders import make_folder
from tests.workflow.kitchen import Kitchen, kitchen_on, write_rows


@pytest.fixture
async def kitchen(tmp_path: Path) -> AsyncIterator[Kitchen]:
    async with kitchen_on(tmp_path / "data") as running:
        yield running


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Configuration of a run of 6 steps of 4 rows."""
    model = make_folder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    return {"model": str(model), "dataset": str(rows), "batch_size": 4, "max_length": 64, "lora_rank": 8}
