"""A supervised run over gRPC: it trains, its log is whole, its checkpoint is what other tools load."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crucible.kitchen.v1 import event_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_client import KitchenClient
from tests.system.harness import SMALL, Server, checkpoint_folder, write_rows

ROOT = Path(__file__).resolve().parents[2]


Finished = tuple[list[event_pb2.RunEvent], Path, Path]


@pytest.fixture(scope="module")
def finished(server: Server, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The log of one completed run, its training rows and its held-out rows."""
    held_out = write_rows(tmp_path_factory.mktemp("held_out") / "rows.jsonl", rows=6, seed=4)
    config = SMALL | {"dataset": str(rows), "eval_dataset": str(held_out), "eval_every": 3, "sample_prompts": 1}

    async def run() -> list[event_pb2.RunEvent]:
        async with KitchenClient.connect(server.address) as kitchen:
            created = await kitchen.create_run(
                "sl_basic", preset="tiny", config=config | {"sample_max_tokens": 8}, seed=5
            )
            return [event async for event in kitchen.watch(created.run_id)]

    events = asyncio.run(run())
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED, events[-1]
    return events, rows, held_out


async def test_the_run_ends_with_everything_a_run_leaves(kitchen: KitchenClient, finished: Finished):
    events, rows, _ = finished
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {event.run_id for event in events} == {events[0].run_id}
    assert {(event.recipe, event.workflow, event.dataset) for event in events} == {
        ("sl_basic", "supervised", str(rows))
    }
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds.count("step_completed") == 6
    # Steps 2, 4 and 6, and the final one.
    assert kinds.count("checkpoint_saved") == 4
    # Each third step and the end.
    assert kinds.count("evaluation_completed") == 3
    assert "planned" in kinds[: kinds.index("step_completed")]
    steps = [event for event in events if event.WhichOneof("payload") == "step_completed"]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert all(event.stage_path == "epochs/steps/log_metrics" for event in steps)
    assert [event.step_completed.metrics["optim/lr"] for event in steps] == pytest.approx(
        [2e-4, 4e-4, 4e-4, 3e-4, 2e-4, 1e-4]
    )

    run = await kitchen.get_run(events[0].run_id)
    assert (run.step, run.total_steps, run.attempt) == (6, 6, 1)
    assert run.model_version_id
    assert run.latest_checkpoint.final
    assert run.config["max_steps"] == 6
    assert run.config["learning_rate"] == 4e-4


async def test_the_final_checkpoint_loads_in_transformers_and_gives_the_evaluated_loss(finished: Finished):
    events, _, held_out = finished
    saved = [event.checkpoint_saved.checkpoint for event in events if event.HasField("checkpoint_saved")]
    folder = checkpoint_folder(saved[-1].uri)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    evaluation = [event.evaluation_completed for event in events if event.HasField("evaluation_completed")][-1]

    total, count = 0.0, 0
    for line in held_out.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = (prompt_ids + answer_ids)[:96]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(len(prompt_ids), len(ids)):
            total -= logprobs[position - 1, ids[position]].item()
            count += 1
    assert evaluation.metrics["eval/heldout/tokens"] == count
    assert evaluation.metrics["eval/heldout/mean_nll"] == pytest.approx(total / count, abs=1e-4)
    assert evaluation.metrics["eval/heldout/unigram_nll"] > 0
    assert evaluation.samples[0].prompt in held_out.read_text()


async def test_losses_equal_those_of_a_bare_torch_loop(finished: Finished, tmp_path: Path):
    events, rows, _ = finished
    out = tmp_path / "reference.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "reference_sft.py"), "--dataset", str(rows), "--out", str(out)]
    flags = {"batch-size": 4, "max-length": 96, "max-steps": 6, "warmup": 2, "lr": 4e-4, "seed": 5}
    subprocess.run(command + [part for k, v in flags.items() for part in (f"--{k}", str(v))], check=True, timeout=100)
    expected = json.loads(out.read_text())["losses"]
    losses = [event.step_completed.metrics["train/loss"] for event in events if event.HasField("step_completed")]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert not math.isclose(losses[0], losses[-1], abs_tol=1e-2)


async def test_the_metrics_store_holds_the_log_s_metrics(server, finished: Finished):
    from crucible_adapters.metrics.sqlite import SqliteMetricsStore
    from crucible_kit.adapter import AdapterContext

    events, _, _ = finished
    steps = [event for event in events if event.HasField("step_completed")]
    store = SqliteMetricsStore(SqliteMetricsStore.description.options(), AdapterContext(data_dir=server.data))
    try:
        request = metrics_pb2.QueryMetricsRequest(run_id=events[0].run_id, name="train/loss")
        points = (await store.QueryMetrics(request, None)).points
        while len(points) < len(steps):  # the log may be ahead of it
            points = (await store.QueryMetrics(request, None)).points
    finally:
        await store.close()
    assert [(point.step, point.value) for point in points] == [
        (event.step, event.step_completed.metrics["train/loss"]) for event in steps
    ]
