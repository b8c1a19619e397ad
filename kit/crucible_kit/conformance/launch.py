"""An adapter's process that a run starts, kills and starts again."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from crucible.adapter.v1 import adapter_pb2_grpc
from crucible_kit.author_process import LISTEN_VARIABLE
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.child_process import ChildProcess
from crucible_kit.conformance.context import handshake
from crucible_kit.errors import KitchenError, UnavailableError

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0


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
        self._child: ChildProcess | None = None
        self._starts = 0
        self._channel: RemoteChannel | None = None

    async def start(self) -> RemoteChannel:
        """A channel to a new process that answers.

        Raises:
            UnavailableError: ADAPTER_START_FAILED with the last lines it wrote.
        """
        self._starts += 1
        listen = f"unix:{Path(self._folder.name) / f'{self._starts}.sock'}"
        child = ChildProcess("adapter", first_line=self._announces)
        command = [word.replace("{listen}", listen) for word in self._command]
        await child.start(command, {**os.environ, **self._environment, LISTEN_VARIABLE: listen})
        self._child = child
        try:
            async with asyncio.timeout(_START_SECONDS):
                address = _announced(await child.first_line()) if self._announces else listen
                return await self._connect(child, address)
        except TimeoutError as error:
            raise await self._failed(child, f"no answer within {_START_SECONDS:g} s") from error
        except _NotStarted as problem:
            raise await self._failed(child, str(problem)) from None

    async def _connect(self, child: ChildProcess, address: str) -> RemoteChannel:
        self._channel = channel = connect(address, retry=False)
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)  # pyright: ignore[reportArgumentType]
        call, ended = asyncio.ensure_future(handshake(stub)), asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({call, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise _NotStarted(f"it ended with status {child.status}")
            with suppress(KitchenError):  # an answer, whatever it says, is what the suite looks at
                call.result()
            return channel
        finally:
            for each in (call, ended):
                each.cancel()
            await asyncio.gather(call, ended, return_exceptions=True)

    async def _failed(self, child: ChildProcess, what: str) -> UnavailableError:
        await child.stop(_STOP_SECONDS, terminate=True)  # then all that it wrote has been read
        shown = "\n".join(child.last_lines) or "nothing"
        return UnavailableError(
            f"{self._command[0]} did not start ({what}); its last lines: {shown[-1500:]}",
            reason="ADAPTER_START_FAILED",
        )

    async def restart(self) -> RemoteChannel:
        """Kills the process with SIGKILL and starts another."""
        child = await self._left()
        if child is not None:
            await child.kill()
        return await self.start()

    async def end(self) -> None:
        """Ends the process: the end of its stdin and SIGTERM, after 10 s SIGKILL."""
        child = await self._left()
        if child is not None:
            await child.stop(_STOP_SECONDS, terminate=True)
        self._folder.cleanup()

    async def _left(self) -> ChildProcess | None:
        """The process, its channel closed."""
        if self._channel is not None:
            await self._channel.close()
        child, self._child, self._channel = self._child, None, None
        return child


class _NotStarted(Exception):
    """Why a process is of no use."""


def _announced(line: str) -> str:
    """The address in an announcement."""
    try:
        announcement = json.loads(line)
        if announcement["crucible"] == 1 and isinstance(announcement["address"], str):
            return announcement["address"]
    except (ValueError, KeyError, TypeError):
        pass
    told = f"its first line is {line!r}" if line else "it ended, or closed stdout, without a line"
    raise _NotStarted(f'it must print {{"crucible": 1, "address": "..."}} first, but {told}')


@asynccontextmanager
async def launched(child: AdapterChild) -> AsyncIterator[RemoteChannel]:
    """A channel to the started process, which ends with the block."""
    try:
        yield await child.start()
    finally:
        await child.end()
