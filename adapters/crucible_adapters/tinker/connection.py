"""The library's clients, the checkpoints and models that are known, and what calls to Tinker become."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from crucible_adapters.llm.errors import Provider
from crucible_adapters.retries import Clock, RetryPolicy
from crucible_adapters.threads import retrieve
from crucible_adapters.tinker.checkpoints import Checkpoints
from crucible_adapters.tinker.errors import NOT_THERE, REFUSED, translated
from crucible_adapters.tinker.models import ModelFacts, model_facts
from crucible_adapters.tinker.options import TinkerOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, KitchenError, NotFoundError, field_error

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ADDRESS = "its hosted API"
_EXTRA = "crucible-kitchen[tinker]"
_CLOSE_SECONDS = 5.0
# Of the 2 s that the contract gives a probe.
_PROBE_SECONDS = 1.5


class Connection:
    """One account at Tinker.

    Attributes:
        said: makes errors.
    """

    def __init__(self, options: TinkerOptions, key: str, clock: Clock) -> None:
        self.options = options
        # The library reads the variable, too.
        address = options.base_url or os.environ.get("TINKER_BASE_URL") or _ADDRESS
        self.said = Provider(name="tinker", address=address, secrets=(key,) if key else ())
        self.checkpoints = Checkpoints()
        self._key = key
        self._clock = clock
        self._shared: asyncio.Task[Any] | None = None
        self._rest: asyncio.Task[Any] | None = None
        self._probing: asyncio.Task[Any] | None = None
        self._told: dict[str, int | None] | None = None
        self._closed = False

    def refuse(self) -> None:
        """Opens no more clients."""
        self._closed = True

    async def close(self) -> None:
        """Ends the clients that there are."""
        for task in (self._shared, self._rest, self._probing):
            if task is None:
                continue
            try:
                client = await task
            except Exception:
                continue  # whoever made the call was told
            if task is self._shared:
                await self.close_service(client)
            else:
                client.holder.close()

    async def open_service(self) -> Any:
        """A ServiceClient of the library with a session of its own at Tinker, which ends with it."""
        return await self._opened_client(has_session=True, retries=self.options.retries)

    async def _opened_client(self, *, has_session: bool, retries: RetryPolicy) -> Any:
        if self._closed:
            raise self.said.closed()
        if not self._key:
            raise self.said.no_key()
        return await self.result(asyncio.to_thread(self._open, has_session, retries))

    def _open(self, has_session: bool, retries: RetryPolicy) -> Any:
        transport, options = _library(), self.options
        sending = transport.PolicyTransport(self.said, retries, options.timeout_seconds, self._clock)
        opening = transport.Opening(
            base_url=options.base_url or None,
            api_key=self._key,
            project_id=options.project_id or None,
            user_metadata=dict(options.user_metadata),
        )
        open_client = transport.open_service if has_session else transport.open_rest
        return open_client(opening, sending, telemetry=options.telemetry)

    async def close_service(self, service: Any) -> None:
        """Ends a session at Tinker, and with it the models in it. What fails is told in the log alone."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await service.close("success")
        except Exception as error:
            logger.warning("a session at %s was not ended: %s", self.said.name, type(error).__name__)

    async def shared(self) -> Any:
        """The ServiceClient of sampling sessions."""
        if self._shared is None:
            self._shared = asyncio.create_task(self.open_service())
            self._shared.add_done_callback(retrieve)
        return await self._made("_shared", self._shared)

    async def rest(self) -> Any:
        """The library's RestClient, for what needs no session at Tinker."""
        if self._rest is None:
            self._rest = asyncio.create_task(self._opened_client(has_session=False, retries=self.options.retries))
            self._rest.add_done_callback(retrieve)
        return await self._made("_rest", self._rest)

    async def probe(self) -> str:
        """What keeps Tinker from answering now; empty: nothing. Asks once, for what it can do. The first probe loads
        the library, which may take some seconds.
        """
        await asyncio.to_thread(_library)
        if self._probing is None:
            once = self.options.retries.model_copy(update={"tries": 1})
            self._probing = asyncio.create_task(self._opened_client(has_session=False, retries=once))
            self._probing.add_done_callback(retrieve)
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                rest = await self._made("_probing", self._probing)
                await self._capabilities(rest)
        except KitchenError as error:
            return error.message
        except TimeoutError:
            return f"{self.said.name} at {self.said.address} has not answered within {_PROBE_SECONDS:g} s"
        return ""

    async def _made(self, name: str, task: asyncio.Task[Any]) -> Any:
        """What a task makes that all wait for; one that fails is begun anew by the next who asks."""
        try:
            return await asyncio.shield(task)
        except Exception:
            if getattr(self, name) is task:
                setattr(self, name, None)
            raise

    async def facts(self, base_model: str) -> ModelFacts:
        """What is known of a base model."""
        if self._told is None:
            self._told = await self._ask_for_models()
        entry = self.options.model(base_model)
        return await asyncio.to_thread(model_facts, entry, told_max_tokens=self._told.get(entry.name))

    async def _ask_for_models(self) -> dict[str, int | None]:
        """The longest sequence by model, as far as Tinker tells."""
        answer = await self._capabilities(await self.rest())
        return {} if answer is None else {each.model_name: each.max_context_length for each in answer.supported_models}

    async def _capabilities(self, rest: Any) -> Any:
        """What Tinker tells of itself; None: a server of its wire format that does not tell."""
        try:
            return await self.result(rest.get_server_capabilities())
        except KitchenError as error:
            if error.reason == NOT_THERE:
                return None
            raise

    async def opened(self, client: Awaitable[T], facts: ModelFacts, base_model: str, *, field: str) -> T:
        """A client of the library on a base model. Raises NOT_FOUND MODEL_NOT_FOUND when Tinker has no such model."""
        try:
            return await self.result(client)
        except KitchenError as error:
            if error.reason == NOT_THERE or (error.reason == REFUSED and facts.name not in (self._told or {})):
                raise NotFoundError(
                    f"{field}: Tinker has no model {facts.name!r} ({error.message}): see the option models",
                    reason="MODEL_NOT_FOUND",
                    metadata={"field": field, "model": base_model},
                ) from None
            raise

    async def result(self, waiting: Awaitable[T]) -> T:
        """What the library gives. Its exceptions become errors of the ports, without their texts' secrets.

        Raises:
            DeadlineExceededError: PROVIDER_TIMEOUT when it takes longer than result_seconds.
        """
        try:
            async with asyncio.timeout(self.options.result_seconds):
                return await waiting
        except Exception as error:
            known = translated(self.said, error)
            if known is None:
                raise
            raise known from None


def _library() -> Any:
    """The module of what goes to the library; blocks while it is loaded. Raises PACKAGE_MISSING."""
    try:
        from crucible_adapters.tinker import transport

        import_module("tinker")
    except ImportError as error:
        raise _package_missing() from error
    return transport


def usable_key(options: TinkerOptions, context: AdapterContext) -> str:
    """The key to connect with.

    Raises:
        FailedPreconditionError: PACKAGE_MISSING without the library.
        InvalidArgumentError: MANIFEST_INVALID for an address or a key that can't be one.
    """
    if find_spec("tinker") is None:
        raise _package_missing()
    if "@" in options.base_url:
        problem = "must hold no user or password: give the key as the secret api_key"
        raise field_error("options.base_url", problem, reason="MANIFEST_INVALID")
    return _checked_key(context.secrets.get("api_key", ""))


def _package_missing() -> FailedPreconditionError:
    return FailedPreconditionError(
        f"builtin:tinker needs the Python package tinker, which can't be imported: pip install '{_EXTRA}'",
        reason="PACKAGE_MISSING",
        metadata={"package": "tinker", "extra": "tinker"},
    )


def _checked_key(value: str) -> str:
    """The key without the line end that a file leaves. The library refuses others, with a text that shows them."""
    key = value.strip()
    if key and not (key.startswith(("tml-", "eyJ")) and all("!" <= each <= "~" for each in key)):
        raise field_error(
            "secrets.api_key",
            "is no key of Tinker's, which begin with tml-: check the environment variable that the manifest names",
            reason="MANIFEST_INVALID",
        )
    return key
