"""The dataset port's rules: open datasets belong to whoever opened them, and are closed when nobody reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from crucible.port.dataset.v1 import dataset_pb2 as pb
from crucible_kitchen.relay.call import Call, Host, attach
from crucible_kitchen.relay.sessions import Entry, Place, Sessions


class DatasetRules:
    """Each method is the rule of the call of its name."""

    def __init__(self, host: Host, sessions: Sessions) -> None:
        self._host = host
        self._sessions = sessions

    async def OpenDataset(self, call: Call, request: pb.OpenDatasetRequest) -> pb.OpenDatasetResponse:
        place = Place(call.caller, call.port, object())
        with self._sessions.reserved(place):
            adapter = await attach(self._host, call.port)
            response = await call.send(request)
            self._sessions.add(
                Entry(place=place, session_id=response.dataset.dataset_id, instance_id=adapter.instance_id)
            )
        return response

    async def GetDatasetInfo(self, call: Call, request: pb.GetDatasetInfoRequest) -> pb.GetDatasetInfoResponse:
        with self._sessions.using(call, request.dataset_id):
            return await call.send(request)

    async def ReadRows(self, call: Call, request: pb.ReadRowsRequest) -> AsyncIterator[pb.ReadRowsResponse]:
        with self._sessions.using(call, request.dataset_id):
            async with aclosing(call.stream(request)) as responses:
                async for response in responses:
                    yield response

    async def CloseDataset(self, call: Call, request: pb.CloseDatasetRequest) -> pb.CloseDatasetResponse:
        entry = self._sessions.find(call.caller, call.port, request.dataset_id)
        if entry is None:
            return pb.CloseDatasetResponse()
        response = await call.send(request)
        self._sessions.drop(entry)
        return response
