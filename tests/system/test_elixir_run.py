"""A run that trains in Elixir: to COMPLETED, over the death of the BEAM, and on from what another run has saved."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient
from tests.contract.elixir import ElixirAdapter, needs_elixir
from tests.system.harness import SMALL, Server, checkpoint_folder, serving, tensor_files

pytestmark = needs_elixir

FAULT_STEP = 5
SAMPLED = {"sample_prompts": 1, "sample_max_tokens": 8, "eval_at_start": True, "learning_rate": 0.1}


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[ElixirAdapter]:
    """Freezes when a step has changed the weights and nobody has been told."""
    faults = {"CRUCIBLE_FAULTS": f"engine.optim_step.after:{FAULT_STEP}=stop"}
    running = ElixirAdapter(tmp_path, "--listen", "127.0.0.1:0", environment=faults)
    yield running
    running.kill()


@pytest.fixture
def elixir_server(adapter: ElixirAdapter, tmp_path: Path) -> Iterator[Server]:
    manifest = tmp_path / "kitchen.yaml"
    lines = [f'  {port}: "grpc:{adapter.address}"' for port in ("training", "sampling")]
    manifest.write_text("\n".join(["profile: local", "ports:", *lines, ""]))
    with serving(tmp_path / "data", "--manifest", str(manifest)) as server:
        yield server


async def start(kitchen: KitchenClient, rows: Path, **config: Any) -> run_pb2.Run:
    settings = SMALL | {"dataset": str(rows), "eval_dataset": str(rows)} | SAMPLED | config
    return await kitchen.create_run("sl_basic", preset="tiny", config=settings, seed=2)


async def completed(kitchen: KitchenClient, run_id: str) -> tuple[run_pb2.Run, list[event_pb2.RunEvent]]:
    """A run at its end, with its log."""
    events = [event async for event in kitchen.watch(run_id)]
    run = await kitchen.get_run(run_id)
    assert run.state == event_pb2.RUN_STATE_COMPLETED, run.failure
    return run, events


async def test_a_run_outlives_the_beam_and_gives_the_bytes_of_one_that_nobody_disturbed(
    adapter: ElixirAdapter, elixir_server: Server, rows: Path, tmp_path: Path
):
    async with KitchenClient.connect(elixir_server.address) as kitchen:
        run_id = (await start(kitchen, rows)).run_id
        _, status = await asyncio.to_thread(os.waitpid, adapter.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        adapter.kill()
        again = ElixirAdapter(tmp_path, "--listen", adapter.address)
        try:
            run, events = await completed(kitchen, run_id)
            quiet, quiet_events = await completed(kitchen, (await start(kitchen, rows)).run_id)
            folder = checkpoint_folder(run.latest_checkpoint.uri)
            start_from = {"start_from": str(folder), "max_steps": 1, "warmup_steps": 0, "save_every": 0}
            _, further = await completed(kitchen, (await start(kitchen, rows, **start_from)).run_id)
        finally:
            again.terminate()

    attempts = [event.attempt_started for event in events if event.HasField("attempt_started")]
    assert len(attempts) > 1
    assert attempts[-1].from_checkpoint.step == FAULT_STEP - 1
    assert steps(events) == steps(quiet_events)
    losses = list(steps(events).values())
    assert len(losses) == SMALL["max_steps"]
    assert losses[-1] < losses[0] - 0.5
    assert tensor_files(folder) == tensor_files(checkpoint_folder(quiet.latest_checkpoint.uri))
    assert list(tensor_files(folder)) == ["model.safetensors"]
    assert run.model_version_id and quiet.model_version_id

    before, after = (each for each in evaluations(quiet_events))
    assert after.metrics["eval/heldout/mean_nll"] < before.metrics["eval/heldout/mean_nll"] - 0.5
    assert before.samples[0].output != after.samples[0].output
    assert evaluations(events)[-1] == after
    # Begun with those weights, before its first step.
    assert evaluations(further)[0].metrics["eval/heldout/mean_nll"] == after.metrics["eval/heldout/mean_nll"]


def steps(events: list[event_pb2.RunEvent]) -> dict[int, float]:
    """Loss by step, of the last attempt that made it."""
    return {
        event.step: event.step_completed.metrics["train/loss"] for event in events if event.HasField("step_completed")
    }


def evaluations(events: list[event_pb2.RunEvent]) -> list[event_pb2.EvaluationCompleted]:
    return [event.evaluation_completed for event in events if event.HasField("evaluation_completed")]
