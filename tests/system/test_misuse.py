"""Misuse over the wire: a clear status with reason and field, and nothing harmed."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2

from crucible.kitchen.v1 import event_pb2, run_pb2, run_pb2_grpc
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible_client import KitchenClient
from crucible_kit.channel import MAX_MESSAGE_BYTES, connect
from crucible_kit.errors import KitchenError
from crucible_kit.paging import encode
from tests.system.harness import SMALL, Server, serving


async def refused(kitchen: KitchenClient, recipe: str = "sl_basic", **config: Any) -> KitchenError:
    """The error of a run that must not be created; the server's runs stay as they were."""
    before = [run.run_id for run in (await kitchen.list_runs()).runs]
    with pytest.raises(KitchenError) as caught:
        await kitchen.create_run(recipe, preset="tiny" if recipe == "sl_basic" else "", config=config)
    assert [run.run_id for run in (await kitchen.list_runs()).runs] == before
    return caught.value


def facts(error: KitchenError) -> tuple[str, str, str]:
    """Code, reason and field."""
    return error.code.name, error.reason, error.metadata.get("field", "")


async def test_unknown_recipe_and_preset(kitchen: KitchenClient):
    error = await refused(kitchen, recipe="sl_basix")
    assert facts(error) == ("NOT_FOUND", "RECIPE_NOT_FOUND", "recipe")
    assert "sl_basic" in error.message
    with pytest.raises(KitchenError) as caught:
        await kitchen.create_run("sl_basic", preset="huge")
    assert facts(caught.value) == ("NOT_FOUND", "PRESET_NOT_FOUND", "preset")
    assert "tiny" in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("learning_rat", 1e-3, "did you mean learning_rate?"),
        ("learning_rate", "fast", "valid number (got 'fast')"),
        ("learning_rate", -1e-3, "greater than or equal to 0 (got -0.001)"),
        ("batch_size", 2.5, "integer"),
        ("batch_size", True, "integer"),
        ("lr_schedule", "step", "'constant', 'linear' or 'cosine'"),
        ("max_steps", -1, "greater than or equal to 0"),
        ("warmup_steps", 100_000, "must be less than max_steps"),
    ],
)
async def test_bad_configuration_names_the_key_and_the_fix(kitchen: KitchenClient, key: str, value: Any, told: str):
    error = await refused(kitchen, **{"max_steps": 5, key: value})
    assert facts(error) == ("INVALID_ARGUMENT", "CONFIG_INVALID", f"config.{key}")
    assert error.fields[0].field == f"config.{key}"
    assert told in error.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_numbers_that_are_none_are_refused(runs: Any, value: float):
    config = struct_pb2.Struct()
    config["learning_rate"] = value
    with pytest.raises(KitchenError) as caught:
        await runs.CreateRun(run_pb2.CreateRunRequest(recipe="sl_basic", preset="tiny", config=config))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_rank_beyond_the_engine_s_limit_fails_the_run_and_names_the_key(kitchen: KitchenClient, rows: Path):
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(rows), "lora_rank": 4000})
    ended = await kitchen.wait(run.run_id)
    assert ended.state == event_pb2.RUN_STATE_FAILED
    assert ended.failure.reason == "FIELD_INVALID"
    assert ended.failure.status.message.startswith("config.lora_rank: ")


async def test_deploying_is_refused_while_nothing_serves_the_port(kitchen: KitchenClient):
    error = await refused(kitchen, deploy=True)
    assert (error.code.name, error.reason) == ("UNIMPLEMENTED", "CAPABILITY_MISSING")


async def test_missing_file_and_unknown_model(kitchen: KitchenClient, tmp_path: Path):
    error = await refused(kitchen, **SMALL | {"dataset": str(tmp_path / "none.jsonl")})
    assert facts(error) == ("INVALID_ARGUMENT", "DATASET_NOT_FOUND", "config.dataset")
    assert "none.jsonl" in error.message
    error = await refused(kitchen, model="builtin:tiny-qwen4")
    assert facts(error) == ("INVALID_ARGUMENT", "MODEL_NOT_FOUND", "config.model")


@pytest.mark.parametrize(
    ("content", "reason", "told"),
    [
        ("", "DATASET_EMPTY", "no rows"),
        ('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "reply": "4"}\n', "ROW_INVALID", "row 1"),
        ('{"question": "1 + 1?", "answer": 2}\n', "ROW_INVALID", "not text"),
    ],
)
async def test_what_only_the_data_tells_fails_the_run(
    kitchen: KitchenClient, tmp_path: Path, content: str, reason: str, told: str
):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(path)})
    events = [event async for event in kitchen.watch(run.run_id)]
    ended = await kitchen.get_run(run.run_id)
    assert ended.state == event_pb2.RUN_STATE_FAILED
    assert ended.failure.reason == reason
    assert told in ended.failure.status.message
    assert events[-1].state_changed.failure.reason == reason
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds.index("stage_failed") < kinds.index("state_changed", kinds.index("stage_failed"))
    assert not ended.model_version_id


async def test_unknown_request_field(server: Server):
    channel = grpc.aio.insecure_channel(server.address)
    # Field 99 as a varint, behind a valid recipe.
    payload = run_pb2.CreateRunRequest(recipe="sl_basic").SerializeToString() + bytes([0x98, 0x06, 0x01])
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/crucible.kitchen.v1.RunService/CreateRun")(payload)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata() or ())["crucible-reason"] == "FIELD_UNKNOWN"
    assert "99" in (caught.value.details() or "")


async def test_bytes_that_are_no_message(server: Server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/crucible.kitchen.v1.RunService/CreateRun")(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_repeated_request_gets_the_first_run_and_another_payload_is_refused(
    kitchen: KitchenClient, runs: Any, rows: Path
):
    config = struct_pb2.Struct()
    config.update(SMALL | {"dataset": str(rows)})
    request = run_pb2.CreateRunRequest(
        request_id=str(uuid.uuid4()), recipe="sl_basic", preset="tiny", config=config, hold=True
    )
    first = (await runs.CreateRun(request)).run
    assert (await runs.CreateRun(request)).run.run_id == first.run_id
    request.seed = 9
    with pytest.raises(KitchenError) as caught:
        await runs.CreateRun(request)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    cancelled = await kitchen.cancel_run(first.run_id, reason="only a test")
    assert cancelled.state == event_pb2.RUN_STATE_CANCELLED


async def test_a_message_over_the_limit(server: Server, kitchen: KitchenClient, runs: Any):
    big = run_pb2.CreateRunRequest(recipe="sl_basic")
    big.config["dataset"] = "x" * (5 * 1024 * 1024)
    with pytest.raises(KitchenError) as caught:
        await runs.CreateRun(big)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")

    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        big.config["dataset"] = "x" * (64 * 1024 * 1024)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await run_pb2_grpc.RunServiceStub(channel).CreateRun(big)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in (refusal.value.details() or "")
    assert (await kitchen.list_runs(page_size=1)) is not None


async def test_a_cancelled_watch_and_one_that_never_reads_harm_nobody(
    server: Server, kitchen: KitchenClient, rows: Path
):
    run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(rows)})
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        never_reads = stub.WatchRun(run_pb2.WatchRunRequest(run_id=run.run_id, max_batch=1))
        cancelled = stub.WatchRun(run_pb2.WatchRunRequest(run_id=run.run_id))
        await cancelled.read()
        cancelled.cancel()
        events = [event async for event in kitchen.watch(run.run_id)]
        never_reads.cancel()
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_a_watch_past_the_end_is_an_error_not_a_wait(kitchen: KitchenClient):
    with pytest.raises(KitchenError) as caught:
        async for _ in kitchen.watch("no-such-run"):
            pass
    assert caught.value.reason == "RUN_NOT_FOUND"
    run = await kitchen.create_run("sl_basic", preset="tiny", hold=True)
    with pytest.raises(KitchenError) as caught:
        async for _ in kitchen.watch(run.run_id, after_sequence=99):
            pass
    assert (caught.value.code.name, caught.value.reason) == ("OUT_OF_RANGE", "SEQUENCE_OUT_OF_RANGE")
    await kitchen.cancel_run(run.run_id)


async def test_a_second_server_on_the_folder_is_refused(server: Server):
    command = [sys.executable, "-m", "crucible_kitchen.cli", "serve", "--listen", "127.0.0.1:0"]
    second = subprocess.run(
        [*command, "--data", str(server.data), "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    error = json.loads(second.stderr.strip().splitlines()[-1])
    assert error["reason"] == "DATA_FOLDER_IN_USE"
    assert server.address in error["message"]
    assert server.process.poll() is None


async def test_tokens_and_roles(tmp_path: Path):
    tokens = tmp_path / "tokens"
    tokens.write_text("read: looker-0123456789\nrun: runner-0123456789\nadmin: chief-0123456789\n")
    with serving(tmp_path / "data", "--tokens", str(tokens)) as server:

        async def outcome(token: str, call: str) -> str:
            async with KitchenClient.connect(server.address, token=token) as client:
                try:
                    if call == "list":
                        await client.list_runs()
                    else:
                        await client.create_run("sl_basic", preset="tiny", hold=True, config={"learning_rat": 1})
                except KitchenError as error:
                    assert "0123456789" not in error.message
                    return f"{error.code.name} {error.reason}"
                return "OK"

        assert await outcome("", "list") == "UNAUTHENTICATED TOKEN_MISSING"
        assert await outcome("wrong", "list") == "UNAUTHENTICATED TOKEN_INVALID"
        assert await outcome("looker-0123456789", "list") == "OK"
        assert await outcome("looker-0123456789", "create") == "PERMISSION_DENIED ROLE_MISSING"
        assert await outcome("runner-0123456789", "create") == "INVALID_ARGUMENT CONFIG_INVALID"


async def test_a_sequence_gap_at_the_training_port_is_refused_with_the_expected_number(tmp_path: Path):
    """The engine as the server starts it, driven directly."""
    from crucible_adapters.builtin.weights import materialise
    from crucible_kit.adapter import AdapterContext
    from crucible_kitchen.ports.host import PortHost

    folder, _ = materialise("tiny-qwen3", tmp_path / "model")
    host = PortHost.open(None, AdapterContext(data_dir=tmp_path))
    try:
        stub: training_pb2_grpc.TrainingServiceStub = await host.stub("training")
        created = await stub.CreateTrainingSession(
            training_pb2.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model=str(folder)), timeout=60
        )
        request = training_pb2.OptimStepRequest(
            session_id=created.session.session_id, sequence=66, adam=training_pb2.AdamParams(learning_rate=1e-3)
        )
        with pytest.raises(KitchenError) as caught:
            await stub.OptimStep(request)
        assert (caught.value.code.name, caught.value.reason) == ("FAILED_PRECONDITION", "SEQUENCE_GAP")
        assert caught.value.metadata["expected"] == "1"
    finally:
        await host.close()


async def test_nobody_listens(tmp_path: Path):
    channel = connect(f"unix:{tmp_path}/none.sock", wait_for_ready=False)
    try:
        with pytest.raises(KitchenError) as caught:
            await run_pb2_grpc.RunServiceStub(channel).ListRuns(run_pb2.ListRunsRequest(), timeout=5)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    finally:
        await channel.close()


@pytest.mark.parametrize("key", ["dataset", "model"])
@pytest.mark.parametrize("path", ["/zero\0byte", "/" + "long" * 200, "{folder}/loop", "/proc", "a/relative/path"])
async def test_paths_that_are_none_are_refused_as_such(kitchen: KitchenClient, tmp_path: Path, key: str, path: str):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    error = await refused(kitchen, **{key: path.format(folder=tmp_path)})
    assert error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error
    assert error.metadata["field"] == f"config.{key}"


@pytest.mark.parametrize("key", ["max_steps", "eval_max_rows", "max_length", "save_every", "sample_max_tokens"])
async def test_counts_beyond_the_wire_s_integers_are_refused(kitchen: KitchenClient, key: str):
    config: dict[str, Any] = {key: 1e30}
    error = await refused(kitchen, **config)
    assert facts(error) == ("INVALID_ARGUMENT", "CONFIG_INVALID", f"config.{key}")


async def test_a_forged_page_token_is_refused(kitchen: KitchenClient):
    scope = f"ListRuns:{run_pb2.ListRunsRequest().SerializeToString().hex()}"
    for position in ([-(10**17) + 1, "run"], [10**20, "run"], ["x", 1], [1], {"a": 1}):
        with pytest.raises(KitchenError) as caught:
            await kitchen.list_runs(page_token=encode(position, scope))  # type: ignore[arg-type]
        assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
