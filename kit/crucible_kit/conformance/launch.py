"""An adapter's process that a run starts, kills and starts again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from crucible.adapter.v1 import adapter_pb2_grpc
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.conformance.context import handshake
from crucible_kit.errors import KitchenError, UnavailableError

logger = logging.getLogger(__name__)

LISTEN_VARIABLE = "CRUCIBLE_ADAPTER_LISTEN"
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_KEPT_LINES = 40


class AdapterChild:
    """One process at a time.

    Args:
        command: what to run. `{listen}` in a word is replaced by the address to listen on.
        environment: added to this process's.
        announces: it says on its first line of stdout where it listens; otherwise it listens where it was told.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], announces: bool) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._announces = announces
        # Short: a socket's path has at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="ck-")
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._starts = 0
        self._channel: RemoteChannel | None = None

    async def start(self) -> RemoteChannel:
        """A channel to a new process that answers.

        Raises:
            UnavailableError: ADAPTER_START_FAILED with the last lines it wrote.
        """
        self._starts += 1
        self._lines.clear()
        listen = f"unix:{Path(self._folder.name) / f'{self._starts}.sock'}"
        process = self._process = await asyncio.create_subprocess_exec(
            *(word.replace("{listen}", listen) for word in self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._environment, LISTEN_VARIABLE: listen},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers.append(asyncio.create_task(self._read(process.stderr)))
        try:
            async with asyncio.timeout(_START_SECONDS):
                address = await self._announced(process.stdout) if self._announces else listen
                self._readers.append(asyncio.create_task(self._read(process.stdout)))
                return await self._connect(process, address)
        except TimeoutError as error:
            raise self._failed(f"no answer within {_START_SECONDS:g} s") from error

    async def _announced(self, stdout: asyncio.StreamReader) -> str:
        line = (await stdout.readline()).decode("utf-8", "replace").strip()
        try:
            announcement = json.loads(line)
            if announcement["crucible"] == 1 and isinstance(announcement["address"], str):
                return announcement["address"]
        except (ValueError, KeyError, TypeError):
            pass
        told = f"its first line is {line!r}" if line else "it ended, or closed stdout, without a line"
        raise self._failed(f'it must print {{"crucible": 1, "address": "..."}} first, but {told}')

    async def _connect(self, process: asyncio.subprocess.Process, address: str) -> RemoteChannel:
        self._channel = channel = connect(address, retry=False)
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)  # pyright: ignore[reportArgumentType]
        call, ended = asyncio.ensure_future(handshake(stub)), asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({call, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise self._failed(f"it ended with status {process.returncode}")
            with suppress(KitchenError):  # an answer, whatever it says, is what the suite looks at
                call.result()
            return channel
        finally:
            for each in (call, ended):
                each.cancel()
            await asyncio.gather(call, ended, return_exceptions=True)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._lines.append(line.decode("utf-8", "replace").rstrip())
            logger.info("adapter: %s", self._lines[-1])

    def _failed(self, what: str) -> UnavailableError:
        shown = "\n".join(self._lines) or "nothing"
        return UnavailableError(
            f"{self._command[0]} did not start ({what}); its last lines: {shown[-1500:]}",
            reason="ADAPTER_START_FAILED",
        )

    async def restart(self) -> RemoteChannel:
        """Kills the process with SIGKILL and starts another."""
        await self._leave(signal.SIGKILL)
        return await self.start()

    async def end(self) -> None:
        """Ends the process: the end of its stdin and SIGTERM, after 10 s SIGKILL."""
        await self._leave(signal.SIGTERM)
        self._folder.cleanup()

    async def _leave(self, number: signal.Signals) -> None:
        if self._channel is not None:
            await self._channel.close()
        process, self._process, self._channel = self._process, None, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            _signal(process, number)
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            logger.warning("the adapter did not end in %g s and is killed", _STOP_SECONDS)
            _signal(process, signal.SIGKILL)
            await process.wait()
        readers, self._readers = self._readers, []
        await asyncio.gather(*readers, return_exceptions=True)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To it and to what it started itself, as a shell does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@asynccontextmanager
async def launched(child: AdapterChild) -> AsyncIterator[RemoteChannel]:
    """A channel to the started process, which ends with the block."""
    try:
        yield await child.start()
    finally:
        await child.end()
