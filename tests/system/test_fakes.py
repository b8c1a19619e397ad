"""A server on fakes alone: a whole run in seconds, and the same bytes when it was paused on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_client import KitchenClient
from crucible_kit.ports import PORTS
from tests.system.harness import SMALL, Server, serving

FAKES = ("blob", "dataset", "hub", "metrics", "registry", "sampling", "tokenizer", "training")
CONFIG: dict[str, Any] = SMALL | {
    "max_steps": 60,
    "save_every": 20,
    "learning_rate": 0.05,
    "eval_dataset": "builtin:word-problems#test",
    "eval_max_rows": 4,
    "sample_prompts": 1,
}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fakes")
    manifest = folder / "kitchen.yaml"
    lines = [f"  {port}: builtin:fake_{port}" for port in FAKES]
    manifest.write_text("\n".join(["profile: test", "ports:", *lines, ""]))
    with serving(folder / "data", "--manifest", str(manifest)) as server:
        yield server


@pytest.fixture
async def kitchen(fakes: Server) -> AsyncIterator[KitchenClient]:
    async with KitchenClient.connect(fakes.address) as client:
        yield client


async def ended(kitchen: KitchenClient, run_id: str) -> list[event_pb2.RunEvent]:
    events = [event async for event in kitchen.watch(run_id)]
    assert events[-1].state_changed.to_state == event_pb2.RUN_STATE_COMPLETED, events[-1]
    return events


def losses(events: list[event_pb2.RunEvent]) -> dict[int, float]:
    steps = [event for event in events if event.HasField("step_completed")]
    return {event.step: event.step_completed.metrics["train/loss"] for event in steps}


async def final_weights(kitchen: KitchenClient, events: list[event_pb2.RunEvent]) -> bytes:
    saved = [event.checkpoint_saved.checkpoint for event in events if event.HasField("checkpoint_saved")][-1]
    assert saved.final
    key = saved.uri.removeprefix("fake-blob:///") + "/model.safetensors"
    chunks = kitchen.port("blob").ReadBlob(blob_pb2.ReadBlobRequest(key=key))
    return b"".join([chunk.data async for chunk in chunks])


async def test_every_fake_is_installed_by_its_name(kitchen: KitchenClient) -> None:
    adapters = {each.port: await kitchen.probe_adapter(each.port) for each in await kitchen.list_adapters()}
    assert {port for port in adapters if port in FAKES} == set(FAKES) <= set(PORTS)
    assert all(adapters[port].name.startswith("fake-") for port in FAKES)


async def test_a_run_on_fakes_learns_and_resumes_with_the_same_bytes(kitchen: KitchenClient) -> None:
    run = await kitchen.create_run("sl_basic", preset="tiny", config=CONFIG, seed=1)
    events = await ended(kitchen, run.run_id)
    found = losses(events)
    assert list(found) == list(range(1, 61))
    assert found[1] > 6
    assert found[60] < found[30] < found[1]
    assert any(event.HasField("model_registered") for event in events)
    metrics, registry = kitchen.port("metrics"), kitchen.port("registry")
    request = metrics_pb2.GetLatestMetricsRequest(run_id=run.run_id, prefix="train/loss")
    [point] = (await metrics.GetLatestMetrics(request)).points
    while point.step < 60:  # the store is fed from the log, which may be ahead of it
        [point] = (await metrics.GetLatestMetrics(request)).points
    assert point.value == found[60]
    version = await registry.GetVersion(registry_pb2.GetVersionRequest(run_id=run.run_id))
    assert version.version.checkpoint_uri.startswith("fake-blob:///runs/")

    other = await kitchen.create_run("sl_basic", preset="tiny", config=CONFIG, seed=1)
    async for event in kitchen.watch(other.run_id):
        if event.HasField("step_completed"):
            break
    await kitchen.pause_run(other.run_id)
    paused = await kitchen.wait(other.run_id)
    assert paused.state == event_pb2.RUN_STATE_PAUSED
    assert 0 < paused.step < 60
    await kitchen.resume_run(other.run_id)
    resumed = await ended(kitchen, other.run_id)
    assert losses(resumed) == found
    assert await final_weights(kitchen, resumed) == await final_weights(kitchen, events)
