"""The fake of the training port: a toy model that learns for real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.training.v1 import training_pb2 as pb
from crucible.port.training.v1 import training_pb2_grpc
from crucible_adapters.fakes.toy.checkpoints import load_into, to_files
from crucible_adapters.fakes.toy.engine import ToyEngine, ToyOptions, TrainingRecord
from crucible_adapters.fakes.toy.losses import Loss
from crucible_adapters.fakes.toy.model import AdamOptions, with_adapter
from crucible_adapters.fakes.toy.operations import ToyExecutor, Work, nothing
from crucible_adapters.fakes.toy.requests import (
    parse_adam,
    parse_data,
    parse_lora,
    parse_loss,
)
from crucible_adapters.fakes.toy.session import Datum, ToySession
from crucible_adapters.fakes.toy.store import CheckpointUpload, describe_lora
from crucible_adapters.operations import OrderedOperations, Result
from crucible_adapters.requests import check_tokens_in_flight, parse_ttl
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import field_error
from crucible_kit.tensors import to_tensor

_SERVICE = pb.DESCRIPTOR.services_by_name["TrainingService"].full_name
_DTYPES = ("", "auto", "float64")


class FakeTraining(training_pb2_grpc.TrainingServiceServicer):
    """Sessions on the toy model. With the fake of sampling in the same data folder it is one engine.

    Attributes:
        engine: what tests may hold up (`gate`) or tell the time (`clock`).
    """

    description = AdapterDescription(
        name="fake-training",
        port="training",
        capabilities=("training.checkpoint_files", "training.full", "training.lora", "training.lora_modules"),
        options=ToyOptions,
    )

    def __init__(self, options: ToyOptions, context: AdapterContext) -> None:
        self._options = options
        self.engine = ToyEngine.join(options, context)

    async def close(self) -> None:
        """Leaves the engine, which ends with the last who does."""
        await self.engine.leave()

    async def CreateTrainingSession(
        self, request: pb.CreateTrainingSessionRequest, context: Any
    ) -> pb.CreateTrainingSessionResponse:
        def make(session_id: str) -> TrainingRecord:
            if request.dtype not in _DTYPES:
                raise field_error("dtype", f"is {request.dtype!r}, this model has only float64: send auto")
            model = self.engine.base_model(request.base_model, field="base_model")
            if request.HasField("lora"):
                model = with_adapter(model, parse_lora(request.lora), request.seed)
            return TrainingRecord(
                session_id=session_id,
                operations=OrderedOperations(
                    ToyExecutor(self.engine), source=_SERVICE, limits=self.engine.limits, stamps=self.engine.stamps
                ),
                session=ToySession(model),
                base_model=request.base_model,
                base_model_name=request.base_model_name or request.base_model,
            )

        record = self.engine.training.create(request.request_id, request, make)
        return pb.CreateTrainingSessionResponse(session=self._describe(record))

    async def GetTrainingSession(
        self, request: pb.GetTrainingSessionRequest, context: Any
    ) -> pb.GetTrainingSessionResponse:
        return pb.GetTrainingSessionResponse(session=self._describe(self.engine.training.get(request.session_id)))

    async def Forward(self, request: pb.ForwardRequest, context: Any) -> pb.ForwardResponse:
        record = self.engine.training.get(request.session_id)
        work = self._pass(request, record.session, record.session.forward)
        return pb.ForwardResponse(operation=(await record.operations.submit(request.sequence, request, work)).now())

    async def ForwardBackward(self, request: pb.ForwardBackwardRequest, context: Any) -> pb.ForwardBackwardResponse:
        record = self.engine.training.get(request.session_id)
        work = self._pass(request, record.session, record.session.forward_backward)
        operation = await record.operations.submit(request.sequence, request, work)
        return pb.ForwardBackwardResponse(operation=operation.now())

    def _pass(self, request: pb.ForwardRequest | pb.ForwardBackwardRequest, session: ToySession, run: Any) -> Work:
        loss, parameters = parse_loss(request.loss_fn)
        data = parse_data(request.data, loss, self._options)
        tokens = sum(len(datum.tokens) for datum in data)
        check_tokens_in_flight(tokens, self._options.max_tokens_in_flight, "data", "send it in several calls")
        dropped = nothing
        if isinstance(request, pb.ForwardBackwardRequest):
            dropped = partial(session.invalidate_gradients, "it was cancelled")
        return Work(run=partial(_run_pass, run, data, loss, parameters), on_dropped=dropped, tokens=tokens)

    async def OptimStep(self, request: pb.OptimStepRequest, context: Any) -> pb.OptimStepResponse:
        record = self.engine.training.get(request.session_id)
        work = Work(run=partial(_run_step, record.session, parse_adam(request.adam)))
        return pb.OptimStepResponse(operation=(await record.operations.submit(request.sequence, request, work)).now())

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Any) -> pb.SaveCheckpointResponse:
        record = self.engine.training.get(request.session_id)
        ttl_nanos = parse_ttl(request)

        def run() -> Result:
            files = to_files(record.session, record.base_model_name, weights_only=request.weights_only)
            return "checkpoint", self.engine.store.save(request.name, files, ttl_nanos=ttl_nanos).describe()

        operation = await record.operations.submit(request.sequence, request, Work(run=run))
        return pb.SaveCheckpointResponse(operation=operation.now())

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Any) -> pb.LoadCheckpointResponse:
        record = self.engine.training.get(request.session_id)

        def run() -> Result:
            # Looked up here: an earlier call in the queue may be the one that saves it.
            saved = self.engine.store.find(request.uri)
            load_into(record.session, saved.content, saved.name, weights_only=request.weights_only)
            return "checkpoint", saved.describe()

        operation = await record.operations.submit(request.sequence, request, Work(run=run))
        return pb.LoadCheckpointResponse(operation=operation.now())

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self.engine.training.get(request.session_id)
        return await record.operations.wait(request, pb.AwaitOperationResponse)

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> pb.CancelOperationResponse:
        operation = self.engine.training.get(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.now())

    async def ReadCheckpointFile(
        self, request: pb.ReadCheckpointFileRequest, context: Any
    ) -> AsyncIterator[pb.ReadCheckpointFileResponse]:
        content = self.engine.store.find_file(request.uri, request.path)
        for offset in range(0, len(content) or 1, CHUNK_BYTES):
            data = content[offset : offset + CHUNK_BYTES]
            yield pb.ReadCheckpointFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def UploadCheckpoint(
        self, request_iterator: AsyncIterator[pb.UploadCheckpointRequest], context: Any
    ) -> pb.UploadCheckpointResponse:
        first = await anext(request_iterator, pb.UploadCheckpointRequest())
        if first.WhichOneof("part") != "header":
            raise field_error("header", "missing: the first message of an upload is its header")
        saved = self.engine.store.existing(first.header)
        if saved is None:
            upload = CheckpointUpload(first.header)
            async for request in request_iterator:
                if request.WhichOneof("part") != "chunk":
                    raise field_error("chunk", "missing: after the header come chunks only")
                upload.write(request.chunk)
            saved = self.engine.store.save(upload.name, upload.finish())
        return pb.UploadCheckpointResponse(checkpoint=saved.describe())

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> pb.DeleteCheckpointResponse:
        self.engine.store.delete(request.uri)
        return pb.DeleteCheckpointResponse()

    async def CloseTrainingSession(
        self, request: pb.CloseTrainingSessionRequest, context: Any
    ) -> pb.CloseTrainingSessionResponse:
        await self.engine.training.close(request.session_id)
        return pb.CloseTrainingSessionResponse()

    def _describe(self, record: TrainingRecord) -> pb.TrainingSession:
        model = record.session.model
        return pb.TrainingSession(
            session_id=record.session_id,
            base_model=record.base_model,
            trainable_parameters=sum(array.size for array in model.trained.values()),
            vocab_size=self._options.vocab_size,
            max_sequence_tokens=self._options.max_sequence_tokens,
            dtype="float64",
            device="cpu",
            optim_steps=record.session.optim_steps,
            weights_version=record.session.weights_version,
            next_sequence=record.operations.next_sequence,
            lease=duration_pb2.Duration(seconds=self._options.lease_seconds),
            lora=describe_lora(model.lora),
        )


def _run_pass(run: Any, data: list[Datum], loss: Loss, parameters: dict[str, float]) -> Result:
    result = run(data, loss, parameters)
    outputs = [pb.LossOutput(logprobs=to_tensor(row.astype(np.float32))) for row in result.logprobs]
    metrics = {"tokens": float(sum(len(datum.tokens) for datum in data))}
    return "forward", pb.ForwardResult(loss=result.loss, outputs=outputs, metrics=metrics)


def _run_step(session: ToySession, options: AdamOptions) -> Result:
    result = session.optim_step(options)
    return "optim_step", pb.OptimStepResult(
        grad_norm=result.grad_norm,
        update_norm=result.update_norm,
        learning_rate=options.learning_rate,
        optim_steps=session.optim_steps,
        weights_version=session.weights_version,
    )
