"""The real child process: starts, serves, and ends with its parent's pipe."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_adapters.torch_engine.spec import TORCH_ENGINE, TorchEngineOptions
from crucible_kit.adapter import CONTRACT_VERSIONS
from crucible_kit.adapter_process import parse_arguments
from crucible_kit.channel import connect
from tests.engine.tiny import random_data
from tests.engine.wire import Wire

START_SECONDS = 100.0


@pytest.fixture
async def socket() -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ck-"))
    yield folder / "engine.sock"
    shutil.rmtree(folder)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    paths = [path for path in sys.path if path]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", TORCH_ENGINE.module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **TORCH_ENGINE.environment, "PYTHONPATH": os.pathsep.join(paths)},
    )


async def test_child_serves_and_ends_when_stdin_closes(socket: Path, tiny_folder: Path, tmp_path: Path) -> None:
    options = TORCH_ENGINE.arguments(TorchEngineOptions(device="cpu", threads=1, micro_batch_tokens=64))
    process = await start(
        "--listen", f"unix:{socket}", "--work-dir", str(tmp_path / "new" / "work"), "--parent-pipe", *options
    )
    assert process.stdin is not None and process.stderr is not None
    drained = asyncio.create_task(process.stderr.read())
    channel = connect(f"unix:{socket}")
    try:
        adapter = adapter_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[arg-type]
        request = adapter_pb2.GetAdapterInfoRequest(host_contract_versions=CONTRACT_VERSIONS)
        info = await adapter.GetAdapterInfo(request, timeout=START_SECONDS)
        assert info.name == "torch-engine"
        assert {port.service.rsplit(".", 1)[1]: list(port.capabilities) for port in info.ports} == {
            "SamplingService": ["sampling.follow"],
            "TrainingService": [
                "training.checkpoint_files",
                "training.full",
                "training.local_model",
                "training.lora",
                "training.lora_modules",
            ],
        }
        probe = await adapter.Probe(adapter_pb2.ProbeRequest())
        assert probe.state == adapter_pb2.ProbeResponse.STATE_READY
        wire = Wire(channel)
        session_id = await wire.open(tiny_folder)
        await wire.train(session_id, 1, random_data([9, 30, 40]))
        saved = await wire.save(session_id, 3, "one")
        assert saved.optim_steps == 1

        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert b"Traceback" not in await drained
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await drained


async def test_wrong_options_are_told_and_nothing_listens(socket: Path, tmp_path: Path) -> None:
    process = await start("--listen", f"unix:{socket}", "--work-dir", str(tmp_path), "--micro-batch-tokens", "0")
    _, errors = await asyncio.wait_for(process.communicate(), START_SECONDS)
    assert process.returncode == 1
    assert (
        errors.decode()
        .strip()
        .endswith("options.micro_batch_tokens: Input should be greater than or equal to 1 (got '0')")
    )
    assert not os.path.exists(socket)


def test_settings_survive_the_command_line() -> None:
    options = TorchEngineOptions(device="cuda:1", dtype="bfloat16", threads=3, micro_batch_tokens=77)
    parsed = parse_arguments(TORCH_ENGINE, ["--listen", "unix:x", "--work-dir", "w", *TORCH_ENGINE.arguments(options)])
    assert TorchEngineOptions.model_validate(parsed.options) == options


def test_description_imports_no_torch() -> None:
    code = "import sys, crucible_adapters.torch_engine.spec; assert not {'torch', 'transformers'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
