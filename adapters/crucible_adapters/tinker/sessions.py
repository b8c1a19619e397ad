"""Open sessions of training and sampling, over the connection that both adapters share."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

from crucible_adapters.operations import Limits, OrderedOperations, UnorderedOperations
from crucible_adapters.retries import Clock
from crucible_adapters.sessions import SessionRecord, SessionTable
from crucible_adapters.tinker.connection import Connection, usable_key
from crucible_adapters.tinker.models import ModelFacts
from crucible_adapters.tinker.operations import Work
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.session import TinkerSession
from crucible_kit.adapter import AdapterContext

logger = logging.getLogger(__name__)
SYSTEM_CLOCK = Clock()
_LEASE_CHECK_SECONDS = 15.0


@dataclass(kw_only=True, eq=False)
class TrainingRecord(SessionRecord):
    """An open training session."""

    operations: OrderedOperations[Work]
    session: TinkerSession
    base_model: str


@dataclass(kw_only=True, eq=False)
class SamplingRecord(SessionRecord):
    """An open sampling session.

    Attributes:
        client: the library's SamplingClient; that of a followed session is made when it is needed.
        version: of the client's weights; 0 for weights that never change.
        followed: the training session whose weights it samples.
    """

    operations: UnorderedOperations[Work]
    facts: ModelFacts
    client: Any = None
    version: int = 0
    followed: TrainingRecord | None = None
    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def now(self) -> tuple[Any, int]:
        """The client of the weights now, and their version."""
        if self.followed is None:
            return self.client, 0
        async with self.refreshing:
            session = self.followed.session
            if self.client is None or self.version != session.next_version:
                self.version, self.client = await session.publish(no_retries())
            return self.client, self.version


class TinkerSessions:
    """One for adapters in the same data folder with equal options and the same key. Made by `join`, and gone when all
    who joined it have left.
    """

    _running: dict[tuple[str, ...], TinkerSessions] = {}  # noqa: RUF012 - the adapters are made apart and meet here

    def __init__(self, options: TinkerOptions, key: str, clock: Clock, identity: tuple[str, ...]) -> None:
        self.connection = Connection(options, key, clock)
        limit, lease = options.max_sessions, options.lease_seconds
        self.training = SessionTable[TrainingRecord](limits={"training": limit}, lease_seconds=lease)
        self.sampling = SessionTable[SamplingRecord](limits={"sampling": limit}, lease_seconds=lease)
        self.limits = Limits(
            operations=options.max_operations_in_flight,
            tokens=options.max_tokens_in_flight,
            hold_seconds=options.hold_seconds,
        )
        self._identity = identity
        self._users = 0
        self._leases: asyncio.Task[None] | None = None

    @classmethod
    def join(cls, options: TinkerOptions, context: AdapterContext, clock: Clock = SYSTEM_CLOCK) -> TinkerSessions:
        """The sessions of a data folder, of options and of a key. Raises what `usable_key` does."""
        key = usable_key(options, context)
        folder = str(context.data_dir.resolve())
        identity = (folder, options.model_dump_json(), hashlib.sha256(key.encode()).hexdigest())
        shared = cls._running.get(identity) or cls(options, key, clock, identity)
        cls._running[identity] = shared
        shared._users += 1
        return shared

    async def leave(self) -> None:
        """Closes all sessions and the connection when nobody is left."""
        self._users -= 1
        if self._users:
            return
        self.connection.refuse()
        self._running.pop(self._identity, None)
        if self._leases is not None:
            self._leases.cancel()
            await asyncio.gather(self._leases, return_exceptions=True)
        await self.sampling.close_all(cancel=False)
        await self.training.close_all(cancel=False)
        await self.connection.close()

    def watch_leases(self) -> None:
        """From now on closes the sessions that nobody names."""
        if self._leases is None and self._users:
            self._leases = asyncio.create_task(self._close_expired())

    async def _close_expired(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_CHECK_SECONDS)
            try:
                await self.sampling.close_expired()
                await self.training.close_expired()
            # One session that can't be closed must not keep the others open.
            except Exception:
                logger.exception("leases were not all looked after, the next round is soon")


def no_retries() -> Any:
    """The library's sampling clients try nothing again."""
    from tinker.lib.retry_handler import RetryConfig

    return RetryConfig(enable_retry_logic=False, enable_stuck_detection=False)
