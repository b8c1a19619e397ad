"""A worker: plain sampling by transformers' generate, one prompt after another or all at once."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.worker import Commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, type=Path, help="JSON: token ids of each, all equally many")
    parser.add_argument("--batch", type=int, required=True, help="prompts of one call")
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    prompts = torch.tensor(json.loads(args.prompts.read_text()))
    commands = Commands()
    for _ in commands:
        start, made = time.perf_counter(), 0
        for tokens_BT in prompts.split(args.batch):
            out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids=tokens_BT,
                attention_mask=torch.ones_like(tokens_BT),
                min_new_tokens=args.new_tokens,
                max_new_tokens=args.new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            )
            made += out.numel() - tokens_BT.numel()
        commands.answer(rate=made / (time.perf_counter() - start), made=made)


if __name__ == "__main__":
    main()
