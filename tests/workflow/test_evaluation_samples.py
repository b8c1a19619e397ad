"""Sampled completions at an evaluation, with and without a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from crucible.kitchen.v1 import event_pb2
from tests.contract.tokenizer_folders import make_folder
from tests.workflow.kitchen import Kitchen, payloads

COMPLETED = event_pb2.RUN_STATE_COMPLETED


async def test_a_base_model_without_a_chat_template_trains_on_plain_text(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "base", template=None, config={"eos_token": "<|endoftext|>"})
    config = small | {"model": str(folder), "eval_fraction": 0.1, "sample_prompts": 1}
    run = await kitchen.run(**config)
    assert run.state == COMPLETED, run.failure
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {
        tuple(tokenizer(f"User: What is {n} + 1?\n\nAssistant: It is {n + 1}.<|endoftext|>\n\n")["input_ids"][:-1])
        for n in range(24)
    }
    assert set(kitchen.training.trained) | set(kitchen.training.scored) == expected
    events = await kitchen.events(run)
    [planned] = payloads(events, "planned")
    answers = [f" It is {n + 1}.<|endoftext|>" for n in range(24)]
    trained = sum(len(tokenizer(each)["input_ids"]) for each in answers)
    held_out = payloads(events, "evaluation_completed")[0].metrics["eval/heldout/tokens"]
    assert planned.trained_tokens_per_epoch + held_out == trained, "answers and what ends them, nothing else"
    [log] = payloads(events, "log_recorded")
    assert "rendered plainly" in log.message
    assert tokenizer.decode(kitchen.sampling.prompts[0]).endswith("?\n\nAssistant:")
    assert kitchen.sampling.stop_tokens[0] == [tokenizer.eos_token_id]


async def test_sampling_stops_where_the_template_ends_a_turn(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    """As Qwen 3's base models: the end of a turn is not the end of a sequence."""
    folder = make_folder(tmp_path / "base", config={"eos_token": "<|endoftext|>"})
    run = await kitchen.run(**small | {"model": str(folder)}, eval_fraction=0.1, sample_prompts=2)
    assert run.state == COMPLETED
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert kitchen.sampling.stop_tokens == [ends, ends]
    [evaluated] = payloads(await kitchen.events(run), "evaluation_completed")
    # The fake answers with the prompt's first tokens, "<|im_start|>user"; special tokens are left out.
    assert [each.output for each in evaluated.samples] == ["user", "user"]
    assert evaluated.samples[0].target == f"It is {int(evaluated.samples[0].prompt.split()[2]) + 1}."


async def test_rows_without_a_prompt_or_with_too_long_a_one_are_passed_over(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    kitchen.training.max_sequence_tokens = 40
    rows = [
        {"messages": [{"role": "assistant", "content": "Only me."}]},
        {"messages": [{"role": "user", "content": "long " * 60}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "short"}, {"role": "assistant", "content": "b"}]},
    ]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small | {"eval_dataset": str(held_out), "sample_prompts": 3, "train_on": "all_messages"}
    run = await kitchen.run(**config)
    assert run.state == COMPLETED, run.failure
    [evaluated] = payloads(await kitchen.events(run), "evaluation_completed")
    assert [(each.prompt, each.target) for each in evaluated.samples] == [("short", "b")]
    held_out.write_text(json.dumps(rows[0]) + "\n")
    run = await kitchen.run(**config)
    assert run.state == COMPLETED, run.failure
    assert not payloads(await kitchen.events(run), "evaluation_completed")[0].samples
