"""An engine that hangs, that one batch kills again and again, or whose disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_client import KitchenClient
from crucible_kit import _remote_channel, faults, training
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports import process
from crucible_kitchen.server import KitchenServer
from tests.fault.conftest import ROOT, Doomed
from tests.fault.survive import Outcome, assert_same_outcome, look
from tests.system.harness import Server, checkpoint_folder, serving, tensor_files

COMPLETED, FAILED = event_pb2.RUN_STATE_COMPLETED, event_pb2.RUN_STATE_FAILED


async def log_of(kitchen: KitchenClient, run_id: str) -> list[event_pb2.RunEvent]:
    return [event async for event in kitchen.watch(run_id)]


async def test_a_stopped_engine_counts_as_gone(
    tmp_path: Path,
    doomed: Doomed,
    fake_child_manifest: Path,
    fake_run: dict[str, Any],
    fake_undisturbed: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With seconds in place of the deadlines of a minute and more that a server has."""
    monkeypatch.setattr(training, "_POLL_SECONDS", 0)
    monkeypatch.setattr(training, "_SILENCE_SECONDS", 1)
    monkeypatch.setattr(training, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(_remote_channel, "DEFAULT_UNARY_TIMEOUT", 2)
    monkeypatch.setattr(process, "_PROBE_SECONDS", 1)
    monkeypatch.setattr(process, "_STOP_SECONDS", 0.1)
    stops = {"engine.forward_backward.mid:3=stop"}
    for name, value in doomed.environment(*stops).items():
        monkeypatch.setenv(name, value)
    options = ServerOptions(listen="127.0.0.1:0", data=tmp_path / "data", manifest=fake_child_manifest)
    server = KitchenServer(options)
    await server.start()
    try:
        async with KitchenClient.connect(server.address) as kitchen:
            created = await kitchen.create_run("sl_basic", config=fake_run, seed=1)
            events = await log_of(kitchen, created.run_id)
            run = await kitchen.get_run(created.run_id)
    finally:
        await server.stop()
    assert doomed.fired() == stops
    outcome = await look(Outcome(run=run, events=events, told=events), options.data)
    assert_same_outcome(outcome, fake_undisturbed)
    assert not any(event.HasField("stage_failed") and event.stage_path == "cleanup" for event in events)


async def test_a_batch_that_kills_the_engine_each_time_ends_the_run_and_not_the_server(
    tmp_path: Path,
    doomed: Doomed,
    fake_child_manifest: Path,
    fake_run: dict[str, Any],
    fake_undisturbed: Outcome,
) -> None:
    poison = doomed.environment("engine.forward_backward.mid:3=kill")
    del poison[faults.FIRED_VARIABLE]
    # Without checkpoints it is the same batch each time.
    config = fake_run | {"save_every": 0}
    server = Server(tmp_path / "data", "--manifest", str(fake_child_manifest), environment=poison)
    try:
        async with KitchenClient.connect(server.address) as kitchen:
            created = await kitchen.create_run("sl_basic", config=config, seed=1)
            failed = await kitchen.wait(created.run_id)
            assert (failed.state, failed.attempt) == (FAILED, 3)
            assert failed.failure.reason == "ENGINE_CRASH_LOOP"
        server.terminate()
        # With an engine that can take it the run goes on.
        server.environment.pop(faults.VARIABLE)
        server.start()
        async with KitchenClient.connect(server.address) as kitchen:
            await kitchen.resume_run(created.run_id)
            ended = await kitchen.wait(created.run_id)
            assert (ended.state, ended.attempt) == (COMPLETED, 4)
        final = tensor_files(checkpoint_folder(ended.latest_checkpoint.uri))
        assert final == fake_undisturbed.tensors["final"]
    finally:
        server.terminate()


async def test_a_full_disk_under_the_engine_fails_the_run_until_there_is_room(
    tmp_path: Path, doomed: Doomed, real_runs: dict[str, dict[str, Any]], real_undisturbed: dict[str, Outcome]
) -> None:
    full = ("engine.save.mid:3=enospc", "engine.upload.mid:1=enospc")
    with serving(tmp_path / "data", environment=doomed.environment(*full)) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            created = await kitchen.create_run("sl_basic", preset="tiny", config=real_runs["lora"], seed=1)
            failed = await kitchen.wait(created.run_id)
            assert failed.state == FAILED
            assert failed.latest_checkpoint.step == 2
            while failed.state == FAILED:
                assert failed.failure.reason == "STORAGE_FAILED", failed.failure
                assert "No space left on device" in failed.failure.status.message
                await kitchen.resume_run(created.run_id)
                # An upload that is refused on the way may lose its reason; then the run tries again by itself.
                failed = await kitchen.wait(created.run_id)
            events = await log_of(kitchen, created.run_id)
            run = await kitchen.get_run(created.run_id)
            assert run.attempt == 3
        engine = server.data / "adapters" / "torch-engine" / "checkpoints"
        assert not [path for path in engine.rglob("*") if path.is_file() and path.name != ".expiry.json"]
    assert doomed.fired() == set(full)
    outcome = await look(Outcome(run=run, events=events, told=events), server.data)
    assert_same_outcome(outcome, real_undisturbed["lora"])


PARKING = """
import sys
from pathlib import Path
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.parking import Parking
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.tiny import save_tiny_model

folder = Path(sys.argv[1])
session = TrainingSession(load_model(save_tiny_model(folder / "model"), device="cpu", dtype="float32"))
Parking(folder / "parked").park(session)
"""


def test_an_engine_that_dies_while_parking_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Its sessions died with it: their runs begin again at their checkpoints."""
    from crucible_adapters.torch_engine.parking import Parking

    environment = {**os.environ, "PYTHONPATH": str(ROOT), faults.VARIABLE: "engine.park.mid"}
    died = subprocess.run([sys.executable, "-c", PARKING, str(tmp_path)], env=environment, timeout=100)
    assert died.returncode == -signal.SIGKILL
    assert list((tmp_path / "parked").iterdir())
    Parking(tmp_path / "parked")
    assert not list((tmp_path / "parked").iterdir())
