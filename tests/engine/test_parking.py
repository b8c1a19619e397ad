"""Idle sessions on disk: they come back with the same bytes, whatever was going on, and never with damaged ones."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine import tensor_files
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.parking import Parking
from crucible_kit.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from crucible_kit.tensors import unpack_tokens
from tests.engine.tenants import STEPS, Ends, Tenant, full, narrow, run_alone, storage_bytes, tensors_of, wide
from tests.engine.tiny import MAX_POSITIONS, random_data
from tests.engine.wire import Wire, serve

PROMPT = [5, 77, 12, 90]
PLACES = [
    "before step 0",
    "after pass 0 of step 0",
    "after pass 1 of step 1",
    "after step 0",
    f"after step {STEPS - 1}",
]


async def park_idle(engine: Engine, tenant: Tenant) -> None:
    """As if nobody had named the session for long; the others are younger."""
    record = tenant.record(engine)
    record.last_used -= engine.options.park_after_seconds + 1
    await engine.park_idle()
    assert engine.parking.is_parked(record.session)
    assert storage_bytes(tensors_of(record.session)) == 0


def parked_files(engine: Engine) -> list[Path]:
    return sorted((engine.options.work_dir / "parked").iterdir())


@pytest.mark.parametrize("place", [*PLACES, "everywhere"])
@pytest.mark.parametrize("kind", ["wide", "full"])
async def test_a_session_that_was_parked_ends_with_the_bytes_of_one_that_was_not(
    tiny_folder: Path, tmp_path: Path, kind: str, place: str
) -> None:
    ends: list[Ends] = []
    for parked in (False, True):
        tenant = wide() if kind == "wide" else full()
        times = 0
        async with serve(tmp_path / str(parked), transport="object") as (engine, wire):

            async def park(where: str) -> None:
                nonlocal times
                if place in (where, "everywhere"):
                    await park_idle(engine, tenant)  # noqa: B023  # called in this round only
                    times += 1

            ends.append(await run_alone(wire, tiny_folder, tenant, park if parked else None))
            # what was read is gone from the disk
            assert parked_files(engine) == []
    assert times == (1 + 3 * STEPS if place == "everywhere" else 1)
    assert ends[0] == ends[1]


async def test_parking_over_the_wire_in_bfloat16(transport: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """A full session has master weights there; two sessions are on disk at a time."""
    ends: list[list[Ends]] = []
    for parked in (False, True):
        async with serve(tmp_path / str(parked), transport=transport) as (engine, wire):
            tenants = [full(), narrow()]
            for tenant in tenants:
                await tenant.open(wire, tiny_folder, dtype="bfloat16")
            for step in range(STEPS):
                for tenant in tenants:
                    await tenant.send_pass(wire, step)
                    await tenant.settle(wire)
                if parked:
                    for tenant in tenants:
                        await park_idle(engine, tenant)
                    assert len(parked_files(engine)) == 2
                for tenant in tenants:
                    await tenant.send_step(wire)
            ends.append([await tenant.end(wire, "x") for tenant in tenants])
    assert ends[0] == ends[1]


async def test_a_followed_session_is_brought_back_for_its_sampler(
    transport: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        tenant = wide()
        await tenant.open(wire, tiny_folder)
        await tenant.send_pass(wire, 0)
        await tenant.send_step(wire)
        await tenant.settle(wire)
        live = await wire.open_sampling(training_session_id=tenant.session_id)
        scores = await wire.score(live, 1, PROMPT)
        sampled = await wire.sample(live, 2, PROMPT, num_samples=3, seed=5)
        for sequence in (3, 5):
            await park_idle(engine, tenant)
            assert (await wire.score(live, sequence, PROMPT)).tobytes() == scores.tobytes()
            await park_idle(engine, tenant)
            again = await wire.sample(live, sequence + 1, PROMPT, num_samples=3, seed=5)
            assert list(again.sequences) == list(sampled.sequences)
            assert again.weights_version == 1
        assert not engine.parking.is_parked(tenant.record(engine).session)


async def test_reading_about_a_parked_session_leaves_it_parked(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    tenant = wide()
    await tenant.open(wire, tiny_folder)
    before = await wire.info(tenant.session_id)
    await park_idle(engine, tenant)
    after = await wire.info(tenant.session_id)
    assert after == before and after.trainable_parameters > 0
    # what is refused before it runs needs no tensors either
    with pytest.raises(InvalidArgumentError):
        await wire.send_pass(tenant.session_id, 1, random_data([MAX_POSITIONS + 1]))
    assert engine.parking.is_parked(tenant.record(engine).session)


async def test_a_failed_pass_is_still_failed_after_parking(
    wire: Wire, engine: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = wide()
    await tenant.open(wire, tiny_folder)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "hidden_states", lambda *_: (_ for _ in ()).throw(MemoryError()))
        await tenant.send_pass(wire, 0)
        with pytest.raises(ResourceExhaustedError):
            await tenant.settle(wire)
    tenant.sent = []
    await park_idle(engine, tenant)
    await tenant.send_step(wire)
    with pytest.raises(FailedPreconditionError) as caught:
        await tenant.settle(wire)
    assert caught.value.reason == "GRADIENTS_INVALID"


async def test_sessions_with_work_or_callers_are_not_parked(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    busy, young = wide(), narrow()
    for tenant in (busy, young):
        await tenant.open(wire, tiny_folder)
    busy.record(engine).last_used -= engine.options.park_after_seconds + 1
    await busy.send_pass(wire, 0)
    await engine.park_idle()
    assert parked_files(engine) == []
    await busy.settle(wire)


def damage(path: Path) -> tuple[str, str | None]:
    """The reason to expect, and the file's new hash."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return "was changed", hashlib.sha256(data).hexdigest()


def remove(path: Path) -> tuple[str, str | None]:
    path.unlink()
    return "is missing", None


@pytest.mark.parametrize("harm", [damage, remove])
async def test_a_damaged_file_is_told_and_harms_nobody_else(
    transport: Any, tiny_folder: Path, tmp_path: Path, harm: Any
) -> None:
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        broken, other = wide(), narrow()
        for tenant in (broken, other):
            await tenant.open(wire, tiny_folder)
            await tenant.send_pass(wire, 0)
            await tenant.settle(wire)
        live = await wire.open_sampling(training_session_id=broken.session_id)
        await park_idle(engine, broken)
        (path,) = parked_files(engine)
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        problem, actual = harm(path)
        with pytest.raises(DataLossError, match=problem) as by_sampler:
            await wire.score(live, 1, PROMPT)
        await broken.send_step(wire)
        # it stays so: nothing computes with half of a session
        with pytest.raises(DataLossError, match=problem) as by_step:
            await broken.settle(wire)
        for caught in (by_sampler, by_step):
            assert caught.value.reason == "CHECKPOINT_CORRUPT"
            assert caught.value.metadata["expected"] == expected
            assert caught.value.metadata.get("actual") == actual
            assert "open a new session" in caught.value.message
        await other.send_step(wire)
        await other.settle(wire)
        await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=broken.session_id))
        assert parked_files(engine) == []


async def test_closing_and_the_end_of_a_lease_remove_the_file(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    closed, expired = wide(), narrow()
    for tenant in (closed, expired):
        await tenant.open(wire, tiny_folder)
        await park_idle(engine, tenant)
    live = await wire.open_sampling(training_session_id=closed.session_id)
    assert len(parked_files(engine)) == 2
    await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=closed.session_id))
    assert len(parked_files(engine)) == 1
    with pytest.raises(NotFoundError):
        await wire.score(live, 1, PROMPT)
    await wire.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=live))
    expired.record(engine).last_used -= engine.training.lease_seconds + 1
    await engine.training.close_expired()
    assert parked_files(engine) == []
    assert not engine._shared


async def test_a_full_disk_keeps_the_session_in_memory(
    wire: Wire, engine: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = wide(), narrow()
    for tenant in (first, second):
        await tenant.open(wire, tiny_folder)
        await tenant.send_pass(wire, 0)
        await tenant.settle(wire)
    save_file = tensor_files.save_file

    def fills_up(tensors: Any, path: Path, *arguments: Any) -> None:
        if len(tensors) > 20:
            path.write_bytes(b"half a file")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, *arguments)

    monkeypatch.setattr(tensor_files, "save_file", fills_up)
    for tenant in (first, second):
        tenant.record(engine).last_used -= engine.options.park_after_seconds + 1
    with caplog.at_level(logging.WARNING):
        await engine.park_idle()
    assert "No space left" in caplog.text and first.session_id in caplog.text
    assert [engine.parking.is_parked(each.record(engine).session) for each in (first, second)] == [False, True]
    assert len(parked_files(engine)) == 1
    for tenant in (first, second):
        await tenant.send_step(wire)
        await tenant.settle(wire)


def test_a_new_engine_removes_what_the_last_one_left(tmp_path: Path) -> None:
    (tmp_path / "parked").mkdir()
    (tmp_path / "parked" / "1.safetensors").write_bytes(b"of a process that is gone")
    Parking(tmp_path / "parked")
    assert list((tmp_path / "parked").iterdir()) == []


async def test_parking_can_be_switched_off(tiny_folder: Path, tmp_path: Path) -> None:
    async with serve(tmp_path / "work", transport="object", park_after_seconds=0) as (engine, wire):
        tenant = wide()
        await tenant.open(wire, tiny_folder)
        tenant.record(engine).last_used -= 10**6
        await engine.park_idle()
        assert parked_files(engine) == []


async def test_tokens_of_a_parked_tenant_are_its_own(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    """The next adapter in memory must not be sampled in its place."""
    first, second = wide(), narrow()
    tokens = {}
    for tenant in (first, second):
        await tenant.open(wire, tiny_folder)
        for seed in range(3):
            await tenant.send_pass(wire, seed)
            await tenant.send_step(wire)
        await tenant.settle(wire)
        live = await wire.open_sampling(training_session_id=tenant.session_id)
        result = await wire.sample(live, 1, PROMPT, max_tokens=12, temperature=0.0)
        tokens[live] = unpack_tokens(result.sequences[0].tokens_int32).tolist()
    assert len({str(each) for each in tokens.values()}) == 2
    await park_idle(engine, first)
    for live, expected in reversed(tokens.items()):
        result = await wire.sample(live, 2, PROMPT, max_tokens=12, temperature=0.0)
        assert unpack_tokens(result.sequences[0].tokens_int32).tolist() == expected
