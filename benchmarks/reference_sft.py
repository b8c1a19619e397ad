"""Supervised fine-tuning as one flat torch loop: the oracle for `kitchen run sl_basic`, and the algorithm in one read.

Rows {"question", "answer"} become ChatML; the loss is on the answer and its end mark. What is left out on purpose:
packing, chunked loss, accumulation, checkpoints. Suffixes: B rows of a batch, T token positions.

    python benchmarks/reference_sft.py --out losses.json
    python benchmarks/reference_sft.py --dataset train.jsonl --eval-dataset test.jsonl --max-steps 200 --out losses.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from crucible_adapters.builtin import weights, word_problems

Row = dict[str, str]
Datum = tuple[list[int], list[int]]  # token ids and loss weights (0 or 1) of one row, equally long


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="builtin:tiny-qwen3", help="builtin:NAME or a transformers folder")
    p.add_argument("--dataset", default="builtin:word-problems", help="builtin:word-problems or a JSONL file")
    p.add_argument("--eval-dataset", default="builtin:word-problems", help="the same, for the held-out rows")
    p.add_argument("--train-rows", type=int, default=word_problems.DEFAULT_ROWS["train"], help="of the generator only")
    p.add_argument("--eval-rows", type=int, default=128, help="first rows that are used")
    p.add_argument("--data-seed", type=int, default=word_problems.DEFAULT_SEED, help="of the generator only")
    p.add_argument("--seed", type=int, default=0, help="of the data order")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--max-steps", type=int, default=0, help="upper bound on the steps; 0 = none")
    p.add_argument("--max-length", type=int, default=512, help="tokens of one row; the rest is cut off")
    p.add_argument("--lr", type=float, default=4e-4)
    p.add_argument("--warmup", type=int, default=20, help="steps of linear warm-up")
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--clip", type=float, default=1.0, help="largest gradient norm; 0 = off")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--samples", type=int, default=2, help="held-out questions answered greedily after training")
    p.add_argument("--out", type=Path, help="JSON file for the figures; without it they are printed")
    return p.parse_args()


def load_model(source: str):
    if not source.startswith("builtin:"):
        return AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as parent:
        return load_model(str(weights.materialise(source.removeprefix("builtin:"), Path(parent) / "model").path))


def load_rows(source: str, split: word_problems.Split, args: argparse.Namespace) -> list[Row]:
    if source == "builtin:word-problems":
        rows = args.train_rows if split == "train" else word_problems.DEFAULT_ROWS[split]
        return word_problems.generate(rows, args.data_seed, split)
    return [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]


def to_datum(row: Row, tokenizer, max_length: int) -> Datum:
    """Weight 1 on the answer's tokens and its <|im_end|>; 0 on the prompt and on the newline after the end mark."""
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt, "the chat template must be prefix-consistent"
    end = max(i for i, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
    mask = [int(len(prompt) <= i < end) for i in range(len(ids))]
    return ids[:max_length], mask[:max_length]


def collate(data: list[Datum]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets and weights, each [B, T], padded on the right with 0."""
    width = max(len(ids) for ids, _ in data) - 1
    inputs_BT = torch.zeros(len(data), width, dtype=torch.long)
    targets_BT, weights_BT = torch.zeros_like(inputs_BT), torch.zeros(len(data), width)
    for b, (ids, mask) in enumerate(data):
        inputs_BT[b, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_BT[b, : len(ids) - 1] = torch.tensor(ids[1:])
        weights_BT[b, : len(ids) - 1] = torch.tensor(mask[1:], dtype=torch.float32)
    return inputs_BT, targets_BT, weights_BT


def token_nll(model, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    # No attention mask: attention is causal and the padding is on the right, so no real token sees it.
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits.float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)


def weighted_loss(model, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Sum of weight x nll; only positions with a weight reach the head."""
    hidden_BTD = model.model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    at_BT = weights_BT > 0
    nll_N = F.cross_entropy(model.lm_head(hidden_BTD[at_BT]), targets_BT[at_BT], reduction="none")
    return (nll_N * weights_BT[at_BT]).sum()


@torch.no_grad()
def mean_nll(model, data: list[Datum], batch_size: int) -> float:
    """Mean over all weighted tokens, nats a token."""
    total = count = 0.0
    for start in range(0, len(data), batch_size):
        inputs_BT, targets_BT, weights_BT = collate(data[start : start + batch_size])
        total += (token_nll(model, inputs_BT, targets_BT) * weights_BT).sum().item()
        count += weights_BT.sum().item()
    return total / count


def unigram_nll(train: list[Datum], held_out: list[Datum], vocab_size: int) -> float:
    """Mean NLL of the held-out weighted tokens under the training rows' add-one smoothed token frequencies."""
    counts = np.ones(vocab_size)
    for ids, mask in train:
        np.add.at(counts, [token for token, weight in zip(ids, mask, strict=True) if weight], 1)
    nll = -np.log(counts / counts.sum())
    return float(np.mean([nll[t] for ids, mask in held_out for t, w in zip(ids, mask, strict=True) if w]))


def learning_rate(step: int, total: int, args: argparse.Namespace) -> float:
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * (1 - (step - args.warmup) / (total - args.warmup))


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = load_model(args.model)

    train_rows = load_rows(args.dataset, "train", args)
    eval_rows = load_rows(args.eval_dataset, "test", args)[: args.eval_rows]
    train = [to_datum(row, tokenizer, args.max_length) for row in train_rows]
    held_out = [to_datum(row, tokenizer, args.max_length) for row in eval_rows]
    unigram = unigram_nll(train, held_out, model.config.vocab_size)
    before = mean_nll(model, held_out, args.batch_size)

    per_epoch = math.ceil(len(train) / args.batch_size)
    total = min(args.epochs * per_epoch, args.max_steps or args.epochs * per_epoch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True
    )
    model.train()
    losses: list[float] = []
    tokens = 0
    cpu, wall = time.process_time(), time.perf_counter()
    for step in range(total):
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng((args.seed, epoch)).permutation(len(train))
        chosen = order[position * args.batch_size : (position + 1) * args.batch_size]
        inputs_BT, targets_BT, weights_BT = collate([train[i] for i in chosen])
        loss = weighted_loss(model, inputs_BT, targets_BT, weights_BT / weights_BT.sum())
        loss.backward()
        if args.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, args)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += sum(len(train[i][0]) - 1 for i in chosen)
        if step % 20 == 0 or step == total - 1:
            print(f"step {step} loss {losses[-1]:.4f} wall {time.perf_counter() - wall:.1f} s", flush=True)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall

    model.eval()
    figures = {
        "losses": losses,
        "steps": total,
        "tokens": tokens,
        "train_cpu_s": round(cpu, 2),
        "train_wall_s": round(wall, 2),
        "eval_nll_before": before,
        "eval_nll_after": mean_nll(model, held_out, args.batch_size),
        "unigram_nll": unigram,
        "samples": [greedy(model, tokenizer, row["question"]) for row in eval_rows[: args.samples]],
    }
    if args.out:
        fresh = args.out.with_suffix(".new")
        fresh.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        os.replace(fresh, args.out)
    print(json.dumps({k: v for k, v in figures.items() if k != "losses" or not args.out}, indent=2))


def greedy(model, tokenizer, question: str) -> Row:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**prompt, max_new_tokens=96, do_sample=False)
    return {"question": question, "answer": tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])}


if __name__ == "__main__":
    main()
