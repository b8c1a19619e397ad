from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crucible_kitchen.cli import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The last line of stderr as JSON."""
        return json.loads(self.err.splitlines()[-1])


Kitchen = Callable[..., Answer]


@pytest.fixture(scope="session")
def addresses() -> Iterator[dict[str, str]]:
    """Addresses of a fake kitchen: open, and one that asks for a token. Its own process: one event loop in each."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.fake_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(20)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kitchen:
    """Runs `kitchen` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("KITCHEN_SERVER", "KITCHEN_DATA", "KITCHEN_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def kitchen(*words: str, stdin: str = "") -> Answer:
        result = CliRunner().invoke(main, list(words), input=stdin, prog_name="kitchen")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return kitchen


@pytest.fixture
def kitchen(offline: Kitchen, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    """The same, with the fake kitchen as its server."""
    monkeypatch.setenv("KITCHEN_SERVER", addresses["open"])
    return offline
