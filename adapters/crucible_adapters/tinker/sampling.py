"""The sampling port over Tinker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible_adapters.operations import Result, UnorderedOperations
from crucible_adapters.requests import check_tokens_in_flight
from crucible_adapters.retries import Clock
from crucible_adapters.tinker.checkpoints import not_there
from crucible_adapters.tinker.errors import NOT_THERE, REFUSED
from crucible_adapters.tinker.operations import TinkerExecutor, Work
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.requests import parse_prompt, parse_sampling, sampled_tokens
from crucible_adapters.tinker.sessions import SYSTEM_CLOCK, SamplingRecord, TinkerSessions, no_retries
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import KitchenError, capability_missing, field_error
from crucible_kit.tensors import pack_floats, pack_tokens

_SERVICE = pb.DESCRIPTOR.services_by_name["SamplingService"].full_name
_REASONS = {"stop": pb.STOP_REASON_STOP, "length": pb.STOP_REASON_LENGTH}


class TinkerSampling(sampling_pb2_grpc.SamplingServiceServicer):
    """Completions and logprobs of the models at Tinker.

    Args:
        clock: time and chance of retries; tests give their own.
    """

    description = AdapterDescription(
        name="tinker",
        port="sampling",
        capabilities=("sampling.follow",),
        options=TinkerOptions,
        secrets=("api_key",),
    )

    def __init__(self, options: TinkerOptions, context: AdapterContext, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._options = options
        self._shared = TinkerSessions.join(options, context, clock)
        self._connection = self._shared.connection
        self._sessions = self._shared.sampling

    async def probe(self) -> str:
        """What keeps Tinker from answering now; empty: nothing."""
        return await self._connection.probe()

    async def close(self) -> None:
        """Leaves the connection, which ends with the last who does."""
        await self._shared.leave()

    async def CreateSamplingSession(
        self, request: pb.CreateSamplingSessionRequest, context: Any
    ) -> pb.CreateSamplingSessionResponse:
        self._shared.watch_leases()
        record = await self._sessions.create(request.request_id, request, partial(self._open, request), kind="sampling")
        return pb.CreateSamplingSessionResponse(
            session_id=record.session_id,
            vocab_size=record.facts.vocab_size,
            max_sequence_tokens=record.facts.max_sequence_tokens,
            lease=duration_pb2.Duration(seconds=self._options.lease_seconds),
        )

    async def _open(self, request: pb.CreateSamplingSessionRequest) -> SamplingRecord:
        connection = self._connection
        operations = UnorderedOperations(TinkerExecutor(in_order=False), source=_SERVICE, limits=self._shared.limits)
        kind = request.WhichOneof("model")
        if request.checkpoint_base_model and kind != "checkpoint_uri":
            raise field_error("checkpoint_base_model", "is set without checkpoint_uri: leave it out")
        match kind:
            case "training_session_id":
                followed = self._shared.training.get(request.training_session_id, field="training_session_id")
                return SamplingRecord(operations=operations, facts=followed.session.facts, followed=followed)
            case "checkpoint_uri":
                return await self._open_checkpoint(request, operations)
            case "base_model":
                facts = await connection.facts(request.base_model)
                client = await connection.opened(
                    self._client(base_model=facts.name), facts, request.base_model, field="base_model"
                )
                return SamplingRecord(operations=operations, facts=facts, client=client)
            case _:
                raise field_error("model", "missing: set base_model, checkpoint_uri or training_session_id")

    async def _open_checkpoint(
        self, request: pb.CreateSamplingSessionRequest, operations: UnorderedOperations[Work]
    ) -> SamplingRecord:
        connection, uri = self._connection, request.checkpoint_uri
        path = connection.checkpoints.path_at_tinker(uri)
        if path is None:
            path = connection.checkpoints.find(uri, field="checkpoint_uri").reference.sampler_weights
        connection.checkpoints.pin(uri)

        async def release() -> None:
            connection.checkpoints.unpin(uri)

        try:
            client = await connection.result(self._client(model_path=path))
            facts = await connection.facts(request.checkpoint_base_model or client.get_base_model())
        except BaseException as error:
            await release()
            if isinstance(error, KitchenError) and error.reason in (NOT_THERE, REFUSED):
                raise not_there(uri, f"checkpoint_uri ({error.message})") from None
            raise
        return SamplingRecord(operations=operations, facts=facts, client=client, release=release)

    async def _client(self, **model: str) -> Any:
        service = await self._connection.shared()
        return await service.create_sampling_client(**model, retry_config=no_retries())

    async def Sample(self, request: pb.SampleRequest, context: Any) -> pb.SampleResponse:
        record = self._session(request.session_id)
        prompt = parse_prompt(request.prompt_tokens_int32, "prompt_tokens_int32", record.facts, room=1)
        params = parse_sampling(request.params, record.facts)
        tokens = sampled_tokens(prompt, request, record.facts)
        most = self._options.max_tokens_in_flight
        check_tokens_in_flight(tokens, most, "num_samples", "ask for fewer samples or a smaller max_tokens")
        begin = partial(self._sample, record, prompt, params, request.num_samples, request.prompt_logprobs)
        operation = record.operations.submit(request.sequence, request, Work(begin=begin, tokens=tokens))
        return pb.SampleResponse(operation=operation.now())

    async def _sample(
        self, record: SamplingRecord, prompt: list[int], params: dict[str, Any], count: int, prompt_logprobs: bool
    ) -> Result:
        from tinker import types

        client, version = await record.now()
        answer = await self._asked(
            lambda: client.sample(
                types.ModelInput.from_ints(prompt),
                num_samples=count,
                sampling_params=types.SamplingParams(**params),
                include_prompt_logprobs=prompt_logprobs,
            )
        )
        with self._connection.said.reading():
            sequences = [
                pb.SampledSequence(
                    tokens_int32=pack_tokens(each.tokens_np),
                    logprobs_float32=pack_floats(each.logprobs_np),
                    stop_reason=_REASONS[each.stop_reason],
                )
                for each in answer.sequences
            ]
            result = pb.SampleResult(sequences=sequences, weights_version=version)
            if prompt_logprobs:
                result.prompt_logprobs_float32 = _scores(answer.prompt_logprobs_np, len(prompt))
        return "sample", result

    async def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, context: Any) -> pb.ComputeLogprobsResponse:
        record = self._session(request.session_id)
        tokens = parse_prompt(request.tokens_int32, "tokens_int32", record.facts, room=0)
        if len(tokens) < 2:
            raise field_error("tokens_int32", "has 1 token, which has no logprob: send at least two")
        check_tokens_in_flight(len(tokens), self._options.max_tokens_in_flight, "tokens_int32", "cut it")
        work = Work(begin=partial(self._score, record, tokens), tokens=len(tokens))
        operation = record.operations.submit(request.sequence, request, work)
        return pb.ComputeLogprobsResponse(operation=operation.now())

    async def _score(self, record: SamplingRecord, tokens: list[int]) -> Result:
        from tinker import types

        client, version = await record.now()
        # The one token that Tinker insists on sampling is not looked at.
        answer = await self._asked(
            lambda: client.sample(
                types.ModelInput.from_ints(tokens),
                num_samples=1,
                sampling_params=types.SamplingParams(max_tokens=1),
                include_prompt_logprobs=True,
            )
        )
        with self._connection.said.reading():
            scores = _scores(answer.prompt_logprobs_np, len(tokens))
        return "logprobs", pb.LogprobsResult(logprobs_float32=scores, weights_version=version)

    async def _asked(self, ask: Callable[[], Any]) -> Any:
        """Asks, again when Tinker has lost the result, which is then computed anew."""
        for left in reversed(range(self._options.retries.tries)):
            try:
                return await self._connection.result(ask())
            except KitchenError as error:
                if not left or error.metadata.get("http_status") != "410":
                    raise
        raise AssertionError("there is at least one try")

    async def StreamSample(
        self, request: pb.StreamSampleRequest, context: Any
    ) -> AsyncIterator[pb.StreamSampleResponse]:
        raise capability_missing("sampling", "sampling.stream", "Tinker sends whole completions: use Sample")
        yield pb.StreamSampleResponse()

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self._session(request.session_id)
        response = await record.operations.wait(request, pb.AwaitOperationResponse)
        record.renew()
        return response

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> pb.CancelOperationResponse:
        operation = self._session(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.now())

    async def CloseSamplingSession(
        self, request: pb.CloseSamplingSessionRequest, context: Any
    ) -> pb.CloseSamplingSessionResponse:
        await self._sessions.close(request.session_id)
        return pb.CloseSamplingSessionResponse()

    def _session(self, session_id: str) -> SamplingRecord:
        record = self._sessions.get(session_id)
        if record.followed is not None:
            self._shared.training.get(record.followed.session_id, field="training_session_id")
        return record


def _scores(logprobs: Any, tokens: int) -> bytes:
    """logprobs of all tokens but the first. Raises ValueError for another number of them, or one that is missing."""
    if logprobs is None or len(logprobs) != tokens or np.isnan(logprobs[1:]).any():
        raise ValueError(f"no logprob for each of {tokens} prompt tokens")
    return pack_floats(logprobs[1:])
