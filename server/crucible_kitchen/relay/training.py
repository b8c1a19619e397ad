"""The training port's rules: sessions and checkpoints belong to whoever opened and saved them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.errors import KitchenError, field_error
from crucible_kit.training import public_name
from crucible_kitchen.relay.call import Call, Host, attach
from crucible_kitchen.relay.checkpoints import Address, Checkpoints
from crucible_kitchen.relay.models import Models
from crucible_kitchen.relay.session_rules import CREATE_SECONDS, SessionRules, request_id_reused, scoped_request_id
from crucible_kitchen.relay.sessions import DEFAULT_LEASE_SECONDS, Entry, Place, Sessions


class TrainingRules(SessionRules):
    """Each method is the rule of the call of its name."""

    def __init__(self, host: Host, sessions: Sessions, checkpoints: Checkpoints, models: Models) -> None:
        super().__init__(sessions, ordered=True)
        self._host = host
        self._checkpoints = checkpoints
        self._models = models

    async def CreateTrainingSession(
        self, call: Call, request: pb.CreateTrainingSessionRequest
    ) -> pb.CreateTrainingSessionResponse:
        named, request_id = request.base_model, request.request_id
        if await self._models.are_local(call.port):
            request.base_model = await self._models.model_folder(named, field="base_model")
            request.base_model_name = request.base_model_name or public_name(named)
        request.request_id = scoped_request_id(call.caller, request_id)
        place = Place(call.caller, call.port, request_id, full=not request.HasField("lora"))

        async def make() -> tuple[Entry, pb.CreateTrainingSessionResponse]:
            adapter = await attach(self._host, call.port)
            response = await adapter.stub.CreateTrainingSession(request, timeout=CREATE_SECONDS)
            session = response.session
            entry = Entry(
                place=place,
                session_id=session.session_id,
                instance_id=adapter.instance_id,
                lease_seconds=session.lease.ToTimedelta().total_seconds() or DEFAULT_LEASE_SECONDS,
                base_model=named,
                max_sequence_tokens=session.max_sequence_tokens,
            )
            return entry, response

        try:
            response = await self.sessions.open(place, make)
        except KitchenError as error:
            raise request_id_reused(request_id) if error.reason == "REQUEST_ID_REUSED" else error from error
        return pb.CreateTrainingSessionResponse(session=_named(response.session, named))

    async def GetTrainingSession(
        self, call: Call, request: pb.GetTrainingSessionRequest
    ) -> pb.GetTrainingSessionResponse:
        with self.sessions.using(call, request.session_id) as entry:
            response = await call.send(request)
        return pb.GetTrainingSessionResponse(session=_named(response.session, entry.base_model))

    async def Forward(self, call: Call, request: pb.ForwardRequest) -> pb.ForwardResponse:
        with self.sessions.using(call, request.session_id) as entry:
            return await self._pass(call, request, entry)

    async def ForwardBackward(self, call: Call, request: pb.ForwardBackwardRequest) -> pb.ForwardBackwardResponse:
        with self.sessions.using(call, request.session_id) as entry:
            return await self._pass(call, request, entry)

    async def _pass(self, call: Call, request: pb.ForwardRequest | pb.ForwardBackwardRequest, entry: Entry):
        tokens = sum(len(chunk.tokens_int32) for datum in request.data for chunk in datum.model_input.chunks) // 4
        return await self.enqueue(call, request, entry, tokens, field="data", fix="send it in several calls")

    async def OptimStep(self, call: Call, request: pb.OptimStepRequest) -> pb.OptimStepResponse:
        return await self.in_session(call, request)

    async def SaveCheckpoint(self, call: Call, request: pb.SaveCheckpointRequest) -> pb.SaveCheckpointResponse:
        request.name = self._checkpoints.name(call.caller, request.name, field="name")
        return await self.in_session(call, request)

    async def LoadCheckpoint(self, call: Call, request: pb.LoadCheckpointRequest) -> pb.LoadCheckpointResponse:
        with self.sessions.using(call, request.session_id):
            request.uri = self._checkpoints.get(call.caller, request.uri, field="uri").uri
            return await call.send(request)

    async def AwaitOperation(self, call: Call, request: pb.AwaitOperationRequest) -> pb.AwaitOperationResponse:
        with self.sessions.using(call, request.session_id) as entry:
            response = await self.await_operation(call, request, entry)
        if not response.HasField("checkpoint"):
            return response
        answer = pb.AwaitOperationResponse(operation=response.operation)
        answer.checkpoint.CopyFrom(self._owned(call.caller, response.checkpoint, base_model=entry.base_model))
        return answer

    def ReadCheckpointFile(
        self, call: Call, request: pb.ReadCheckpointFileRequest
    ) -> AsyncIterator[pb.ReadCheckpointFileResponse]:
        request.uri = self._checkpoints.get(call.caller, request.uri, field="uri").uri
        return call.stream(request)

    async def UploadCheckpoint(
        self, call: Call, requests: AsyncIterator[pb.UploadCheckpointRequest]
    ) -> pb.UploadCheckpointResponse:
        # The adapter is started for a header, not for an empty or a wrong stream.
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            raise field_error("header", "missing: the first message of an upload is its header")
        header = self._renamed(call.caller, first)

        async def renamed() -> AsyncIterator[pb.UploadCheckpointRequest]:
            yield header
            async for request in requests:
                yield self._renamed(call.caller, request)

        response = await call.send(renamed())
        return pb.UploadCheckpointResponse(checkpoint=self._owned(call.caller, response.checkpoint, base_model=""))

    async def DeleteCheckpoint(self, call: Call, request: pb.DeleteCheckpointRequest) -> pb.DeleteCheckpointResponse:
        address = self._checkpoints.unwrap(call.caller, request.uri)
        if address is None:
            return pb.DeleteCheckpointResponse()  # as for every other one that is not there
        request.uri = address.uri
        return await call.send(request)

    async def CloseTrainingSession(
        self, call: Call, request: pb.CloseTrainingSessionRequest
    ) -> pb.CloseTrainingSessionResponse:
        return await self.close(call, request, request.session_id, pb.CloseTrainingSessionResponse())

    def _renamed(self, caller: str, request: pb.UploadCheckpointRequest) -> pb.UploadCheckpointRequest:
        if request.HasField("header"):
            request.header.name = self._checkpoints.name(caller, request.header.name, field="header.name")
        return request

    def _owned(self, caller: str, result: pb.CheckpointResult, *, base_model: str) -> pb.CheckpointResult:
        """A result with the address that its owner gets. `base_model`: how the owner named it; empty: as recorded."""
        recorded = result.base_model
        named = (base_model or recorded) if recorded else ""
        owned = pb.CheckpointResult()
        owned.CopyFrom(result)
        owned.base_model = named
        owned.uri = self._checkpoints.wrap(caller, Address(result.uri, named))
        return owned


def _named(session: pb.TrainingSession, base_model: str) -> pb.TrainingSession:
    """The session with the base model as asked for."""
    named = pb.TrainingSession()
    named.CopyFrom(session)
    named.base_model = base_model
    return named
