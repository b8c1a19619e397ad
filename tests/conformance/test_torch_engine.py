"""The torch engine keeps the contracts of training and sampling, however it is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from crucible_adapters.torch_engine import operations
from crucible_adapters.torch_engine.engine import Engine, EngineOptions
from crucible_adapters.torch_engine.runtime import configure_torch
from crucible_adapters.torch_engine.service_sampling import SamplingService
from crucible_adapters.torch_engine.service_training import TrainingService
from crucible_adapters.torch_engine.spec import TORCH_ENGINE
from crucible_kit.conformance import run_suite, settings_of
from tests.conformance.bindings import BINDINGS
from tests.conformance.test_builtin_adapters import passes
from tests.engine.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("conformance") / "model")


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("port", ["training", "sampling"])
async def test_the_torch_engine_passes(
    port: str, binding: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An early call is held for 10 s, which would be most of the suite's time.
    monkeypatch.setattr(operations, "HOLD_SECONDS", 1.0)
    configure_torch(1)
    engine = Engine(EngineOptions(work_dir=tmp_path / "engine", device="cpu", threads=1))
    servicers = {"training": TrainingService(engine), "sampling": SamplingService(engine)}
    try:
        async with BINDINGS[binding](servicers, TORCH_ENGINE.capabilities) as channel:
            passes(await run_suite(channel, port, settings_of(port, {"base_model": str(model)})))
        left = [*engine.training._records, *engine.sampling._records]
        assert not left, "sessions that the suite left open"
    finally:
        await engine.close()
