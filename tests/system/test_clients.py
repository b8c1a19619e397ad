"""A run from its creation to COMPLETED by clients that are not ours: buf curl, Node; and by `kitchen call`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import SMALL, Server

ROOT = Path(__file__).resolve().parents[2]
BUF = ROOT / "tools" / "node_modules" / ".bin" / "buf"
NODE_CLIENT = ROOT / "clients" / "typescript"
RUNS = "crucible.kitchen.v1.RunService"


def output(command: list[str], **options: Any) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def json_values(text: str) -> list[Any]:
    """The JSON values that follow each other in a text, over several lines or not."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return values


def assert_completed(events: list[dict[str, Any]]) -> None:
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    last = events[-1].get("stateChanged") or events[-1]["state_changed"]
    assert "RUN_STATE_COMPLETED" in (last.get("toState"), last.get("to_state"))


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed (`make check` installs it)")
def test_buf_curl_without_proto_files(server: Server, rows: Path):
    base = f"http://{server.address}"

    def curl(*arguments: str) -> str:
        return output([str(BUF), "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments])

    assert RUNS in curl("--list-services", base)
    request = {"recipe": "sl_basic", "preset": "tiny", "config": SMALL | {"dataset": str(rows)}}
    created = json.loads(curl("-d", json.dumps(request), f"{base}/{RUNS}/CreateRun"))
    watched = curl("-d", json.dumps({"runId": created["run"]["runId"]}), f"{base}/{RUNS}/WatchRun")
    assert_completed([event for each in json_values(watched) for event in each.get("events", [])])


def test_kitchen_call(server: Server, rows: Path):
    def call(method: str, request: dict[str, Any]) -> list[Any]:
        command = [sys.executable, "-m", "crucible_kitchen.cli", "call", "--server", server.address, "--json"]
        return json_values(output([*command, f"{RUNS}/{method}", json.dumps(request)]))

    request = {"recipe": "sl_basic", "preset": "tiny", "config": SMALL | {"dataset": str(rows)}}
    (created,) = call("CreateRun", request)
    watched = call("WatchRun", {"run_id": created["run"]["run_id"]})
    assert_completed([event for each in watched for event in each.get("events", [])])


@pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_CLIENT / "node_modules").exists(),
    reason="node or its packages are not installed (`make test` installs them where node and npm are)",
)
def test_node_with_protos_loaded_at_run_time(server: Server, rows: Path):
    settings = [part for key, value in (SMALL | {"dataset": str(rows)}).items() for part in ("--set", f"{key}={value}")]
    settings = [part.replace("=False", "=false") for part in settings]
    command = ["node", "run_and_watch.mjs", server.address, "sl_basic", "--preset", "tiny", *settings]
    lines = output(command, cwd=NODE_CLIENT).splitlines()
    numbered = [line for line in lines if line.startswith("#")]
    assert [int(line[1:].split()[0]) for line in numbered] == list(range(1, len(numbered) + 1))
    assert sum("stepCompleted" in line for line in numbered) == SMALL["max_steps"]
    assert " COMPLETED file:///" in lines[-1]
