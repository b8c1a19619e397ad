"""Child processes that serve ports: started when needed, watched, ended with the server."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from pathlib import Path

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import CONTRACT_VERSIONS, AdapterOptions, ProcessAdapter, distribution_version
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.errors import DeadlineExceededError, KitchenError, UnavailableError

logger = logging.getLogger(__name__)

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_PROBE_SECONDS = 15.0
_KEPT_LINES = 40


class AdapterProcess:
    """One child and the channel to it. A child that has died is started again by the next `ensure`."""

    def __init__(self, adapter: ProcessAdapter, options: AdapterOptions, *, socket: Path, work_dir: Path) -> None:
        self._adapter = adapter
        self._options = options
        self._socket = socket
        self._work_dir = work_dir
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lock = asyncio.Lock()
        # Calls fail at once when the child is gone: the run then goes on from its checkpoint with a new one.
        self.channel: RemoteChannel = connect(f"unix:{socket}", wait_for_ready=False, retry=False)
        self.info: adapter_pb2.GetAdapterInfoResponse | None = None

    @property
    def declared(self) -> frozenset[str]:
        """The capabilities that it is known to have without being asked."""
        return frozenset(capability for each in self._adapter.capabilities.values() for capability in each)

    @property
    def running(self) -> bool:
        """Whether the child lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process is not None and self.running else None

    async def ensure(self) -> adapter_pb2.GetAdapterInfoResponse:
        """The adapter's handshake; starts the child when it does not run.

        Raises:
            UnavailableError: ADAPTER_START_FAILED with the last lines the child wrote.
        """
        async with self._lock:
            if self.running and self.info is not None and await self._answers():
                return self.info
            await self._end()
            await self._start()
            self.info = await self._handshake()
            return self.info

    async def _answers(self) -> bool:
        """Whether somebody answers: a killed child counts as running until it is reaped, a stopped one for ever."""
        stub = adapter_pb2_grpc.AdapterServiceStub(self.channel)
        try:
            await stub.Probe(adapter_pb2.ProbeRequest(), timeout=_PROBE_SECONDS)
        except (UnavailableError, DeadlineExceededError):
            return False
        except KitchenError:
            pass  # an answer, if an odd one
        return True

    async def _start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._work_dir.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", self._adapter.module),
            *("--listen", f"unix:{self._socket}", "--work-dir", str(self._work_dir), "--parent-pipe"),
            *self._adapter.arguments(self._options),
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**self._adapter.environment, **os.environ},
            # Ctrl-C at the terminal is the server's to handle.
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read_lines(self._process))
        logger.info("%s started, pid %d", self._adapter.name, self._process.pid)

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            logger.info("%s: %s", self._adapter.name, text)
        status = await process.wait()
        logger.info("%s ended with status %d", self._adapter.name, status)

    async def _handshake(self) -> adapter_pb2.GetAdapterInfoResponse:
        assert self._process is not None
        # On the connection that all calls use: it may still be backing off from the child that died.
        waiting = self.channel.waiting()
        request = adapter_pb2.GetAdapterInfoRequest(
            host_version=distribution_version(), host_contract_versions=CONTRACT_VERSIONS
        )
        call = asyncio.ensure_future(
            adapter_pb2_grpc.AdapterServiceStub(waiting).GetAdapterInfo(request, timeout=_START_SECONDS)
        )
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({call, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise self._start_failed(f"ended with status {self._process.returncode}")
            return call.result()
        except KitchenError as error:
            raise self._start_failed(error.message) from error
        finally:
            call.cancel()
            ended.cancel()
            await asyncio.gather(call, ended, return_exceptions=True)

    def _start_failed(self, what: str) -> UnavailableError:
        shown = "\n".join(self._lines) or "nothing"
        return UnavailableError(
            f"{self._adapter.name} did not start ({what}); its last lines: {shown[-1500:]}",
            reason="ADAPTER_START_FAILED",
            metadata={"adapter": self._adapter.name},
        )

    async def _end(self) -> None:
        process, self._process, self.info = self._process, None, None
        if process is None:
            return
        if process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                logger.warning("%s did not end in %g s and is killed", self._adapter.name, _STOP_SECONDS)
                process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader
        self._lines.clear()

    async def close(self) -> None:
        """Ends the child and waits for it."""
        async with self._lock:
            await self._end()
            await self.channel.close()
