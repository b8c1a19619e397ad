"""kitchen conformance at the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crucible.port.blob.v1 import blob_pb2
from crucible_adapters.blob.local import LocalBlobStore
from crucible_kit.errors import UnavailableError
from crucible_kitchen.cli import main

CHILD = Path(__file__).parent / "child.py"
QUICK = ("--only", "HSK", "--only", "BLB-LIST-01")


class Forgetful(LocalBlobStore):
    """Lists nothing."""

    async def ListBlobs(self, request: Any, context: Any) -> blob_pb2.ListBlobsResponse:
        return blob_pb2.ListBlobsResponse()


FORGETFUL = "python:tests.conformance.test_command:Forgetful"


def conformance(*words: object, **environment: str) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(main, ["conformance", *map(str, words)], env=environment, prog_name="kitchen")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a blob store in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), "blob", str(tmp_path / "blobs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"CRUCIBLE_ADAPTER_LISTEN": "127.0.0.1:0"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.stdin.close()
        process.wait(20)


def test_an_adapter_that_conforms() -> None:
    result = conformance("--port", "blob", "--target", "builtin:local", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.output.split()[:2] == ["HSK-INFO-01", "passed"]
    assert result.output.splitlines()[-1].endswith("port blob: 12 passed, 2 skipped")


def test_an_adapter_that_does_not() -> None:
    result = conformance("--port", "blob", "--target", FORGETFUL, *QUICK)
    assert result.exit_code == 1
    assert "BLB-LIST-01" in result.output
    assert "1 failed" in result.output
    assert "the contract:" in result.output


def test_an_adapter_at_an_address(served: str) -> None:
    result = conformance("--port", "blob", "--target", served, *QUICK, "--report", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["target"], told["ok"], told["counts"]["failed"]) == (served, True, 0)


def test_a_command_is_started_and_killed(tmp_path: Path) -> None:
    command = shlex.join([sys.executable, str(CHILD), "forgetful-blob", str(tmp_path)])
    result = conformance("--port", "blob", "--exec", command, "--only", "BLB-RESTART", "--only", "HSK-RESTART")
    assert result.exit_code == 1
    assert "HSK-RESTART-01  passed" in result.output
    assert "BLB-RESTART-01  failed" in result.output


def test_reports_go_to_a_file_and_the_table_to_stdout(tmp_path: Path) -> None:
    junit, markdown = tmp_path / "blob.xml", tmp_path / "blob.md"
    words = ("--port", "blob", "--target", FORGETFUL, *QUICK)
    result = conformance(*words, "--report", "junit", "--output", junit)
    assert result.exit_code == 1
    assert "BLB-LIST-01" in result.output
    [suite] = ElementTree.parse(junit).getroot()
    assert suite.get("failures") == "1"
    conformance(*words, "--output", markdown)
    assert markdown.read_text("utf-8").startswith("# Conformance of ")
    broken = conformance(*words, "--output", tmp_path / "no" / "folder")
    assert (broken.exit_code, "cannot write" in broken.stderr) == (2, True)


def test_known_failures(tmp_path: Path) -> None:
    words = ("--port", "blob", "--target", FORGETFUL, *QUICK, "--known-failing", tmp_path / "known.txt")
    (tmp_path / "known.txt").write_text("BLB-LIST-01  # since March\n")
    result = conformance(*words)
    assert (result.exit_code, "failed (known)" in result.output) == (0, True)
    (tmp_path / "known.txt").write_text("BLB-LIST-01\nHSK-INFO-01\n")
    result = conformance(*words)
    assert (result.exit_code, "take it off the list" in " ".join(result.output.split())) == (1, True)
    (tmp_path / "known.txt").write_text("BLB-LITS-01\n")
    result = conformance(*words)
    assert (result.exit_code, "did you mean BLB-LIST-01" in result.stderr) == (2, True)


def test_settings_and_options_reach_the_suite_and_the_adapter(tmp_path: Path) -> None:
    words = ("--port", "blob", "--target", "builtin:local", "--only", "BLB-KEY")
    assert conformance(*words, "--set", "prefix=mine", "--option", f"root={tmp_path}").exit_code == 0
    assert list(tmp_path.iterdir())
    for wrong, told in ((("--set", "prefx=mine"), "prefx"), (("--option", "rot=x"), "rot"), (("--only", "BLA"), "BLA")):
        result = conformance(*words, *wrong)
        assert (result.exit_code, told in result.stderr) == (2, True), result.output


def test_lists() -> None:
    everything = conformance("--list")
    assert everything.exit_code == 0
    assert "TRN-SEQ-01: " in everything.output
    assert "[training.lora]" in everything.output
    one = conformance("--list", "--port", "training", "--only", "TRN-SEQ")
    assert "BLB" not in one.output
    assert "base_model: " in one.output
    assert "default: " in one.output


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--target", "builtin:local"), 2, "give --port"),
        (("--port", "blob"), 2, "either --target ADDR or --exec COMMAND"),
        (("--port", "blob", "--target", "a:1", "--exec", "b"), 2, "either --target ADDR or --exec COMMAND"),
        (("--port", "blub", "--target", "a:1"), 2, "'blub'"),
        (("--port", "blob", "--target", "builtin:locl"), 2, "did you mean local"),
        (
            ("--port", "hub", "--target", "python:crucible_adapters.blob.local:LocalBlobStore"),
            2,
            "serves the port blob",
        ),
        (("--port", "blob", "--target", "python:no.such.module:X"), 2, "can't be imported"),
        (("--port", "blob", "--target", "127.0.0.1:1", "--option", "a=b"), 2, "has its options already"),
        (("--port", "blob", "--exec", "/no/such/program"), 2, "can't be run"),
        (("--port", "blob", "--exec", "false"), 1, "ended, or closed stdout, without a line"),
        (
            ("--port", "blob", "--target", "127.0.0.1:1", "--set", "call_seconds=0.5"),
            1,
            "no adapter answers at 127.0.0.1:1",
        ),
    ],
)
def test_what_cannot_be_tested_is_told(words: tuple[str, ...], code: int, told: str) -> None:
    result = conformance(*words)
    assert result.exit_code == code
    assert told in " ".join(result.stderr.split())


def test_the_kitchens_token_stays_with_the_kitchen(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def opening(*_: Any, token: str, **__: Any) -> Any:
        given.append(token)
        raise UnavailableError("nobody", reason="ADAPTER_UNAVAILABLE")

    monkeypatch.setattr("crucible_kitchen.cli.conformance.open_target", opening)
    words = ("--port", "blob", "--target", "127.0.0.1:1")
    conformance(*words, KITCHEN_TOKEN="the kitchen's")
    conformance(*words, KITCHEN_TOKEN="the kitchen's", KITCHEN_ADAPTER_TOKEN="the adapter's")
    conformance(*words, "--token", "typed")
    assert given == ["", "the adapter's", "typed"]
