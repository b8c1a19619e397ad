"""A real server in a process of its own, and small real runs on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crucible_adapters.builtin import word_problems

# Six steps of four short rows on the shipped model: real training in a few seconds.
SMALL: dict[str, Any] = {
    "batch_size": 4,
    "max_length": 96,
    "max_steps": 6,
    "warmup_steps": 2,
    "save_every": 2,
    "eval_at_start": False,
    "eval_dataset": "",
    "sample_prompts": 0,
}


def write_rows(path: Path, rows: int = 16, seed: int = 3) -> Path:
    """A JSONL file of generated word problems."""
    path.write_text("".join(json.dumps(row) + "\n" for row in word_problems.generate(rows, seed)), encoding="utf-8")
    return path


class Server:
    """One `kitchen serve`."""

    def __init__(self, data: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.environment = dict(environment or {})
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Starts the process and reads its address from its first line."""
        command = [sys.executable, "-m", "crucible_kitchen.cli", "serve", "--listen", "127.0.0.1:0"]
        self._log = (self.data.parent / f"{self.data.name}.log").open("a")
        self.process = subprocess.Popen(
            [*command, "--data", str(self.data), "--json", *self._arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "KITCHEN_TOKEN": "", **self.environment},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"the server ended with status {self.process.returncode}: see {self._log.name}")
        self.address: str = json.loads(line)["address"]

    def kill(self) -> None:
        """SIGKILL: nothing gets a chance to tidy up."""
        self.process.kill()
        self._wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        status = self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        return status


@contextmanager
def serving(data: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(data, *arguments, environment=environment)
    try:
        yield server
    finally:
        server.terminate()


def tensor_files(folder: Path) -> dict[str, bytes]:
    """The tensor files of a checkpoint by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def checkpoint_folder(uri: str) -> Path:
    """The folder of a file:// checkpoint."""
    match = re.fullmatch(r"file://(/.*)", uri)
    assert match, uri
    return Path(match[1])


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found
