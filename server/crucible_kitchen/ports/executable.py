"""Programs that serve ports, in any language: the server starts them and they announce where they listen."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.addresses import check_address, is_local
from crucible_kit.author_process import LISTEN_VARIABLE
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.child_process import ChildProcess
from crucible_kit.errors import KitchenError, UnavailableError, from_status, to_status
from crucible_kitchen.ports.binding import Opened, Opening
from crucible_kitchen.ports.handshake import Configurator, Settings, adapter_unavailable
from crucible_kitchen.ports.process import ChildAdapter
from crucible_kitchen.ports.remote import NOT_CONFIGURED, settings_of

ANNOUNCEMENT = '{"crucible": 1, "address": "unix:PATH"}'
_ANNOUNCEMENT_VERSION = 1
START_FAILED = {"start": "failed"}
"""Metadata of an ADAPTER_UNAVAILABLE about a program that did not start, and is not just slow."""
# In which a program whose connection broke is found to have ended.
_DEATH_SECONDS = 1.0
# A program that fails to start is not started again at once, however many calls come.
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_MAX_NAME = 60


class ExecAdapter(ChildAdapter):
    """A program, started when first needed; it serves all ports that are mapped to it. One that has ended is started
    again by the next call.
    """

    _terminates: ClassVar[bool] = True
    declared: frozenset[str] = frozenset()

    def __init__(self, command: Sequence[str], *, socket: Path, hidden: Collection[str]) -> None:
        """`socket`: where it is asked to listen. `hidden`: environment variables that it does not get."""
        name = shlex.join([Path(command[0]).name, *command[1:]])
        super().__init__(f"exec:{name[:_MAX_NAME]}{'…' * (len(name) > _MAX_NAME)}", hidden_variables=hidden)
        self._command = list(command)
        self._socket = socket
        self._waits: dict[str, float] = {}
        self._configurator = Configurator()
        self._address = f"unix:{socket}"
        # Nobody would start the program while a call waits for the connection.
        self._channel = connect(self._address, wait_for_ready=False, retry=False)
        self._failure: KitchenError | None = None
        self._failures = 0
        self._not_before = 0.0

    def add(self, port: str, settings: Settings) -> None:
        """Takes in one more port that it serves."""
        self._waits[port] = settings.wait_seconds
        self._configurator.add(port, settings)

    @property
    def channel(self) -> RemoteChannel:
        """The way to the program that was started last."""
        return self._channel

    def is_ready(self, port: str) -> bool:
        """Whether a call may be sent as it is."""
        return self.info is not None and not self._doubted and self._configurator.is_done(port)

    async def ensure(self, port: str = "", *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        """Starts the program when it does not run or answer, and configures it for the port.

        Raises:
            UnavailableError: ADAPTER_UNAVAILABLE; it does not start, with the last lines that it wrote, or is still
                starting after wait_seconds.
            FailedPreconditionError: CONTRACT_VERSION_UNSUPPORTED.
            InvalidArgumentError: MANIFEST_INVALID.
        """
        seconds = self._waits[port]
        try:
            async with asyncio.timeout(seconds):
                info = await super().ensure(port, fresh=fresh)
        except KitchenError:
            raise  # some of them are a TimeoutError, too
        except TimeoutError as error:
            raise adapter_unavailable(f"{self._name} is still starting after {seconds:g} s") from error
        await self._configurator.ensure(self._channel, info, port)
        return info

    async def _start_anew(self) -> adapter_pb2.GetAdapterInfoResponse:
        loop = asyncio.get_running_loop()
        if self._failure is not None and loop.time() < self._not_before:
            raise from_status(to_status(self._failure))
        try:
            info = await super()._start_anew()
        except KitchenError as error:
            pause = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
            self._failure, self._failures, self._not_before = error, self._failures + 1, loop.time() + pause
            raise
        self._failure, self._failures = None, 0
        return info

    async def _start(self) -> ChildProcess:
        self._socket.unlink(missing_ok=True)
        child = ChildProcess(self._name, first_line=True)
        await child.start(self._command, {**self._environment(), LISTEN_VARIABLE: f"unix:{self._socket}"})
        return child

    async def _find(self, child: ChildProcess) -> None:
        line = await child.first_line()
        address = _announced(line)
        if address is None:
            shown = repr(line[:200]) if line else "nothing"
            raise UnavailableError(
                f"the first line of its stdout must be {ANNOUNCEMENT}, with its own unix or loopback address, and was "
                f"{shown}",
                reason="ADAPTER_UNAVAILABLE",
            )
        if address != self._address:
            before, self._address = self._channel, address
            self._channel = connect(address, wait_for_ready=False, retry=False)
            await before.close()

    def _start_failed(self, problem: str) -> KitchenError:
        return adapter_unavailable(f"{self._name} did not start ({problem})", **START_FAILED)

    async def failed(self, port: str, error: KitchenError, instance_id: str) -> bool:
        """Whether the program that the call was sent to has ended, so that the call may be sent to a new one."""
        if error.reason == NOT_CONFIGURED:
            self._configurator.forget()
        info, child = self.info, self._child
        if not await self._has_lost(error, instance_id):
            return False
        if info is None or child is None or info.instance_id != instance_id:
            return True
        return await child.ends_within(_DEATH_SECONDS)

    async def close(self) -> None:
        """Ends the program and waits for it."""
        await self._configurator.cancel()
        await super().close()


def _announced(line: str) -> str | None:
    """The address in an announcement; None when it is none, or leads beyond this machine."""
    try:
        announcement = json.loads(line)
        if announcement["crucible"] != _ANNOUNCEMENT_VERSION:
            return None
        address = announcement["address"]
        check_address(address)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return address if is_local(address) else None


def open_exec(opening: Opening) -> Opened:
    """The opener of exec: mappings; one program for all ports with the same command, options and secrets."""
    mapping, command = opening.mapping, check_exec(opening)
    key = json.dumps(["exec", command, mapping.options, mapping.secrets], sort_keys=True)
    binding = opening.shared.get(key)
    if binding is None:
        binding = ExecAdapter(
            command,
            socket=opening.socket,
            hidden=opening.hidden_variables,
        )
    assert isinstance(binding, ExecAdapter)
    binding.add(opening.port, settings_of(opening))
    return Opened(binding=binding, key=key)


def check_exec(opening: Opening) -> list[str]:
    """The command of an exec: mapping. Raises MANIFEST_INVALID when there is no such program."""
    command = opening.mapping.arguments
    if shutil.which(command[0]) is None:
        raise opening.refused(f"names no program that can be executed here: there is no {command[0]!r}")
    return command
