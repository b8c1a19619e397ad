"""A worker: the same steps as bare_loop.py takes, taken by TRL's SFTTrainer on tokenised rows."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig  # pyright: ignore[reportMissingImports]  # the extra bench has it
from trl.trainer.sft_trainer import SFTTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.bare_loop import lora_config, parse_arguments
from benchmarks.worker import Commands

# More than any driver asks for: the trainer goes on until its worker is ended.
_MAX_STEPS = 1_000_000


class Turns(TrainerCallback):
    """Holds the trainer between turns. A step counts from the end of the last one: data, passes, update, logging."""

    def __init__(self) -> None:
        self._commands: Commands
        self._counts: Iterator[int]
        self._left = 0
        self._seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Everything is ready."""
        self._commands = Commands()
        self._counts = iter(self._commands)
        self._wait(control)

    def on_log(self, args, state, control, **kwargs) -> None:
        """A step has ended and is logged."""
        self._seconds.append(time.perf_counter() - self._start)
        self._left -= 1
        if self._left:
            self._start = time.perf_counter()
            return
        self._commands.answer(seconds=self._seconds)
        self._wait(control)

    def _wait(self, control) -> None:
        self._left, self._seconds = next(self._counts, 0), []
        control.should_training_stop = not self._left
        self._start = time.perf_counter()


def main() -> None:
    args: argparse.Namespace = parse_arguments()
    rows = [row[:-1] for row in json.loads(args.rows.read_text())]  # it shifts them itself
    peft = None
    if args.lora_rank:
        from peft import LoraConfig

        peft = lora_config(args.lora_rank, LoraConfig)
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            args=SFTConfig(
                output_dir=output,
                max_steps=_MAX_STEPS,
                per_device_train_batch_size=args.batch,
                learning_rate=args.learning_rate,
                lr_scheduler_type="constant",
                adam_beta1=0.9,
                adam_beta2=0.95,
                weight_decay=0.01,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                max_length=len(rows[0]),
                packing=False,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            peft_config=peft,
            callbacks=[Turns()],
        )
        torch.set_num_threads(args.threads)
        trainer.train()


if __name__ == "__main__":
    main()
