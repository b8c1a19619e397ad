"""A client's call on its way to an adapter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from crucible_kit.errors import UnavailableError
from crucible_kitchen.ports.host import Attached

# Of calls without a deadline of their own; the boundary ends them then in any case.
_UNARY_SECONDS = 600.0


class Host(Protocol):
    """Where the adapters are."""

    def require(self, port: str) -> None:
        """Raises FAILED_PRECONDITION PORT_NOT_MAPPED when no adapter is to serve the port."""
        ...

    async def stub(self, port: str) -> Any:
        """The port's stub; starts the adapter when needed."""
        ...

    def attached(self, port: str) -> Attached | None:
        """The port's adapter if it runs; starts nothing."""
        ...

    async def known_capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares; starts nothing where that can be known."""
        ...


async def attach(host: Host, port: str) -> Attached:
    """The port's adapter, started when it does not run.

    One that runs is not asked whether it still answers: a host that gets no answer starts it anew, and a busy moment
    that a client caused must not take the adapter from a run.
    """
    attached = host.attached(port)
    if attached is None:
        await host.stub(port)
        attached = host.attached(port)
    if attached is None:
        raise UnavailableError(
            f"the adapter of the port {port} has ended again: try again", reason="ADAPTER_GONE", retry_delay=1.0
        )
    return attached


class Call:
    """One call.

    Attributes:
        port: the port it is for.
        method: name of the method, such as StatBlob.
        caller: who makes it.
    """

    def __init__(self, host: Host, port: str, method: str, caller: str, context: Any) -> None:
        self.host = host
        self.port = port
        self.method = method
        self.caller = caller
        self._context = context

    async def send(self, request: Any) -> Any:
        """The adapter's answer to a request, or to a stream of them, within the caller's deadline."""
        attached = await attach(self.host, self.port)
        left = self._context.time_remaining()
        return await getattr(attached.stub, self.method)(request, timeout=_UNARY_SECONDS if left is None else left)

    async def stream(self, request: Any) -> AsyncGenerator[Any, None]:
        """The adapter's stream of answers, within the caller's deadline if there is one."""
        attached = await attach(self.host, self.port)
        responses = getattr(attached.stub, self.method)(request, timeout=self._context.time_remaining())
        try:
            async for response in responses:
                yield response
        finally:
            await responses.aclose()
