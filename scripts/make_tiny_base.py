"""Makes `builtin:tiny-qwen3-base`: `builtin:tiny-qwen3` pretrained from its random weights on `tiny_base_text`.

    python scripts/make_tiny_base.py                              # writes the shipped folder
    python scripts/make_tiny_base.py --steps 3 --out /tmp/base    # a short run, elsewhere

It takes 15 to 25 minutes on one thread of a CPU that multiplies in bfloat16. The tensor bytes are exact for one machine
type and torch build: on an AMD EPYC 9005 (family 26) with torch 2.13.0+cpu, model.safetensors has the SHA-256
b6c268e8c23754780ca20982d996a2b2e69c212d30bb063e4efb68e8ee9539aa

Plain next-token loss on whole documents, packed side by side and masked apart; each ends in the tokenizer's end token,
so that the model stops by itself. Suffixes: B rows of a batch, T token positions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tiny_base_text import SEED, documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from crucible_adapters.builtin import weights

SHIPPED = weights.ASSETS / "tiny_qwen3_base"
STEPS = 4000
ROWS, LENGTH = 8, 256
LEARNING_RATE, WARMUP, WEIGHT_DECAY, CLIP = 1.5e-3, 100, 0.1, 1.0


def packed_rows(tokenizer, seed: str) -> Iterator[list[list[int]]]:
    """Rows of inputs, targets and positions, each LENGTH long.

    Positions begin at 0 in each document: from that transformers sees which tokens may attend to each other.
    """
    inputs: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    for text in documents(seed):
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        if len(inputs) + len(ids) - 1 > LENGTH:
            padding = LENGTH - len(inputs)
            yield [inputs + [0] * padding, targets + [-100] * padding, positions + [0] * padding]
            inputs, targets, positions = [], [], []
        inputs += ids[:-1]
        targets += ids[1:]
        positions += range(len(ids) - 1)


def next_token_loss(model, rows: list[list[list[int]]]) -> torch.Tensor:
    """Mean over all tokens, nats."""
    inputs_BT, targets_BT, positions_BT = torch.tensor(rows).unbind(1)
    real_BT = targets_BT >= 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_BTD = model.model(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False).last_hidden_state
        logits_NV = model.lm_head(hidden_BTD[real_BT])
    return F.cross_entropy(logits_NV.float(), targets_BT[real_BT])


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 5 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * min((step + 1) / WARMUP, 0.05 + 0.95 * cosine)


def pretrain(folder: Path, steps: int):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    rows = packed_rows(tokenizer, SEED)
    unseen = packed_rows(tokenizer, f"{SEED}/unseen")
    unseen_rows = [next(unseen) for _ in range(ROWS)]
    start = time.perf_counter()
    for step in range(steps):
        loss = next_token_loss(model, [next(rows) for _ in range(ROWS)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            with torch.no_grad():
                other = next_token_loss(model, unseen_rows)
            wall = time.perf_counter() - start
            print(f"step {step} loss {loss:.4f} on unseen text {other:.4f} wall {wall:.0f} s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for config.json and model.safetensors")
    args = parser.parse_args()
    if args.steps != STEPS and args.out == SHIPPED:
        parser.error(f"--steps {args.steps} needs --out: what ships comes from {STEPS} steps")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    with tempfile.TemporaryDirectory() as parent:
        folder = weights.materialise("tiny-qwen3", Path(parent) / "model").path
        model = pretrain(folder, args.steps)
        config = json.loads((folder / "config.json").read_bytes()) | {"dtype": "bfloat16"}
    # by parameter: the tied head is not stored beside the embedding
    tensors = {name: p.detach().to(torch.bfloat16) for name, p in model.named_parameters()}
    files = {
        "config.json": json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        fresh = args.out / f"{name}.new"
        fresh.write_bytes(data)
        os.replace(fresh, args.out / name)
    print(f"model.safetensors has SHA-256 {hashlib.sha256(files['model.safetensors']).hexdigest()}")


if __name__ == "__main__":
    main()
