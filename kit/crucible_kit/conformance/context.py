"""What a check is given: the adapter, what it said of itself, the settings, and helpers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.adapter import CONTRACT_VERSIONS, distribution_version
from crucible_kit.channel import Channel
from crucible_kit.conformance.probe import ProbeChannel
from crucible_kit.conformance.settings import SuiteSettings
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS, Port

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=SuiteSettings)
Other = TypeVar("Other", bound=SuiteSettings)
Restart = Callable[[], Awaitable[Channel]]
"""Kills the adapter, starts it again, and gives a channel to the new one."""

DEFAULT_MESSAGE_BYTES = 4 * 1024 * 1024


class Context(Generic[Settings]):
    """See the module.

    Attributes:
        port: the port under test.
        suite: its suite, as far as it says how the port is called.
        settings: of the suite.
        channel: to the adapter; sends requests unchecked.
        stub: the port's generated stub over it.
        adapter: the stub of the adapter's handshake.
        info: the adapter's answer to the handshake; empty when it gave none.
        advice: remarks for people; a check may add some.
    """

    def __init__(
        self, channel: Channel, suite: Calls, settings: Settings, info: adapter_pb2.GetAdapterInfoResponse
    ) -> None:
        self.port: Port = PORTS[suite.port]
        self.suite = suite
        self.settings = settings
        self.info = info
        self.advice: list[str] = []
        self._run = uuid.uuid4().hex[:12]
        self._named = 0
        self._deferred: list[Callable[[], Awaitable[Any]]] = []
        self._restart: Restart | None = None
        self.channel = ProbeChannel(channel, call_seconds=settings.call_seconds)
        self._make_stubs()

    def _make_stubs(self) -> None:
        self.stub: Any = self.port.stub(self.channel)
        self.adapter: Any = adapter_pb2_grpc.AdapterServiceStub(self.channel)  # pyright: ignore[reportArgumentType]

    @property
    def capabilities(self) -> frozenset[str]:
        """What the adapter declares for this port."""
        return frozenset(
            name
            for each in self.info.ports
            if each.service == self.port.service.full_name
            for name in each.capabilities
        )

    @property
    def all_capabilities(self) -> frozenset[str]:
        """What the adapter declares for all its ports."""
        return frozenset(name for each in self.info.ports for name in each.capabilities)

    def beside(self, suite: Calls, settings: Other) -> Context[Other]:
        """The same adapter, for calls of another of its ports."""
        other = Context(self.channel, suite, settings, self.info)
        # One run: names are told apart, and what one leaves behind goes with the other's.
        other._deferred, other._run = self._deferred, f"{self._run}-{suite.port}"
        return other

    def serves(self, port: str) -> bool:
        """Whether the adapter serves another port too."""
        return any(each.service == PORTS[port].service.full_name for each in self.info.ports)

    @property
    def max_message_bytes(self) -> int:
        """The largest request that may be sent."""
        declared = self.info.max_message_bytes or DEFAULT_MESSAGE_BYTES
        return min(declared, self.settings.largest_message_bytes)

    @property
    def max_in_flight(self) -> int:
        """Calls of the port that the adapter takes at a time; 0: not limited."""
        return next((each.max_in_flight for each in self.info.ports if each.service == self.port.service.full_name), 0)

    def name(self) -> str:
        """A name that nobody has used: conformance- and letters, digits and '-', at most 48 in all."""
        self._named += 1
        return f"conformance-{self._run}-{self._named}"

    def defer(self, cleanup: Callable[[], Awaitable[Any]]) -> None:
        """Lets something happen after the check; its failure is no failure of the check."""
        self._deferred.append(cleanup)

    async def clean_up(self) -> None:
        """What was deferred, the last first."""
        while self._deferred:
            try:
                # One of them may defer more.
                await self._deferred.pop()()
            except KitchenError as error:
                logger.debug("a check left something behind: %s", error)

    def restart_with(self, restart: Restart | None) -> None:
        """Says how to kill and start the adapter; None: it was not started here."""
        self._restart = restart

    @property
    def can_restart(self) -> bool:
        """Whether the adapter was started here."""
        return self._restart is not None

    async def restart(self) -> adapter_pb2.GetAdapterInfoResponse:
        """Kills the adapter, starts it again and shakes hands; only for requirements of the stage RESTART."""
        assert self._restart is not None, "the runner skips these where the adapter was not started here"
        self._deferred.clear()
        self.channel.attach(await self._restart())
        self._make_stubs()
        self.info = await handshake(self.adapter)
        return self.info


Samples = Mapping[str, Message | Sequence[Message]]
Undo = Callable[[Context[Any], Sequence[Any], Any], Awaitable[None]]
"""Given the messages of a call and its answer, None if there was none, takes back what the call did."""


@dataclass(kw_only=True)
class Calls:
    """What the checks of all ports need to call one.

    Attributes:
        port: name of the port, or `all`.
        make_samples: one valid request for each method it names (a list of them for a method that takes a stream),
            with real sessions and handles; of other methods requests are made from the proto alone.
        ping: a cheap call that must be answered and changes nothing.
        undo: by method, what takes back its effect after the check.
    """

    port: str
    make_samples: Callable[[Context[Any]], Awaitable[Samples]] | None = None
    ping: Callable[[Context[Any]], Awaitable[Any]] | None = None
    undo: dict[str, Undo] = field(default_factory=dict)


async def handshake(adapter: Any) -> adapter_pb2.GetAdapterInfoResponse:
    """The adapter's answer to the host's first call."""
    request = adapter_pb2.GetAdapterInfoRequest(
        host_version=distribution_version(), host_contract_versions=CONTRACT_VERSIONS
    )
    return await adapter.GetAdapterInfo(request)
