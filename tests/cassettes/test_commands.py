"""Wrong usage of the commands around recordings is told before anything is served or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from crucible_kit.cassettes.format import Header, write_cassette
from crucible_kitchen.cli import main

BLOBS = str(Path(__file__).parents[1] / "stubs" / "blob" / "local.jsonl")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["record", "--target", "unix:/x", "--output", "{out}", "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (["record", "--target", "unix:/x", "--output", "{out}", "--listen", "somewhere:1"], 2, "--insecure"),
        (["record", "--target", "unix:/x", "--output", "{out}", "--service", "blobs"], 1, "neither a port (blob,"),
        (["record", "--target", "unix:/x", "--output", "{out}", "--set", "model"], 2, "must be NAME=VALUE"),
        (["record", "--target", "unix:/x", "--output", "{out}", "--secret-env", "NOT_SET_HERE"], 2, "is not set"),
        (["record", "--target", "unix:/x", "--output", BLOBS], 1, "CASSETTE_EXISTS"),
        (["replay", BLOBS, "--listen", "0.0.0.0:0"], 2, "--insecure"),
        (["replay", BLOBS, "--target", "unix:/x"], 2, "--check and --target go together"),
        (["replay", "{folder}"], 2, "has no .jsonl file"),
        (["cassettes", "verify", "{out}"], 2, "does not exist"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: list[str], code: int, told: str) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [word.format(out=out, folder=tmp_path) for word in words]
    result = CliRunner().invoke(main, arguments, prog_name="kitchen")
    assert (result.exit_code, told in result.stderr) == (code, True), result.stderr
    assert not out.exists()


def test_a_cassette_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("{}\n")
    verified = CliRunner().invoke(main, ["cassettes", "verify", str(path)])
    assert (verified.exit_code, f"{path}:1: is no header" in verified.stdout) == (1, True)
    replayed = CliRunner().invoke(main, ["replay", str(path)])
    assert (replayed.exit_code, f"{path}:1: is no header" in replayed.stderr) == (1, True)


def test_a_cassette_without_calls_says_nothing_of_an_adapter(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_cassette(path, Header(services=[]), [])
    for words in (["cassettes", "verify"], ["replay"], ["replay", "--check", "--target", "unix:/x"]):
        result = CliRunner().invoke(main, [*words, str(path)])
        assert (result.exit_code, f"{path} holds no calls: record it again" in result.output) == (1, True)
    call = {"call": 1, "method": "crucible.adapter.v1.AdapterService/Probe"}
    events = [call, {"call": 1, "request": {}}, {"call": 1, "response": {}}, {"call": 1, "status": {"code": "OK"}}]
    write_cassette(path, Header(services=["crucible.adapter.v1.AdapterService"]), events)
    result = CliRunner().invoke(main, ["replay", "--check", "--target", "unix:/x", str(path)])
    assert (result.exit_code, "no calls but 1 that say what an adapter is" in result.output) == (1, True)
