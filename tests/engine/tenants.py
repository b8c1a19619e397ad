"""Tenants of one engine: what each sends, and the bytes that it ends with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_adapters.torch_engine.engine import Engine, TrainingRecord
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.tiny import random_data
from tests.engine.wire import Wire

Ends = dict[str, str]
"""SHA-256 by file name."""
Between = Callable[[str], Awaitable[None]]
"""What happens between two calls of a tenant; it gets the place, such as `pass 2 of step 1`."""
STEPS = 3


@dataclass
class Tenant:
    """A session with settings and data of its own; each step is two passes and an optimizer step."""

    name: str
    lora: tp.LoraConfig | None
    seed: int
    adam: dict[str, float]
    session_id: str = field(default="", init=False)
    sequence: int = field(default=0, init=False)
    sent: list[operation_pb2.Operation] = field(default_factory=list, init=False)

    async def open(self, wire: Wire, folder: Path, *, dtype: str = "float32") -> None:
        self.session_id = await wire.open(folder, lora=self.lora, seed=self.seed, dtype=dtype)
        self.sequence, self.sent = 0, []

    async def send_pass(self, wire: Wire, seed: int) -> None:
        data = random_data([7, 4 + self.seed % 5, 11], seed=100 * self.seed + seed)
        self.sent.append(await wire.send_pass(self.session_id, self._next(), data))

    async def send_step(self, wire: Wire) -> None:
        self.sent.append(await wire.send_step(self.session_id, self._next(), **self.adam))

    async def settle(self, wire: Wire) -> None:
        """Wait for all that was sent."""
        for operation in self.sent:
            await wire.result(self.session_id, operation)
        self.sent = []

    async def end(self, wire: Wire, name: str) -> Ends:
        """Every file's hash after the last step: weights, moments and steps."""
        await self.settle(wire)
        saved = await wire.save(self.session_id, self._next(), f"{name}/{self.name}")
        assert saved.optim_steps == STEPS
        return {file.path: file.sha256 for file in saved.files}

    def record(self, engine: Engine) -> TrainingRecord:
        return engine.training._records[self.session_id]

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence


def wide() -> Tenant:
    """A higher rank on every group of layers."""
    lora = tp.LoraConfig(rank=5, alpha=8.0, train_unembedding=True)
    return Tenant("wide", lora, seed=1, adam={"lr": 3e-2, "weight_decay": 0.3})


def narrow() -> Tenant:
    """A low rank on a few of those layers."""
    lora = tp.LoraConfig(rank=2, target_modules=["q_proj", "down_proj"])
    return Tenant("narrow", lora, seed=2, adam={"lr": 1e-2, "weight_decay": 0.1, "grad_clip_norm": 0.5, "beta1": 0.8})


def full() -> Tenant:
    """Every weight of the model."""
    return Tenant("full", None, seed=3, adam={"lr": 1e-2, "weight_decay": 0.2})


async def run_alone(wire: Wire, folder: Path, tenant: Tenant, between: Between | None = None) -> Ends:
    """A tenant's whole work."""
    await tenant.open(wire, folder)

    async def pause(place: str) -> None:
        if between is not None:
            await tenant.settle(wire)
            await between(place)

    await pause("before step 0")
    for step in range(STEPS):
        for part in range(2):
            await tenant.send_pass(wire, 2 * step + part)
            await pause(f"after pass {part} of step {step}")
        await tenant.send_step(wire)
        await pause(f"after step {step}")
    return await tenant.end(wire, "alone")


def tensors_of(session: TrainingSession) -> list[torch.Tensor]:
    """All that the session holds for itself."""
    state = session.optimizer
    gradients = [p.grad for p in session.parameters.values() if p.grad is not None]
    moments = [*state.exp_avg.values(), *state.exp_avg_sq.values(), *state.master.values()]
    return [*session.parameters.values(), *gradients, *moments]


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Memory behind the tensors; shared memory counts once, and what a view leaves out counts too."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
