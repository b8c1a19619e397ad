"""A child process that dies or hangs, and the one that takes its place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import AdapterOptions
from crucible_kit.channel import connect
from crucible_kit.errors import UnavailableError
from crucible_kit.serving import serve_ports
from crucible_kitchen.ports import process as process_module
from crucible_kitchen.ports.process import AdapterProcess
from tests.fault.conftest import ROOT
from tests.fault.fake_child import FAKE_ENGINE


@pytest.fixture
async def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdapterProcess]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    child = AdapterProcess(FAKE_ENGINE, AdapterOptions(), socket=tmp_path / "0.sock", work_dir=tmp_path / "work")
    yield child
    await child.close()


def probe(process: AdapterProcess) -> asyncio.Future[adapter_pb2.ProbeResponse]:
    return adapter_pb2_grpc.AdapterServiceStub(process.channel).Probe(adapter_pb2.ProbeRequest())


async def test_a_connection_that_was_refused_for_long_is_good_once_it_has_been_waited_for(tmp_path: Path) -> None:
    """As after a handshake with a new engine: the connection that backs off from the dead one must not fail calls."""
    address = f"unix:{tmp_path / '0.sock'}"
    channel = connect(address, wait_for_ready=False, retry=False)
    stub = adapter_pb2_grpc.AdapterServiceStub(channel)
    for _ in range(200):  # so that it tries only now and then
        with pytest.raises(UnavailableError):
            await stub.Probe(adapter_pb2.ProbeRequest())
    served = await serve_ports({}, address, name="fake", capabilities={})
    try:
        await adapter_pb2_grpc.AdapterServiceStub(channel.waiting()).Probe(adapter_pb2.ProbeRequest())
        await stub.Probe(adapter_pb2.ProbeRequest())
    finally:
        await channel.close()
        await served.stop(0)


async def test_a_killed_child_is_replaced(process: AdapterProcess) -> None:
    first = await process.ensure()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    second = await process.ensure()
    await probe(process)
    assert second.instance_id != first.instance_id


async def test_a_stopped_child_is_replaced(process: AdapterProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_PROBE_SECONDS", 0.3)
    monkeypatch.setattr(process_module, "_STOP_SECONDS", 0.1)
    first = await process.ensure()
    stopped = process.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    second = await process.ensure()
    assert second.instance_id != first.instance_id
    assert process.pid != stopped
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    await probe(process)


async def test_a_child_that_a_call_has_lost_is_asked_before_it_is_used_again(
    tmp_path: Path, process: AdapterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_STOP_SECONDS", 0.1)
    lost = UnavailableError("ping timeout", reason="UNAVAILABLE")
    first = await process.ensure()
    assert not await process.failed("training", UnavailableError("full", reason="BUSY"), first.instance_id)
    assert process.is_ready("training")
    # Nobody sends a call of a session again; the child is well.
    assert not await process.failed("training", lost, first.instance_id)
    assert not process.is_ready("training")
    assert (await process.ensure()).instance_id == first.instance_id
    assert process.is_ready("training")
    monkeypatch.setattr(process_module, "_PROBE_SECONDS", 0.3)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    await process.failed("training", lost, first.instance_id)
    assert (await process.ensure()).instance_id != first.instance_id
    assert process.is_ready("training")
    await process.failed("training", lost, first.instance_id)
    assert process.is_ready("training"), "another child was lost"

    stateless = replace(FAKE_ENGINE, stateless=True)
    other = AdapterProcess(stateless, AdapterOptions(), socket=tmp_path / "1.sock", work_dir=tmp_path / "work")
    assert await other.failed("training", lost, "")
    await other.close()


FAILING = """
from crucible_kit.adapter_process import run_process
from crucible_kit.errors import field_error
from tests.fault.fake_child import FAKE_ENGINE

async def make(options, work_dir):
    raise field_error("device", "there is none")

run_process(FAKE_ENGINE, make)
"""


def test_a_child_that_cannot_serve_says_why_and_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING, "--listen", f"unix:{tmp_path / 's'}", "--work-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--parent-pipe"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stdin is not None
    said = process.stderr.read()  # its stdin stays open meanwhile
    process.stdin.close()
    assert (process.wait(), said) == (1, "fake-engine: device: there is none\n")
