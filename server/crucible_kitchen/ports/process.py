"""Adapters in child processes: started when needed, watched, started anew when they died, ended with the server."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import AdapterOptions, ProcessAdapter
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.child_process import ChildProcess
from crucible_kit.errors import DeadlineExceededError, KitchenError, UnavailableError
from crucible_kitchen.ports import handshake
from crucible_kitchen.ports.remote import LOST_REASONS
from crucible_kitchen.ports.single_flight import SingleFlight

logger = logging.getLogger(__name__)

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_PROBE_SECONDS = 15.0
# In which a child whose connection broke is found to have ended.
_LAST_WORDS_SECONDS = 0.5
_MAX_TOLD_CHARACTERS = 1500


class ChildAdapter(ABC):
    """One child that serves ports, and the channel to it. A child that has died is started again by the next
    `ensure`.
    """

    _terminates: ClassVar[bool] = False
    """Whether the child is sent SIGTERM when it is to end; it sees the end of its stdin in any case."""

    def __init__(self, name: str, *, hidden_variables: Collection[str] = ()) -> None:
        """`hidden_variables`: environment variables that the child does not get."""
        self._name = name
        self._hidden = hidden_variables
        self._child: ChildProcess | None = None
        self._info: adapter_pb2.GetAdapterInfoResponse | None = None
        # A call has lost its connection to the child that runs: it is asked before it is used again.
        self._doubted = False
        self._ensuring: SingleFlight[adapter_pb2.GetAdapterInfoResponse] = SingleFlight()

    @property
    def info(self) -> adapter_pb2.GetAdapterInfoResponse | None:
        """Its handshake; None while it does not run."""
        return self._info if self.running else None

    @property
    def running(self) -> bool:
        """Whether the child lives."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._child is None else self._child.pid

    @property
    @abstractmethod
    def channel(self) -> RemoteChannel:
        """The way to it."""

    @abstractmethod
    async def _start(self) -> ChildProcess:
        """A new child. Raises OSError when it can't be executed."""

    @abstractmethod
    async def _find(self, child: ChildProcess) -> None:
        """Finds out where the child listens. Raises UnavailableError when it does not say so."""

    def _start_failed(self, problem: str) -> KitchenError:
        return UnavailableError(
            f"{self._name} did not start ({problem})",
            reason="ADAPTER_START_FAILED",
            metadata={"adapter": self._name},
        )

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in self._hidden}

    async def ensure(self, port: str = "", *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        """The adapter's handshake; starts the child when it does not run or answer. It is always asked.

        Raises:
            UnavailableError: ADAPTER_START_FAILED with the last lines the child wrote.
        """
        return await self._ensuring.run(self._ensure)

    async def _ensure(self) -> adapter_pb2.GetAdapterInfoResponse:
        if self.info is not None and await self._answers():
            self._doubted = False
            return self.info
        return await self._start_anew()

    async def _has_lost(self, error: KitchenError, instance_id: str) -> bool:
        """Whether a call that ended with this error has lost its connection; a child that lives on is doubted."""
        if error.reason not in LOST_REASONS:
            return False
        child, info = self._child, self._info
        if child is not None and info is not None and info.instance_id == instance_id:
            lives = not await child.ends_within(_LAST_WORDS_SECONDS)
            self._doubted = self._doubted or (lives and self._child is child)
        return True

    async def _start_anew(self) -> adapter_pb2.GetAdapterInfoResponse:
        await self._end()
        try:
            self._child = child = await self._start()
        except OSError as error:
            raise self._start_failed(f"it can't be executed: {error.strerror}") from error
        try:
            self._info = await self._handshake(child)
        except BaseException:
            await self._end()
            raise
        return self._info

    async def _answers(self) -> bool:
        """Whether somebody answers: a killed child counts as running until it is reaped, a stopped one for ever."""
        try:
            await handshake.probe(self.channel, timeout=_PROBE_SECONDS)
        except (UnavailableError, DeadlineExceededError):
            return False
        except KitchenError:
            pass  # an answer, if an odd one
        return True

    async def _handshake(self, child: ChildProcess) -> adapter_pb2.GetAdapterInfoResponse:
        async def shake_hands() -> adapter_pb2.GetAdapterInfoResponse:
            await self._find(child)
            # On the connection that all calls use: it may still be backing off from the child that died.
            return await handshake.get_info(self.channel.waiting(), timeout=_START_SECONDS)

        call = asyncio.ensure_future(shake_hands())
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({call, ended}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if call.done() and (call.exception() is None or not _is_away(call.exception())):
                return call.result()
            problem = str(call.exception()) if call.done() else f"does not serve after {_START_SECONDS:g} s"
            if await child.ends_within(_LAST_WORDS_SECONDS):
                # What it said before it died is still in its pipes.
                await child.stop(_STOP_SECONDS)
                problem = f"ended with status {child.status}"
            shown = "\n".join(child.last_lines) or "nothing"
            raise self._start_failed(f"{problem}; its last lines: {shown[-_MAX_TOLD_CHARACTERS:]}")
        finally:
            call.cancel()
            ended.cancel()
            await asyncio.gather(call, ended, return_exceptions=True)

    async def _end(self) -> None:
        child, self._child, self._info, self._doubted = self._child, None, None, False
        if child is not None:
            await child.stop(_STOP_SECONDS, terminate=self._terminates)

    async def close(self) -> None:
        """Ends the child and waits for it."""
        await self._ensuring.cancel()
        await self._end()
        await self.channel.close()


def _is_away(error: BaseException | None) -> bool:
    return isinstance(error, UnavailableError | DeadlineExceededError)


class AdapterProcess(ChildAdapter):
    """The child of a ProcessAdapter."""

    def __init__(
        self,
        adapter: ProcessAdapter,
        options: AdapterOptions,
        *,
        socket: Path,
        work_dir: Path,
        hidden_variables: Collection[str] = (),
    ) -> None:
        super().__init__(adapter.name, hidden_variables=hidden_variables)
        self._adapter = adapter
        self._options = options
        self._socket = socket
        self._work_dir = work_dir
        # Calls fail at once when the child is gone: the run then goes on from its checkpoint with a new one.
        self._channel = connect(f"unix:{socket}", wait_for_ready=False, retry=False)

    @property
    def channel(self) -> RemoteChannel:
        """The way to it."""
        return self._channel

    @property
    def declared(self) -> frozenset[str]:
        """The capabilities that it is known to have without being asked."""
        return frozenset(capability for each in self._adapter.capabilities.values() for capability in each)

    def is_ready(self, port: str) -> bool:
        """Unless it is doubted: its sessions end with it, so a call that finds it gone must fail."""
        return not self._doubted

    async def failed(self, port: str, error: KitchenError, instance_id: str) -> bool:
        """Whether the call may be sent to a new child: sessions end with theirs, and who has one must hear of it."""
        return await self._has_lost(error, instance_id) and self._adapter.stateless

    async def _find(self, child: ChildProcess) -> None:
        """It listens where it is told to."""

    async def _start(self) -> ChildProcess:
        self._socket.unlink(missing_ok=True)
        self._work_dir.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", self._adapter.module),
            *("--listen", f"unix:{self._socket}", "--work-dir", str(self._work_dir), "--parent-pipe"),
            *self._adapter.arguments(self._options),
        ]
        child = ChildProcess(self._name)
        await child.start(command, {**self._adapter.environment, **self._environment()})
        return child
