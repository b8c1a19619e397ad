"""Speed and memory of many LoRA sessions on one base model, beside one session in the same run.

    python -m benchmarks.lora_sessions --sessions 1 2 4 8 64 --rank 16

It starts the engine as the server does and drives it over its socket. Rounds with few and with many sessions at work
alternate, so that the machine's drift touches all alike. Memory is what the engine's process holds once so many
sessions have taken steps.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from benchmarks.material import make_material
from benchmarks.processes import memory_mib, torch_engine
from benchmarks.report import Table
from benchmarks.scale import FULL, Scale
from benchmarks.training_step import ADAM, CROSS_ENTROPY, batches
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.type.v1 import datum_pb2
from crucible_kit.training import TrainingSession


async def train(session: TrainingSession, data: list[datum_pb2.Datum], steps: int) -> None:
    """Steps as a hosted run takes them: the step's two calls are sent together and awaited."""
    for _ in range(steps):
        passes = await session.enqueue_forward_backward(data, CROSS_ENTROPY)
        step = await session.enqueue_optim_step(ADAM)
        for operation in (*passes, step):
            await session.result(operation)


async def rate(sessions: list[TrainingSession], data: list[datum_pb2.Datum], tokens: int, steps: int) -> float:
    """Tokens per second of all sessions together, at `tokens` a step and `steps` in all, at least one each."""
    each = max(1, steps // len(sessions))
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            group.create_task(train(session, data, each))
    return tokens * each * len(sessions) / (time.perf_counter() - start)


async def measure(scale: Scale, folder: Path, device: str = "cpu") -> list[Table]:
    """One table of rates; the findings hold the memory."""
    material = make_material(folder, scale)
    data, tokens = batches(material, scale)[0], scale.batch * scale.length
    counts = sorted(scale.session_counts)
    table = Table(
        title="LoRA sessions on one base",
        about=(
            f"Tokens per second of all sessions together, each with an adapter of rank {scale.lora_rank} and an "
            f"optimizer of its own, on the model of the training step; {scale.batch} rows of {scale.length} tokens a "
            "step. The engine alone, over its socket."
        ),
        unit="tokens/s",
    )
    memory: dict[int, float] = {}
    async with torch_engine(folder, threads=scale.threads, device=device) as (channel, process):
        stub = training_pb2_grpc.TrainingServiceStub(channel)  # type: ignore[arg-type]
        sessions: list[TrainingSession] = []
        for count in counts:
            while len(sessions) < count:
                lora = training_pb2.LoraConfig(rank=scale.lora_rank)
                session = await TrainingSession.create(
                    stub, base_model=str(material.model), lora=lora, seed=len(sessions)
                )
                sessions.append(session)
                # its moments exist after the first step
                await train(session, data, 1)
            memory[count] = memory_mib(process.pid)
        for number in range(scale.session_rounds):
            for count in counts if number % 2 else reversed(counts):
                reached = await rate(sessions[:count], data, tokens, scale.session_steps)
                table.add(f"{count} at work", [reached])
            table.add("1 at work, again (A/A)", [await rate(sessions[:1], data, tokens, scale.session_steps)])
        parameters = sessions[0].info.trainable_parameters
        for session in sessions:
            await session.close()
    first, last = f"{counts[0]} at work", f"{counts[-1]} at work"
    table.ratio("A/A: one session over itself", "1 at work, again (A/A)", first)
    table.ratio(f"{counts[-1]} sessions together over {counts[0]}", last, first)
    table.find(f"memory of the engine with {counts[0]}", [memory[counts[0]]], "MiB")
    table.find(f"memory of the engine with {counts[-1]}", [memory[counts[-1]]], "MiB")
    further = (memory[counts[-1]] - memory[counts[0]]) / (counts[-1] - counts[0])
    table.find("memory that a further session adds", [further], "MiB")
    table.find("of which weights and moments", [parameters * 4 * 3 / 2**20], "MiB")
    return [table]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=FULL.session_counts, help="with 1 among them")
    parser.add_argument("--rank", type=int, default=FULL.lora_rank)
    parser.add_argument("--rows", type=int, default=FULL.batch)
    parser.add_argument("--length", type=int, default=FULL.length)
    parser.add_argument("--rounds", type=int, default=FULL.session_rounds)
    parser.add_argument("--steps", type=int, default=FULL.session_steps, help="of a round, all sessions together")
    parser.add_argument("--threads", type=int, default=FULL.threads)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    scale = dataclasses.replace(
        FULL,
        session_counts=tuple({1, *given.sessions}),
        lora_rank=given.rank,
        batch=given.rows,
        length=given.length,
        session_rounds=given.rounds,
        session_steps=given.steps,
        threads=given.threads,
    )
    with tempfile.TemporaryDirectory(prefix="kb-") as folder:
        for table in await measure(scale, Path(folder), given.device):
            rates = {name: table.medians(name) for name in table.rounds}
            print(json.dumps({"rates": rates, "findings": [each.as_json() for each in table.findings]}, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
