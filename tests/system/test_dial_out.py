"""Runs whose blobs and metrics lie with a process that has called the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_client import KitchenClient
from tests.contract.processes import HAS_NODE, TYPESCRIPT
from tests.system.harness import SMALL, Server, checkpoint_folder, children, serving, tensor_files

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """
ports:
  blob: "attach:laptop"
  metrics: "attach:laptop"
"""


@pytest.fixture
def kitchen_address() -> Iterator[str]:
    """Where a server listens that comes back there; short: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"unix:{folder}/k"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "kitchen.yaml"
    path.write_text(MANIFEST)
    return path


class Stores:
    """The adapter's process; it may be started again on what it has stored."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self._address = address
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Starts it, without waiting until it is attached."""
        arguments = ("--attach", self._address, "--name", "laptop")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.stores_process", str(self.folder), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def attached(self) -> dict[str, str]:
        """Waits until it has attached; what it then says."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)


@contextmanager
def stores(folder: Path, address: str) -> Iterator[Stores]:
    running = Stores(folder, address)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


async def steps_of(kitchen: KitchenClient, run_id: str) -> list[float]:
    """The losses of a run that has ended, in order, once the metrics store has all: the log may be ahead of it."""
    request = metrics_pb2.QueryMetricsRequest(run_id=run_id, name="train/loss")
    points: Sequence[metrics_pb2.MetricPoint] = ()
    while len(points) < SMALL["max_steps"]:
        points = (await kitchen.port("metrics").QueryMetrics(request)).points
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return [point.value for point in points]


async def run_small(kitchen: KitchenClient, rows: Path, seed: int = 2) -> str:
    return (
        await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(rows)}, seed=seed)
    ).run_id


async def finished(kitchen: KitchenClient, run_id: str) -> dict[str, bytes]:
    """The files of a run that has to complete."""
    async for event in kitchen.watch(run_id):
        if event.HasField("state_changed"):
            last = event.state_changed
    assert last.to_state == event_pb2.RUN_STATE_COMPLETED, last
    run = await kitchen.get_run(run_id)
    return tensor_files(checkpoint_folder(run.latest_checkpoint.uri))


async def outcome_on(server: Server, rows: Path) -> tuple[dict[str, bytes], list[float]]:
    async with KitchenClient.connect(server.address) as kitchen:
        run_id = await run_small(kitchen, rows)
        return await finished(kitchen, run_id), await steps_of(kitchen, run_id)


@pytest.fixture(scope="module")
def expected(server: Server, rows: Path) -> tuple[dict[str, bytes], list[float]]:
    """Files and losses of the same run with all adapters inside the server."""
    return asyncio.run(outcome_on(server, rows))


async def test_a_run_over_an_adapter_that_dials_out(
    expected: object, rows: Path, tmp_path: Path, kitchen_address: str, manifest: Path
):
    with (
        serving(tmp_path / "data", "--listen", kitchen_address, "--manifest", str(manifest)) as kitchen_server,
        # Its calls wait for the adapter, which is still starting.
        stores(tmp_path / "stores", kitchen_address) as adapter,
    ):
        async with KitchenClient.connect(kitchen_server.address) as kitchen:
            run_id = await run_small(kitchen, rows)
            files = await finished(kitchen, run_id)
            losses = await steps_of(kitchen, run_id)
        assert adapter.attached() == {"crucible": 1, "address": kitchen_address}
        assert (tmp_path / "stores" / "blobs" / "runs" / run_id).is_dir()
        assert not (tmp_path / "data" / "blobs").exists()
        assert adapter.end() == 0
    assert (files, losses) == expected


async def test_an_adapter_that_is_killed_and_started_again(
    expected: object, rows: Path, tmp_path: Path, kitchen_address: str, manifest: Path
):
    with (
        serving(tmp_path / "data", "--listen", kitchen_address, "--manifest", str(manifest)) as kitchen_server,
        stores(tmp_path / "stores", kitchen_address) as adapter,
    ):
        adapter.attached()
        async with KitchenClient.connect(kitchen_server.address) as kitchen:
            run_id = await run_small(kitchen, rows)
            async for event in kitchen.watch(run_id):
                if event.HasField("checkpoint_saved"):
                    break
            assert adapter.end(signal.SIGKILL) == -signal.SIGKILL
            adapter.start()
            files = await finished(kitchen, run_id)
            losses = await steps_of(kitchen, run_id)
    assert (files, losses) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_is_started_again_is_found_by_the_adapter(
    expected: object, rows: Path, tmp_path: Path, kitchen_address: str, manifest: Path, number: signal.Signals
):
    with (
        serving(tmp_path / "data", "--listen", kitchen_address, "--manifest", str(manifest)) as kitchen_server,
        stores(tmp_path / "stores", kitchen_address) as adapter,
    ):
        adapter.attached()
        async with KitchenClient.connect(kitchen_address) as kitchen:
            run_id = await run_small(kitchen, rows)
            async for event in kitchen.watch(run_id):
                if event.HasField("checkpoint_saved"):
                    break
            if number == signal.SIGTERM:
                assert kitchen_server.terminate() == 0
            else:
                kitchen_server.kill()
            kitchen_server.start()
            files = await finished(kitchen, run_id)
            losses = await steps_of(kitchen, run_id)
        assert adapter.process.poll() is None
    assert (files, losses) == expected


@pytest.mark.skipif(not HAS_NODE, reason="node or its packages are not installed")
async def test_stores_in_two_languages_are_killed_under_one_run(
    expected: object, rows: Path, tmp_path: Path, kitchen_address: str
):
    """Blobs in Node, a program that the server starts; metrics in Python, which dialled out."""
    manifest = tmp_path / "kitchen.yaml"
    blob = {
        "adapter": f"exec:node {TYPESCRIPT / 'blob_store.mjs'}",
        "options": {"root": str(tmp_path / "blobs")},
    }
    manifest.write_text(json.dumps({"ports": {"blob": blob, "metrics": "attach:laptop"}}))
    with (
        serving(tmp_path / "data", "--listen", kitchen_address, "--manifest", str(manifest)) as kitchen_server,
        stores(tmp_path / "stores", kitchen_address) as adapter,
    ):
        adapter.attached()
        async with KitchenClient.connect(kitchen_server.address) as kitchen:
            run_id = await run_small(kitchen, rows)
            saved = 0
            async for event in kitchen.watch(run_id):
                saved += event.HasField("checkpoint_saved")
                if event.HasField("checkpoint_saved") and saved == 1:
                    [node] = [pid for pid in children(kitchen_server.process.pid) if _is_node(pid)]
                    os.kill(node, signal.SIGKILL)
                if event.HasField("step_completed") and event.step == 3:
                    adapter.end(signal.SIGKILL)
                if event.HasField("step_completed") and event.step == 5:
                    adapter.start()
                    break
            files = await finished(kitchen, run_id)
            assert adapter.attached() == {"crucible": 1, "address": kitchen_address}
            losses = await steps_of(kitchen, run_id)
        assert list((tmp_path / "blobs").rglob(run_id))
        assert not (tmp_path / "data" / "blobs").exists()
    assert (files, losses) == expected


def _is_node(pid: int) -> bool:
    return b"blob_store.mjs" in Path(f"/proc/{pid}/cmdline").read_bytes()
