"""A run of sl_basic at Tinker, paused on the way, has the numbers of one on the torch engine, bit by bit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tinker")

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient
from crucible_kit.conformance.settings import builtin_folder
from tests.system.harness import SMALL, serving, write_rows
from tests.tinker.http import Answer
from tests.tinker.server import TinkerServer
from tests.workflow.kitchen import kitchen_on

MODEL = "builtin:tiny-qwen3-base"
CONFIG: dict[str, Any] = SMALL | {
    "max_steps": 4,
    "lora_rank": 4,
    "eval_fraction": 0.25,
    "eval_at_start": True,
    "sample_prompts": 1,
    "sample_max_tokens": 8,
}
# Numbers that are times.
_TIMES = ("time/", "train/tokens_per_second")


@pytest.fixture
async def tinker(tmp_path: Path) -> AsyncIterator[TinkerServer]:
    server = TinkerServer({MODEL: Path(builtin_folder("tiny-qwen3-base"))}, tmp_path / "engine")
    await server.start()
    yield server
    await server.stop()


async def direct_run(tinker: TinkerServer, data: Path, config: dict[str, Any]) -> list[event_pb2.RunEvent]:
    """The events of a run in this process, on the engine that the server computes with."""
    async with kitchen_on(data) as kitchen:
        kitchen._stubs |= {"training": tinker.training, "sampling": tinker.sampling}
        ended = await kitchen.run("tiny_lora", 1, **config)
        assert ended.state == event_pb2.RUN_STATE_COMPLETED, ended.failure
        return await kitchen.events(ended)


async def paused_run(kitchen: KitchenClient, config: dict[str, Any]) -> list[event_pb2.RunEvent]:
    """The events of a run that was paused behind its first checkpoint, went on from it, and has ended well."""
    made = await kitchen.create_run("sl_basic", preset="tiny_lora", config=config, seed=1)
    async for event in kitchen.watch(made.run_id):
        if event.HasField("checkpoint_saved"):
            break
    await kitchen.pause_run(made.run_id)
    assert (await kitchen.wait(made.run_id)).state == event_pb2.RUN_STATE_PAUSED
    await kitchen.resume_run(made.run_id)
    ended = await kitchen.wait(made.run_id)
    assert (ended.state, ended.attempt) == (event_pb2.RUN_STATE_COMPLETED, 2), ended.failure
    return [event async for event in kitchen.watch(made.run_id)]


async def waits(kitchen: KitchenClient, run_id: str) -> run_pb2.Run:
    """The run, when it is PAUSED because Tinker is away."""
    run = await kitchen.wait(run_id)
    assert (run.state, run.waiting_for_port) == (event_pb2.RUN_STATE_PAUSED, "training"), run.failure
    return run


def numbers(events: list[event_pb2.RunEvent]) -> dict[int, dict[str, float]]:
    """The metrics of every step but times; those of its last attempt."""
    return {
        event.step: {name: value for name, value in event.step_completed.metrics.items() if not name.startswith(_TIMES)}
        for event in events
        if event.HasField("step_completed")
    }


def evaluations(events: list[event_pb2.RunEvent]) -> list[tuple[dict[str, float], list[str]]]:
    found = [event.evaluation_completed for event in events if event.HasField("evaluation_completed")]
    return [(dict(each.metrics), [sample.output for sample in each.samples]) for each in found]


async def test_a_run_at_tinker_has_the_numbers_of_one_on_the_torch_engine(tinker: TinkerServer, tmp_path: Path) -> None:
    config = CONFIG | {"dataset": str(write_rows(tmp_path / "rows.jsonl"))}
    expected = await direct_run(tinker, tmp_path / "direct", config)
    manifest = tmp_path / "kitchen.yaml"
    manifest.write_text("profile: tinker\nports: {hub: 'builtin:local', dataset: 'builtin:local'}\n")
    environment = {"TINKER_API_KEY": "tml-planted", "TINKER_BASE_URL": tinker.address}
    with serving(tmp_path / "remote", "--manifest", str(manifest), environment=environment) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            events = await paused_run(kitchen, config)
    assert numbers(events) == numbers(expected)
    assert len(numbers(events)) == CONFIG["max_steps"]
    assert evaluations(events)[0] == evaluations(expected)[0] and evaluations(events)[-1] == evaluations(expected)[-1]
    assert any(event.HasField("model_registered") for event in events)
    # What a checkpoint in the blob store names is still there, for ever.
    saved = [event.checkpoint_saved.checkpoint for event in events if event.HasField("checkpoint_saved")][-1]
    reference = json.loads((Path(saved.uri.removeprefix("file://")) / "tinker_checkpoint.json").read_text())
    for path in (reference["weights"], reference["sampler_weights"]):
        assert path in tinker.paths and tinker.ttls[path] is None
    assert not tinker.count("/telemetry")
    assert {each.headers["x-api-key"] for each in tinker.asked} == {"tml-planted"}
    log = (tmp_path / "remote.log").read_text()
    assert "tml-planted" not in log and "HTTP Request" not in log


async def test_a_run_waits_while_tinker_is_away_and_goes_on_by_itself(tinker: TinkerServer, tmp_path: Path) -> None:
    config = CONFIG | {"dataset": str(write_rows(tmp_path / "rows.jsonl"))}
    expected = await direct_run(tinker, tmp_path / "direct", config)
    manifest = tmp_path / "kitchen.yaml"
    options = {"base_url": tinker.address, "retries": {"tries": 1}}
    port = {"adapter": "builtin:tinker", "options": options, "secrets": {"api_key": "TINKER_API_KEY"}}
    ports = {"training": port, "sampling": port, "hub": "builtin:local", "dataset": "builtin:local"}
    manifest.write_text(json.dumps({"ports": ports}))
    # The third step is not answered, nor, in the next attempt, taken on.
    tinker.will("/optim_step", None, None, Answer(is_silent=True), Answer(status=503, body={"detail": "overloaded"}))
    await tinker.go_away()
    environment = {"TINKER_API_KEY": "tml-planted"}
    with serving(tmp_path / "remote", "--manifest", str(manifest), environment=environment) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            made = await kitchen.create_run("sl_basic", preset="tiny_lora", config=config, seed=1)
            failure = (await waits(kitchen, made.run_id)).failure
            assert (failure.reason, "can't be reached" in failure.status.message) == ("PROVIDER_UNAVAILABLE", True)
            await tinker.come_back()
            await tinker.has_come("/optim_step", 3)
            await tinker.go_away()
            await waits(kitchen, made.run_id)
            await tinker.come_back()
            events = [event async for event in kitchen.watch(made.run_id)]
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED, events[-1]
    assert numbers(events) == numbers(expected)
    waited = [event.state_changed for event in events if event.state_changed.waiting_for_port]
    assert len(waited) == 3 and "answers 503: overloaded" in waited[-1].failure.status.message
