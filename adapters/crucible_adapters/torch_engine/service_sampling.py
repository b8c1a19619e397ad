"""SamplingService over the engine's models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible_adapters.torch_engine.checkpoint import verify
from crucible_adapters.torch_engine.engine import Engine, SamplingRecord, model_folder
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.operations import Cancelled, Result, UnorderedOperations, Work
from crucible_adapters.torch_engine.requests import parse_prompt, parse_sampling
from crucible_adapters.torch_engine.sampler import Completion, compute_logprobs, sample
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.tensors import pack_floats, pack_tokens

CAPABILITIES = ("sampling.follow",)
MAX_WAIT_SECONDS = 30.0
_SERVICE = pb.DESCRIPTOR.services_by_name["SamplingService"].full_name


class SamplingService(sampling_pb2_grpc.SamplingServiceServicer):
    """Completions and logprobs from base models, checkpoints and live training sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions = engine.sampling

    async def CreateSamplingSession(
        self, request: pb.CreateSamplingSessionRequest, context: Any
    ) -> pb.CreateSamplingSessionResponse:
        record = await self._sessions.create(request.request_id, request, lambda: self._open(request))
        return pb.CreateSamplingSessionResponse(
            session_id=record.session_id,
            vocab_size=record.model.vocab_size,
            max_sequence_tokens=record.model.max_positions,
            lease=duration_pb2.Duration(seconds=int(self._sessions.lease_seconds)),
        )

    async def Sample(self, request: pb.SampleRequest, context: Any) -> pb.SampleResponse:
        record = self._session(request.session_id)
        model = record.model
        prompt = parse_prompt(request.prompt_tokens_int32, "prompt_tokens_int32", model, room=1)
        options = parse_sampling(request.params, model)

        def run(cancelled: Cancelled) -> Result:
            result = sample(
                model,
                prompt,
                request.num_samples,
                options,
                prompt_logprobs=request.prompt_logprobs,
                cancelled=cancelled,
            )
            message = pb.SampleResult(
                sequences=[_sequence(each) for each in result.completions], weights_version=record.weights_version()
            )
            if result.prompt_logprobs is not None:
                message.prompt_logprobs_float32 = pack_floats(result.prompt_logprobs)
            return "sample", message

        operation = record.operations.submit(request.sequence, request, Work(run=run))
        return pb.SampleResponse(operation=operation.now())

    async def StreamSample(
        self, request: pb.StreamSampleRequest, context: Any
    ) -> AsyncIterator[pb.StreamSampleResponse]:
        raise capability_missing("sampling", "sampling.stream", "use Sample, which answers with whole completions")
        yield  # makes it a generator

    async def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, context: Any) -> pb.ComputeLogprobsResponse:
        record = self._session(request.session_id)
        model = record.model
        tokens = parse_prompt(request.tokens_int32, "tokens_int32", model)
        if len(tokens) < 2:
            raise field_error("tokens_int32", "has 1 token, which has no logprob: send at least two")

        def run(_: Cancelled) -> Result:
            logprobs = pack_floats(compute_logprobs(model, tokens))
            return "logprobs", pb.LogprobsResult(logprobs_float32=logprobs, weights_version=record.weights_version())

        operation = record.operations.submit(request.sequence, request, Work(run=run))
        return pb.ComputeLogprobsResponse(operation=operation.now())

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self._sessions.get(request.session_id)
        seconds = min(request.wait.ToTimedelta().total_seconds(), MAX_WAIT_SECONDS)
        operation = await record.operations.wait(request.operation_id, seconds)
        record.renew()
        result: dict[str, Any] = {} if operation.result is None else dict([operation.result])
        return pb.AwaitOperationResponse(operation=operation.now(), **result)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> pb.CancelOperationResponse:
        operation = self._sessions.get(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.now())

    async def CloseSamplingSession(
        self, request: pb.CloseSamplingSessionRequest, context: Any
    ) -> pb.CloseSamplingSessionResponse:
        await self._sessions.close(request.session_id)
        return pb.CloseSamplingSessionResponse()

    def _session(self, session_id: str) -> SamplingRecord:
        record = self._sessions.get(session_id)
        if record.followed is not None:
            # its weights are sampled only while it is open
            self._engine.training.get(record.followed.session_id, field="training_session_id")
        return record

    async def _open(self, request: pb.CreateSamplingSessionRequest) -> SamplingRecord:
        operations = UnorderedOperations(self._engine.compute, source=_SERVICE)
        match request.WhichOneof("model"):
            case "training_session_id":
                training = self._engine.training.get(request.training_session_id, field="training_session_id")
                return SamplingRecord(operations=operations, model=training.session.model, followed=training)
            case "checkpoint_uri":
                folder = self._engine.store.find(request.checkpoint_uri, field="checkpoint_uri")
                model, release = await self._load_checkpoint(folder)
                return SamplingRecord(operations=operations, model=model, release=release)
            case "base_model":
                folder = model_folder(request.base_model)
                model = await self._engine.load_shared(folder)
                return SamplingRecord(
                    operations=operations, model=model, release=lambda: self._engine.release_shared(folder)
                )
            case _:
                raise field_error("model", "missing: set base_model, checkpoint_uri or training_session_id")

    async def _load_checkpoint(self, folder: Path) -> tuple[LoadedModel, Callable[[], None]]:
        """A verified checkpoint's model, pinned against deletion until the returned function is called."""
        engine = self._engine
        engine.store.pin(folder)
        try:
            await engine.on_io(verify, folder)
            model = await engine.load_shared(folder)
        except BaseException:
            engine.store.unpin(folder)
            raise

        def release() -> None:
            engine.release_shared(folder)
            engine.store.unpin(folder)

        return model, release


def _sequence(completion: Completion) -> pb.SampledSequence:
    return pb.SampledSequence(
        tokens_int32=pack_tokens(completion.tokens),
        logprobs_float32=pack_floats(completion.logprobs),
        stop_reason=pb.STOP_REASON_STOP if completion.stopped else pb.STOP_REASON_LENGTH,
    )
