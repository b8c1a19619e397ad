"""The ports on the server's own address, driven by clients beside hosted runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2
from crucible_client import KitchenClient
from crucible_kit.errors import KitchenError
from crucible_kit.tensors import pack_tokens, to_tensor, unpack_tokens
from crucible_kit.training import TrainingSession
from tests.system.harness import SMALL, Server, children, serving

ROOT = Path(__file__).resolve().parents[2]
LOOP = ROOT / "clients" / "python" / "examples" / "sl_loop.py"
MODEL = "builtin:tiny-qwen3"
ANNE, BERT = "anne-token-0123456789", "bert-token-0123456789"
CROSS_ENTROPY = tp.LossFunction(name="cross_entropy")
# What the base install does not have, and what is the server's.
ABSENT = ("torch", "transformers", "tokenizers", "sqlalchemy", "yaml", "crucible_adapters", "crucible_kitchen")


async def loop_lines(address: str, rows: Path, **flags: Any) -> list[dict[str, Any]]:
    """What the example prints, in a process that has the base install only."""
    arguments = ["--server", address, "--model", MODEL, "--dataset", str(rows)]
    arguments += [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT!r})); "
        f"sys.argv = {[str(LOOP), *arguments]!r}; runpy.run_path({str(LOOP)!r}, run_name='__main__')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


async def run_losses(kitchen: KitchenClient, rows: Path, **config: Any) -> list[float]:
    """Losses of a hosted run, step by step."""
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(rows)} | config, seed=5)
    found: dict[int, float] = {}
    async for event in kitchen.watch(run.run_id):
        if event.HasField("step_completed"):
            found[event.step] = event.step_completed.metrics["train/loss"]
    assert event.state_changed.to_state == event_pb2.RUN_STATE_COMPLETED, event
    return [found[step] for step in sorted(found)]


def test_the_loop_is_short():
    assert len(LOOP.read_text().splitlines()) < 120


@pytest.mark.parametrize("rank", [0, 4])
async def test_the_loop_computes_what_a_hosted_run_computes(
    server: Server, kitchen: KitchenClient, rows: Path, rank: int
):
    # Over an epoch's end: 16 rows in batches of 5 are 4 steps, the last of 1 row.
    settings = {"batch_size": 5, "max_length": 96, "warmup_steps": 2, "learning_rate": 1e-3, "lora_rank": rank}
    expected = await run_losses(kitchen, rows, **settings, max_steps=6)
    lines = await loop_lines(server.address, rows, **settings, max_steps=6, seed=5)
    assert [line["loss"] for line in lines[:-1]] == expected
    assert len(set(expected)) == 6
    assert ("adapter_model.safetensors" if rank else "model.safetensors") in lines[-1]["files"]


def datum(seed: int, num_tokens: int = 12) -> datum_pb2.Datum:
    ids = np.random.default_rng(seed).integers(0, 2048, num_tokens + 1, dtype=np.int32)
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(ids[:-1]))
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={"target_tokens": to_tensor(ids[1:]), "weights": to_tensor(np.ones(num_tokens, np.float32))},
    )


async def refusal(call: Any) -> tuple[str, str]:
    """Code and reason of a call that must fail."""
    try:
        await call
    except KitchenError as error:
        return error.code.name, error.reason
    raise AssertionError("it was not refused")


async def read(stream: AsyncIterator[Any]) -> bytes:
    return b"".join([chunk.data async for chunk in stream])


async def misuse(kitchen: KitchenClient, stop: asyncio.Event) -> int:
    """Everything a client can do wrong, again and again; returns how often."""
    training, rounds = kitchen.port("training"), 0
    while not stop.is_set() or not rounds:
        session = await TrainingSession.create(training, base_model=MODEL, lora=tp.LoraConfig(rank=4), seed=rounds)
        on: dict[str, Any] = {"session_id": session.session_id}
        await session.enqueue_forward_backward([datum(rounds, 60) for _ in range(8)], CROSS_ENTROPY)
        await session.enqueue_optim_step(tp.AdamParams(learning_rate=0.1, weight_decay=0.5))
        outside = datum(1)
        outside.model_input.chunks[0].tokens_int32 = pack_tokens([1_000_000] * 12)
        nan = datum(1)
        nan.loss_fn_inputs["weights"].CopyFrom(to_tensor(np.full(12, np.nan, np.float32)))
        for data in ([outside], [nan]):
            bad = tp.ForwardBackwardRequest(**on, sequence=3, data=data, loss_fn=CROSS_ENTROPY)
            assert await refusal(training.ForwardBackward(bad)) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        # Millions of empty messages, which take a second to parse and minutes to look at one by one.
        flood = tp.ForwardBackwardRequest(**on, sequence=3, loss_fn=CROSS_ENTROPY)
        flood.MergeFromString(b"\x1a\x00" * 500_000)
        raw = kitchen._channel._channel.unary_unary(  # type: ignore[attr-defined]
            "/crucible.port.training.v1.TrainingService/ForwardBackward",
            request_serializer=tp.ForwardBackwardRequest.SerializeToString,
        )
        with contextlib.suppress(Exception):
            await raw(flood)
        dangling = asyncio.create_task(session.forward([datum(2, 200)] * 16, CROSS_ENTROPY))
        await asyncio.sleep(0)
        dangling.cancel()
        await asyncio.gather(dangling, return_exceptions=True)
        missing = tp.LoadCheckpointRequest(**on, sequence=3, uri="torch-engine:run-1/attempt-1/step-2")
        assert (await refusal(training.LoadCheckpoint(missing)))[1] == "CHECKPOINT_NOT_FOUND"
        assert await refusal(training.SaveCheckpoint(tp.SaveCheckpointRequest(**on, sequence=3, name="../x"))) == (
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
        )
        await session.close()
        rounds += 1
    return rounds


async def test_a_client_s_misuse_leaves_a_run_alone(kitchen: KitchenClient, rows: Path):
    config = {"max_steps": 16, "save_every": 0}
    expected = await run_losses(kitchen, rows, **config)
    stop = asyncio.Event()
    misusing = asyncio.create_task(misuse(kitchen, stop))
    try:
        found = await run_losses(kitchen, rows, **config)
    finally:
        stop.set()
    assert await misusing
    assert found == expected


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two tokens that may run."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = folder / "tokens"
    tokens.write_text(f"run: {ANNE}\nrun: {BERT}\n")
    tokens.chmod(0o600)
    with serving(folder / "data", "--tokens", str(tokens)) as running:
        yield running


async def sample(kitchen: KitchenClient, **model: str) -> list[int]:
    """Eight tokens that follow a prompt, the most likely ones."""
    sampling = kitchen.port("sampling")
    request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **model)
    session_id = (await sampling.CreateSamplingSession(request, timeout=120)).session_id
    params = sp.SamplingParams(max_tokens=8, temperature=0)
    request = sp.SampleRequest(
        session_id=session_id, sequence=1, prompt_tokens_int32=pack_tokens([5, 6, 7]), params=params, num_samples=1
    )
    operation = (await sampling.Sample(request)).operation
    request = sp.AwaitOperationRequest(session_id=session_id, operation_id=operation.id)
    request.wait.FromSeconds(20)
    result = (await sampling.AwaitOperation(request)).sample
    await sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=session_id))
    return unpack_tokens(result.sequences[0].tokens_int32).tolist()


async def test_what_can_only_fail_starts_no_engine(guarded: Server, tmp_path: Path):
    async with KitchenClient.connect(guarded.address, token=ANNE) as kitchen:
        missing = TrainingSession.create(kitchen.port("training"), base_model="builtin:tiny-qwen4")
        assert await refusal(missing) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert await refusal(sample(kitchen, base_model=str(tmp_path / "none"))) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        call = kitchen.port("training").GetTrainingSession(tp.GetTrainingSessionRequest(session_id="x"))
        assert await refusal(call) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert not children(guarded.process.pid)


async def test_two_tokens_a_crash_and_a_restart(guarded: Server, rows: Path):
    """Whose sessions and checkpoints are whose, on the real engine; and a run that goes on beside them."""
    async with (
        KitchenClient.connect(guarded.address, token=ANNE) as anne,
        KitchenClient.connect(guarded.address, token=BERT) as bert,
    ):
        training = anne.port("training")
        mine = await TrainingSession.create(training, base_model=MODEL, lora=tp.LoraConfig(rank=4), seed=1)
        await mine.enqueue_forward_backward([datum(1)], CROSS_ENTROPY)
        await mine.result(await mine.enqueue_optim_step(tp.AdamParams(learning_rate=0.1)))
        saved = await mine.save_checkpoint("lora/final", weights_only=False)
        live = await sample(anne, training_session_id=mine.session_id)
        assert await sample(anne, checkpoint_uri=saved.uri) == live != await sample(anne, base_model=MODEL)

        theirs = bert.port("training")
        own = await TrainingSession.create(theirs, base_model=MODEL, lora=tp.LoraConfig(rank=4))
        not_found = ("NOT_FOUND", "SESSION_NOT_FOUND"), ("NOT_FOUND", "CHECKPOINT_NOT_FOUND")
        stolen = tp.GetTrainingSessionRequest(session_id=mine.session_id)
        assert await refusal(theirs.GetTrainingSession(stolen)) == not_found[0]
        assert await refusal(sample(bert, training_session_id=mine.session_id)) == not_found[0]
        inner = f"torch-engine:{saved.uri.partition('torch-engine:')[2]}"
        for uri in (saved.uri, inner):
            reading = tp.ReadCheckpointFileRequest(uri=uri, path=saved.files[0].path)
            loading = tp.LoadCheckpointRequest(session_id=own.session_id, sequence=1, uri=uri)
            assert await refusal(read(theirs.ReadCheckpointFile(reading))) == not_found[1]
            assert await refusal(theirs.LoadCheckpoint(loading)) == not_found[1]
            assert await refusal(sample(bert, checkpoint_uri=uri)) == not_found[1]
            await theirs.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=uri))
        reading = tp.ReadCheckpointFileRequest(uri=saved.uri, path=saved.files[0].path)
        before = await read(training.ReadCheckpointFile(reading))
        assert before

        config = {"dataset": str(rows), "max_steps": 16, "save_every": 4}
        run = await anne.create_run("sl_basic", preset="tiny", config=SMALL | config, seed=5)
        async for event in anne.watch(run.run_id):
            if event.HasField("checkpoint_saved"):
                break
        (engine,) = children(guarded.process.pid)
        os.kill(engine, signal.SIGKILL)
        assert (await anne.wait(run.run_id)).state == event_pb2.RUN_STATE_COMPLETED
        assert (await anne.get_run(run.run_id)).attempt == 2
        assert await refusal(mine.enqueue_optim_step(tp.AdamParams(learning_rate=1))) == not_found[0]

    guarded.terminate()
    guarded.start()
    async with (
        KitchenClient.connect(guarded.address, token=ANNE) as anne,
        KitchenClient.connect(guarded.address, token=BERT) as bert,
    ):
        assert await read(anne.port("training").ReadCheckpointFile(reading)) == before
        assert await refusal(read(bert.port("training").ReadCheckpointFile(reading))) == not_found[1]
        assert await sample(anne, checkpoint_uri=saved.uri) == live
        again = await TrainingSession.create(anne.port("training"), base_model=MODEL, lora=tp.LoraConfig(rank=4))
        loaded = await again.load_checkpoint(saved.uri, weights_only=False)
        assert (loaded.uri, loaded.optim_steps) == (saved.uri, 1)
