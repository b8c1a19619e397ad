"""A client of a Chroma server whose requests have a time limit: those of chromadb.HttpClient wait forever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chromadb.api.client import Client
from chromadb.auth import UserIdentity
from chromadb.config import Settings
from overrides import override


class TimedClient(Client):
    """The client.

    Args:
        timeout: seconds that the server may be silent.
        check: sees every response before the library does.
    """

    def __init__(
        self, settings: Settings, tenant: str, database: str, *, timeout: float, check: Callable[[Any], None]
    ) -> None:
        self._timeout = timeout
        self._check = check
        super().__init__(tenant=tenant, database=database, settings=settings)

    @override
    def get_user_identity(self) -> UserIdentity:
        # The first request that the constructor makes.
        server: Any = self._server
        server._session.timeout = self._timeout
        server._session.event_hooks = {"response": [self._check]}
        return server.get_user_identity()

    @override
    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        """Would ask through another connection, without a limit; the first call tells the same."""
