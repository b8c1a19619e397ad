"""Changing which adapter serves a port while the server runs: what is in use stays, unless that is forced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from crucible.kitchen.v1 import adapter_admin_pb2, event_pb2
from crucible_kit.errors import FailedPreconditionError, KitchenError, NotFoundError, PermissionDeniedError
from crucible_kit.ports import PORTS
from crucible_kit.settings import unknown_key
from crucible_kitchen.ports.host import PortHost
from crucible_kitchen.ports.mapping import PortMapping
from crucible_kitchen.recipes import RECIPES
from crucible_kitchen.recipes.recipe import find_recipe
from crucible_kitchen.relay.relay import Relay
from crucible_kitchen.runs.manager import RunManager
from crucible_kitchen.stages import STAGES
from crucible_kitchen.store.records import TERMINAL_STATES
from crucible_kitchen.store.store import Store

logger = logging.getLogger(__name__)

# What every run calls, whatever its stages: checkpoints and metrics.
_PORTS_OF_EVERY_RUN = frozenset({"blob", "metrics"})
_IDLE_STATES = (*TERMINAL_STATES, event_pb2.RUN_STATE_PAUSED)
_TOLD = 5
# Kinds that run code as the server's user.
_PROGRAMS = ("exec", "python")


class PortUsers:
    """Who would lose something if a port had another adapter."""

    def __init__(self, store: Store, runs: RunManager, relay: Relay) -> None:
        self._store = store
        self._runs = runs
        self._relay = relay

    async def of(self, port: str) -> list[str]:
        """In words, such as `run run-1` and `2 open sessions of clients`."""
        users = [f"run {run_id}" for run_id in self._runs.at_work() if await self._needs(run_id, port)]
        sessions = self._relay.open_sessions(port)
        if sessions:
            users.append(f"{sessions} open session{'s' * (sessions > 1)} of clients")
        return users

    async def _needs(self, run_id: str, port: str) -> bool:
        run = await self._store.get_run(run_id)
        if run.state in _IDLE_STATES:
            return False  # it only tidies up, or waits for an adapter that may well be replaced
        workflow = find_recipe(run.recipe, RECIPES).workflow
        uses = {use.port for name in workflow.stage_names() for use in STAGES[name].ports}
        return port in _PORTS_OF_EVERY_RUN | uses


class AdapterAdministration:
    """The adapters of a server, as its callers see and change them; changes come one at a time.

    Args:
        users: who uses a port, in words.
        knows_callers: whether only somebody who may act as the server's user can call. Without, nobody makes the server
            run programs or hand out what stands in its environment.
    """

    def __init__(
        self, ports: PortHost, users: Callable[[str], Awaitable[Sequence[str]]], *, knows_callers: bool
    ) -> None:
        self._ports = ports
        self._users = users
        self._knows_callers = knows_callers
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def adapters(self) -> list[adapter_admin_pb2.Adapter]:
        """The ports that have an adapter, sorted; starts nothing."""
        return await self._ports.adapters()

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        """The port's adapter after asking it whether it can serve. Raises NOT_FOUND PORT_NOT_FOUND."""
        return await self._ports.probe(port)

    async def add(
        self, port: str, mapping: PortMapping, *, where: str, validate_only: bool, force: bool
    ) -> adapter_admin_pb2.Adapter | None:
        """Maps a port, or only checks whether that could be done; the adapter that serves the port afterwards.

        Args:
            where: path of the mapping in the request.

        Raises:
            NotFoundError: PORT_NOT_FOUND.
            InvalidArgumentError: MANIFEST_INVALID.
            FailedPreconditionError: ADAPTER_IN_USE, DATA_FOLDER_UNUSABLE.
            PermissionDeniedError: CALLERS_UNKNOWN.
            KitchenError: what the adapter refuses.
        """
        _check_port(port)
        if not self._knows_callers and (reach := _reach_of(mapping)):
            raise _callers_unknown(mapping, where, reach)

        async def add() -> None:
            if self._ports.mapping(port) != mapping:
                await self._refuse_in_use(port, force=force)
            await self._ports.check(port, mapping, where=where)
            if not validate_only:
                await self._ports.add(port, mapping, where=where, may_replace=self._may_replace(port, force))
                logger.info("the port %s is mapped to %s", port, mapping.adapter)

        await self._change(add())
        return self._adapter(port)

    async def remove(self, port: str, *, force: bool) -> adapter_admin_pb2.Adapter | None:
        """Takes an added mapping back; the adapter that serves the port afterwards.

        Raises:
            NotFoundError: PORT_NOT_FOUND, MAPPING_NOT_FOUND.
            InvalidArgumentError: MANIFEST_INVALID.
            FailedPreconditionError: ADAPTER_IN_USE, DATA_FOLDER_UNUSABLE.
        """
        _check_port(port)

        async def remove() -> None:
            await self._ports.remove(port, may_replace=self._may_replace(port, force))
            mapping = self._ports.mapping(port)
            logger.info("the added mapping of the port %s is gone: %s serves it", port, mapping and mapping.adapter)

        await self._change(remove())
        return self._adapter(port)

    async def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Finishes a change even when its caller hangs up: the file and the port must not differ."""

        async def alone() -> None:
            async with self._changing:
                await work

        task = asyncio.create_task(alone())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def close(self) -> None:
        """Waits for the changes that are under way."""
        await asyncio.gather(*self._changes, return_exceptions=True)

    def _adapter(self, port: str) -> adapter_admin_pb2.Adapter | None:
        return None if self._ports.mapping(port) is None else self._ports.describe(port)

    def _may_replace(self, port: str, force: bool) -> Callable[[], Awaitable[None]]:
        return lambda: self._refuse_in_use(port, force=force)

    async def _refuse_in_use(self, port: str, *, force: bool) -> None:
        users = [] if force else await self._users(port)
        if users:
            raise _in_use(port, users)


def _reach_of(mapping: PortMapping) -> str:
    """What a mapping can do that not anybody may; nothing for one that anybody may add."""
    if mapping.kind in _PROGRAMS:
        return f"{mapping.kind}: runs code as the server's user"
    if mapping.kind == "builtin" and mapping.options:
        return "options of a built-in adapter reach files and modules as the server's user"
    return "secrets leave the server" if mapping.secrets or mapping.token_env else ""


def _callers_unknown(mapping: PortMapping, where: str, reach: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"{where}: {reach}, and anybody on this machine can call the server: write the mapping into the manifest, or "
        "start the server with --tokens or on a unix socket",
        reason="CALLERS_UNKNOWN",
        metadata={"field": where, "adapter": mapping.adapter},
    )


def _check_port(port: str) -> None:
    if port not in PORTS:
        raise NotFoundError(
            f"port {port!r}: {unknown_key(port, PORTS).replace('key', 'port')}",
            reason="PORT_NOT_FOUND",
            metadata={"port": port},
        )


def _in_use(port: str, users: Sequence[str]) -> KitchenError:
    more = f" and {len(users) - _TOLD} more" if len(users) > _TOLD else ""
    return FailedPreconditionError(
        f"the adapter of the port {port} is in use by {', '.join(users[:_TOLD])}{more}: wait, pause the runs, or "
        "force it; sessions are lost then, and runs go on from their last checkpoints",
        reason="ADAPTER_IN_USE",
        metadata={"port": port, "users": ", ".join(users[:_TOLD])},
    )
