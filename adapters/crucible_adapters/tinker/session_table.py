"""Open sessions by id: created once per request id, kept while their lease is renewed."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from crucible_adapters.operations import Operations, digest_of
from crucible_adapters.threads import retrieve
from crucible_kit.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0


async def nothing_to_release() -> None:
    """Of a session that holds nothing."""


@dataclass(kw_only=True, eq=False)
class SessionRecord:
    """What every open session has.

    Attributes:
        release: frees what it holds at Tinker.
    """

    operations: Operations[Any]
    release: Callable[[], Awaitable[None]] = nothing_to_release
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    last_used: float = field(default_factory=time.monotonic)


Record = TypeVar("Record", bound=SessionRecord)


class SessionTable(Generic[Record]):
    """The open sessions of one service."""

    def __init__(self, kind: str, *, max_sessions: int, lease_seconds: int) -> None:
        self._kind = kind
        self._max_sessions = max_sessions
        self.lease_seconds = lease_seconds
        self._made: dict[str, tuple[bytes, asyncio.Task[Record]]] = {}
        self._records: dict[str, Record] = {}
        self._request_ids: dict[str, str] = {}

    async def create(self, request_id: str, request: Message, make: Callable[[], Awaitable[Record]]) -> Record:
        """The session of this request id, made by the first call; a caller that goes away does not stop the making.

        Raises INVALID_ARGUMENT REQUEST_ID_REUSED for another payload, RESOURCE_EXHAUSTED TOO_MANY_SESSIONS.
        """
        digest = digest_of(request)
        if request_id not in self._made:
            self._check_room()
            task = asyncio.create_task(self._make(request_id, make))
            task.add_done_callback(retrieve)
            self._made[request_id] = digest, task
        known, task = self._made[request_id]
        if known != digest:
            raise InvalidArgumentError(
                f"request_id: {request_id} was used for another request: use a new UUID",
                reason="REQUEST_ID_REUSED",
                metadata={"field": "request_id", "request_id": request_id},
            )
        record = await asyncio.shield(task)
        record.last_used = time.monotonic()
        return record

    def _check_room(self) -> None:
        if len(self._made) >= self._max_sessions:
            raise ResourceExhaustedError(
                f"{len(self._made)} {self._kind} sessions are open, the most there may be: close one first",
                reason="TOO_MANY_SESSIONS",
                metadata={"limit": self._max_sessions, "open": len(self._made)},
                retry_delay=_RETRY_SECONDS,
            )

    async def _make(self, request_id: str, make: Callable[[], Awaitable[Record]]) -> Record:
        try:
            record = await make()
        except BaseException:
            del self._made[request_id]
            raise
        self._records[record.session_id] = record
        self._request_ids[record.session_id] = request_id
        return record

    def get(self, session_id: str, *, field: str = "session_id") -> Record:
        """The session, its lease renewed. Raises NOT_FOUND SESSION_NOT_FOUND."""
        record = self._records.get(session_id)
        if record is None:
            raise NotFoundError(
                f"{field}: no open session {session_id!r}: create one, from the last checkpoint if there is one",
                reason="SESSION_NOT_FOUND",
                metadata={"session_id": session_id},
            )
        record.last_used = time.monotonic()
        return record

    async def close(self, session_id: str) -> None:
        """Closes a session; unknown is OK."""
        record = self._records.pop(session_id, None)
        if record is not None:
            self._made.pop(self._request_ids.pop(session_id), None)
            await record.operations.close()
            await record.release()

    async def close_expired(self) -> None:
        """Closes the sessions that nobody named for a lease, unless they have unfinished operations."""
        oldest = time.monotonic() - self.lease_seconds
        for record in list(self._records.values()):
            if record.last_used < oldest and not record.operations.pending:
                logger.info("the lease of the %s session %s ended", self._kind, record.session_id)
                await self.close(record.session_id)

    async def close_all(self) -> None:
        """Closes every session, those being made included."""
        tasks = [task for _, task in self._made.values()]
        await asyncio.gather(*tasks, return_exceptions=True)
        for session_id in list(self._records):
            await self.close(session_id)
