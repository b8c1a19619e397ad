"""The sampling port's rules: sessions belong to whoever opened them, and sample only from what is theirs or public."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible_kit.errors import KitchenError, field_error
from crucible_kitchen.relay.call import Call, Host, attach
from crucible_kitchen.relay.checkpoints import Checkpoints
from crucible_kitchen.relay.models import Models
from crucible_kitchen.relay.session_rules import CREATE_SECONDS, SessionRules, request_id_reused, scoped_request_id
from crucible_kitchen.relay.sessions import DEFAULT_LEASE_SECONDS, Entry, Place, Sessions

_FIX = "ask for fewer samples or a smaller max_tokens"


class SamplingRules(SessionRules):
    """Each method is the rule of the call of its name."""

    def __init__(self, host: Host, sessions: Sessions, checkpoints: Checkpoints, models: Models) -> None:
        super().__init__(sessions, ordered=False)
        self._host = host
        self._checkpoints = checkpoints
        self._models = models

    async def CreateSamplingSession(
        self, call: Call, request: pb.CreateSamplingSessionRequest
    ) -> pb.CreateSamplingSessionResponse:
        request_id = request.request_id
        place = Place(call.caller, call.port, request_id)
        followed = await self._resolve(call, request)
        request.request_id = scoped_request_id(call.caller, request_id)

        async def make() -> tuple[Entry, pb.CreateSamplingSessionResponse]:
            adapter = await attach(self._host, call.port)
            response = await adapter.stub.CreateSamplingSession(request, timeout=CREATE_SECONDS)
            entry = Entry(
                place=place,
                session_id=response.session_id,
                instance_id=adapter.instance_id,
                lease_seconds=response.lease.ToTimedelta().total_seconds() or DEFAULT_LEASE_SECONDS,
                max_sequence_tokens=response.max_sequence_tokens,
                follows=followed,
            )
            return entry, response

        try:
            return await self.sessions.open(place, make)
        except KitchenError as error:
            raise request_id_reused(request_id) if error.reason == "REQUEST_ID_REUSED" else error from error

    async def _resolve(self, call: Call, request: pb.CreateSamplingSessionRequest) -> Entry | None:
        """Puts what the adapter knows in place of the caller's names; returns the training session that is followed."""
        model = request.WhichOneof("model")
        if request.checkpoint_base_model and model != "checkpoint_uri":
            raise field_error("checkpoint_base_model", "is set without checkpoint_uri: leave it out")
        if model == "training_session_id":
            session_id = request.training_session_id
            return self.sessions.get(call.caller, "training", session_id, field="training_session_id")
        local = await self._models.are_local(call.port)
        if model == "base_model" and local:
            request.base_model = await self._models.model_folder(request.base_model, field="base_model")
        if model == "checkpoint_uri":
            address = self._checkpoints.get(call.caller, request.checkpoint_uri, field="checkpoint_uri")
            request.checkpoint_uri = address.uri
            base_model = request.checkpoint_base_model or address.base_model
            # Resolved even when only the checkpoint names it: who uploads one may have written any path into it.
            if base_model and local:
                field = "checkpoint_base_model"
                request.checkpoint_base_model = await self._models.model_folder(base_model, field=field)
        return None

    async def Sample(self, call: Call, request: pb.SampleRequest) -> pb.SampleResponse:
        with self.sessions.using(call, request.session_id) as entry:
            tokens = _sampled_tokens(request, entry)
            return await self.enqueue(call, request, entry, tokens, field="num_samples", fix=_FIX)

    async def StreamSample(self, call: Call, request: pb.StreamSampleRequest) -> AsyncIterator[pb.StreamSampleResponse]:
        with self.sessions.using(call, request.session_id) as entry:
            stream = object()
            self.sessions.hold(entry, stream, _sampled_tokens(request, entry), field="num_samples", fix=_FIX)
            try:
                async with aclosing(call.stream(request)) as responses:
                    async for response in responses:
                        yield response
            finally:
                self.sessions.release(entry, stream)

    async def ComputeLogprobs(self, call: Call, request: pb.ComputeLogprobsRequest) -> pb.ComputeLogprobsResponse:
        with self.sessions.using(call, request.session_id) as entry:
            tokens = len(request.tokens_int32) // 4
            return await self.enqueue(call, request, entry, tokens, field="tokens_int32", fix="cut it")

    async def AwaitOperation(self, call: Call, request: pb.AwaitOperationRequest) -> pb.AwaitOperationResponse:
        with self.sessions.using(call, request.session_id) as entry:
            return await self.await_operation(call, request, entry)

    async def CloseSamplingSession(
        self, call: Call, request: pb.CloseSamplingSessionRequest
    ) -> pb.CloseSamplingSessionResponse:
        return await self.close(call, request, request.session_id, pb.CloseSamplingSessionResponse())


def _sampled_tokens(request: pb.SampleRequest | pb.StreamSampleRequest, entry: Entry) -> int:
    """The most tokens that it can make: the prompt counts once, and no sample is longer than the model's longest."""
    prompt = len(request.prompt_tokens_int32) // 4
    longest = request.params.max_tokens
    if entry.max_sequence_tokens:
        longest = min(longest, max(0, entry.max_sequence_tokens - prompt))
    return prompt + request.num_samples * longest
