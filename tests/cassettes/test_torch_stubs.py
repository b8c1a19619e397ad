"""The stubs of the torch engine still say what it does: each is played back against one that runs."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from crucible_adapters.builtin.weights import materialise
from crucible_adapters.torch_engine.engine import Engine, EngineOptions
from crucible_adapters.torch_engine.runtime import configure_torch
from crucible_adapters.torch_engine.service_sampling import SamplingService
from crucible_adapters.torch_engine.service_training import TrainingService
from crucible_adapters.torch_engine.spec import TORCH_ENGINE
from crucible_kit.cassettes.check import check_cassette
from crucible_kit.cassettes.format import read_cassette
from crucible_kit.channel import connect
from crucible_kit.serving import serve_ports
from crucible_kitchen.cli.stubs import target_channel
from tests.engine.wire import Wire

STUBS = Path(__file__).parents[1] / "stubs"
configure_torch(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(materialise("tiny-qwen3-base", tmp_path_factory.mktemp("models") / "base").path)


@asynccontextmanager
async def serving_engine(folder: Path) -> AsyncIterator[tuple[str, Wire]]:
    """An engine in this process, its address and calls to it."""
    engine = Engine(EngineOptions(work_dir=folder / "work", device="cpu", threads=1))
    servicers = {"training": TrainingService(engine), "sampling": SamplingService(engine)}
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="cs-") as sockets:
        served = await serve_ports(
            servicers, f"unix:{sockets}/engine", name="torch-engine", capabilities=TORCH_ENGINE.capabilities
        )
        channel = connect(served.address)
        try:
            yield served.address, Wire(channel)
        finally:
            await channel.close()
            await served.stop(0)
            await engine.close()


async def save_checkpoint(wire: Wire, model: str) -> str:
    """A checkpoint of the model's own weights."""
    session = await wire.open(Path(model))
    return (await wire.save(session, 1, "to-sample-from", weights_only=True)).uri


async def test_the_torch_engine_answers_as_recorded(tmp_path: Path, model: str) -> None:
    async with serving_engine(tmp_path) as (engine_address, wire):
        values = {"model": model, "checkpoint": await save_checkpoint(wire, model)}
        for name in ("training/full", "training/lora", "training/errors", "sampling/checkpoint"):
            cassette = read_cassette(STUBS / f"{name}.jsonl")
            with target_channel(engine_address, None) as channel:
                report = await asyncio.to_thread(check_cassette, cassette, channel, parameters=values)
            assert [str(finding) for finding in report.findings] == []
            assert (report.skipped, report.checked) == ("", len(cassette.calls) - 1)  # all but the handshake
