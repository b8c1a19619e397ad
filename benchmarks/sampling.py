"""Plain sampling: the engine's beside transformers' generate."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from benchmarks.material import make_material
from benchmarks.processes import torch_engine
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.training_step import rotated
from benchmarks.worker import Worker
from crucible.port.sampling.v1 import sampling_pb2, sampling_pb2_grpc
from crucible_kit.tensors import pack_tokens, unpack_tokens
from crucible_kit.training import check_finished

_KITCHEN = "kitchen: engine over its socket"
_SINGLE, _AGAIN = "transformers.generate, a prompt a call", "transformers.generate, a prompt a call, again (A/A)"


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """Tokens per second for all prompts."""
    batched = f"transformers.generate, {scale.prompts} prompts a call"
    table = Table(
        title="Plain sampling",
        about=(
            f"Sampled tokens per second: {scale.prompts} prompts of {scale.prompt_tokens} tokens, {scale.new_tokens} "
            "new tokens each at temperature 1, on the model of the training step, random weights. The kitchen is "
            "sent all prompts at once; its sampler decodes one after another, in rows of four (results independent "
            "of the batch), and returns each token's logprob, which generate does not here."
        ),
        unit="tokens/s",
    )
    material = make_material(folder, scale)
    prompts = [row[: scale.prompt_tokens] for row in (material.tokens() * scale.prompts)[: scale.prompts]]
    file = folder / "prompts.json"
    file.write_text(json.dumps(prompts))
    async with AsyncExitStack() as stack:

        async def worker(batch: int) -> Worker:
            options = ("--model", material.model, "--prompts", file, "--new-tokens", scale.new_tokens)
            started = await Worker.start("generate_loop", *options, "--batch", batch, "--threads", scale.threads)
            stack.push_async_callback(started.close)
            return started

        single, many = await worker(1), await worker(scale.prompts)
        channel, _ = await stack.enter_async_context(torch_engine(folder, threads=scale.threads))
        stub = sampling_pb2_grpc.SamplingServiceStub(channel)  # type: ignore[arg-type]
        session = await stub.CreateSamplingSession(
            sampling_pb2.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), base_model=str(material.model))
        )
        sampler = _Sampler(stub, session.session_id, prompts, scale.new_tokens)

        async def rate(of: Worker) -> float:
            return (await of.run())["rate"]

        systems = {
            _SINGLE: lambda: rate(single),
            _KITCHEN: sampler.rate,
            batched: lambda: rate(many),
            _AGAIN: lambda: rate(single),
        }
        for number in range(-1, scale.rounds):
            for system, turn in rotated(list(systems.items()), number):
                reached = await turn()
                if number >= 0:  # the round before the first warms up
                    table.add(system, [reached])
    table.ratio("A/A: generate over itself", _AGAIN, _SINGLE)
    table.ratio("kitchen over generate, a prompt a call", _KITCHEN, _SINGLE)
    table.ratio(f"kitchen over generate, {scale.prompts} prompts a call", _KITCHEN, batched)
    return [table]


class _Sampler:
    """One sampling session."""

    def __init__(self, stub: Any, session_id: str, prompts: list[list[int]], new_tokens: int) -> None:
        self._stub = stub
        self._session_id = session_id
        self._prompts = [pack_tokens(np.array(prompt, np.int32)) for prompt in prompts]
        self._new_tokens = new_tokens
        self._sequence = 0

    async def rate(self) -> float:
        """Tokens per second of all prompts."""
        start = time.perf_counter()
        counts = await asyncio.gather(*(self._sample(prompt) for prompt in self._prompts))
        if set(counts) != {self._new_tokens}:
            raise RuntimeError(f"{counts} tokens were sampled, not {self._new_tokens} each")
        return sum(counts) / (time.perf_counter() - start)

    async def _sample(self, prompt: bytes) -> int:
        self._sequence += 1
        request = sampling_pb2.SampleRequest(
            session_id=self._session_id,
            sequence=self._sequence,
            prompt_tokens_int32=prompt,
            params=sampling_pb2.SamplingParams(max_tokens=self._new_tokens, temperature=1.0, seed=self._sequence),
            num_samples=1,
        )
        operation = (await self._stub.Sample(request)).operation
        wait = sampling_pb2.AwaitOperationRequest(
            session_id=self._session_id, operation_id=operation.id, wait=duration_pb2.Duration(seconds=30)
        )
        response = await self._stub.AwaitOperation(wait)
        check_finished(response.operation)
        return sum(len(unpack_tokens(each.tokens_int32)) for each in response.sample.sequences)
