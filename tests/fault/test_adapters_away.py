"""Adapters in processes of their own, on a socket, that are killed under a run and started again, soon or late."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_adapters.torch_engine.spec import TORCH_ENGINE
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import UnavailableError
from crucible_kitchen.ports.host import PortHost
from tests.fault.conftest import ROOT, Doomed
from tests.fault.fake_engine import MANIFEST
from tests.fault.survive import Outcome, assert_same_outcome, look, survive
from tests.system.harness import serving


class Remote:
    """A process that serves ports on a socket.

    Args:
        command: behind `python -m`, without --listen.
        environment: of its first start only: what is to happen to it happens once.
    """

    def __init__(self, *command: str, folder: str, environment: Mapping[str, str] | None = None) -> None:
        self.address = f"unix:{folder}/s"
        self._command = [sys.executable, "-m", *command, "--listen", self.address]
        self.starts = 0
        self.start(environment)

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts it; it may take a while until it serves."""
        self.starts += 1
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.process.kill()
        self.ended()

    def ended(self) -> int:
        """Waits for its end; the status."""
        status = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def remote(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[Remote]:
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        adapter = Remote(*command, folder=folder, environment=environment)
        try:
            yield adapter
        finally:
            adapter.kill()


@contextmanager
def remote_port(port: str, data: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Remote]:
    """A light adapter, serving."""
    data.mkdir()
    command = ("tests.fault.remote_child", "--port", port, "--data", str(data))
    with remote(*command, environment=environment) as adapter:
        assert adapter.line() == "ready"
        yield adapter


def manifest(path: Path, port: str, adapter: Remote, *, wait_seconds: float) -> tuple[str, str]:
    """Arguments of a server with the fake engine and one remote port."""
    path.write_text(f'{MANIFEST}  {port}: {{adapter: "grpc:{adapter.address}", wait_seconds: {wait_seconds}}}\n')
    return "--manifest", str(path)


def waits(event: event_pb2.RunEvent) -> str:
    """The port that a run begins to wait for."""
    return event.state_changed.waiting_for_port


# In the middle of a checkpoint's copy: a file has arrived as a whole, and has no name yet, or no record.
COPYING = ("blob.rename.before:6", "blob.rename.after:6")


@pytest.mark.parametrize("point", COPYING)
async def test_a_blob_store_that_is_back_in_time_is_not_noticed(
    tmp_path: Path, doomed: Doomed, fake_run: dict[str, Any], fake_undisturbed: Outcome, point: str
) -> None:
    dying = doomed.environment(f"{point}=kill")
    with remote_port("blob", tmp_path / "elsewhere", environment=dying) as blob:

        async def start_again() -> None:
            await asyncio.to_thread(blob.ended)
            blob.start()

        arguments = manifest(tmp_path / "m.yaml", "blob", blob, wait_seconds=60)
        with serving(tmp_path / "data", *arguments, environment={"PYTHONPATH": str(ROOT)}) as server:
            starting = asyncio.create_task(start_again())
            outcome = await survive(server, config=fake_run)
            await starting
        await look(outcome, server.data)
    assert_same_outcome(outcome, fake_undisturbed)
    assert (blob.starts, len(outcome.started())) == (2, 1)
    assert not any(event.state_changed.to_state == event_pb2.RUN_STATE_PAUSED for event in outcome.events)


@pytest.mark.parametrize("server_dies", [False, True], ids=["server lives", "server dies too"])
async def test_a_blob_store_that_is_back_late_is_waited_for(
    tmp_path: Path, doomed: Doomed, fake_run: dict[str, Any], fake_undisturbed: Outcome, server_dies: bool
) -> None:
    dying = doomed.environment("blob.rename.before:18=kill")
    with remote_port("blob", tmp_path / "elsewhere", environment=dying) as blob:
        arguments = manifest(tmp_path / "m.yaml", "blob", blob, wait_seconds=1)
        with serving(tmp_path / "data", *arguments, environment={"PYTHONPATH": str(ROOT)}) as server:
            start_server = server.start

            def start_both() -> None:
                start_server()
                blob.start()

            def disturb(event: event_pb2.RunEvent) -> None:
                if waits(event) and server_dies:
                    # The run waits on in the next server, which is there before the adapter is.
                    server.start = start_both  # type: ignore[method-assign]
                    server.process.kill()
                elif waits(event):
                    blob.ended()
                    blob.start()

            outcome = await survive(server, config=fake_run, disturb=disturb)
        await look(outcome, server.data)
    assert_same_outcome(outcome, fake_undisturbed)
    assert [waits(event) for event in outcome.events if waits(event)] == ["blob"]
    assert (blob.starts, outcome.deaths) == (2, int(server_dies))
    first, second = outcome.started()
    assert not first.HasField("from_checkpoint") and second.from_checkpoint.step > 0
    assert outcome.run.waiting_for_port == ""


async def test_metrics_of_a_store_that_is_away_come_when_it_is_back_after_the_run(
    tmp_path: Path, fake_run: dict[str, Any], fake_undisturbed: Outcome
) -> None:
    elsewhere = tmp_path / "elsewhere"
    with remote_port("metrics", elsewhere) as metrics:
        arguments = manifest(tmp_path / "m.yaml", "metrics", metrics, wait_seconds=0.2)
        with serving(tmp_path / "data", *arguments, environment={"PYTHONPATH": str(ROOT)}) as server:

            def disturb(event: event_pb2.RunEvent) -> None:
                if event.HasField("step_completed") and event.step == 5:
                    metrics.kill()

            outcome = await survive(server, config=fake_run, disturb=disturb)
            assert len(outcome.started()) == 1
            assert not any(waits(event) for event in outcome.events)
            metrics.start()
            measured = [each for each in outcome.events if each.HasField("step_completed")]
            evaluated = [each for each in outcome.events if each.HasField("evaluation_completed")]
            last = max(measured[-1].sequence, evaluated[-1].sequence)
            assert metrics.line() == "ready"
            while await asyncio.to_thread(metrics.line) != str(last):
                pass
    await look(outcome, elsewhere)
    assert_same_outcome(outcome, fake_undisturbed)


async def test_a_training_service_whose_process_is_replaced_costs_an_attempt_and_nothing_else(
    tmp_path: Path, real_runs: dict[str, dict[str, Any]], real_undisturbed: dict[str, Outcome]
) -> None:
    module, work_dir = TORCH_ENGINE.module, str(tmp_path / "engine")
    options = TORCH_ENGINE.arguments(TORCH_ENGINE.options())
    environment = TORCH_ENGINE.environment
    with remote(module, "--work-dir", work_dir, *options, environment=environment) as engine:
        lines = [f'  {port}: {{adapter: "grpc:{engine.address}", wait_seconds: 60}}' for port in TORCH_ENGINE.ports]
        (tmp_path / "m.yaml").write_text("\n".join(["ports:", *lines, ""]))
        with serving(tmp_path / "data", "--manifest", str(tmp_path / "m.yaml")) as server:

            def disturb(event: event_pb2.RunEvent) -> None:
                if event.HasField("step_completed") and event.step == 5 and engine.starts == 1:
                    engine.kill()
                    engine.start(environment)

            outcome = await survive(server, config=real_runs["lora"], preset="tiny", disturb=disturb)
        await look(outcome, server.data)
    assert_same_outcome(outcome, real_undisturbed["lora"])
    assert engine.starts == 2
    assert [each.from_checkpoint.step > 0 for each in outcome.started()][:2] == [False, True]


async def test_what_a_host_says_of_an_adapter_that_is_away_names_the_port(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text('ports: {blob: {adapter: "grpc:unix:/nonexistent/socket", wait_seconds: 0.2}}\n')
    host = PortHost.open(path, AdapterContext(data_dir=tmp_path))
    try:
        assert host.is_remote("blob") and not host.is_remote("training") and not host.is_remote("metrics")
        for ask in (host.stub, host.capabilities):
            with pytest.raises(UnavailableError) as caught:
                await ask("blob")
            assert (caught.value.port, caught.value.reason) == ("blob", "ADAPTER_UNAVAILABLE")
    finally:
        await host.close()
