"""The server's side of the workers: the process that forks them, and each of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from crucible_adapters.python_bridge.frames import Frame, FrameError, Reader, encode
from crucible_adapters.python_bridge.manifest import Library
from crucible_kit.errors import FailedPreconditionError, UnavailableError
from crucible_kit.parent_death import dying_with_parent
from crucible_kit.temporary import TemporaryFolder

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

_MODULE = "crucible_adapters.python_bridge.worker"
_STDERR = "stderr"
_SHOWN_CHARACTERS = 2000
# To fork takes milliseconds.
_ANSWER_SECONDS = 30.0
_REPLY_SLACK_BYTES = 1024 * 1024
# Nothing of the server's own environment gets to the workers: it holds secrets.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same request has the same answer, sets and all
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # One thread: a process with more can't be forked safely.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
}


class Worker(asyncio.Protocol):
    """The process of one session. It does one thing at a time.

    Attributes:
        pid: its number; 0: it has ended, and the number may be anybody's.
        gone: it has closed its socket.
        killed: whether this side has ended it.
    """

    def __init__(self, pid: int, max_result_bytes: int) -> None:
        self.pid = pid
        self._reader = Reader(max_result_bytes + _REPLY_SLACK_BYTES)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Frame | None] | None = None
        self.gone = False
        self.killed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            frame = self._reader.feed(data)
        except FrameError as error:
            logger.warning("worker %d is killed: %s", self.pid, error)
            self.kill()
            return
        if frame is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def ask(self, header: dict[str, Any], payload: bytes = b"") -> asyncio.Future[Frame | None]:
        """Sends a frame; the answer, or None when the process has ended."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.gone or self._transport is None:
            self._answer.set_result(None)
        else:
            self._transport.write(encode(header, payload))
        return self._answer

    def kill(self) -> None:
        """Ends the process. Its number stays its own until it is reaped; one that has ended keeps its status."""
        self.killed = True
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()


class Template:
    """The process that has the libraries loaded and forks the workers; started anew when it has ended.

    Args:
        libraries: what it loads.
        python_path: folders for its modules.
        max_result_bytes: of the workers' answers.
        start_seconds: how long it may take to load the libraries.
        answer_seconds: how long a fork may take. A process that takes longer is ended, and another started.
    """

    def __init__(
        self,
        libraries: Sequence[Library],
        python_path: Iterable[str],
        max_result_bytes: int,
        *,
        start_seconds: float,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._libraries = libraries
        self._start_seconds = start_seconds
        self._answer_seconds = answer_seconds
        self._environment = dict(_ENVIRONMENT)
        if folders := os.pathsep.join(python_path):
            self._environment["PYTHONPATH"] = folders
        self._max_result_bytes = max_result_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder: TemporaryFolder | None = None
        self._turn = asyncio.Lock()
        self._workers: set[Worker] = set()
        self.problems: dict[str, str] = {}
        self.closed = False

    async def start(self) -> None:
        """Starts the process unless it runs, and waits until it has loaded the libraries.

        Raises:
            UnavailableError: WORKERS_UNAVAILABLE, ADAPTER_CLOSED.
        """
        async with self._turn:
            await self._start()

    async def _start(self) -> None:
        if self.closed:
            raise UnavailableError("the Python bridge is closed", reason="ADAPTER_CLOSED")
        if self._control is None:
            await _whole(self._load())

    async def _load(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._control = ours
        with theirs:
            self._folder = self._folder or await asyncio.to_thread(TemporaryFolder)
            self._process = self._spawn(theirs, self._folder.path)
        if self.closed:
            self.stop()
        request = {"libraries": [each.model_dump(mode="json", exclude_unset=True) for each in self._libraries]}
        answer = await self._exchange(request, seconds=self._start_seconds)
        self.problems = answer["problems"]
        if answer["threads"] > 1:
            logger.warning("the libraries start %d threads: workers lack them", answer["threads"] - 1)
        for name, problem in self.problems.items():
            logger.warning("the library %s can't be used: %s", name, problem)

    def _spawn(self, theirs: socket.socket, folder: Path) -> subprocess.Popen[bytes]:
        """Not to be called in a thread, with which the process would end."""
        home = folder / "home"
        home.mkdir(exist_ok=True)
        with (folder / _STDERR).open("wb") as stderr:
            return subprocess.Popen(
                # -P: a file in the working directory must not stand in for a library
                dying_with_parent([sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]),
                pass_fds=[theirs.fileno()],
                env={**self._environment, "HOME": str(home), "TMPDIR": str(home)},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                # A group of its own: it is ended with all workers at once, and Ctrl-C is the server's to handle.
                start_new_session=True,
            )

    async def fork(self, memory_limit_bytes: int) -> Worker:
        """A new worker; whoever asks must not be cancelled. Raises as `start`, and WORKER_NOT_STARTED."""
        async with self._turn:
            try:
                pid, ours = await self._forked(memory_limit_bytes)
            except UnavailableError:
                pid, ours = await self._forked(memory_limit_bytes)  # nothing has run yet
            worker = Worker(pid, self._max_result_bytes)
            self._workers.add(worker)
        await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        return worker

    async def _forked(self, memory_limit_bytes: int) -> tuple[int, socket.socket]:
        await self._start()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                answer = await self._exchange({"fork": memory_limit_bytes}, theirs)
            if "pid" not in answer:
                raise FailedPreconditionError(
                    f"no process can be started for the session: {answer.get('problem')}", reason="WORKER_NOT_STARTED"
                )
        except BaseException:
            ours.close()
            raise
        return int(answer["pid"]), ours

    async def reap(self, worker: Worker) -> int:
        """Takes the exit status of a worker that ends; -9 and such: ended by that signal. Not to be cancelled."""
        async with self._turn:
            pid, worker.pid = worker.pid, 0
            self._workers.discard(worker)
            if not pid or self._control is None:
                return -signal.SIGKILL
            try:
                return int((await self._exchange({"reap": pid}))["status"])
            except UnavailableError:
                return -signal.SIGKILL  # the group was ended

    async def _exchange(
        self, request: dict[str, Any], passed: socket.socket | None = None, *, seconds: float | None = None
    ) -> dict[str, Any]:
        """One question and its answer; to be called in turn, and never cancelled: the answer would stay behind."""
        limit = self._answer_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(limit) as clock:
                return await self._answer(request, passed)
        except (OSError, ValueError) as error:
            why = f"has not answered for {limit:g} s" if clock.expired() else f"has ended ({error})"
            await self._end(why)
            raise UnavailableError(
                f"the process of the Python libraries {why}: try again, it is started anew, and look at the server's "
                "log",
                reason="WORKERS_UNAVAILABLE",
            ) from error

    async def _answer(self, request: dict[str, Any], passed: socket.socket | None) -> dict[str, Any]:
        loop, control = asyncio.get_running_loop(), self._control
        if control is None:
            raise ConnectionResetError("it is not there")
        line = json.dumps(request).encode() + b"\n"
        if passed is not None:
            # Short, and the only thing on its way: the socket takes it whole.
            socket.send_fds(control, [line], [passed.fileno()])
        else:
            await loop.sock_sendall(control, line)
        answer = b""
        while not answer.endswith(b"\n"):
            data = await loop.sock_recv(control, 64 * 1024)
            if not data:
                raise ConnectionResetError("it has closed its socket")
            answer += data
        return json.loads(answer)

    def stop(self) -> None:
        """Ends the process and all workers; `close` waits for it."""
        self.closed = True
        if self._process is not None:
            _kill_group(self._process)

    async def close(self) -> None:
        """Ends the process and all workers, and removes their folder."""
        self.stop()
        async with self._turn:
            await self._end()
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove)

    async def _end(self, why: str = "was stopped") -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            _kill_group(process)
            await asyncio.to_thread(process.wait)
            if not self.closed:
                logger.error("the process of the Python libraries %s: %s", why, await asyncio.to_thread(self._said))
        for worker in self._workers:
            worker.pid = 0  # ended with the group: the number may be anybody's from now on
        self._workers.clear()

    def _said(self) -> str:
        """The end of what the process wrote to stderr."""
        assert self._folder is not None
        return (self._folder.path / _STDERR).read_text("utf-8", "replace")[-_SHOWN_CHARACTERS:] or "it has said nothing"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Not reaped yet, so the number is still that of its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _whole(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of something that goes on to its end when its caller is cancelled, who waits for that."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
