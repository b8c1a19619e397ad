"""A training step: the kitchen's, alone and in a hosted run, beside a bare torch loop and TRL's SFTTrainer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.material import Material, make_material
from benchmarks.processes import serving, torch_engine
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.worker import Worker
from crucible.kitchen.v1 import event_pb2
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.type.v1 import datum_pb2
from crucible_client import KitchenClient
from crucible_kit.sequences import Batch
from crucible_kit.sequences import Sequence as TokenSequence
from crucible_kit.training import TrainingSession

LEARNING_RATE = 1e-4
CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
ADAM = training_pb2.AdamParams(
    learning_rate=LEARNING_RATE, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.01, grad_clip_norm=1.0
)
BARE, AGAIN, TRL = "bare torch loop", "bare torch loop again (A/A)", "TRL SFTTrainer"
ENGINE, COMPUTE, HOSTED = "kitchen: engine over its socket", "of which its compute", "kitchen: hosted run"
# What rounding may make of the same loss in another order of operations.
_SAME_LOSS = 1e-4

Item = TypeVar("Item")
Turn = Callable[[], Awaitable[dict[str, list[float]]]]
"""One system's turn: milliseconds of each step by the table's row."""


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """Full fine-tuning, then LoRA."""
    material = make_material(folder, scale)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(folder / "data", engine={"threads": scale.threads}))
        kitchen = await stack.enter_async_context(KitchenClient.connect(server.address))
        channel, _ = await stack.enter_async_context(torch_engine(folder, threads=scale.threads))
        stub = training_pb2_grpc.TrainingServiceStub(channel)  # type: ignore[arg-type]
        return [await _compare(scale, material, rank, kitchen, stub) for rank in (0, scale.lora_rank)]


async def _compare(scale: Scale, material: Material, rank: int, kitchen: KitchenClient, stub: Any) -> Table:
    what = f"LoRA of rank {rank}" if rank else "all weights"
    table = Table(
        title=f"A training step, {what}",
        about=(
            f"Qwen3, hidden {scale.hidden}, {scale.layers} layers, vocabulary {scale.vocab}, float32; {scale.batch} "
            f"rows of {scale.length} tokens, {scale.threads} threads, AdamW, clipping at 1. Each system in its own "
            f"process, in turns of {scale.steps} steps after {scale.warmup} that don't count. The hosted run's step "
            "is the time from one step's event to the next in its log, so everything the server does is in it. The "
            "bare loop and the kitchen train on the same tokens from the same weights; their losses were compared. "
            "The peers' threads wait as OpenMP has them wait, the engine's as it ships: they spin for less long."
        ),
        unit="ms",
    )
    async with AsyncExitStack() as stack:
        options = (
            *("--model", material.model, "--rows", material.rows, "--batch", scale.batch, "--lora-rank", rank),
            *("--learning-rate", LEARNING_RATE, "--threads", scale.threads),
        )

        async def worker(module: str) -> Worker:
            started = await Worker.start(module, *options)
            stack.push_async_callback(started.close)
            return started

        bare = await worker("bare_loop")
        losses: dict[str, list[float]] = {}
        engine = await _Engine.open(stub, material, scale, rank)
        stack.push_async_callback(engine.session.close)
        turns: list[Turn] = [
            lambda: _worker_turn(bare, BARE, scale, losses),
            lambda: engine.turn(losses),
            lambda: _hosted_turn(kitchen, material, scale, rank, losses),
            lambda: _worker_turn(bare, AGAIN, scale, {}),
        ]
        if find_spec("trl") is not None:
            trl = await worker("trl_loop")
            turns.append(lambda: _worker_turn(trl, TRL, scale, {}))
        for number in range(scale.rounds):
            for turn in rotated(turns, number):
                for system, milliseconds in (await turn()).items():
                    table.add(system, milliseconds)
    _check_losses(losses, lora=bool(rank))
    _conclude(table)
    return table


def rotated(turns: Sequence[Item], number: int) -> list[Item]:
    """The turns in another order each round: nobody always comes right after the same one."""
    start = number % len(turns)
    return [*turns[start:], *turns[:start]]


def _conclude(table: Table) -> None:
    table.ratio("A/A: bare loop over itself", AGAIN, BARE)
    table.ratio("engine over bare loop", ENGINE, BARE, at_most=1.03)
    table.ratio("hosted run over bare loop", HOSTED, BARE, at_most=1.03)
    if TRL in table.rounds:
        table.ratio("engine over TRL", ENGINE, TRL, at_most=0.75)
        table.ratio("hosted run over TRL", HOSTED, TRL, at_most=0.75)
    table.difference("socket: engine's step less its compute", ENGINE, COMPUTE)
    table.difference("runtime: hosted run's step less the engine's compute", HOSTED, COMPUTE, at_most=10.0)


async def _worker_turn(
    worker: Worker, system: str, scale: Scale, losses: dict[str, list[float]]
) -> dict[str, list[float]]:
    answer = await worker.run(scale.warmup + scale.steps)
    if "losses" in answer:
        losses.setdefault(system, answer["losses"])
    return {system: [each * 1e3 for each in answer["seconds"][scale.warmup :]]}


class _Engine:
    """The engine, driven over its socket as a hosted run drives it."""

    def __init__(self, session: TrainingSession, batches: list[list[datum_pb2.Datum]], scale: Scale) -> None:
        self.session = session
        self._batches = itertools.cycle(batches)
        self._scale = scale

    @classmethod
    async def open(cls, stub: Any, material: Material, scale: Scale, rank: int) -> _Engine:
        lora = training_pb2.LoraConfig(rank=rank) if rank else None
        session = await TrainingSession.create(stub, base_model=str(material.model), lora=lora, dtype="float32")
        return cls(session, batches(material, scale), scale)

    async def turn(self, losses: dict[str, list[float]]) -> dict[str, list[float]]:
        took, compute, seen = [], [], []
        for _ in range(self._scale.warmup + self._scale.steps):
            start = time.perf_counter()
            passes = await self.session.enqueue_forward_backward(next(self._batches), CROSS_ENTROPY)
            update = await self.session.enqueue_optim_step(ADAM)
            forward = [(await self.session.result(each)).forward for each in passes]
            step = (await self.session.result(update)).optim_step
            took.append((time.perf_counter() - start) * 1e3)
            seconds = sum(each.metrics["compute_seconds"] for each in forward) + step.metrics["compute_seconds"]
            compute.append(seconds * 1e3)
            seen.append(sum(each.loss for each in forward))
        losses.setdefault(ENGINE, seen)
        warmup = self._scale.warmup
        return {ENGINE: took[warmup:], COMPUTE: compute[warmup:]}


def batches(material: Material, scale: Scale) -> list[list[datum_pb2.Datum]]:
    """The material's rows as the steps' datums, every token trained on."""
    rows = [
        TokenSequence(tokens=np.array(row, np.int32), mask=np.ones(len(row), np.uint8)) for row in material.tokens()
    ]
    starts = range(0, len(rows), scale.batch)
    return [Batch(sequences=tuple(rows[start : start + scale.batch])).datums() for start in starts]


def run_config(material: Material, scale: Scale, rank: int, steps: int) -> dict[str, Any]:
    """Configuration of a hosted run that takes the same steps, and nothing else."""
    return {
        "model": str(material.model),
        "dtype": "float32",
        "lora_rank": rank,
        "dataset": str(material.dataset),
        "train_on": "all_tokens",
        "shuffle": False,
        "batch_size": scale.batch,
        "max_length": scale.length + 1,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "save_every": 0,
    }


async def _hosted_turn(
    kitchen: KitchenClient, material: Material, scale: Scale, rank: int, losses: dict[str, list[float]]
) -> dict[str, list[float]]:
    config = run_config(material, scale, rank, scale.warmup + scale.steps)
    run = await kitchen.wait((await kitchen.create_run("sl_basic", config=config)).run_id)
    if run.state != event_pb2.RUN_STATE_COMPLETED:
        raise RuntimeError(f"the hosted run failed: {run.failure.status.message}")
    events = await kitchen.list_run_events(run.run_id, page_size=500)
    steps = [event for event in events if event.HasField("step_completed")]
    losses.setdefault(HOSTED, [event.step_completed.metrics["train/loss"] for event in steps])
    return {HOSTED: [milliseconds_between(*pair) for pair in pairwise(steps[scale.warmup - 1 :])]}


def milliseconds_between(first: event_pb2.RunEvent, second: event_pb2.RunEvent) -> float:
    """Time between two events, by the server's clock."""
    return (second.time.ToNanoseconds() - first.time.ToNanoseconds()) / 1e6


def _check_losses(losses: dict[str, list[float]], *, lora: bool) -> None:
    """Raises ValueError unless all systems did the same work.

    Adapters begin with other random numbers, which show from the second step on: there only the first loss is held
    against the bare loop's.
    """
    for system in (ENGINE, HOSTED):
        pairs = list(zip(losses[system], losses[BARE], strict=True))[: 1 if lora else None]
        if not all(math.isclose(mine, bare, rel_tol=_SAME_LOSS) for mine, bare in pairs):
            raise ValueError(f"{system}: not the losses of the bare loop: {pairs}")
