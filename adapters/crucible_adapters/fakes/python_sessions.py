"""Sessions of the fake Python bridge and the objects that stay in them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_kit.errors import FailedPreconditionError, NotFoundError, PermissionDeniedError
from crucible_kit.python_values import class_name

LEASE_SECONDS = 600.0


@dataclass
class Session:
    """One session.

    Attributes:
        request_id: of the call that opened it.
        libraries: the only ones it may use; empty: all.
        call_timeout: seconds.
        last_used: seconds by the clock.
        objects: by the id of their reference.
    """

    session_id: str
    request_id: str
    libraries: frozenset[str]
    call_timeout: float
    memory_limit_bytes: int
    last_used: float
    objects: dict[str, Any] = field(default_factory=dict)


class Sessions:
    """All sessions."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._expired: set[str] = set()
        self._owners: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str, **settings: Any) -> Session:
        """A new session; the settings are Session's."""
        session = Session(session_id=f"session-{next(self._numbers)}", request_id=request_id, **settings)
        self._open[session.session_id] = session
        return session

    def expire(self, now: float) -> list[Session]:
        """Ends the sessions that no call has named for a lease."""
        expired = [each for each in self._open.values() if now - each.last_used > LEASE_SECONDS]
        for session in expired:
            self.close(session.session_id)
            self._expired.add(session.session_id)
        return expired

    def close(self, session_id: str) -> Session | None:
        """Ends a session with its objects; None: there is none."""
        session = self._open.pop(session_id, None)
        if session is not None:
            self.forget_objects(session)
        return session

    def get(self, session_id: str) -> Session:
        """An open session. Raises SESSION_NOT_FOUND, SESSION_EXPIRED."""
        if session_id in self._expired:
            raise FailedPreconditionError(
                f"session_id: {session_id} was not used for {LEASE_SECONDS:g} s and has expired: open another",
                reason="SESSION_EXPIRED",
                metadata={"session_id": session_id},
            )
        if session_id not in self._open:
            raise NotFoundError(
                f"session_id: there is no session {session_id!r}: open one",
                reason="SESSION_NOT_FOUND",
                metadata={"session_id": session_id},
            )
        return self._open[session_id]

    def keep(self, session: Session, obj: Any) -> pb.ObjectRef:
        """A reference to an object, which stays in the session."""
        ref_id = f"ref-{next(self._numbers)}"
        session.objects[ref_id] = obj
        self._owners[ref_id] = session.session_id
        return pb.ObjectRef(ref_id=ref_id, class_name=class_name(obj))

    def resolve(self, session: Session, ref: pb.ObjectRef) -> Any:
        """The object of a reference. Raises REF_NOT_FOUND, REF_OF_OTHER_SESSION."""
        self.check_owner(session, ref)
        if ref.ref_id not in session.objects:
            raise NotFoundError(
                f"ref: there is no object {ref.ref_id!r}: it was released, or lost with its process",
                reason="REF_NOT_FOUND",
                metadata={"ref_id": ref.ref_id},
            )
        return session.objects[ref.ref_id]

    def check_owner(self, session: Session, ref: pb.ObjectRef) -> None:
        """Raises REF_OF_OTHER_SESSION."""
        owner = self._owners.get(ref.ref_id, session.session_id)
        if owner != session.session_id:
            raise PermissionDeniedError(
                f"ref: {ref.ref_id} belongs to another session: objects can't be passed between sessions",
                reason="REF_OF_OTHER_SESSION",
                metadata={"ref_id": ref.ref_id},
            )

    def release(self, session: Session, ref: pb.ObjectRef) -> None:
        """Frees an object; without effect when it is gone. Raises REF_OF_OTHER_SESSION."""
        self.check_owner(session, ref)
        session.objects.pop(ref.ref_id, None)
        self._owners.pop(ref.ref_id, None)

    def forget_objects(self, session: Session) -> None:
        """Frees all of a session's objects."""
        for ref_id in session.objects:
            del self._owners[ref_id]
        session.objects.clear()
