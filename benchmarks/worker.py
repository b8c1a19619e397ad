"""A process that takes turns with others: it waits for a command, measures, and answers.

The driver's side is `Worker`. A worker's side is a module that prints nothing itself:

    commands = Commands()
    for count in commands:
        commands.answer(seconds=[...])
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

_START_SECONDS = 300.0
_SHOWN_BYTES = 4000


class Worker:
    """The driver's side."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        """Use `start`."""
        self._name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, module: str, *arguments: object) -> Worker:
        """Starts a module of this folder in the driver's interpreter. Returns when it waits for its first command."""
        log = tempfile.TemporaryFile()  # noqa: SIM115  # the worker's for as long as it lives
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"benchmarks.{module}", *(str(each) for each in arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=2**24,
        )
        worker = cls(module, process, log)
        async with asyncio.timeout(_START_SECONDS):
            await worker._read()
        return worker

    async def run(self, count: int = 1) -> dict[str, Any]:
        """Has `count` samples taken; returns what the worker answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n".encode())
        return await self._read()

    async def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        self._log.close()

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            status = await self._process.wait()
            self._log.seek(max(0, self._log.tell() - _SHOWN_BYTES))
            written = self._log.read().decode("utf-8", "replace")
            raise RuntimeError(f"{self._name} ended with status {status}; it wrote: {written}")
        return json.loads(line)


class Commands:
    """The worker's side. Made when everything is ready for the first command."""

    def __init__(self) -> None:
        # What libraries print must not come between the answers.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.answer()

    def __iter__(self) -> Iterator[int]:
        """The commands' counts, until the driver has no more."""
        for line in sys.stdin:
            yield int(line)

    def answer(self, **fields: Any) -> None:
        """Answers the last command."""
        self._out.write(json.dumps(fields) + "\n")
        self._out.flush()
