"""The rules of ports whose sessions need only an owner: the Python bridge's, and the episodes of environments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from crucible.port.environment.v1 import environment_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2
from crucible_kit.errors import KitchenError
from crucible_kitchen.relay.call import Call, Host, attach
from crucible_kitchen.relay.session_rules import CREATE_SECONDS, close_at_adapter, request_id_reused, scoped_request_id
from crucible_kitchen.relay.sessions import DEFAULT_LEASE_SECONDS, KINDS, Entry, Place, Sessions


class OwnedRules:
    """What these ports share.

    Attributes:
        closed: the answer to closing what is not there.
    """

    closed: type[Message]

    def __init__(self, host: Host, sessions: Sessions) -> None:
        self._host = host
        self._sessions = sessions

    def _id(self, call: Call, message: Any) -> str:
        return getattr(message, KINDS[call.port].id_field)

    async def open(self, call: Call, request: Any) -> Any:
        """Opens a session, which is the caller's from then on. One too many takes the place of an idle one."""
        request_id = request.request_id
        request.request_id = scoped_request_id(call.caller, request_id)
        place = Place(call.caller, call.port, request_id)
        idle = self._sessions.make_way(place)
        if idle is not None:
            await close_at_adapter(self._host, idle)

        async def make() -> tuple[Entry, Any]:
            adapter = await attach(self._host, call.port)
            response = await getattr(adapter.stub, call.method)(request, timeout=CREATE_SECONDS)
            entry = Entry(
                place=place,
                session_id=self._id(call, response),
                instance_id=adapter.instance_id,
                lease_seconds=response.lease.ToTimedelta().total_seconds() or DEFAULT_LEASE_SECONDS,
            )
            return entry, response

        try:
            return await self._sessions.open(place, make)
        except KitchenError as error:
            raise request_id_reused(request_id) if error.reason == "REQUEST_ID_REUSED" else error from error

    async def call(self, call: Call, request: Any) -> Any:
        """The adapter's answer about one of the caller's sessions."""
        with self._sessions.using(call, self._id(call, request)):
            return await call.send(request)

    async def stream(self, call: Call, request: Any) -> AsyncIterator[Any]:
        """The adapter's stream of answers about one of the caller's sessions."""
        with self._sessions.using(call, self._id(call, request)):
            async with aclosing(call.stream(request)) as responses:
                async for response in responses:
                    yield response

    async def close(self, call: Call, request: Any) -> Any:
        """Ends a session. One that is unknown, or somebody else's, is OK and stays."""
        entry = self._sessions.find(call.caller, call.port, self._id(call, request))
        if entry is None:
            return self.closed()
        response = await call.send(request)
        self._sessions.drop(entry)
        return response


class PythonBridgeRules(OwnedRules):
    """Each method is the rule of the call of its name."""

    closed = python_bridge_pb2.CloseSessionResponse

    OpenSession = OwnedRules.open
    CallFunction = CallMethod = GetAttribute = ReleaseRef = OwnedRules.call
    StreamFunction = OwnedRules.stream
    CloseSession = OwnedRules.close


class EnvironmentRules(OwnedRules):
    """Each method is the rule of the call of its name."""

    closed = environment_pb2.CloseResponse

    Reset = OwnedRules.open
    Step = OwnedRules.call
    Close = OwnedRules.close
