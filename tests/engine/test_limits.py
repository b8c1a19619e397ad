"""Limits of sessions, operations and tokens, and fair turns, over both transports. A gate holds the compute thread."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.engine import Engine, EngineOptions
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_adapters.torch_engine.spec import TorchEngineOptions
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from tests.engine.tiny import MAX_POSITIONS, random_data
from tests.engine.wire import Wire, sample_request, serve

Serve = Callable[..., AbstractAsyncContextManager[tuple[Engine, Wire]]]
PROMPT = [5, 77, 12, 90]


@pytest.fixture
def with_limits(transport: Any, tmp_path: Path, gates: list[threading.Event]) -> Serve:
    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[tuple[Engine, Wire]]:
        async with serve(tmp_path / "work", transport=transport, **options) as pair:
            try:
                yield pair
            finally:
                # an engine whose thread is held does not end
                for gate in gates:
                    gate.set()

    return start


@pytest.fixture
def gates() -> list[threading.Event]:
    return []


@pytest.fixture
def gate(gates: list[threading.Event]) -> Callable[[Engine], threading.Event]:
    """Holds an engine's compute thread until the returned event is set."""

    def hold(engine: Engine) -> threading.Event:
        gates.append(threading.Event())
        engine.compute.submit(gates[-1].wait)
        return gates[-1]

    return hold


def test_defaults_are_the_described_ones() -> None:
    defaults = {each.name: each.default for each in dataclasses.fields(EngineOptions)}
    for name, described in TorchEngineOptions.model_fields.items():
        assert defaults[name] == described.default, name


async def test_tokens_in_flight_are_limited(with_limits: Serve, tiny_folder: Path, gate: Any) -> None:
    async with with_limits(max_tokens_in_flight=30) as (engine, wire):
        session_id = await wire.open(tiny_folder)
        other = await wire.open(tiny_folder)
        go_on = gate(engine)
        first = await wire.send_pass(session_id, 1, random_data([12, 8]))
        with pytest.raises(ResourceExhaustedError) as full:
            await wire.send_pass(session_id, 2, random_data([11]))
        next_sequence = (await wire.info(session_id)).next_sequence
        # a repeat is no new work
        assert (await wire.send_pass(session_id, 1, random_data([12, 8]))).id == first.id
        second = await wire.send_pass(session_id, 2, random_data([10]))
        # a step has no tokens, and another session has a limit of its own
        step = await wire.send_step(session_id, 3)
        beside = await wire.send_pass(other, 1, random_data([30]))
        go_on.set()
        assert full.value.reason == "TOO_MANY_TOKENS"
        assert full.value.metadata == {"limit": "30", "in_flight": "20", "tokens": "11"}
        assert full.value.retry_delay is not None
        assert next_sequence == 2
        for operation in (first, second, step):
            await wire.result(session_id, operation)
        await wire.result(other, beside)
        # finished work takes no room
        await wire.result(session_id, await wire.send_pass(session_id, 4, random_data([30])))


async def test_a_request_that_never_fits_is_wrong(with_limits: Serve, tiny_folder: Path) -> None:
    async with with_limits(max_tokens_in_flight=30) as (_, wire):
        session_id = await wire.open(tiny_folder)
        with pytest.raises(InvalidArgumentError, match="several calls") as by_pass:
            await wire.send_pass(session_id, 1, random_data([20, 11]))
        sampling = await wire.open_sampling(base_model=str(tiny_folder))
        with pytest.raises(InvalidArgumentError, match="fewer samples") as by_sample:
            await wire.sample(sampling, 1, PROMPT, num_samples=3, max_tokens=9)
        with pytest.raises(InvalidArgumentError) as by_score:
            await wire.score(sampling, 1, [3] * 31)
        refusals = [each.value for each in (by_pass, by_sample, by_score)]
        assert [each.fields[0].field for each in refusals] == ["data", "num_samples", "tokens_int32"]
        assert all(each.retry_delay is None for each in refusals)
        await wire.train(session_id, 1, random_data([20, 10]))
        await wire.sample(sampling, 1, PROMPT, num_samples=2, max_tokens=13)
        await wire.score(sampling, 2, [3] * 30)


async def test_a_sample_counts_what_the_model_can_reach(with_limits: Serve, tiny_folder: Path, gate: Any) -> None:
    async with with_limits(max_tokens_in_flight=2 * MAX_POSITIONS) as (engine, wire):
        session_id = await wire.open_sampling(base_model=str(tiny_folder))
        go_on = gate(engine)
        # 4 of the prompt, and 92 to the end of the model's positions
        request = sample_request(session_id, 1, PROMPT, max_tokens=2**31 - 1)
        first = (await wire.sampling.Sample(request)).operation
        with pytest.raises(ResourceExhaustedError) as full:
            await wire.sampling.Sample(sample_request(session_id, 2, PROMPT, num_samples=3, max_tokens=31))
        second = (
            await wire.sampling.Sample(sample_request(session_id, 2, PROMPT, num_samples=4, max_tokens=23))
        ).operation
        go_on.set()
        assert full.value.metadata == {"limit": "192", "in_flight": "96", "tokens": "97"}
        for operation in (first, second):
            await wire.sampled(session_id, operation)


async def test_later_numbers_of_a_refused_call_end_in_a_gap(with_limits: Serve, tiny_folder: Path, gate: Any) -> None:
    async with with_limits(max_tokens_in_flight=30) as (engine, wire):
        engine.in_flight = dataclasses.replace(engine.in_flight, hold_seconds=0.01)
        session_id = await wire.open(tiny_folder)
        go_on = gate(engine)
        first = await wire.send_pass(session_id, 1, random_data([30]))
        with pytest.raises(ResourceExhaustedError):
            await wire.send_pass(session_id, 2, random_data([5]))
        with pytest.raises(FailedPreconditionError) as gap:
            await wire.send_step(session_id, 3)
        go_on.set()
        assert gap.value.reason == "SEQUENCE_GAP"
        assert gap.value.metadata["expected"] == "2"
        await wire.result(session_id, first)
        await wire.send_pass(session_id, 2, random_data([5]))
        await wire.result(session_id, await wire.send_step(session_id, 3))


async def test_a_cancelled_operation_takes_room_until_its_place_has_passed(
    with_limits: Serve, tiny_folder: Path, gate: Any
) -> None:
    """Otherwise sending and cancelling would fill the queue without end."""
    async with with_limits(max_operations_in_flight=2) as (engine, wire):
        session_id = await wire.open_sampling(base_model=str(tiny_folder))
        go_on = gate(engine)
        for sequence in (1, 2):
            operation = (await wire.sampling.Sample(sample_request(session_id, sequence, PROMPT))).operation
            cancel = sp.CancelOperationRequest(session_id=session_id, operation_id=operation.id)
            await wire.sampling.CancelOperation(cancel)
        with pytest.raises(ResourceExhaustedError) as full:
            await wire.sampling.Sample(sample_request(session_id, 3, PROMPT))
        go_on.set()
        assert full.value.reason == "TOO_MANY_IN_FLIGHT"
        assert full.value.metadata == {"limit": "2", "in_flight": "2"}
        # the next job of the shared queue runs after the turn of the session
        await engine.on_compute(int)
        await engine.on_compute(int)
        await wire.sample(session_id, 3, PROMPT)


async def test_kinds_of_sessions_are_limited_apart(with_limits: Serve, tiny_folder: Path) -> None:
    limits = {"max_full_sessions": 1, "max_lora_sessions": 2, "max_sampling_sessions": 1}
    async with with_limits(**limits, lease_seconds=77) as (_, wire):
        lora = tp.LoraConfig(rank=2)
        full = await wire.open(tiny_folder)
        for _ in range(2):
            await wire.open(tiny_folder, lora=lora)
        await wire.open_sampling(base_model=str(tiny_folder))
        for kind, limit, call in (
            ("full", "1", lambda: wire.open(tiny_folder)),
            ("lora", "2", lambda: wire.open(tiny_folder, lora=lora)),
            ("sampling", "1", lambda: wire.open_sampling(base_model=str(tiny_folder))),
        ):
            with pytest.raises(ResourceExhaustedError) as caught:
                await call()
            assert caught.value.reason == "TOO_MANY_SESSIONS"
            assert caught.value.metadata == {"kind": kind, "limit": limit, "open": limit}
            assert caught.value.retry_delay is not None
        assert (await wire.info(full)).lease.seconds == 77
        await wire.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=full))
        await wire.open(tiny_folder)


async def test_a_full_queue_delays_another_session_by_one_operation(
    with_limits: Serve, tiny_folder: Path, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[TrainingSession] = []
    forward_backward = TrainingSession.forward_backward

    def logged(self: TrainingSession, *arguments: Any) -> Any:
        ran.append(self)
        return forward_backward(self, *arguments)

    monkeypatch.setattr(TrainingSession, "forward_backward", logged)
    async with with_limits() as (engine, wire):
        busy, quick, closed = [await wire.open(tiny_folder) for _ in range(3)]
        sessions = {each: engine.training.get(each).session for each in (busy, quick, closed)}
        go_on = gate(engine)
        backlog = [await wire.send_pass(busy, sequence, random_data([4])) for sequence in range(1, 65)]
        for sequence in range(1, 9):
            await wire.send_pass(closed, sequence, random_data([4]))
        wanted = [await wire.send_pass(quick, sequence, random_data([4])) for sequence in (1, 2)]
        closing = asyncio.ensure_future(engine.training.close(closed))
        await asyncio.sleep(0)  # it has begun
        go_on.set()
        for operation in wanted:
            await wire.result(quick, operation)
        await closing
        await wire.result(busy, backlog[-1])
        assert [ran.index(sessions[quick]), len(ran) - 1 - ran[::-1].index(sessions[quick])] == [1, 3]
        assert ran.count(sessions[busy]) == 64
        assert sessions[closed] not in ran
