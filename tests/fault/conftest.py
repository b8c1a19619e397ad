from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crucible_kit import faults
from tests.contract.tokenizer_folders import make_folder
from tests.fault import fake_child
from tests.fault.fake_engine import MANIFEST
from tests.fault.small_model import make_small_model
from tests.fault.survive import Outcome, look, survive
from tests.system import harness
from tests.system.harness import SMALL, serving
from tests.workflow.kitchen import Kitchen, kitchen_on, write_rows

ROOT = Path(__file__).resolve().parents[2]


class Doomed:
    """Servers with faults that fire once each, whatever dies and is started again."""

    def __init__(self, folder: Path) -> None:
        self._fired = folder / "fired"

    def environment(self, *specs: str) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            faults.VARIABLE: ",".join(specs),
            faults.FIRED_VARIABLE: str(self._fired),
        }

    def fired(self) -> set[str]:
        """The faults that have happened."""
        return {path.name for path in self._fired.iterdir()} if self._fired.exists() else set()


@pytest.fixture
def doomed(tmp_path: Path) -> Doomed:
    return Doomed(tmp_path)


@pytest.fixture(scope="session")
def fake_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "fake.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture(scope="session")
def fake_child_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "fake_child.yaml"
    path.write_text(fake_child.MANIFEST)
    return path


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration of a run of 36 steps on the fakes, in three epochs, with all that a run can have."""
    folder = tmp_path_factory.mktemp("fake_run")
    return {
        "model": str(make_folder(folder / "model")),
        "dataset": str(write_rows(folder / "rows.jsonl", 52)),
        "eval_fraction": 0.08,
        "eval_every": 12,
        "sample_prompts": 1,
        "batch_size": 4,
        "max_length": 64,
        "lora_rank": 8,
        "num_epochs": 3,
        "save_every": 2,
        "keep_last": 3,
    }


@pytest.fixture(scope="session")
def fake_undisturbed(
    tmp_path_factory: pytest.TempPathFactory, fake_manifest: Path, fake_run: dict[str, Any]
) -> Outcome:
    data = tmp_path_factory.mktemp("fake_undisturbed") / "data"
    with serving(data, "--manifest", str(fake_manifest), environment={"PYTHONPATH": str(ROOT)}) as server:
        outcome = asyncio.run(survive(server, config=fake_run))
    return asyncio.run(look(outcome, data))


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Configurations of runs of 14 steps on the engine that train every weight, and a LoRA adapter."""
    folder = tmp_path_factory.mktemp("real_runs")
    full = SMALL | {
        "model": str(make_small_model(folder / "model")),
        "dataset": str(harness.write_rows(folder / "rows.jsonl", rows=20)),
        "eval_fraction": 0.2,
        "eval_every": 7,
        "max_steps": 14,
        "save_every": 1,
        "keep_last": 2,
    }
    return {"full": full, "lora": full | {"lora_rank": 4, "learning_rate": 1e-3}}


@pytest.fixture(scope="session")
def real_undisturbed(
    tmp_path_factory: pytest.TempPathFactory, real_runs: dict[str, dict[str, Any]]
) -> dict[str, Outcome]:
    data = tmp_path_factory.mktemp("real_undisturbed") / "data"
    with serving(data) as server:
        outcomes = {
            kind: asyncio.run(survive(server, config=config, preset="tiny")) for kind, config in real_runs.items()
        }
    return {kind: asyncio.run(look(outcome, data)) for kind, outcome in outcomes.items()}


@pytest.fixture
async def kitchen(tmp_path: Path) -> AsyncIterator[Kitchen]:
    """Runs in this process on the fakes."""
    async with kitchen_on(tmp_path / "data") as running:
        yield running


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Configuration of a run of 6 steps of 4 rows on the fakes."""
    model = make_folder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    return {"model": str(model), "dataset": str(rows), "batch_size": 4, "max_length": 64, "lora_rank": 8}
