"""The relay: every port's service on the server's own address, forwarded to the adapter that serves the port."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from crucible_kit.ports import PORTS
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.relay.call import Call, Host
from crucible_kitchen.relay.callers import Callers
from crucible_kitchen.relay.checkpoints import Checkpoints
from crucible_kitchen.relay.datasets import DatasetRules
from crucible_kitchen.relay.models import Models
from crucible_kitchen.relay.owned import EnvironmentRules, PythonBridgeRules
from crucible_kitchen.relay.sampling import SamplingRules
from crucible_kitchen.relay.served_models import DeploymentRules, EvaluatorRules
from crucible_kitchen.relay.session_rules import close_at_adapter
from crucible_kitchen.relay.sessions import Sessions
from crucible_kitchen.relay.stores import BlobRules, HubRules, MetricsRules, RegistryRules, TokenizerRules
from crucible_kitchen.relay.training import TrainingRules

logger = logging.getLogger(__name__)

_LEASE_CHECK_SECONDS = 15.0


class Relay:
    """Forwards calls as they are, but for the rules of their port.

    Who may call a method at all, and what a request may be, the boundary in front has checked.

    Args:
        host: where the adapters are.
        options: the server's, with the limits of clients.
        secret: of this server; see Callers and Checkpoints.
        clock: monotonic seconds, for leases.
    """

    def __init__(
        self, host: Host, options: ServerOptions, secret: bytes, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._callers = Callers(secret, with_tokens=options.tokens is not None)
        self._sessions = Sessions(options, self._instance_of, clock=clock)
        checkpoints, models, sessions = Checkpoints(secret), Models(host), self._sessions
        self._rules: dict[str, Any] = {
            "blob": BlobRules(),
            "dataset": DatasetRules(host, sessions),
            "deployment": DeploymentRules(checkpoints),
            "environment": EnvironmentRules(host, sessions),
            "evaluator": EvaluatorRules(checkpoints),
            "hub": HubRules(hands_out_folders=options.read_roots is not None),
            "metrics": MetricsRules(),
            "python_bridge": PythonBridgeRules(host, sessions),
            "registry": RegistryRules(),
            "sampling": SamplingRules(host, sessions, checkpoints, models),
            "tokenizer": TokenizerRules(models),
            "training": TrainingRules(host, sessions, checkpoints, models),
        }
        self._leases: asyncio.Task[None] | None = None

    def _instance_of(self, port: str) -> str | None:
        attached = self._host.attached(port)
        return None if attached is None else attached.instance_id

    def register(self, server: Any) -> None:
        """Adds every port's service to a grpc server."""
        for port in PORTS.values():
            methods = {method.name: self._handler(port.name, method) for method in port.service.methods}
            port.register(SimpleNamespace(**methods), server)

    def _handler(self, port: str, method: MethodDescriptor) -> Callable[..., Any]:
        default = Call.stream if method.server_streaming else Call.send
        rule: Any = getattr(self._rules.get(port), method.name, default)
        name = method.name

        async def unary(request: Any, context: Any) -> Any:
            return await rule(self._call(port, name, context), request)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            responses = rule(self._call(port, name, context), request)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

        return stream if method.server_streaming else unary

    def _call(self, port: str, method: str, context: Any) -> Call:
        # Before the rules, for which a port without an adapter would be one without sessions.
        self._host.require(port)
        return Call(self._host, port, method, self._callers.of(context), context)

    def open_sessions(self, port: str) -> int:
        """How many sessions or datasets clients have open at the port's adapter, or are opening."""
        return self._sessions.count(port)

    def start(self) -> None:
        """Looks after leases from now on."""
        self._leases = asyncio.create_task(self._watch_leases())

    async def close(self) -> None:
        """Ends what goes on without a caller. Sessions are left to their adapters, which have leases of their own."""
        if self._leases is not None:
            self._leases.cancel()
            await asyncio.gather(self._leases, return_exceptions=True)
        await self._sessions.close()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_CHECK_SECONDS)
            try:
                await self.close_expired()
            # One that went wrong must not end all later rounds.
            except Exception:
                logger.exception("leases were not all looked after, the next round is soon")

    async def close_expired(self) -> None:
        """Closes the sessions that no call has named for a lease."""
        await asyncio.gather(*(close_at_adapter(self._host, entry) for entry in self._sessions.pop_expired()))
