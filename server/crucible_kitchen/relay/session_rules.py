"""What the rules of the ports with sessions share. A rule is a method with the name of the call that it is for."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Hashable
from typing import Any

from crucible.type.v1 import operation_pb2
from crucible_kit.errors import DeadlineExceededError, InvalidArgumentError, KitchenError, UnavailableError
from crucible_kitchen.relay.call import Call, Host
from crucible_kitchen.relay.sessions import KINDS, Entry, Sessions

logger = logging.getLogger(__name__)

# The adapter may load a model first; whoever waits for it has a deadline of its own.
CREATE_SECONDS = 600.0
_CLOSE_SECONDS = 10.0
_FINISHED = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)


async def close_at_adapter(host: Host, entry: Entry) -> None:
    """Has its adapter close a session that was dropped; one that it does not close has a lease there."""
    attached = host.attached(entry.port)
    if attached is None:
        return
    kind = KINDS[entry.port]
    request = kind.close_request(**{kind.id_field: entry.session_id})
    try:
        await getattr(attached.stub, kind.close)(request, timeout=_CLOSE_SECONDS)
    except KitchenError as error:
        logger.info("%s %s, which was idle, was not closed: %s", entry.port, entry.session_id, error)


class SessionRules:
    """Operations of sessions, whose tokens count until they have finished.

    Args:
        ordered: the operations of a session run in the order of their numbers.
    """

    def __init__(self, sessions: Sessions, *, ordered: bool) -> None:
        self.sessions = sessions
        self._ordered = ordered

    async def in_session(self, call: Call, request: Any) -> Any:
        """The adapter's answer about one of the caller's sessions."""
        with self.sessions.using(call, request.session_id):
            return await call.send(request)

    async def close(self, call: Call, request: Any, session_id: str, nothing: Any) -> Any:
        """Ends a session. One that is unknown, or somebody else's, is answered `nothing`: there is nothing to end."""
        entry = self.sessions.find(call.caller, call.port, session_id)
        if entry is None:
            return nothing
        response = await call.send(request)
        self.sessions.drop(entry)
        return response

    async def enqueue(self, call: Call, request: Any, entry: Entry, tokens: int, *, field: str, fix: str) -> Any:
        """Sends a call that computes and counts its tokens. Raises RESOURCE_EXHAUSTED TOO_MANY_TOKENS."""
        key: Hashable = request.sequence
        new = self.sessions.hold(entry, key, tokens, field=field, fix=fix)
        try:
            response = await call.send(request)
        except (UnavailableError, DeadlineExceededError):
            raise  # the adapter may have accepted it
        except KitchenError:
            if new:
                self.sessions.release(entry, key)
            raise
        if key in entry.tokens:
            entry.operations[response.operation.id] = key
            self.settle(entry, response.operation)
        return response

    async def await_operation(self, call: Call, request: Any, entry: Entry) -> Any:
        """The adapter's answer about an operation; a finished one holds no tokens any more."""
        try:
            response = await call.send(request)
        except KitchenError as error:
            # Its result has expired, so it has finished.
            if error.reason == "OPERATION_NOT_FOUND":
                self._release(entry, entry.operations.pop(request.operation_id, None))
            raise
        self.settle(entry, response.operation)
        return response

    async def CancelOperation(self, call: Call, request: Any) -> Any:
        with self.sessions.using(call, request.session_id) as entry:
            return await self.await_operation(call, request, entry)

    def settle(self, entry: Entry, operation: operation_pb2.Operation) -> None:
        """Releases what a finished operation held, and in an ordered session what those before it held."""
        if operation.state not in _FINISHED:
            return
        self._release(entry, entry.operations.pop(operation.id, None))
        # A cancelled one may have overtaken others.
        if not self._ordered or operation.state == operation_pb2.OPERATION_STATE_CANCELLED:
            return
        for key in [each for each in entry.tokens if isinstance(each, int) and each <= operation.sequence]:
            self._release(entry, key)
        entry.operations = {name: key for name, key in entry.operations.items() if key in entry.tokens}

    def _release(self, entry: Entry, key: Hashable | None) -> None:
        if key is not None:
            self.sessions.release(entry, key)


def scoped_request_id(caller: str, request_id: str) -> str:
    """A caller's request id as the adapter gets it: two callers' equal ids, or a run's, are different ones there."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"crucible-kitchen\0{caller}\0{request_id}"))


def request_id_reused(request_id: str) -> InvalidArgumentError:
    """The adapter's error of that name, about the id that the caller knows."""
    return InvalidArgumentError(
        f"request_id: {request_id} was used for another request: use a new UUID",
        reason="REQUEST_ID_REUSED",
        metadata={"field": "request_id", "request_id": request_id},
    )
