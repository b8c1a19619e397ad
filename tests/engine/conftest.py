from __future__ import annotations

import os

# before torch is loaded: threads that spin while they wait are many times slower on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.runtime import configure_torch
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.tiny import save_tiny_model
from tests.engine.wire import Wire, serve

configure_torch(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "untied", tied=False, seed=3)


@pytest.fixture
def session(tiny_folder: Path) -> TrainingSession:
    return TrainingSession(load_model(tiny_folder, device="cpu", dtype="float32"))


@pytest.fixture(params=["object", "unix"])
def transport(request: pytest.FixtureRequest) -> Any:
    """For tests that call `serve` themselves, once for each."""
    return request.param


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Engine, Wire]]:
    async with serve(tmp_path / "work") as pair:
        yield pair


@pytest.fixture
def engine(served: tuple[Engine, Wire]) -> Engine:
    return served[0]


@pytest.fixture
def wire(served: tuple[Engine, Wire]) -> Wire:
    return served[1]
