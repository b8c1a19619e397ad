"""LoRA runs on the real engine: where they begin, what they leave, and that a pause changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient
from tests.system.harness import SMALL, Server, checkpoint_folder, tensor_files, write_rows

TARGETS = ["q_proj", "v_proj"]
LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "lora_target_modules": TARGETS}


async def finished(kitchen: KitchenClient, **config: Any) -> run_pb2.Run:
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | LORA | config, seed=1)
    ended = await kitchen.wait(run.run_id)
    assert ended.state == event_pb2.RUN_STATE_COMPLETED, ended.failure
    return ended


def held_out_nll(model: Any, folder: Path, held_out: Path) -> float:
    """Mean NLL of the answers and their end marks, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for line in held_out.read_text().splitlines():
        row = json.loads(line)
        chat = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = (prompt_ids + answer_ids)[:96]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(len(prompt_ids), len(ids)):
            total -= logprobs[position - 1, ids[position]].item()
            count += 1
    return total / count


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("held_out") / "rows.jsonl", rows=4, seed=4)


async def test_a_run_begins_with_an_adapter_that_peft_made_and_leaves_one_that_peft_loads(
    kitchen: KitchenClient, server: Server, rows: Path, held_out: Path, tmp_path: Path
) -> None:
    # Any run brings the model here.
    await finished(kitchen, dataset=str(rows), max_steps=1, warmup_steps=0)
    [folder] = (server.data / "builtin").glob("tiny-qwen3-[0-9a-f]*")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(3)
    made = peft.get_peft_model(base, config)
    made.save_pretrained(str(tmp_path / "made"))
    expected = held_out_nll(made, folder, held_out)

    run = await finished(
        kitchen, dataset=str(rows), eval_dataset=str(held_out), eval_at_start=True, start_from=str(tmp_path / "made")
    )
    first, last = run.summary.first_evaluation, run.summary.last_evaluation
    assert first.metrics["eval/heldout/mean_nll"] == pytest.approx(expected, abs=1e-4)
    assert last.metrics["eval/heldout/mean_nll"] < expected - 1e-3, "it trained on from there"

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert held_out_nll(plain, folder, held_out) != pytest.approx(expected, abs=1e-2)
    trained = peft.PeftModel.from_pretrained(plain, str(checkpoint_folder(run.latest_checkpoint.uri)))
    assert last.metrics["eval/heldout/mean_nll"] == pytest.approx(held_out_nll(trained, folder, held_out), abs=1e-4)


async def test_a_final_checkpoint_is_where_the_next_run_begins(
    kitchen: KitchenClient, rows: Path, held_out: Path
) -> None:
    run = await finished(kitchen, dataset=str(rows), eval_dataset=str(held_out))
    folder = checkpoint_folder(run.latest_checkpoint.uri)
    after = await finished(
        kitchen, dataset=str(rows), eval_dataset=str(held_out), eval_at_start=True, start_from=str(folder)
    )
    assert dict(after.summary.first_evaluation.metrics) == dict(run.summary.last_evaluation.metrics)


async def test_paused_with_old_checkpoints_gone_it_equals_an_undisturbed_run(
    kitchen: KitchenClient, server: Server, rows: Path
) -> None:
    config = {"dataset": str(rows), "save_every": 1, "keep_last": 1, "eval_fraction": 0.25, "max_steps": 12}
    undisturbed = await finished(kitchen, **config)
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | LORA | config, seed=1)
    async for event in kitchen.watch(run.run_id):
        if event.HasField("checkpoint_deleted"):
            break
    await kitchen.pause_run(run.run_id)
    paused = await kitchen.wait(run.run_id)
    assert paused.state == event_pb2.RUN_STATE_PAUSED
    await kitchen.resume_run(run.run_id)
    ended = await kitchen.wait(run.run_id)
    assert (ended.state, ended.attempt) == (event_pb2.RUN_STATE_COMPLETED, 2), ended.failure
    left = (server.data / "blobs" / "runs" / run.run_id).glob("*/*/crucible_manifest.json")
    assert sorted(path.parent.name for path in left) == ["final", "step-12"]
    finals = [tensor_files(checkpoint_folder(each.latest_checkpoint.uri)) for each in (undisturbed, ended)]
    assert finals[0] == finals[1] and finals[0]
    same = ("steps", "trained_tokens", "input_tokens", "first_train_loss", "last_train_loss", "last_evaluation")
    assert [getattr(ended.summary, name) for name in same] == [getattr(undisturbed.summary, name) for name in same]
