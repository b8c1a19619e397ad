"""The fake of the sampling port: the toy model that the fake of training trains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible_adapters.fakes.toy.checkpoints import to_model
from crucible_adapters.fakes.toy.engine import SamplingRecord, ToyEngine, ToyOptions
from crucible_adapters.fakes.toy.model import Completion, SamplingOptions, complete, score
from crucible_adapters.fakes.toy.operations import ToyExecutor, Work
from crucible_adapters.fakes.toy.requests import parse_prompt, parse_sampling
from crucible_adapters.operations import Result, UnorderedOperations
from crucible_adapters.requests import check_tokens_in_flight
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import field_error
from crucible_kit.tensors import pack_floats, pack_tokens

_SERVICE = pb.DESCRIPTOR.services_by_name["SamplingService"].full_name


class FakeSampling(sampling_pb2_grpc.SamplingServiceServicer):
    """Completions and logprobs of the toy model.

    Attributes:
        engine: what tests may hold up (`gate`) or tell the time (`clock`).
    """

    description = AdapterDescription(
        name="fake-sampling",
        port="sampling",
        capabilities=("sampling.follow", "sampling.stream"),
        options=ToyOptions,
    )

    def __init__(self, options: ToyOptions, context: AdapterContext) -> None:
        self._options = options
        self.engine = ToyEngine.join(options, context)

    async def close(self) -> None:
        """Leaves the engine, which ends with the last who does."""
        await self.engine.leave()

    async def CreateSamplingSession(
        self, request: pb.CreateSamplingSessionRequest, context: Any
    ) -> pb.CreateSamplingSessionResponse:
        record = self.engine.sampling.create(request.request_id, request, partial(self._open, request))
        return pb.CreateSamplingSessionResponse(
            session_id=record.session_id,
            vocab_size=self._options.vocab_size,
            max_sequence_tokens=self._options.max_sequence_tokens,
            lease=duration_pb2.Duration(seconds=self._options.lease_seconds),
        )

    def _open(self, request: pb.CreateSamplingSessionRequest, session_id: str) -> SamplingRecord:
        engine = self.engine
        operations = UnorderedOperations(
            ToyExecutor(engine), source=_SERVICE, limits=engine.limits, stamps=engine.stamps
        )
        kind = request.WhichOneof("model")
        if request.checkpoint_base_model and kind != "checkpoint_uri":
            raise field_error("checkpoint_base_model", "is set without checkpoint_uri: leave it out")
        match kind:
            case "training_session_id":
                followed = self.engine.training.get(request.training_session_id, field="training_session_id")
                model = followed.session.model
                return SamplingRecord(session_id=session_id, operations=operations, model=model, followed=followed)
            case "checkpoint_uri":
                return self._open_checkpoint(request, session_id, operations)
            case "base_model":
                model = self.engine.base_model(request.base_model, field="base_model")
                return SamplingRecord(session_id=session_id, operations=operations, model=model)
            case _:
                raise field_error("model", "missing: set base_model, checkpoint_uri or training_session_id")

    def _open_checkpoint(
        self, request: pb.CreateSamplingSessionRequest, session_id: str, operations: UnorderedOperations[Work]
    ) -> SamplingRecord:
        saved = self.engine.store.pin(request.checkpoint_uri, field="checkpoint_uri")
        try:
            base = None
            if saved.content.lora is not None:
                name = request.checkpoint_base_model or saved.content.base_model
                base = self.engine.base_model(name, field="checkpoint_base_model")
            elif request.checkpoint_base_model:
                raise field_error("checkpoint_base_model", f"is set, and {saved.name} is a whole model: leave it out")
            model = to_model(saved.content, saved.name, base)
        except BaseException:
            self.engine.store.unpin(saved)
            raise
        release = partial(self.engine.store.unpin, saved)
        return SamplingRecord(session_id=session_id, operations=operations, model=model, release=release)

    async def Sample(self, request: pb.SampleRequest, context: Any) -> pb.SampleResponse:
        record = self._session(request.session_id)
        prompt, options = self._parse(request)

        def run() -> Result:
            completions = [self._complete(record, prompt, options, index) for index in range(request.num_samples)]
            sequences = [
                pb.SampledSequence(
                    tokens_int32=pack_tokens(each.tokens),
                    logprobs_float32=pack_floats(each.logprobs),
                    stop_reason=_stop_reason(each),
                )
                for each in completions
            ]
            result = pb.SampleResult(sequences=sequences, weights_version=record.weights_version)
            if request.prompt_logprobs:
                result.prompt_logprobs_float32 = pack_floats(score(record.model, prompt))
            return "sample", result

        work = Work(run=run, tokens=self._tokens(prompt, options, request.num_samples))
        return pb.SampleResponse(operation=record.operations.submit(request.sequence, request, work).now())

    async def StreamSample(
        self, request: pb.StreamSampleRequest, context: Any
    ) -> AsyncIterator[pb.StreamSampleResponse]:
        record = self._session(request.session_id)
        prompt, options = self._parse(request)
        completions = await self.engine.compute(
            lambda: [self._complete(record, prompt, options, index) for index in range(request.num_samples)]
        )
        # One token of each in turn, as a model that decodes them together would send them.
        for place in range(max(len(each.tokens) for each in completions)):
            for index, each in enumerate(completions):
                if place < len(each.tokens):
                    last = place + 1 == len(each.tokens)
                    yield pb.StreamSampleResponse(
                        index=index,
                        tokens_int32=pack_tokens(each.tokens[place : place + 1]),
                        logprobs_float32=pack_floats(each.logprobs[place : place + 1]),
                        stop_reason=_stop_reason(each) if last else pb.STOP_REASON_UNSPECIFIED,
                    )

    async def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, context: Any) -> pb.ComputeLogprobsResponse:
        record = self._session(request.session_id)
        tokens = parse_prompt(request.tokens_int32, "tokens_int32", self._options, room=0)
        if len(tokens) < 2:
            raise field_error("tokens_int32", "has 1 token, which has no logprob: send at least two")
        check_tokens_in_flight(len(tokens), self._options.max_tokens_in_flight, "tokens_int32", "cut it")

        def run() -> Result:
            logprobs = pack_floats(score(record.model, tokens))
            return "logprobs", pb.LogprobsResult(logprobs_float32=logprobs, weights_version=record.weights_version)

        operation = record.operations.submit(request.sequence, request, Work(run=run, tokens=len(tokens)))
        return pb.ComputeLogprobsResponse(operation=operation.now())

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self.engine.sampling.get(request.session_id)
        return await record.operations.wait(request, pb.AwaitOperationResponse)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> pb.CancelOperationResponse:
        operation = self.engine.sampling.get(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.now())

    async def CloseSamplingSession(
        self, request: pb.CloseSamplingSessionRequest, context: Any
    ) -> pb.CloseSamplingSessionResponse:
        await self.engine.sampling.close(request.session_id)
        return pb.CloseSamplingSessionResponse()

    def _session(self, session_id: str) -> SamplingRecord:
        record = self.engine.sampling.get(session_id)
        if record.followed is not None:
            # Its weights are sampled only while it is open.
            self.engine.training.get(record.followed.session_id, field="training_session_id")
        return record

    def _parse(self, request: pb.SampleRequest | pb.StreamSampleRequest) -> tuple[np.ndarray, SamplingOptions]:
        prompt = parse_prompt(request.prompt_tokens_int32, "prompt_tokens_int32", self._options, room=1)
        options = parse_sampling(request.params, self._options)
        tokens = self._tokens(prompt, options, request.num_samples)
        fix = "ask for fewer samples or a smaller max_tokens"
        check_tokens_in_flight(tokens, self._options.max_tokens_in_flight, "num_samples", fix)
        return prompt, options

    def _tokens(self, prompt: np.ndarray, options: SamplingOptions, num_samples: int) -> int:
        return len(prompt) + num_samples * min(options.max_tokens, self._options.max_sequence_tokens - len(prompt))

    def _complete(self, record: SamplingRecord, prompt: np.ndarray, options: SamplingOptions, index: int) -> Completion:
        room = self._options.max_sequence_tokens - len(prompt)
        return complete(record.model, prompt, options, index=index, room=room)


def _stop_reason(completion: Completion) -> pb.StopReason:
    return pb.STOP_REASON_STOP if completion.stopped else pb.STOP_REASON_LENGTH
