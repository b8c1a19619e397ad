"""The adapter with the toy's manifest, called as an object."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from crucible_adapters.python_bridge.options import WorkersOptions
from crucible_adapters.python_bridge.workers import PythonWorkers
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.ports import PORTS

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy.yaml"


def toy_options(**options: Any) -> WorkersOptions:
    """The toy alone unless told otherwise: it loads fast."""
    given = {"libraries": (), "manifests": (str(TOY),), "python_path": (str(ROOT),), "workers": 4}
    return WorkersOptions(**{**given, "call_timeout_seconds": 60.0, **options})


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bridge(NamedTuple):
    """The adapter, a stub of it, and the clock of its leases."""

    adapter: PythonWorkers
    stub: Any
    clock: Clock


@asynccontextmanager
async def bridge(folder: Path, **options: Any) -> AsyncIterator[Bridge]:
    """An adapter that is closed in the end."""
    port, clock = PORTS["python_bridge"], Clock()
    adapter = PythonWorkers(toy_options(**options), AdapterContext(data_dir=folder), now=clock)
    try:
        yield Bridge(adapter, port.stub(ObjectChannel({port.service.full_name: adapter})), clock)
    finally:
        await adapter.close()


class Gate:
    """A call waits in toy.wait_for until it is opened."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path)
        self._writer: Any = None

    async def reached(self) -> None:
        """Returns when a call waits there."""
        # Opening it returns when somebody reads from it.
        self._writer = await asyncio.to_thread(open, self.path, "w", encoding="utf-8")

    def open(self) -> None:
        """Lets the call go on."""
        self._writer.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path, "gate")
