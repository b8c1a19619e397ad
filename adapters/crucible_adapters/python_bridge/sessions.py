"""Sessions, the references in them, and whose turn it is. No processes, no calls."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_adapters.python_bridge.processes import Worker
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)

_KEPT_EXPIRED = 10_000
_RETRY_SECONDS = 1.0


@dataclass(eq=False)
class Session:
    """One session.

    Attributes:
        content: of the request that opened it.
        libraries: the only ones it may use; empty: all.
        call_timeout: seconds.
        last_used: seconds by the clock.
        lock: held by the call that runs; others wait in their order.
        worker: its process; None: not started yet, or ended.
        objects: classes of each reference's object, as (library, class) of the manifests, the closest first.
        streams: ids of those that go on.
        calls: that run or wait.
    """

    session_id: str
    request_id: str
    content: bytes
    libraries: frozenset[str]
    call_timeout: float
    memory_limit_bytes: int
    last_used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    worker: Worker | None = None
    objects: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)
    calls: int = 0
    closed: bool = False


class Sessions:
    """All sessions.

    Args:
        now: seconds by a clock that only goes forward.
    """

    def __init__(self, *, lease_seconds: float, max_sessions: int, max_objects: int, now: Callable[[], float]) -> None:
        self._lease = lease_seconds
        self._max_sessions = max_sessions
        self._max_objects = max_objects
        self._now = now
        self._open: dict[str, Session] = {}
        self._by_request: dict[str, Session] = {}
        self._expired: dict[str, None] = {}
        self._owners: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened_by(self, request: pb.OpenSessionRequest) -> Session | None:
        """The open session of a request that is made again. Raises REQUEST_ID_REUSED."""
        known = self._by_request.get(request.request_id.lower())
        if known is not None and known.content != request.SerializeToString(deterministic=True):
            raise InvalidArgumentError(
                f"request_id: {request.request_id} was used for another request: use a new UUID",
                reason="REQUEST_ID_REUSED",
                metadata={"field": "request_id", "request_id": request.request_id},
            )
        return known

    def open(self, request: pb.OpenSessionRequest, *, call_timeout: float, memory_limit_bytes: int) -> Session:
        """A new session. Raises TOO_MANY_SESSIONS."""
        if len(self._open) >= self._max_sessions:
            raise ResourceExhaustedError(
                f"{len(self._open)} sessions are open, at most {self._max_sessions} may be: close one",
                reason="TOO_MANY_SESSIONS",
                metadata={"limit": self._max_sessions},
                retry_delay=_RETRY_SECONDS,
            )
        session = Session(
            session_id=f"session-{uuid.uuid4().hex}",
            request_id=request.request_id.lower(),
            content=request.SerializeToString(deterministic=True),
            libraries=frozenset(request.libraries),
            call_timeout=call_timeout,
            memory_limit_bytes=memory_limit_bytes,
            last_used=self._now(),
        )
        self._open[session.session_id] = session
        self._by_request[session.request_id] = session
        return session

    def use(self, session_id: str) -> Session:
        """An open session, whose lease begins anew. Raises SESSION_NOT_FOUND, SESSION_EXPIRED."""
        if session_id in self._expired:
            raise FailedPreconditionError(
                f"session_id: {session_id} was not used for {self._lease:g} s and has expired: open another",
                reason="SESSION_EXPIRED",
                metadata={"session_id": session_id},
            )
        if session_id not in self._open:
            raise session_not_found(session_id)
        session = self._open[session_id]
        session.last_used = self._now()
        return session

    def end_call(self, session: Session) -> None:
        """Counts a call as done; the lease begins anew."""
        session.calls -= 1
        session.last_used = self._now()

    def expire(self) -> list[Session]:
        """Ends the sessions that no call has named for a lease and in which none runs; they are to be freed."""
        now = self._now()
        expired = [each for each in self._open.values() if not each.calls and now - each.last_used > self._lease]
        for session in expired:
            self.close(session.session_id)
            self._expired[session.session_id] = None
        while len(self._expired) > _KEPT_EXPIRED:
            del self._expired[next(iter(self._expired))]
        return expired

    def close(self, session_id: str) -> Session | None:
        """Ends a session with its references; None: there is none."""
        session = self._open.pop(session_id, None)
        if session is not None:
            session.closed = True
            del self._by_request[session.request_id]
            self.forget_objects(session)
        return session

    def close_all(self) -> list[Session]:
        """Ends all of them."""
        return [session for each in list(self._open) if (session := self.close(each)) is not None]

    def new_reference(self, session: Session) -> str:
        """An id that nobody can guess. Raises TOO_MANY_OBJECTS."""
        if len(session.objects) >= self._max_objects:
            raise ResourceExhaustedError(
                f"the session holds {len(session.objects)} references, at most {self._max_objects} may be: release one",
                reason="TOO_MANY_OBJECTS",
                metadata={"limit": self._max_objects},
            )
        return f"ref-{uuid.uuid4().hex}"

    def keep(self, session: Session, ref_id: str, kinds: tuple[tuple[str, str], ...]) -> None:
        """Notes an object that the session's worker has."""
        session.objects[ref_id] = kinds
        self._owners[ref_id] = session.session_id

    def resolve(self, session: Session, ref: pb.ObjectRef) -> tuple[tuple[str, str], ...]:
        """The classes of a reference's object. Raises REF_NOT_FOUND, REF_OF_OTHER_SESSION."""
        self.check_owner(session, ref)
        if ref.ref_id not in session.objects:
            raise NotFoundError(
                f"ref: there is no object {ref.ref_id!r}: it was released, or lost with its process",
                reason="REF_NOT_FOUND",
                metadata={"ref_id": ref.ref_id},
            )
        return session.objects[ref.ref_id]

    def resolve_inside(self, session: Session, value: pb.Value) -> None:
        """The same for each reference in a value."""
        match value.WhichOneof("kind"):
            case "ref":
                self.resolve(session, value.ref)
            case "list":
                for each in value.list.values:
                    self.resolve_inside(session, each)
            case "dict":
                for each in value.dict.values.values():
                    self.resolve_inside(session, each)

    def check_owner(self, session: Session, ref: pb.ObjectRef) -> None:
        """Raises REF_OF_OTHER_SESSION."""
        if self._owners.get(ref.ref_id, session.session_id) != session.session_id:
            raise PermissionDeniedError(
                f"ref: {ref.ref_id} belongs to another session: objects can't be passed between sessions",
                reason="REF_OF_OTHER_SESSION",
                metadata={"ref_id": ref.ref_id},
            )

    def release(self, session: Session, ref_id: str) -> bool:
        """Forgets a reference; whether there was one."""
        self._owners.pop(ref_id, None)
        return session.objects.pop(ref_id, None) is not None

    def forget_objects(self, session: Session) -> None:
        """Forgets all that was in a session's worker."""
        for ref_id in session.objects:
            self._owners.pop(ref_id, None)
        session.objects.clear()
        session.streams.clear()


def session_not_found(session_id: str) -> NotFoundError:
    """The error of a session that never was, or is closed."""
    return NotFoundError(
        f"session_id: there is no session {session_id!r}: open one",
        reason="SESSION_NOT_FOUND",
        metadata={"session_id": session_id},
    )
