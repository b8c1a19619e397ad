"""Recordings of a torch engine that runs: the committed stubs still say what it does, and a run goes through on one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
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
from crucible_kit.cassettes.matching import Rules
from crucible_kit.cassettes.playback import Playback
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.replayer import Replayer
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.channel import connect
from crucible_kit.serving import serve_ports
from crucible_kitchen.cli.stubs import target_channel
from tests.engine.wire import Wire
from tests.system.harness import SMALL, tensor_files, write_rows

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


def run_recipe(folder: Path, adapter: str, rows: Path) -> dict[str, bytes]:
    """A small run whose training and sampling ports are an adapter elsewhere; the tensors that it saved."""
    folder.mkdir()
    manifest = folder / "kitchen.yaml"
    manifest.write_text(f'ports:\n  training: "grpc:{adapter}"\n  sampling: "grpc:{adapter}"\n')
    settings = SMALL | {"dataset": str(rows), "max_steps": 3, "warmup_steps": 1}
    values = [f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "crucible_kitchen.cli", "run", "sl_basic", "--preset", "tiny", "--seed", "2"]
    command += ["--run-id", "recorded", "--manifest", str(manifest), "--data", str(folder / "data")]
    command += [part for value in values for part in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert "COMPLETED" in done.stdout, done.stdout + done.stderr
    return tensor_files(folder / "data" / "blobs" / "runs" / "recorded" / "attempt-1" / "final")


async def test_a_whole_run_goes_through_on_a_recording(tmp_path: Path) -> None:
    """The server drives the replayer as it drove the engine, and saves the same bytes with no engine there."""
    rows = write_rows(tmp_path / "rows.jsonl")
    recording = tmp_path / "run.jsonl"
    with tempfile.TemporaryDirectory(prefix="cs-") as sockets:
        address = f"unix:{sockets}/adapter"
        async with serving_engine(tmp_path) as (engine_address, _):
            # The model's folder lies in the data folder of the server that asks.
            writer = CassetteWriter(recording, rules=Rules(ignore=["request.base_model"]))
            proxy = RecordingProxy(writer, engine_address)
            proxy.start(address)
            trained = await asyncio.to_thread(run_recipe, tmp_path / "trained", address, rows)
            await asyncio.to_thread(proxy.stop)
        playback = Playback([read_cassette(recording)])
        replayer = Replayer(playback)
        await replayer.start(address)
        try:
            replayed = await asyncio.to_thread(run_recipe, tmp_path / "replayed", address, rows)
        finally:
            await replayer.stop()
    assert playback.mismatches == []
    assert playback.tracks[0].played
    assert replayed == trained != {}
