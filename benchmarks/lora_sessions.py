"""Memory and speed of many LoRA sessions on one base model, against one session in the same run.

    python benchmarks/lora_sessions.py --sessions 64 --rank 16

It starts the engine as the server does, drives it over its socket, and prints one JSON line a count of sessions:
tokens per second of all sessions together, resident memory of the engine's process, and what a further session adds.
Rounds with one session and with all of them alternate, so that the machine's drift touches both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.type.v1 import datum_pb2
from crucible_adapters.builtin import weights
from crucible_adapters.torch_engine.spec import TORCH_ENGINE, TorchEngineOptions
from crucible_kit.adapter import CONTRACT_VERSIONS
from crucible_kit.channel import connect
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import TrainingSession

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
ADAM = training_pb2.AdamParams(learning_rate=1e-4, weight_decay=0.01, grad_clip_norm=1.0)


def batch(rows: int, length: int, vocab: int, seed: int) -> list[datum_pb2.Datum]:
    """Random tokens with weights of 1 / N."""
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(rows):
        tokens = generator.integers(0, vocab, length + 1).astype(np.int32)
        chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(tokens[:-1]))
        inputs = {
            "target_tokens": to_tensor(tokens[1:]),
            "weights": to_tensor(np.full(length, 1 / (rows * length), np.float32)),
        }
        data.append(datum_pb2.Datum(model_input=datum_pb2.ModelInput(chunks=[chunk]), loss_fn_inputs=inputs))
    return data


async def train(session: TrainingSession, data: list[datum_pb2.Datum], steps: int) -> None:
    """Steps as a hosted run takes them: the step's two calls are sent together and awaited."""
    for _ in range(steps):
        passes = await session.enqueue_forward_backward(data, CROSS_ENTROPY)
        step = await session.enqueue_optim_step(ADAM)
        for operation in (*passes, step):
            await session.result(operation)


async def rate(sessions: list[TrainingSession], data: list[datum_pb2.Datum], steps: int) -> float:
    """Tokens per second of all sessions together, `steps` in all."""
    tokens = sum(len(datum.model_input.chunks[0].tokens_int32) // 4 for datum in data)
    each = max(1, steps // len(sessions))
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for session in sessions:
            group.create_task(train(session, data, each))
    return tokens * each * len(sessions) / (time.perf_counter() - start)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="ck-") as temporary:
        folder = Path(temporary)
        weights.materialise(arguments.model, folder / "model")
        socket = folder / "engine.sock"
        options = TORCH_ENGINE.arguments(TorchEngineOptions(device=arguments.device, threads=arguments.threads))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", TORCH_ENGINE.module, "--listen", f"unix:{socket}", "--parent-pipe"),
            *("--work-dir", str(folder / "work"), *options),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, **TORCH_ENGINE.environment},
        )
        channel = connect(f"unix:{socket}")
        try:
            info = adapter_pb2.GetAdapterInfoRequest(host_contract_versions=CONTRACT_VERSIONS)
            await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(info, timeout=120)  # type: ignore[arg-type]
            await measure(arguments, channel, folder / "model", process.pid)
        finally:
            await channel.close()
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


async def measure(arguments: argparse.Namespace, channel: object, model: Path, pid: int) -> None:
    stub = training_pb2_grpc.TrainingServiceStub(channel)  # type: ignore[arg-type]
    lora = training_pb2.LoraConfig(rank=arguments.rank)

    async def session() -> TrainingSession:
        return await TrainingSession.create(stub, base_model=str(model), lora=lora, seed=len(sessions))

    sessions: list[TrainingSession] = []
    sessions.append(await session())
    data = batch(arguments.rows, arguments.length, sessions[0].info.vocab_size, seed=0)
    # moments exist after the first step, and the allocator has seen the largest batch
    await rate(sessions, data, 8)
    memory = {1: resident_mib(pid)}
    while len(sessions) < arguments.sessions:
        sessions.append(await session())
    await rate(sessions, data, len(sessions))
    memory[len(sessions)] = resident_mib(pid)

    rates: dict[int, list[float]] = {1: [], len(sessions): []}
    for _ in range(arguments.rounds):
        rates[1].append(await rate(sessions[:1], data, arguments.steps))
        rates[len(sessions)].append(await rate(sessions, data, arguments.steps))
    parameters = sessions[0].info.trainable_parameters
    added = (memory[len(sessions)] - memory[1]) / max(1, len(sessions) - 1)
    for count, values in rates.items():
        print(
            json.dumps(
                {
                    "sessions": count,
                    "rank": arguments.rank,
                    "tokens_per_second": round(statistics.median(values), 1),
                    "lowest_highest": [round(min(values), 1), round(max(values), 1)],
                    "resident_mib": round(memory[count], 1),
                    "mib_per_further_session": round(added, 3),
                    "mib_of_weights_and_moments": round(parameters * 4 * 3 / 2**20, 3),
                }
            )
        )
    for each in sessions:
        await each.close()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-qwen3-base", help="builtin model")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=64, help="steps of a round, of all sessions together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse_arguments()))
