"""A server whose ports are programs: a whole run, deaths on both sides, and secrets that show nowhere."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from crucible.kitchen.v1 import event_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.dataset.v1 import dataset_pb2
from crucible_client import KitchenClient
from crucible_kit.redaction import MARK
from tests.contract.tokenizer_folders import make_folder
from tests.fault.fake_engine import MANIFEST
from tests.system.harness import Server, serving
from tests.system.secrets import leaks, told
from tests.workflow.kitchen import write_rows

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
KEY, TOKEN, PASSWORD = 'sk-"0123456789\\abcdef', "token-of-the-blobs-0123456789", "correct-horse-battery"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A run of 6 steps of 4 rows on the fakes."""
    return {
        "model": str(make_folder(tmp_path / "model")),
        "dataset": str(write_rows(tmp_path / "rows.jsonl", 24)),
        "batch_size": 4,
        "max_length": 64,
        "lora_rank": 8,
        "save_every": 1,
    }


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The program that the documentation shows."""
    text = (ROOT / "docs" / "manifest.md").read_text()
    path = tmp_path / "my_blobs.py"
    path.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    return path


def write_manifest(path: Path, **ports: Any) -> Path:
    manifest = yaml.safe_load(MANIFEST)
    manifest["ports"] |= ports
    path.write_text(yaml.safe_dump(manifest))
    return path


def program_of(server: Server, script: Path) -> psutil.Process:
    """The server's child that runs a script."""
    found = [each for each in psutil.Process(server.process.pid).children() if str(script) in each.cmdline()]
    assert len(found) == 1
    return found[0]


async def test_a_run_keeps_its_checkpoints_in_a_program_that_is_killed_meanwhile(
    tmp_path: Path, config: dict[str, Any], documented: Path
) -> None:
    folder = tmp_path / "elsewhere"
    command = [sys.executable, str(documented), str(folder)]
    manifest = write_manifest(tmp_path / "kitchen.yaml", blob={"command": command})
    with serving(tmp_path / "data", "--manifest", str(manifest), environment=ENVIRONMENT) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            run = await kitchen.create_run("sl_basic", config=config)
            killed = None
            async for event in kitchen.watch(run.run_id):
                if event.HasField("checkpoint_saved") and killed is None:
                    killed = program_of(server, documented)
                    killed.send_signal(signal.SIGKILL)
            ended = await kitchen.get_run(run.run_id)
            assert ended.state == event_pb2.RUN_STATE_COMPLETED, ended.failure
            listed = {each.port: each for each in await kitchen.list_adapters()}["blob"]
            assert (listed.name, listed.target) == ("my-blobs", f"exec:{shlex.join(command)}")
        assert killed is not None and program_of(server, documented).pid != killed.pid
    assert (folder / "blobs" / "runs" / run.run_id).is_dir()
    assert not (tmp_path / "data" / "blobs").exists()


async def test_a_program_ends_with_a_server_that_is_killed(tmp_path: Path, documented: Path) -> None:
    command = [sys.executable, str(documented), str(tmp_path / "elsewhere")]
    manifest = write_manifest(tmp_path / "kitchen.yaml", blob={"command": command})
    with serving(tmp_path / "data", "--manifest", str(manifest), environment=ENVIRONMENT) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            await kitchen.probe_adapter("blob")
        program = program_of(server, documented)
        server.kill()
        program.wait(30)


@pytest.fixture
def listen() -> Iterator[str]:
    """A socket, which is its user's alone: only there may a mapping with a token be added. Short: at most 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"unix:{folder}/k"


async def test_secrets_that_adapters_throw_back_show_nowhere(
    tmp_path: Path, config: dict[str, Any], listen: str
) -> None:
    program, folder = ROOT / "tests" / "server" / "program.py", tmp_path / "program"
    command = [sys.executable, str(program), str(folder), "leaks"]
    blob = {"command": command, "options": {"note": f"uses {PASSWORD}"}, "secrets": {"api_key": "BLOB_KEY"}}
    dataset = {"adapter": "python:tests.system.leaky:LeakyDatasets", "secrets": {"password": "ROWS_PASSWORD"}}
    hub = {"adapter": "grpc:unix:/nobody", "token_env": "HUB_TOKEN_OF_TEST", "wait_seconds": 0.5}
    manifest = write_manifest(tmp_path / "kitchen.yaml", blob=blob, dataset=dataset)
    environment = {**ENVIRONMENT, "BLOB_KEY": KEY, "ROWS_PASSWORD": PASSWORD, "HUB_TOKEN_OF_TEST": TOKEN}
    seen: dict[str, bytes] = {}
    arguments = ("--listen", listen, "--manifest", str(manifest))
    with serving(tmp_path / "data", *arguments, environment=environment) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            blobs, rows = kitchen.port("blob"), kitchen.port("dataset")
            source = dataset_pb2.DatasetSource(uri="builtin:word-problems")
            seen["stat"] = await told(blobs.StatBlob(blob_pb2.StatBlobRequest(key="k")))
            assert b"KEY_REFUSED" in seen["stat"] and MARK.encode() in seen["stat"]
            seen["open"] = await told(rows.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source)))
            seen["find"] = await told(rows.FindDataset(dataset_pb2.FindDatasetRequest(source=source)))
            assert b"INTERNAL_BUG" in seen["open"] and b"PASSWORD_WRONG" in seen["find"]
            # The run gets as far as the blobs, which refuse: rows that are there are needed until then.
            await kitchen.add_adapter("dataset", "builtin:local")
            run = await kitchen.create_run("sl_basic", config=config)
            ended = await kitchen.wait(run.run_id)
            assert (ended.state, ended.failure.reason) == (event_pb2.RUN_STATE_FAILED, "KEY_REFUSED")
            assert MARK in ended.failure.status.message
            seen["run"] = ended.SerializeToString()
            events = await kitchen.list_run_events(run.run_id, page_size=500)
            seen["events"] = b"".join(each.SerializeToString() for each in events)
            probed = await kitchen.probe_adapter("blob")
            assert probed.detail == f"logged in with {MARK}"
            added = await kitchen.add_adapter("hub", **hub)
            assert added is not None
            seen["adapters"] = b"".join(
                each.SerializeToString() for each in [*await kitchen.list_adapters(), probed, added]
            )
        files = [path for path in server.data.rglob("*") if path.is_file()]
        seen |= {str(path): path.read_bytes() for path in files}
        assert "kitchen.db" in {path.name for path in files}
    seen["log"] = Path(f"{server.data}.log").read_bytes()
    assert b"asking with key [redacted]" in seen["log"] and b"logging in with [redacted]" in seen["log"]
    assert b"RuntimeError: no rows for Secrets(password) with [redacted]" in seen["log"]
    assert leaks(seen, KEY, TOKEN, PASSWORD) == []
    assert os.environ.get("BLOB_KEY") is None
