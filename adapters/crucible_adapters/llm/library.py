"""A provider's own Python library: looked for at the start, loaded by the first call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from crucible_adapters.llm.errors import Provider
from crucible_adapters.threads import retrieve
from crucible_kit.errors import FailedPreconditionError, field_error

_CONNECT_SECONDS = 10.0


class Library:
    """The library's client, made in a thread when the first call needs it.

    Args:
        package: module of the library.
        extra: of crucible-kitchen that brings it.
        said: the provider.
        timeout_seconds: longest wait for a connection, and for the next bytes of an answer.
        opening: makes the client of an httpx2.AsyncClient, which it has to use, and its httpx2.Timeout.

    Raises:
        FailedPreconditionError: PACKAGE_MISSING.
    """

    def __init__(
        self,
        package: str,
        extra: str,
        said: Provider,
        *,
        timeout_seconds: float,
        opening: Callable[[Any, Any], Any],
    ) -> None:
        self._package = package
        self._extra = extra
        self._said = said
        self._timeout_seconds = timeout_seconds
        self._opening = opening
        # One for all calls: a caller that goes away does not take it along.
        self._loading: asyncio.Future[tuple[Any, Any]] | None = None
        self._closed = False
        # Without loading it.
        if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
            raise self._missing()

    async def client(self) -> Any:
        """The client.

        Raises:
            UnavailableError: ADAPTER_CLOSED.
            FailedPreconditionError: PACKAGE_MISSING, it can't be loaded.
        """
        if self._closed:
            raise self._said.closed()
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
            self._loading.add_done_callback(retrieve)
        loading = self._loading
        try:
            _, client = await asyncio.shield(loading)
        except Exception:
            self._loading = None if self._loading is loading else self._loading
            raise
        if self._closed:
            raise self._said.closed()
        return client

    async def close(self) -> None:
        """Ends the connections."""
        self._closed = True
        loading, self._loading = self._loading, None
        if loading is None:
            return
        try:
            http, _ = await loading
        except Exception:
            return  # whoever made the call was told
        await http.aclose()

    def _load(self) -> tuple[Any, Any]:
        try:
            import httpx2

            timeout = httpx2.Timeout(self._timeout_seconds, connect=min(_CONNECT_SECONDS, self._timeout_seconds))
            # A redirect would take the key along: some libraries send it in a header of their own.
            http = httpx2.AsyncClient(
                timeout=timeout, follow_redirects=False, limits=httpx2.Limits(max_keepalive_connections=20)
            )
            return http, self._opening(http, timeout)
        except ImportError as error:
            raise self._missing() from error

    def _missing(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"builtin:{self._said.name} needs the Python package {self._package}, which can't be imported: "
            f"pip install 'crucible-kitchen[{self._extra}]'",
            reason="PACKAGE_MISSING",
            metadata={"package": self._package, "extra": self._extra},
        )


def usable_key(value: str, provider: str) -> str:
    """The key without the line end that a file leaves. A key with other such characters would show in the texts of
    errors about headers."""
    key = value.strip()
    if not all("!" <= each <= "~" for each in key):
        raise field_error(
            "secrets.api_key",
            f"the key of the {provider} adapter holds characters that no key has: check the environment variable that "
            "the manifest names",
            reason="MANIFEST_INVALID",
        )
    return key


def check_address(base_url: str) -> None:
    """Raises MANIFEST_INVALID when an address holds a user or a password.

    Not the options' model to refuse: errors of settings show the value.
    """
    if "@" in base_url:
        problem = "must hold no user or password: give the key as the secret api_key"
        raise field_error("options.base_url", problem, reason="MANIFEST_INVALID")
