"""The Elixir adapter in clients/elixir: where it is, whether it can run here, and its process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "clients" / "elixir"


def missing() -> str:
    """What keeps the Elixir tests from running here; empty: nothing."""
    if shutil.which("mix") is None:
        return "elixir is not installed (clients/elixir/setup.sh installs it where it may)"
    if not any((FOLDER / place / "cowboy").is_dir() for place in ("_deps/lib", "deps")):
        return "cowboy is not in clients/elixir/_deps (clients/elixir/setup.sh brings it)"
    return ""


@cache
def compiled() -> Path:
    """The folder of the compiled adapter, which is made anew where a source is newer."""
    subprocess.run(["mix", "compile"], cwd=FOLDER, check=True, timeout=100)
    return FOLDER / "_build" / "shared" / "lib" / "crucible_adapter" / "ebin"


ADAPTER_COMMAND = str(FOLDER / "bin" / "crucible-adapter")
needs_elixir = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


class ElixirAdapter:
    """One BEAM that serves the ports training and sampling."""

    def __init__(
        self, folder: Path, *arguments: str, listen: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts it as a host does when there is `listen`. Its stderr goes to `folder`/elixir.log.

        Args:
            arguments: what follows the program's name.
        """
        compiled()
        self._log = (folder / "elixir.log").open("a")
        self.process = subprocess.Popen(
            [str(FOLDER / "bin" / "crucible-adapter"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "CRUCIBLE_ADAPTER_LISTEN": listen, **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(timeout=30)
            raise RuntimeError(f"it ended with status {self.process.returncode}: {Path(self._log.name).read_text()}")
        announced = json.loads(line)
        assert announced["crucible"] == 1
        self.address: str = announced["address"]

    def end(self) -> int:
        """Closes its stdin and waits; returns its exit status."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        return self._wait()

    def terminate(self) -> int:
        """SIGTERM; returns its exit status."""
        self.process.terminate()
        return self._wait()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._wait()

    def _wait(self) -> int:
        status = self.process.wait(timeout=30)
        for file in (self.process.stdin, self.process.stdout, self._log):
            if file is not None:
                file.close()
        return status
