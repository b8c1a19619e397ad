"""TrainingService over a unix socket: results, order, repeats, refusals, failures, leases."""

from __future__ import annotations

import asyncio
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_adapters import operations
from crucible_adapters.torch_engine.checkpoint import save_checkpoint
from crucible_adapters.torch_engine.engine import Engine
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
)
from crucible_kit.tensors import from_tensor
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data
from tests.engine.wire import CROSS_ENTROPY, Wire, to_proto


async def test_pipelined_steps_equal_the_core_byte_for_byte(wire: Wire, tiny_folder: Path, tmp_path: Path) -> None:
    core = TrainingSession(load_model(tiny_folder, device="cpu", dtype="float32"))
    session_id = await wire.open(tiny_folder)
    sent = []
    for step in range(3):
        data = random_data([9, 5, 12], seed=step)
        sent.append(await wire.send_pass(session_id, 2 * step + 1, data))
        sent.append(await wire.send_step(session_id, 2 * step + 2))
    for step in range(3):
        expected = core.forward_backward(random_data([9, 5, 12], seed=step), get_loss("cross_entropy"), {})
        forward = (await wire.result(session_id, sent[2 * step])).forward
        assert forward.loss == expected.loss
        assert forward.metrics["tokens"] == 26
        for output, logprobs in zip(forward.outputs, expected.logprobs, strict=True):
            np.testing.assert_array_equal(from_tensor(output.logprobs), logprobs)
        optim = core.optim_step(AdamWOptions(learning_rate=1e-2))
        result = (await wire.result(session_id, sent[2 * step + 1])).optim_step
        assert (result.grad_norm, result.update_norm) == (optim.grad_norm, optim.update_norm)
        assert (result.optim_steps, result.weights_version, result.learning_rate) == (step + 1, step + 1, 1e-2)

    saved = await wire.save(session_id, 7, "run-1/step-3")

    save_checkpoint(core, tmp_path / "core")
    for file in saved.files:
        mine = tmp_path / "work" / "checkpoints" / "run-1" / "step-3" / file.path
        assert mine.read_bytes() == (tmp_path / "core" / file.path).read_bytes(), file.path


async def test_session_describes_itself(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder, dtype="float64")
    await wire.train(session_id, 1, random_data([4]))
    info = await wire.info(session_id)
    assert info.base_model == str(tiny_folder)
    assert info.trainable_parameters == 22_720
    assert (info.vocab_size, info.max_sequence_tokens) == (VOCAB, MAX_POSITIONS)
    assert (info.dtype, info.device) == ("float64", "cpu")
    assert (info.optim_steps, info.weights_version, info.next_sequence) == (1, 1, 3)
    assert info.lease.seconds > 0


async def test_forward_gives_no_gradients(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    request = tp.ForwardRequest(
        session_id=session_id, sequence=1, data=[to_proto(d) for d in random_data([4])], loss_fn=CROSS_ENTROPY
    )
    operation = (await wire.training.Forward(request)).operation
    assert (await wire.result(session_id, operation)).forward.loss != 0
    with pytest.raises(FailedPreconditionError) as caught:
        await wire.result(session_id, await wire.send_step(session_id, 2))
    assert caught.value.reason == "NO_GRADIENTS"


async def test_early_calls_are_held_and_run_in_order(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    late_first = [asyncio.ensure_future(wire.send_step(session_id, n)) for n in (4, 2)]
    await wire.send_pass(session_id, 1, random_data([4], seed=1))
    second = await late_first[1]
    await wire.send_pass(session_id, 3, random_data([4], seed=2))
    fourth = await late_first[0]
    assert (await wire.result(session_id, second)).optim_step.optim_steps == 1
    assert (await wire.result(session_id, fourth)).optim_step.optim_steps == 2


async def test_gap_is_refused_with_the_expected_number(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    engine.in_flight = operations.Limits(hold_seconds=1000.0)
    patient = await wire.open(tiny_folder)
    with pytest.raises(FailedPreconditionError) as far:
        await wire.send_step(patient, 1 + operations.HOLD_WINDOW + 1)
    engine.in_flight = operations.Limits(hold_seconds=0.01)
    with pytest.raises(FailedPreconditionError) as late:
        await wire.send_step(await wire.open(tiny_folder), 3)
    for caught in (far, late):
        assert caught.value.reason == "SEQUENCE_GAP"
        assert caught.value.metadata["expected"] == "1"


async def test_repeat_gets_the_first_operation_and_applies_nothing(wire: Wire, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    data = random_data([6], seed=4)
    first = await wire.send_pass(session_id, 1, data)
    assert (await wire.send_pass(session_id, 1, data)).id == first.id
    step = await wire.send_step(session_id, 2)
    result = (await wire.result(session_id, step)).optim_step
    assert (await wire.send_step(session_id, 2)).id == step.id

    assert (await wire.info(session_id)).optim_steps == 1
    other = await wire.open(tiny_folder)
    assert (await wire.train(other, 1, data)).grad_norm == result.grad_norm
    with pytest.raises(InvalidArgumentError) as caught:
        await wire.send_step(session_id, 2, lr=0.5)
    assert caught.value.reason == "SEQUENCE_REUSED"


async def test_create_is_idempotent_by_request_id(wire: Wire, tiny_folder: Path) -> None:
    request = tp.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model=str(tiny_folder))
    first, again = await asyncio.gather(
        wire.training.CreateTrainingSession(request), wire.training.CreateTrainingSession(request)
    )
    assert first.session.session_id == again.session.session_id
    request.dtype = "float64"
    with pytest.raises(InvalidArgumentError) as caught:
        await wire.training.CreateTrainingSession(request)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_what_cannot_be_opened_is_refused(
    wire: Wire, engine: Engine, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError) as missing:
        await wire.open(tmp_path / "nowhere")
    assert missing.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(InvalidArgumentError, match="not absolute"):
        await wire.open(Path("relative/model"))
    with pytest.raises(InvalidArgumentError, match=r"no config\.json"):
        await wire.open(tmp_path)
    monkeypatch.setattr(engine.training, "_limits", {"full": 1})
    await wire.open(tiny_folder)
    with pytest.raises(ResourceExhaustedError) as full:
        await wire.open(tiny_folder)
    assert full.value.reason == "TOO_MANY_SESSIONS"
    assert full.value.retry_delay is not None


async def test_absent_adam_fields_are_the_documented_defaults(wire: Wire, tiny_folder: Path) -> None:
    norms = []
    for given in ({}, {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}):
        session_id = await wire.open(tiny_folder)
        for step in range(2):
            await wire.send_pass(session_id, 2 * step + 1, random_data([7], seed=step))
            adam = tp.AdamParams(learning_rate=1e-2, **given)
            request = tp.OptimStepRequest(session_id=session_id, sequence=2 * step + 2, adam=adam)
            operation = (await wire.training.OptimStep(request)).operation
        norms.append((await wire.result(session_id, operation)).optim_step.update_norm)
    assert norms[0] == norms[1]


async def test_failed_pass_fails_the_step_and_the_session_goes_on(
    wire: Wire, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await wire.open(tiny_folder)
    clean = await wire.open(tiny_folder)
    await wire.send_pass(session_id, 1, random_data([4], seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "hidden_states", lambda *_: (_ for _ in ()).throw(RuntimeError("secret detail")))
        operation = await wire.send_pass(session_id, 2, random_data([4], seed=2))
        with pytest.raises(KitchenError) as failed:
            await wire.result(session_id, operation)
    assert failed.value.reason == "INTERNAL_BUG"
    assert "secret" not in str(failed.value)
    with pytest.raises(FailedPreconditionError) as step:
        await wire.result(session_id, await wire.send_step(session_id, 3))
    assert step.value.reason == "GRADIENTS_INVALID"
    data = random_data([4], seed=3)
    # nothing of the failed step is left in gradients or moments
    assert (await wire.train(session_id, 4, data)).update_norm == (await wire.train(clean, 1, data)).update_norm


async def test_out_of_memory_is_named(wire: Wire, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = await wire.open(tiny_folder)
    monkeypatch.setattr(LoadedModel, "hidden_states", lambda *_: (_ for _ in ()).throw(MemoryError()))
    operation = await wire.send_pass(session_id, 1, random_data([4]))
    with pytest.raises(ResourceExhaustedError, match="micro-batch-tokens") as caught:
        await wire.result(session_id, operation)
    assert caught.value.reason == "OUT_OF_MEMORY"


async def test_cancelled_pass_counts_as_failed(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    go_on = threading.Event()
    engine.compute.submit(go_on.wait)
    dropped = await wire.send_pass(session_id, 1, random_data([4], seed=1))
    kept = await wire.send_pass(session_id, 2, random_data([4], seed=2))
    step = await wire.send_step(session_id, 3)
    request = tp.CancelOperationRequest(session_id=session_id, operation_id=dropped.id)
    cancelled = (await wire.training.CancelOperation(request)).operation
    go_on.set()

    assert cancelled.state == operation_pb2.OPERATION_STATE_CANCELLED
    await wire.result(session_id, kept)
    with pytest.raises(FailedPreconditionError, match="cancelled") as caught:
        await wire.result(session_id, step)
    assert caught.value.reason == "GRADIENTS_INVALID"
    # too late for a finished one: its state tells
    request.operation_id = kept.id
    assert (await wire.training.CancelOperation(request)).operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_await_answers_the_unfinished_operation(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    session_id = await wire.open(tiny_folder)
    go_on = threading.Event()
    engine.compute.submit(go_on.wait)
    operation = await wire.send_pass(session_id, 1, random_data([4]))
    request = tp.AwaitOperationRequest(session_id=session_id, operation_id=operation.id)
    request.wait.FromMilliseconds(20)
    waiting = await wire.training.AwaitOperation(request)
    go_on.set()
    assert waiting.operation.state == operation_pb2.OPERATION_STATE_QUEUED
    assert waiting.WhichOneof("result") is None
    finished = await wire.result(session_id, operation)
    assert finished.operation.expire_time.ToNanoseconds() > finished.operation.create_time.ToNanoseconds()


async def test_results_expire_after_enough_later_ones(
    wire: Wire, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "RESULTS_KEPT", 2)
    session_id = await wire.open(tiny_folder)
    sent = [await wire.send_pass(session_id, n, random_data([4])) for n in (1, 2, 3)]
    await wire.result(session_id, sent[2])
    with pytest.raises(NotFoundError) as by_id:
        await wire.result(session_id, sent[0])
    with pytest.raises(NotFoundError) as by_repeat:
        await wire.send_pass(session_id, 1, random_data([4]))
    assert by_id.value.reason == by_repeat.value.reason == "OPERATION_NOT_FOUND"
    await wire.result(session_id, sent[1])


async def test_unfinished_operations_are_limited(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    engine.in_flight = operations.Limits(operations=1)
    session_id = await wire.open(tiny_folder)
    go_on = threading.Event()
    engine.compute.submit(go_on.wait)
    first = await wire.send_pass(session_id, 1, random_data([4]))
    with pytest.raises(ResourceExhaustedError) as caught:
        await wire.send_step(session_id, 2)
    go_on.set()
    assert caught.value.reason == "TOO_MANY_IN_FLIGHT"
    await wire.result(session_id, first)
    await wire.result(session_id, await wire.send_step(session_id, 2))


async def test_session_ends_by_close_and_by_lease(wire: Wire, engine: Engine, tiny_folder: Path) -> None:
    closed, expired, kept = [await wire.open(tiny_folder) for _ in range(3)]
    close = tp.CloseTrainingSessionRequest(session_id=closed)
    await wire.training.CloseTrainingSession(close)
    await wire.training.CloseTrainingSession(close)
    engine.training._records[expired].last_used -= engine.training.lease_seconds + 1
    await engine.training.close_expired()

    for session_id in (closed, expired):
        with pytest.raises(NotFoundError) as caught:
            await wire.send_pass(session_id, 1, random_data([4]))
        assert caught.value.reason == "SESSION_NOT_FOUND"
    await wire.train(kept, 1, random_data([4]))


async def test_sessions_do_not_touch_each_other(wire: Wire, tiny_folder: Path) -> None:
    alone = await wire.open(tiny_folder)
    data = [random_data([8], seed=step) for step in range(2)]
    expected = [(await wire.train(alone, 2 * n + 1, each)).update_norm for n, each in enumerate(data)]
    one, other = await wire.open(tiny_folder), await wire.open(tiny_folder)
    actual = []
    for n, each in enumerate(data):
        await wire.train(other, 2 * n + 1, random_data([20], seed=50 + n))
        actual.append((await wire.train(one, 2 * n + 1, each)).update_norm)
    assert actual == expected
