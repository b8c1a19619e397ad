"""SamplingService over the engine's models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as pb
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible_adapters.operations import Result, UnorderedOperations
from crucible_adapters.requests import check_tokens_in_flight
from crucible_adapters.sessions import Release
from crucible_adapters.torch_engine.checkpoint import verify
from crucible_adapters.torch_engine.engine import SAMPLING, Engine, SamplingRecord, model_folder
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.operations import Cancelled, ComputeExecutor, Work
from crucible_adapters.torch_engine.requests import (
    parse_prompt,
    parse_sampling,
    sampling_tokens,
)
from crucible_adapters.torch_engine.sampler import Completion, compute_logprobs, sample
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.tensors import pack_floats, pack_tokens

_SERVICE = pb.DESCRIPTOR.services_by_name["SamplingService"].full_name


class SamplingService(sampling_pb2_grpc.SamplingServiceServicer):
    """Completions and logprobs from base models, checkpoints and live training sessions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions = engine.sampling

    async def CreateSamplingSession(
        self, request: pb.CreateSamplingSessionRequest, context: Any
    ) -> pb.CreateSamplingSessionResponse:
        record = await self._sessions.create(request.request_id, request, lambda: self._open(request), kind=SAMPLING)
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
        tokens = sampling_tokens(prompt, request.num_samples, options, model)
        check_tokens_in_flight(
            tokens, self._engine.in_flight.tokens, "num_samples", "ask for fewer samples or a smaller max_tokens"
        )

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

        work = Work(run=record.resident(run), tokens=tokens)
        operation = record.operations.submit(request.sequence, request, work)
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
        check_tokens_in_flight(len(tokens), self._engine.in_flight.tokens, "tokens_int32", "cut it")

        def run(_: Cancelled) -> Result:
            logprobs = pack_floats(compute_logprobs(model, tokens))
            return "logprobs", pb.LogprobsResult(logprobs_float32=logprobs, weights_version=record.weights_version())

        work = Work(run=record.resident(run), tokens=len(tokens))
        operation = record.operations.submit(request.sequence, request, work)
        return pb.ComputeLogprobsResponse(operation=operation.now())

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self._sessions.get(request.session_id)
        response = await record.operations.wait(request, pb.AwaitOperationResponse)
        record.renew()
        return response

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
        executor = ComputeExecutor(self._engine.compute.queue())
        operations = UnorderedOperations(executor, source=_SERVICE, limits=self._engine.in_flight)
        if request.checkpoint_base_model and request.WhichOneof("model") != "checkpoint_uri":
            raise field_error("checkpoint_base_model", "is set without checkpoint_uri: leave it out")
        match request.WhichOneof("model"):
            case "training_session_id":
                training = self._engine.training.get(request.training_session_id, field="training_session_id")
                return SamplingRecord(operations=operations, model=training.session.model, followed=training)
            case "checkpoint_uri":
                folder = self._engine.store.find(request.checkpoint_uri, field="checkpoint_uri")
                model, release = await self._open_checkpoint(folder, request.checkpoint_base_model)
            case "base_model":
                model, release = await self._engine.open_base(model_folder(request.base_model))
            case _:
                raise field_error("model", "missing: set base_model, checkpoint_uri or training_session_id")
        return SamplingRecord(operations=operations, model=model, release=release)

    async def _open_checkpoint(self, folder: Path, base_model: str) -> tuple[LoadedModel, Release]:
        """A verified checkpoint's model, pinned against deletion until it is released."""
        engine = self._engine
        engine.store.pin(folder)
        try:
            checkpoint = await engine.on_io(verify, folder)
            if checkpoint.lora is None:
                if base_model:
                    raise field_error(
                        "checkpoint_base_model", f"is set, and {folder.name} is a whole model: leave it out"
                    )
                model, give_back = await engine.open_base(folder)
            else:
                base_folder = _base_folder(base_model or checkpoint.base_model, folder)
                model, give_back = await engine.open_adapter(base_folder, folder)
        except BaseException:
            engine.store.unpin(folder)
            raise

        async def release() -> None:
            await give_back()
            engine.store.unpin(folder)

        return model, release


def _base_folder(base_model: str, checkpoint: Path) -> Path:
    """The base model's folder. Raises INVALID_ARGUMENT for a name that is no folder of this machine."""
    if not Path(base_model).is_absolute():
        raise field_error(
            "checkpoint_base_model",
            f"missing: the checkpoint {checkpoint.name} names its base model {base_model!r}, "
            "which is no folder here; give the folder's full path",
        )
    return model_folder(base_model)


def _sequence(completion: Completion) -> pb.SampledSequence:
    return pb.SampledSequence(
        tokens_int32=pack_tokens(completion.tokens),
        logprobs_float32=pack_floats(completion.logprobs),
        stop_reason=pb.STOP_REASON_STOP if completion.stopped else pb.STOP_REASON_LENGTH,
    )
