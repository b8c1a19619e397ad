"""Tenants on one base model: each ends with exactly the bytes that it has alone, and costs what its rank costs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from tests.engine.lora import targets
from tests.engine.tenants import STEPS, Ends, Tenant, full, narrow, run_alone, storage_bytes, tensors_of, wide
from tests.engine.tiny import VOCAB, random_data
from tests.engine.wire import Wire, serve

PROMPT = [5, 77, 12, 90]


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ends]:
    """Each tenant's end in an engine of its own."""

    async def run(tenant: Tenant) -> Ends:
        async with serve(tmp_path_factory.mktemp("alone"), transport="object") as (_, wire):
            return await run_alone(wire, tiny_folder, tenant)

    ends = {tenant.name: asyncio.run(run(tenant)) for tenant in (wide(), narrow(), full())}
    assert len({str(end) for end in ends.values()}) == 3
    return ends


class Third:
    """Another tenant, that does something between the calls of the others."""

    def __init__(self, engine: Engine, wire: Wire, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.wire, self.folder, self.monkeypatch = engine, wire, folder, monkeypatch
        self.tenant = Tenant("third", tp.LoraConfig(rank=8, train_unembedding=True), seed=7, adam={"weight_decay": 0.5})
        self.calls = 0

    async def nothing(self) -> None:
        """Only the other two."""

    async def train(self) -> None:
        """Opens, and trains all the time."""
        if not self.calls:
            await self.tenant.open(self.wire, self.folder)
        await self.tenant.send_pass(self.wire, self.calls)
        await self.tenant.send_step(self.wire)

    async def park(self) -> None:
        """Trains, and goes to disk between its calls."""
        await self.train()
        await self.tenant.settle(self.wire)
        await self.engine.on_compute(self.engine.parking.park, self.tenant.record(self.engine).session)

    async def close(self) -> None:
        """Opens, leaves gradients behind and closes, again and again."""
        await self.tenant.open(self.wire, self.folder)
        await self.tenant.send_pass(self.wire, self.calls)
        await self.wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=self.tenant.session_id))

    async def fail(self) -> None:
        """Runs out of memory after its forward pass, its adapter still in the model, and fails the step then."""
        await self.tenant.open(self.wire, self.folder)
        adapter = self.tenant.record(self.engine).session.model.adapter
        hidden_states = LoadedModel.hidden_states

        def fails(model: LoadedModel, *arguments: Any) -> torch.Tensor:
            hidden = hidden_states(model, *arguments)
            if model.adapter is adapter:
                raise MemoryError
            return hidden

        with self.monkeypatch.context() as patch:
            patch.setattr(LoadedModel, "hidden_states", fails)
            await self.tenant.send_pass(self.wire, self.calls)
            await self.tenant.send_step(self.wire)
            for expected in (ResourceExhaustedError, FailedPreconditionError):
                with pytest.raises(expected):
                    await self.wire.result(self.tenant.session_id, self.tenant.sent.pop(0))

    async def sample(self) -> None:
        """Samples from the base, from a checkpoint of its own and from what is trained, and closes them."""
        if not self.calls:
            await self.train()
            await self.tenant.settle(self.wire)
            self.saved = await self.wire.save(self.tenant.session_id, 3, "third")
        models = [{"base_model": str(self.folder)}, {"checkpoint_uri": self.saved.uri}]
        models += [{"training_session_id": each} for each in self.engine.training._records]
        for model in models:
            session_id = await self.wire.open_sampling(**model)
            await self.wire.sample(session_id, 1, PROMPT, num_samples=5, max_tokens=6, prompt_logprobs=True)
            await self.wire.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=session_id))

    async def load(self) -> None:
        """Loads its own checkpoint, and is refused with another's."""
        if not self.calls:
            await self.train()
            await self.tenant.settle(self.wire)
            self.saved = await self.wire.save(self.tenant.session_id, 3, "third")
            self.tenant.sequence = 3
        self.tenant.sequence += 1
        session_id = self.tenant.session_id
        request = tp.LoadCheckpointRequest(
            session_id=session_id, sequence=self.tenant.sequence, uri=self.saved.uri, weights_only=self.calls % 2 == 0
        )
        await self.wire.result(session_id, (await self.wire.training.LoadCheckpoint(request)).operation)


@pytest.mark.parametrize("others", ["nothing", "train", "park", "close", "fail", "sample", "load"])
async def test_interleaved_tenants_end_with_the_bytes_they_have_alone(
    transport: Any,
    tiny_folder: Path,
    tmp_path: Path,
    alone: dict[str, Ends],
    others: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        tenants = [wide(), full(), narrow()]
        third = Third(engine, wire, tiny_folder, monkeypatch)
        for tenant in tenants:
            await tenant.open(wire, tiny_folder)
        action: Callable[[], Awaitable[None]] = getattr(third, others)
        for step in range(STEPS):
            # no tenant waits for a result: passes and steps of all lie in the engine's queues
            for part in range(2):
                for tenant in tenants:
                    await tenant.send_pass(wire, 2 * step + part)
            await action()
            third.calls += 1
            for tenant in tenants:
                await tenant.send_step(wire)
        ends = {tenant.name: await tenant.end(wire, "together") for tenant in tenants}
    assert ends == alone


async def test_a_base_is_loaded_once_and_not_changed(
    wire: Wire, engine: Engine, tiny_folder: Path, alone: dict[str, Ends]
) -> None:
    first, second = wide(), narrow()
    sampling = await wire.open_sampling(base_model=str(tiny_folder))
    before = await wire.score(sampling, 1, PROMPT)
    for tenant in (first, second):
        await tenant.open(wire, tiny_folder)
    nets = {id(tenant.record(engine).session.model.net) for tenant in (first, second)}
    assert len(nets) == 1 and len(engine._shared) == 1
    net = engine.sampling._records[sampling].model.net
    base = {name: p.clone() for name, p in net.state_dict().items()}
    for tenant in (first, second):
        await tenant.send_pass(wire, 0)
        await tenant.send_step(wire)
        await tenant.settle(wire)
    assert nets == {id(net)}
    assert all(torch.equal(base[name], p) for name, p in net.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    # names and number of the model's own parameters do not show the slots
    assert base.keys() == net.state_dict().keys()
    assert (await wire.score(sampling, 2, PROMPT)).tolist() == before.tolist()


# (input size, output size) of each matrix of the tiny model's two layers: q, k, v, o; gate, up, down; then the head
ATTENTION = 2 * [(32, 32), (32, 16), (32, 16), (32, 32)]
MLP = 2 * [(32, 64), (32, 64), (64, 32)]
HEAD = [(32, VOCAB)]
SIZES: dict[str, tuple[dict[str, bool], list[tuple[int, int]]]] = {
    "attention": ({"train_mlp": False}, ATTENTION),
    "MLP": ({"train_attention": False}, MLP),
    "all": ({"train_unembedding": True}, ATTENTION + MLP + HEAD),
}


def weight_bytes(adapted: str, rank: int) -> int:
    """4 bytes x rank x (inputs + outputs)."""
    return 4 * rank * sum(inputs + outputs for inputs, outputs in SIZES[adapted][1])


async def open_adapted(wire: Wire, folder: Path, adapted: str, rank: int) -> str:
    return await wire.open(folder, lora=tp.LoraConfig(rank=rank, **SIZES[adapted][0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("adapted", SIZES)
async def test_a_sessions_memory_is_that_of_its_rank(
    wire: Wire, engine: Engine, tiny_folder: Path, adapted: str, rank: int
) -> None:
    """Its weights, as much for the gradients and for each of two moments, whatever the others' ranks are."""
    await open_adapted(wire, tiny_folder, "all", 64)
    weights = weight_bytes(adapted, rank)
    session_id = await open_adapted(wire, tiny_folder, adapted, rank)
    session = engine.training._records[session_id].session
    assert (await wire.info(session_id)).trainable_parameters * 4 == weights
    held = [storage_bytes(tensors_of(session))]
    for step in range(2):
        await wire.result(session_id, await wire.send_pass(session_id, 2 * step + 1, random_data([9, 5])))
        held.append(storage_bytes(tensors_of(session)))
        await wire.result(session_id, await wire.send_step(session_id, 2 * step + 2))
        held.append(storage_bytes(tensors_of(session)))
    assert held == [weights, 2 * weights, 3 * weights, 4 * weights, 3 * weights]


async def test_nothing_else_grows_with_a_session_and_closing_frees_it(
    wire: Wire, engine: Engine, tiny_folder: Path
) -> None:
    """All tensors of this process; the base model was there before."""
    await open_adapted(wire, tiny_folder, "all", 64)
    before = live_bytes()
    opened = [await open_adapted(wire, tiny_folder, adapted, rank) for adapted, rank in (("all", 4), ("MLP", 8))]
    for session_id in opened:
        await wire.train(session_id, 1, random_data([9, 5]))
    assert live_bytes() - before == 3 * (weight_bytes("all", 4) + weight_bytes("MLP", 8))
    for session_id in opened:
        await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))
    assert live_bytes() == before


def live_bytes() -> int:
    """Memory of all tensors that Python knows of."""
    gc.collect()
    return storage_bytes([each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)])


async def test_a_session_that_cannot_be_opened_leaves_no_model(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    """Not even in its error: grpc keeps the one that its last failed call ended with."""
    before = live_bytes()
    with pytest.raises(InvalidArgumentError, match="nowhere") as caught:
        await engine.open_lora(tiny_folder, "float32", targets(4, "q_proj", "nowhere"), 0)
    assert caught.value.fields[0].field == "lora.target_modules[0]"
    assert not engine._shared
    assert live_bytes() == before
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        await wire.open(tiny_folder, lora=tp.LoraConfig(rank=4, target_modules=["nowhere"]))
    assert not engine._shared and not engine.training._creations
