"""Open sessions of training or sampling by id: created once per request id, kept while their lease is renewed."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from crucible_adapters.operations import Operations, digest_of
from crucible_adapters.threads import retrieve
from crucible_kit.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError

logger = logging.getLogger(__name__)
Release = Callable[[], Awaitable[None]]
"""Gives back what a session computes with."""
_RETRY_SECONDS = 5.0


async def nothing_to_release() -> None:
    """Of a session that holds nothing which is not its own."""


@dataclass(kw_only=True, eq=False)
class SessionRecord:
    """What every open session has."""

    operations: Operations[Any]
    release: Release = nothing_to_release
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    last_used: float = field(default_factory=time.monotonic)

    def renew(self) -> None:
        """Begins the lease anew."""
        self.last_used = time.monotonic()

    def is_idle(self, since: float) -> bool:
        """Whether nobody has named it since a time of time.monotonic, and it has nothing to do."""
        return self.last_used < since and not self.operations.pending

    async def close(self) -> None:
        """Ends its operations and frees what it holds."""
        await self.operations.close()
        await self.release()


Record = TypeVar("Record", bound=SessionRecord)


@dataclass(frozen=True)
class _Creation(Generic[Record]):
    kind: str
    digest: bytes
    task: asyncio.Task[Record]


class SessionTable(Generic[Record]):
    """The open sessions of one service, of one or several kinds that are limited apart.

    Args:
        limits: most open sessions of each kind.
    """

    def __init__(self, *, limits: Mapping[str, int], lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._limits = dict(limits)
        self._creations: dict[str, _Creation[Record]] = {}
        self._records: dict[str, Record] = {}
        self._request_ids: dict[str, str] = {}

    async def create(
        self, request_id: str, request: Message, make: Callable[[], Awaitable[Record]], *, kind: str
    ) -> Record:
        """The session of this request id, made by the first call; a caller that goes away does not stop the making.

        Raises INVALID_ARGUMENT REQUEST_ID_REUSED for another payload, RESOURCE_EXHAUSTED TOO_MANY_SESSIONS.
        """
        digest = digest_of(request)
        if request_id not in self._creations:
            self._check_room(kind)
            task = asyncio.create_task(self._make(request_id, make))
            task.add_done_callback(retrieve)
            self._creations[request_id] = _Creation(kind, digest, task)
        creation = self._creations[request_id]
        if creation.digest != digest:
            raise request_id_reused(request_id)
        record = await asyncio.shield(creation.task)
        record.renew()
        return record

    def _check_room(self, kind: str) -> None:
        open_now = sum(creation.kind == kind for creation in self._creations.values())
        if open_now >= self._limits[kind]:
            raise too_many_sessions(kind, open_now, self._limits[kind])

    async def _make(self, request_id: str, make: Callable[[], Awaitable[Record]]) -> Record:
        try:
            record = await make()
        except BaseException:
            del self._creations[request_id]
            raise
        self._records[record.session_id] = record
        self._request_ids[record.session_id] = request_id
        return record

    def get(self, session_id: str, *, field: str = "session_id") -> Record:
        """The session, its lease renewed. Raises NOT_FOUND SESSION_NOT_FOUND."""
        record = self._records.get(session_id)
        if record is None:
            raise no_session(session_id, field)
        record.renew()
        return record

    async def close(self, session_id: str) -> None:
        """Closes a session after its running operation; unknown is OK."""
        record = self._records.pop(session_id, None)
        if record is not None:
            self._creations.pop(self._request_ids.pop(session_id), None)
            await record.close()

    async def close_expired(self) -> None:
        """Closes the sessions that nobody named for a lease, unless they have unfinished operations."""
        oldest = time.monotonic() - self.lease_seconds
        for record in list(self._records.values()):
            # Asked when its turn comes, because closing another takes time.
            if record.is_idle(oldest):
                logger.info("the lease of session %s ended", record.session_id)
                await self.close(record.session_id)

    def idle(self, seconds: float) -> list[Record]:
        """The sessions that nobody named for so long and that have nothing to do."""
        oldest = time.monotonic() - seconds
        return [each for each in self._records.values() if each.is_idle(oldest)]

    async def close_all(self, *, cancel: bool) -> None:
        """Closes every session, those being made included: `cancel` stops the making, otherwise it is awaited."""
        creations = [creation.task for creation in self._creations.values()]
        if cancel:
            for task in creations:
                task.cancel()
        await asyncio.gather(*creations, return_exceptions=True)
        for session_id in list(self._records):
            await self.close(session_id)


def request_id_reused(request_id: str) -> InvalidArgumentError:
    """Of a request id that came again with another payload."""
    return InvalidArgumentError(
        f"request_id: {request_id} was used for another request: use a new UUID",
        reason="REQUEST_ID_REUSED",
        metadata={"field": "request_id", "request_id": request_id},
    )


def too_many_sessions(kind: str, open_now: int, limit: int) -> ResourceExhaustedError:
    """Of a session that would be one more than there may be."""
    return ResourceExhaustedError(
        f"{open_now} {kind} sessions are open, the most there may be: close one first",
        reason="TOO_MANY_SESSIONS",
        metadata={"kind": kind, "limit": limit, "open": open_now},
        retry_delay=_RETRY_SECONDS,
    )


def no_session(session_id: str, field: str) -> NotFoundError:
    """Of a session that is not open."""
    return NotFoundError(
        f"{field}: no open session {session_id!r}: create one, from the last checkpoint if there is one",
        reason="SESSION_NOT_FOUND",
        metadata={"session_id": session_id},
    )
