"""Supervised fine-tuning as a flat loop over the ports of a running server.

    kitchen serve &
    python clients/python/examples/sl_loop.py --model builtin:tiny-qwen3 --lora-rank 0 \\
        --dataset builtin:word-problems --batch-size 8 --learning-rate 4e-4 --max-steps 50

Needs the base install only: model, tokenizer and rows are the server's. Equal settings and an equal seed give the
losses of the recipe sl_basic bit for bit. What a hosted run has beyond this loop: evaluation, held-out rows, a log,
checkpoints on the way and going on from them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import deque

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.port.training.v1 import training_pb2
from crucible_client import KitchenClient
from crucible_kit.conversations import to_conversation
from crucible_kit.determinism import derive_seed, epoch_order
from crucible_kit.schedules import learning_rate
from crucible_kit.sequences import Batch, Sequence
from crucible_kit.training import TrainingSession, merge

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")


async def read_rows(datasets, uri: str, split: str) -> list[str]:
    """All rows of a dataset as JSON texts."""
    source = dataset_pb2.DatasetSource(uri=uri, split=split)
    dataset = (await datasets.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source), timeout=600)).dataset
    everything = dataset_pb2.ReadRowsRequest(dataset_id=dataset.dataset_id, range=dataset_pb2.RowRange())
    rows = [row async for response in datasets.ReadRows(everything) for row in response.rows_json]
    await datasets.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=dataset.dataset_id))
    return rows


async def build_sequences(tokenizers, tokenizer: str, rows: list[str], max_tokens: int) -> list[Sequence]:
    """The rows as token ids, the assistant's to be trained on; rows without such a token are left out."""
    info = await tokenizers.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest(tokenizer=tokenizer), timeout=600)
    conversations = [to_conversation(row, number) for number, row in enumerate(rows)]
    sequences: list[Sequence] = []
    for start in range(0, len(conversations), 256):
        request = tokenizer_pb2.ApplyChatTemplateRequest(
            tokenizer=tokenizer,
            conversations=conversations[start : start + 256],
            plain_without_template=not info.has_chat_template,
        )
        rendered = (await tokenizers.ApplyChatTemplate(request)).rendered
        sequences += [Sequence.from_rendered(each, max_tokens) for each in rendered]
    return [each for each in sequences if each.trained_tokens]


async def train(kitchen: KitchenClient, args: argparse.Namespace) -> None:
    rows = await read_rows(kitchen.port("dataset"), args.dataset, args.split)
    lora = training_pb2.LoraConfig(rank=args.lora_rank) if args.lora_rank else None
    # The adapter's first weights are those of a run: its stage start_session draws them, at step 0.
    seed = derive_seed(args.seed, "start_session", 0, "weights")
    session = await TrainingSession.create(kitchen.port("training"), base_model=args.model, lora=lora, seed=seed)
    try:
        max_tokens = min(args.max_length, session.info.max_sequence_tokens + 1)
        data = await build_sequences(kitchen.port("tokenizer"), args.model, rows, max_tokens)
        steps_per_epoch = math.ceil(len(data) / args.batch_size)
        total_steps = args.max_steps or steps_per_epoch * args.num_epochs
        schedule = {"total_steps": total_steps, "peak": args.learning_rate, "warmup_steps": args.warmup_steps}

        async def report(step: int, passes: list[str], update: str) -> None:
            loss = merge([(await session.result(each)).forward for each in passes]).loss
            result = (await session.result(update)).optim_step
            line = {"step": step + 1, "loss": loss, "lr": result.learning_rate, "grad_norm": result.grad_norm}
            print(json.dumps(line), flush=True)

        # The engine has the next step before it has finished this one.
        pending: deque[tuple[int, list[str], str]] = deque()
        for step in range(total_steps):
            epoch, index = divmod(step, steps_per_epoch)
            order = epoch_order(args.seed, epoch, len(data))
            chosen = order[index * args.batch_size : (index + 1) * args.batch_size]
            batch = Batch(sequences=tuple(data[row] for row in chosen))
            rate = learning_rate(step, schedule="linear", **schedule)
            adam = training_pb2.AdamParams(learning_rate=rate, beta1=0.9, beta2=0.95, eps=1e-8, grad_clip_norm=1.0)
            passes = await session.enqueue_forward_backward(batch.datums(), CROSS_ENTROPY)
            pending.append((step, passes, await session.enqueue_optim_step(adam)))
            if len(pending) > 1:
                await report(*pending.popleft())
        while pending:
            await report(*pending.popleft())
        saved = await session.save_checkpoint(args.checkpoint or session.session_id, weights_only=True)
        print(json.dumps({"checkpoint": saved.uri, "files": [file.path for file in saved.files]}), flush=True)
    finally:
        await session.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = {"server": "127.0.0.1:50051", "token": "", "model": "", "dataset": "", "split": "", "checkpoint": ""}
    numbers = {"lora_rank": 32, "learning_rate": 2e-4, "warmup_steps": 0, "batch_size": 128, "max_length": 32768}
    for name, default in (texts | numbers | {"num_epochs": 1, "max_steps": 0, "seed": 0}).items():
        required = name in ("model", "dataset")
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, required=required)
    args = parser.parse_args()
    async with KitchenClient.connect(args.server, token=args.token) as kitchen:
        await train(kitchen, args)


asyncio.run(main())
