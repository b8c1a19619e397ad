"""A child process of a host: what it writes is read, and it ends when the host does."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from crucible_kit.child_log import ChildLog, readable
from crucible_kit.parent_death import dying_with_parent

logger = logging.getLogger(__name__)

_KEPT_LINES = 40
_READ_BYTES = 64 * 1024
# Of a process that has ended: longer, its pipes are held open by children of its own.
_PIPE_SECONDS = 1.0


class ChildProcess:
    """One process, started and ended once. Its stdin is a pipe: the end of file tells it to end, even when the host
    was killed; and the system kills it with the host where it can. Its stderr, and its stdout when that is read, go
    into the host's log line by line, as far as ChildLog lets them.

    Args:
        name: for the log.
        first_line: whether the first line of stdout is for the caller; otherwise stdout is not read at all.
    """

    def __init__(self, name: str, *, first_line: bool = False) -> None:
        self._name = name
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._log = ChildLog(name)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._first_line: asyncio.Future[str] | None = (
            asyncio.get_running_loop().create_future() if first_line else None
        )

    @property
    def running(self) -> bool:
        """Whether it lives, as far as is known: a killed one counts as running until it is reaped."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def status(self) -> int | None:
        """Its exit status; negative: the signal that ended it; None: it has not ended."""
        return None if self._process is None else self._process.returncode

    @property
    def last_lines(self) -> list[str]:
        """The last lines it wrote to stderr, without secrets."""
        return list(self._lines)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it. Raises OSError when there is no such program."""
        if shutil.which(command[0], path=environment.get("PATH", os.defpath)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        reads_stdout = self._first_line is not None
        self._process = await asyncio.create_subprocess_exec(
            *dying_with_parent(command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if reads_stdout else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            # Ctrl-C at the terminal is the host's to handle; and what it starts can be ended with it.
            start_new_session=True,
        )
        self._readers = [asyncio.create_task(self._read_stderr(self._process))]
        if reads_stdout:
            self._readers.append(asyncio.create_task(self._read_stdout(self._process)))
        logger.info("%s started, pid %d", self._name, self._process.pid)

    async def first_line(self) -> str:
        """The first line of its stdout, once there is one; empty when stdout ended without."""
        assert self._first_line is not None
        return await asyncio.shield(self._first_line)

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def ends_within(self, seconds: float) -> bool:
        """Whether it ends in so many seconds, or has ended."""
        try:
            await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self, seconds: float, *, terminate: bool = False) -> None:
        """Ends it: by the end of its stdin, with `terminate` by SIGTERM too, and after so many seconds by SIGKILL."""
        if self._process is None:
            return
        if self.running:
            assert self._process.stdin is not None
            self._process.stdin.close()
            if terminate:
                self._signal(signal.SIGTERM)
            if not await self.ends_within(seconds):
                logger.warning("%s did not end in %g s and is killed", self._name, seconds)
                self._signal(signal.SIGKILL)
                await self.wait()
        await self._finish_reading()

    async def kill(self) -> None:
        """Ends it by SIGKILL, without a sign before."""
        self._signal(signal.SIGKILL)
        await self.wait()
        await self._finish_reading()

    async def _finish_reading(self) -> None:
        _, pending = await asyncio.wait(self._readers, timeout=_PIPE_SECONDS)
        if pending:
            # Somebody has its pipes, so its process group is not empty and its id belongs to nobody else.
            self._signal(signal.SIGKILL)
            await asyncio.wait(pending, timeout=_PIPE_SECONDS)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._log.close()
        if self._first_line is not None and not self._first_line.done():
            self._first_line.set_result("")

    def _signal(self, number: signal.Signals) -> None:
        """To the process and to those it has started."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            if self.running:
                self._process.send_signal(number)

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            self._lines.append(readable(line))
            self._log.write(line)
        logger.info("%s ended with status %d", self._name, await process.wait())

    async def _read_stdout(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert self._first_line is not None
        async for line in _lines(process.stdout):
            if self._first_line.done():
                self._log.write(line)
            else:
                self._first_line.set_result(readable(line))
        if not self._first_line.done():
            self._first_line.set_result("")


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, at least 64 KiB of each: the rest of a longer one is dropped."""
    pending, dropping = b"", False
    while data := await stream.read(_READ_BYTES):
        *complete, pending = (pending + data).split(b"\n")
        for line in complete:
            if not dropping:
                yield line
            dropping = False
        if len(pending) > _READ_BYTES:
            if not dropping:
                yield pending
            pending, dropping = b"", True
    if pending and not dropping:
        yield pending
