"""Adapters in other languages, each in a process of its own on a unix socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

TYPESCRIPT = Path(__file__).resolve().parents[2] / "clients" / "typescript"
HAS_NODE = shutil.which("node") is not None and (TYPESCRIPT / "node_modules").exists()
WHY_NOT_NODE = "node or its packages are not installed (`make test` installs them where node and npm are)"


class AdapterProcess:
    """A running adapter.

    Args:
        command: what to run; `--listen ADDRESS` is put behind it.
        environment: in place of `--listen`, what a kitchen would give its child; its stdin then stays open.

    Attributes:
        address: as the process has announced it.
    """

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        # Short: a socket's path has at most 107 characters.
        self._folder = tempfile.TemporaryDirectory()
        address = f"unix:{Path(self._folder.name) / 's'}"
        listen = ["--listen", address] if environment is None else []
        self.process = subprocess.Popen(
            [*command, *listen],
            stdin=subprocess.DEVNULL if environment is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ if environment is None else {**os.environ, **environment},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command} ended with status {self.process.wait()}")
        announced = json.loads(line)
        assert announced["crucible"] == 1
        self.address: str = announced["address"]

    def stop(self) -> None:
        """Ends it; it must end well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.wait()
        assert status == 0, f"ended with status {status}"

    def kill(self) -> None:
        """SIGKILL: nothing gets a chance to tidy up."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit status."""
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._folder.cleanup()
        return status


def node(script: str, *arguments: str) -> AdapterProcess:
    """One of the adapters in clients/typescript."""
    return AdapterProcess("node", str(TYPESCRIPT / script), *arguments)
