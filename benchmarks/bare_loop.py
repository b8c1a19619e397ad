"""A worker: supervised steps as a bare torch loop takes them, transformers' model and torch's AdamW.

The ceiling that a trainer's overhead is measured against: the same rows, weights, loss and clipping, no log.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks.worker import Commands


def load(args: argparse.Namespace) -> torch.nn.Module:
    """The model in float32, with PEFT's adapter when a rank is given."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if not args.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, lora_config(args.lora_rank, LoraConfig))


def lora_config(rank: int, kind):
    """PEFT's configuration of the adapter that the kitchen trains by default."""
    return kind(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True, type=Path, help="JSON: token ids of each row, all equally many")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    model = load(args).train()
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=args.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=True
    )
    rows = json.loads(args.rows.read_text())
    batches = [rows[start : start + args.batch] for start in range(0, len(rows), args.batch)]
    commands, done = Commands(), 0
    for count in commands:
        seconds, losses = [], []
        for _ in range(count):
            start = time.perf_counter()
            tokens_BT = torch.tensor(batches[done % len(batches)])
            logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits.float()
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
            done += 1
        commands.answer(seconds=seconds, losses=losses)


if __name__ == "__main__":
    main()
