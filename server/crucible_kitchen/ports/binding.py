"""What serves a port, whatever its kind: a channel, and how the adapter behind it is made ready."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import Channel
from crucible_kit.errors import InvalidArgumentError, KitchenError
from crucible_kit.redaction import Secrets
from crucible_kitchen.ports.mapping import PortMapping


class Binding(Protocol):
    """An adapter as the host holds it; it serves one port or several."""

    @property
    def channel(self) -> Channel:
        """The way to it; another one after it was started anew at another address."""
        ...

    @property
    def info(self) -> adapter_pb2.GetAdapterInfoResponse | None:
        """Its last handshake; None: there was none, or its process has ended."""
        ...

    @property
    def declared(self) -> frozenset[str]:
        """Capabilities that it is known to have without being asked."""
        ...

    def is_ready(self, port: str) -> bool:
        """Whether a call of the port may be sent as it is. Asks nobody."""
        ...

    async def ensure(self, port: str, *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        """Makes it ready to serve the port: started, shaken hands with, configured.

        Args:
            fresh: ask it again even when nothing speaks against it.

        Raises:
            UnavailableError: it does not start or answer.
            FailedPreconditionError: CONTRACT_VERSION_UNSUPPORTED.
            InvalidArgumentError: MANIFEST_INVALID, its settings don't fit it.
        """
        ...

    async def failed(self, port: str, error: KitchenError, instance_id: str) -> bool:
        """Takes note of a call that failed. True: its process has ended, and the same call may be sent to a new one.

        Args:
            instance_id: of the adapter that the call was sent to.
        """
        ...

    async def close(self) -> None:
        """Ends it and frees what it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What an opener gets.

    Attributes:
        port: the port that is mapped.
        mapping: how.
        where: path of the mapping for messages, such as manifest.ports.blob.
        secrets: the values of mapping.secrets.
        token: the value of mapping.token_env; empty: none.
        generation: of the mapping's settings: higher than that of every earlier one of this data folder.
        context: what in-process adapters are lent; without the secrets.
        socket: a short path where nothing is, for the unix socket of a child.
        shared: adapters that are open and may serve more ports, by what makes them the same.
        hidden_variables: environment variables that children don't get, because they hold secrets.
    """

    port: str
    mapping: PortMapping
    where: str
    secrets: Secrets
    token: str
    generation: int
    context: AdapterContext
    socket: Path
    shared: Mapping[str, Binding]
    hidden_variables: Collection[str]

    def refused(self, problem: str) -> InvalidArgumentError:
        """A MANIFEST_INVALID about the mapping; `problem` follows the adapter's name."""
        return InvalidArgumentError(
            f"{self.where}: {self.mapping.adapter} {problem}",
            reason="MANIFEST_INVALID",
            metadata={"field": self.where, "port": self.port, "adapter": self.mapping.adapter},
        )

    def located(self, error: KitchenError) -> KitchenError:
        """An adapter's own error, which knows its options but not whose they are, with the mapping before it."""
        if self.where in error.message:
            return error
        located = type(error)(
            f"{self.where}: {error.message}",
            reason=error.reason,
            metadata={**error.metadata, "port": self.port},
            fields=error.fields,
            retry_delay=error.retry_delay,
        )
        located.port = error.port
        return located


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What an opener gives.

    Attributes:
        binding: serves the port; nothing is started yet.
        key: what makes another mapping's adapter the same one; empty: it is this port's alone.
        options_schema: JSON Schema of the options, where it is known without asking the adapter.
        asks_provider: it is in this process and asks somebody elsewhere, who may be away.
    """

    binding: Binding
    key: str = ""
    options_schema: Mapping[str, Any] = field(default_factory=dict)
    asks_provider: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind of mapping, such as exec:, becomes an adapter. Both raise InvalidArgumentError MANIFEST_INVALID.

    Attributes:
        open: makes the binding.
        check: finds what is wrong with a mapping as far as that goes without making or starting anything.
    """

    open: Callable[[Opening], Opened]
    check: Callable[[Opening], object]
