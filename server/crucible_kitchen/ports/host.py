"""The adapters of a server: made from the mappings of its ports, started when first needed, closed with it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crucible.adapter.v1 import adapter_pb2
from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, KitchenError, NotFoundError, UnavailableError
from crucible_kit.ports import PORTS
from crucible_kit.settings import unknown_key
from crucible_kit.temporary import TemporaryFolder
from crucible_kitchen.ports import handshake
from crucible_kitchen.ports.added import FILE, next_generation, read_added, write_added
from crucible_kitchen.ports.binding import Binding, Kind, Opening
from crucible_kitchen.ports.bound import BoundChannel
from crucible_kitchen.ports.describe import STATES, describe, put_state
from crucible_kitchen.ports.executable import START_FAILED
from crucible_kitchen.ports.in_process import preload
from crucible_kitchen.ports.installed import adapter_names
from crucible_kitchen.ports.kinds import KINDS
from crucible_kitchen.ports.manifest import PortMapping, base_mappings, check_fake, read_manifest
from crucible_kitchen.ports.mapping import REMOTE_KINDS
from crucible_kitchen.ports.named import errors_of
from crucible_kitchen.ports.secrets import read_secrets

logger = logging.getLogger(__name__)

# In which calls at an adapter that was replaced may end before it is closed.
_RETIRE_SECONDS = 10.0


MayReplace = Callable[[], Awaitable[None]]


class Attached(NamedTuple):
    """An adapter that runs.

    Attributes:
        stub: the port's generated stub.
        instance_id: differs after every start of the adapter.
    """

    stub: Any
    instance_id: str


@dataclass(kw_only=True)
class _Port:
    """A port that is mapped.

    Attributes:
        key: of the binding among the shared ones; empty: it is the port's alone.
        options_schema: JSON Schema of its options, where the server knows it by itself.
        asks_provider: its adapter is in this process and asks somebody elsewhere.
        last_error: why its adapter could not be made ready when that was last tried; empty: it could.
    """

    mapping: PortMapping
    binding: Binding
    key: str
    channel: BoundChannel
    options_schema: Mapping[str, Any]
    asks_provider: bool
    stub: Any = field(init=False)
    last_error: str = ""


class PortHost:
    """Stubs by port. In-process adapters are called through an object channel, others over gRPC."""

    def __init__(
        self,
        base: Mapping[str, PortMapping],
        named: frozenset[str],
        profile: str,
        context: AdapterContext,
        kinds: Mapping[str, Kind],
    ) -> None:
        """Use `open`. `base`: the mappings without the added ones; `named`: those of them that the manifest names."""
        self._base = dict(base)
        self._named = named
        self._profile = profile
        self._context = context
        self._kinds = {**KINDS, **kinds}
        # Outside the data folder, whose path may be too long for a socket.
        self._sockets = TemporaryFolder()
        self._numbers = itertools.count()
        self._added: dict[str, PortMapping] = {}
        self._ports: dict[str, _Port] = {}
        self._hidden_variables: set[str] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    @classmethod
    def open(
        cls, manifest: Path | None, context: AdapterContext, *, kinds: Mapping[str, Kind] | None = None
    ) -> PortHost:
        """The host of a manifest's adapters, and of those that were added in its data folder. In-process ones are made
        now, so that bad options are found now.

        Args:
            kinds: take the place of those of the same names in KINDS.

        Raises:
            InvalidArgumentError: MANIFEST_INVALID naming port and key.
        """
        parsed = read_manifest(manifest)
        host = cls(base_mappings(parsed), frozenset(parsed.ports), parsed.profile, context, kinds or {})
        try:
            host._added = read_added(context.data_dir)
            mappings = {**host._base, **host._added}
            for mapping in mappings.values():
                host._hide_variables(mapping)
            for port in sorted(mappings):
                generation = host._generation(mappings[port])
                host._ports[port] = host._open(port, mappings[port], where=host._where(port), generation=generation)
        except BaseException:
            host._sockets.remove()
            raise
        return host

    def _where(self, port: str) -> str:
        return f"{FILE} ports.{port}" if port in self._added else f"manifest.ports.{port}"

    def _hide_variables(self, mapping: PortMapping) -> None:
        self._hidden_variables.update(filter(None, [*mapping.secrets.values(), mapping.token_env]))

    def _opening(self, port: str, mapping: PortMapping, *, where: str, generation: int) -> Opening:
        check_fake(port, mapping, self._profile, where=where)
        secrets = read_secrets(port, mapping, where=where)
        return Opening(
            port=port,
            mapping=mapping,
            where=where,
            secrets=secrets.secrets,
            token=secrets.token,
            generation=generation,
            context=self._context,
            socket=self._sockets.path / f"{next(self._numbers)}.sock",
            shared={each.key: each.binding for each in self._ports.values() if each.key},
            hidden_variables=self._hidden_variables,
        )

    def _generation(self, mapping: PortMapping) -> int:
        """A new generation for settings that are sent; others need none."""
        is_sent = mapping.kind in REMOTE_KINDS and (mapping.options or mapping.secrets)
        return next_generation(self._context.data_dir) if is_sent else 1

    def _open(self, port: str, mapping: PortMapping, *, where: str, generation: int) -> _Port:
        opening = self._opening(port, mapping, where=where, generation=generation)
        opened = self._kinds[mapping.kind].open(opening)
        channel = BoundChannel(opened.binding, port)
        made = _Port(
            mapping=mapping,
            binding=opened.binding,
            key=opened.key,
            channel=channel,
            options_schema=opened.options_schema,
            asks_provider=opened.asks_provider,
        )
        made.stub = PORTS[port].stub(channel)
        return made

    # Calling

    async def stub(self, port: str) -> Any:
        """The generated stub of a port; starts its adapter and shakes hands when needed.

        Raises:
            KitchenError: the adapter does not start or answer; CONTRACT_VERSION_UNSUPPORTED; PORT_NOT_SERVED;
                PORT_NOT_MAPPED.
        """
        found = self._mapped(port)
        await self._ensure(port, found)
        return found.stub

    def attached(self, port: str) -> Attached | None:
        """The port's adapter as its last handshake left it; None when there was none yet or its process has ended.
        Starts nothing and asks nobody: a call may still find it gone.
        """
        found = self._ports.get(port)
        info = None if found is None else found.binding.info
        return None if found is None or info is None else Attached(found.stub, info.instance_id)

    async def known_capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares for all the ports it serves; starts no process that says so beforehand."""
        binding = self._mapped(port).binding
        if binding.info is None and binding.declared:
            return binding.declared
        info = binding.info or await self.info(port)
        return frozenset(capability for each in info.ports for capability in each.capabilities)

    async def info(self, port: str) -> adapter_pb2.GetAdapterInfoResponse:
        """What the port's adapter answered to the handshake. Raises what `stub` raises."""
        return await self._ensure(port, self._mapped(port))

    async def _ensure(self, port: str, found: _Port, *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        try:
            with errors_of(port):
                info = await found.binding.ensure(port, fresh=fresh)
                handshake.check_serves(port, found.mapping.adapter, info)
        except KitchenError as error:
            found.last_error = f"{error.reason}: {error.message}"
            raise
        found.last_error = ""
        return info

    def _mapped(self, port: str) -> _Port:
        self.require(port)
        return self._ports[port]

    def require(self, port: str) -> None:
        """Raises FAILED_PRECONDITION PORT_NOT_MAPPED when no adapter is to serve the port."""
        if port not in self._ports:
            raise _not_mapped(port)

    def is_remote(self, port: str) -> bool:
        """Whether what serves the port is somebody else's to start: an adapter that is neither in this process nor a
        child of it, or the provider that one in this process asks.
        """
        found = self._ports.get(port)
        return found is not None and (found.mapping.kind in ("grpc", "attach") or found.asks_provider)

    async def capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares."""
        service = PORTS[port].service.full_name
        info = await self.info(port)
        support = next(each for each in info.ports if each.service == service)
        return frozenset(support.capabilities)

    # Looking

    def mapping(self, port: str) -> PortMapping | None:
        """What serves the port; None: nothing does."""
        found = self._ports.get(port)
        return None if found is None else found.mapping

    def is_added(self, port: str) -> bool:
        """Whether the port's mapping was added at run time."""
        return port in self._added

    async def adapters(self) -> list[adapter_admin_pb2.Adapter]:
        """The mapped ports with their adapters, sorted; starts nothing."""
        return [self.describe(port) for port in sorted(self._ports)]

    def describe(self, port: str) -> adapter_admin_pb2.Adapter:
        """One mapped port with its adapter; starts nothing."""
        found = self._ports[port]
        return describe(
            port,
            found.mapping,
            found.binding.info,
            source=self._source(port),
            options_schema=found.options_schema,
            last_error=found.last_error,
        )

    def _source(self, port: str) -> adapter_admin_pb2.AdapterSource:
        if port in self._added:
            return adapter_admin_pb2.ADAPTER_SOURCE_ADDED
        named = port in self._named
        return adapter_admin_pb2.ADAPTER_SOURCE_MANIFEST if named else adapter_admin_pb2.ADAPTER_SOURCE_DEFAULT

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        """The port's adapter after asking it whether it can serve.

        Raises NOT_FOUND PORT_NOT_FOUND, FAILED_PRECONDITION PORT_NOT_MAPPED.
        """
        if port not in PORTS:
            raise NotFoundError(f"port {port!r}: {unknown_key(port, PORTS)}", reason="PORT_NOT_FOUND")
        found = self._mapped(port)
        try:
            await self._ensure(port, found, fresh=True)
            answer = await handshake.probe(found.binding.channel)
        except KitchenError as error:
            return put_state(self.describe(port), adapter_admin_pb2.ADAPTER_STATE_DEGRADED, error.message)
        return put_state(self.describe(port), STATES[answer.state], answer.detail)

    # Changing

    async def check(self, port: str, mapping: PortMapping, *, where: str) -> None:
        """Finds what is wrong with a mapping as far as that goes without making or starting anything.

        Raises:
            InvalidArgumentError: MANIFEST_INVALID.
        """
        await asyncio.to_thread(preload, port, mapping)
        self._kinds[mapping.kind].check(self._opening(port, mapping, where=where, generation=1))

    async def add(self, port: str, mapping: PortMapping, *, where: str, may_replace: MayReplace) -> None:
        """Maps a port anew, durable; what was open at its adapter is lost. An equal mapping keeps the adapter.

        A remote adapter is asked first: one that is away is mapped all the same, one that does not fit or a program
        that does not start is refused.

        Args:
            may_replace: asked just before another adapter takes the port; raises to refuse that.

        Raises:
            KitchenError: what the adapter refuses; MANIFEST_INVALID; DATA_FOLDER_UNUSABLE; what `may_replace` raises.
        """
        self._hide_variables(mapping)
        added = {**self._added, port: mapping}
        if self.mapping(port) == mapping:
            await self._save(added)
            return
        generation = await asyncio.to_thread(self._generation, mapping)
        new = self._open(port, mapping, where=where, generation=generation)
        try:
            if mapping.kind in REMOTE_KINDS:
                await self._try(port, new)
            await may_replace()
            await self._save(added)
        except BaseException:
            await self._discard(new)
            raise
        self._replace(port, new)

    async def _save(self, added: dict[str, PortMapping]) -> None:
        await asyncio.to_thread(write_added, self._context.data_dir, added)
        self._added = added

    async def _try(self, port: str, new: _Port) -> None:
        try:
            await self._ensure(port, new, fresh=True)
        except UnavailableError as error:
            if error.metadata.items() >= START_FAILED.items():
                raise
            logger.warning("the adapter %s of the port %s is mapped and away: %s", new.mapping.adapter, port, error)

    async def remove(self, port: str, *, may_replace: MayReplace) -> None:
        """Takes back what `add` did: the manifest's mapping or the default counts again, or none.

        Raises:
            NotFoundError: MAPPING_NOT_FOUND, the port's mapping was not added.
            KitchenError: as `add`.
        """
        if port not in self._added:
            raise NotFoundError(
                f"port {port!r}: its mapping was not added at run time: change the manifest, or add another over it",
                reason="MAPPING_NOT_FOUND",
                metadata={"port": port},
            )
        added = {name: mapping for name, mapping in self._added.items() if name != port}
        mapping = self._base.get(port)
        keeps = self.mapping(port) == mapping
        new = None
        if mapping is not None and not keeps:
            generation = await asyncio.to_thread(self._generation, mapping)
            new = self._open(port, mapping, where=f"manifest.ports.{port}", generation=generation)
        try:
            if not keeps:
                await may_replace()
            await self._save(added)
        except BaseException:
            if new is not None:
                await self._discard(new)
            raise
        if not keeps:
            self._replace(port, new)

    async def _discard(self, new: _Port) -> None:
        if not self._is_used(new.binding):
            await new.binding.close()

    def _replace(self, port: str, new: _Port | None) -> None:
        before = self._ports.pop(port, None)
        if new is not None:
            self._ports[port] = new
        if before is not None:
            task = asyncio.create_task(self._retire(before), name=f"retire the adapter of {port}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _is_used(self, binding: Binding) -> bool:
        return any(each.binding is binding for each in self._ports.values())

    async def _retire(self, port: _Port) -> None:
        await port.channel.retire(_RETIRE_SECONDS)
        if not self._is_used(port.binding):
            try:
                await port.binding.close()
            except Exception:
                logger.exception("the adapter %s, which was replaced, did not close", port.mapping.adapter)

    async def close(self) -> None:
        """Ends child processes and closes adapters and channels."""
        for task in list(self._retiring):
            await task
        for binding in {id(each.binding): each.binding for each in self._ports.values()}.values():
            await binding.close()
        self._sockets.remove()


def _not_mapped(port: str) -> FailedPreconditionError:
    installed = adapter_names(port)
    example = f"builtin:{installed[0]}" if installed else "grpc:HOST:PORT"
    others = f" (installed: {', '.join(installed)})" if installed else ""
    error = FailedPreconditionError(
        f"no adapter serves the port {port}, which has none by default: write `ports: {{{port}: "
        f'"{example}"}}` into the manifest{others} and start the server with --manifest, or map it while the server '
        "runs with `kitchen adapters add`",
        reason="PORT_NOT_MAPPED",
        metadata={"port": port, "service": PORTS[port].service.full_name},
    )
    error.port = port
    return error
