"""Calls of operations that run in processes of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from google.rpc import status_pb2

from crucible_adapters.huggingface.options import HuggingFaceOptions, library_environment, require
from crucible_kit.adapter import AdapterContext, distribution_version
from crucible_kit.errors import UnavailableError, from_status
from crucible_kit.parent_death import dying_with_parent

logger = logging.getLogger(__name__)

_MODULE = "crucible_adapters.huggingface.worker"
_STOP_SECONDS = 5.0
# Each request has a limit of its own; a hub that sends a byte now and then has this one.
_ASK_SECONDS = 100.0
_KEPT_LINES = 20
# Few enough that their memory does not matter; a call that waits can be cancelled.
QUICK_CALLS = 4
LONG_CALLS = 4


class Calls:
    """Runs operations of the hub's libraries, one process each; ends them when their callers go away.

    Args:
        kind: model or dataset, for the errors.
        packages: what must be installed.
    """

    def __init__(
        self, options: HuggingFaceOptions, context: AdapterContext, *, kind: str, packages: tuple[str, ...]
    ) -> None:
        """Raises FAILED_PRECONDITION PACKAGE_MISSING."""
        require(*packages)
        self._environment = library_environment(options, context)
        self._timeout_seconds = options.timeout_seconds
        self._subject = {"kind": kind, "endpoint": options.address(), "token_variable": options.token_variable}
        self._quick = asyncio.Semaphore(QUICK_CALLS)
        self._long = asyncio.Semaphore(LONG_CALLS)
        self._running: set[_Worker] = set()
        self._closed = False

    async def ask(self, operation: str, repo: str, revision: str, **arguments: Any) -> dict[str, Any]:
        """The result of an operation that only asks the hub, within 100 s.

        Raises:
            UnavailableError: HUB_UNREACHABLE when it takes longer, ADAPTER_CLOSED after `close`.
            KitchenError: what the operation raises.
        """
        async with self._quick:
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    return await self._call(operation, repo, revision, arguments)
            except TimeoutError as error:
                raise UnavailableError(
                    f"{self._subject['endpoint']} told nothing of {repo!r} within {_ASK_SECONDS:g} s: try again",
                    reason="HUB_UNREACHABLE",
                    metadata={"repo": repo, "endpoint": self._subject["endpoint"]},
                ) from error

    async def transfer(self, operation: str, repo: str, revision: str, **arguments: Any) -> dict[str, Any]:
        """The result of an operation that moves files, which may take hours. Raises as `ask`, without its limit."""
        async with self._long:
            return await self._call(operation, repo, revision, arguments)

    async def _call(self, operation: str, repo: str, revision: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._closed:
            raise UnavailableError("the adapter is closed", reason="ADAPTER_CLOSED")
        request = {
            "operation": operation,
            "subject": {**self._subject, "repo": repo, "revision": revision},
            "timeout_seconds": self._timeout_seconds,
            "version": distribution_version(),
            "arguments": arguments,
        }
        worker = _Worker(await self._start())
        self._running.add(worker)
        worker.ended.add_done_callback(lambda _: self._running.discard(worker))
        if self._closed:  # while the process was started
            worker.stop()
        try:
            answer = await worker.answer(json.dumps(request).encode() + b"\n")
        finally:
            worker.stop()
            await asyncio.shield(worker.ended)
        if self._closed and not answer:
            raise UnavailableError("the adapter is closed", reason="ADAPTER_CLOSED")
        return _decoded(answer, operation, worker)

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            # -P: a file in the working directory must not stand in for a library
            *dying_with_parent([sys.executable, "-P", "-m", _MODULE]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            # Ctrl-C at the terminal is the server's to handle.
            start_new_session=True,
        )

    async def close(self) -> None:
        """Ends what runs and waits for it; later calls are refused."""
        self._closed = True
        running = list(self._running)
        for worker in running:
            worker.stop()
        await asyncio.gather(*(worker.ended for worker in running))


class _Worker:
    """One process, from its start to its end.

    Attributes:
        ended: done when the process is gone and everything it wrote has been read.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._stdin = process.stdin
        self._stopped = asyncio.Event()
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._output = asyncio.ensure_future(process.stdout.read())
        self._logged = asyncio.ensure_future(self._log(process.stderr))
        self.ended = asyncio.ensure_future(self._end())

    @property
    def status(self) -> int | None:
        """The process's exit status."""
        return self._process.returncode

    async def answer(self, request: bytes) -> bytes:
        """What the process answers: all that it writes until it ends."""
        self._stdin.write(request)
        return await asyncio.shield(self._output)

    def stop(self) -> None:
        """Asks the process to end; it is killed when it does not."""
        self._stopped.set()

    async def _end(self) -> None:
        await self._stopped.wait()
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            logger.warning("the hub process %d does not end and is killed", self._process.pid)
            self._process.kill()
            await self._process.wait()
        await asyncio.gather(self._output, self._logged)

    async def _log(self, stderr: asyncio.StreamReader) -> None:
        while line := await _line(stderr):
            text = line.decode("utf-8", "replace").rstrip()
            self.lines.append(text)
            logger.info("hub process %d: %s", self._process.pid, text)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; a piece of one that is longer than a reader takes."""
    try:
        return await stream.readline()
    except ValueError:
        return await stream.read(1024)


def _decoded(answer: bytes, operation: str, worker: _Worker) -> dict[str, Any]:
    try:
        decoded = json.loads(answer)
    except ValueError:
        decoded = {}
    if "result" in decoded:
        return decoded["result"]
    if "status" in decoded:
        raise from_status(status_pb2.Status.FromString(base64.b64decode(decoded["status"])))
    shown = "\n".join(worker.lines)
    if "defect" in decoded:
        raise RuntimeError(f"{operation} failed with {decoded['defect']}; the process's last lines:\n{shown}")
    raise UnavailableError(
        f"the process for {operation} ended with status {worker.status} before it answered: try again, and look at the "
        "server's log",
        reason="HUB_PROCESS_ENDED",
        metadata={"operation": operation, "status": worker.status},
    )
