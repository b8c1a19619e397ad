"""TrainingService over the engine's sessions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from google.protobuf import duration_pb2

from crucible.port.training.v1 import training_pb2 as pb
from crucible.port.training.v1 import training_pb2_grpc
from crucible_adapters.operations import OrderedOperations, Result
from crucible_adapters.requests import check_tokens_in_flight, parse_ttl
from crucible_adapters.sessions import nothing_to_release
from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from crucible_adapters.torch_engine.checkpoint_upload import CheckpointUpload
from crucible_adapters.torch_engine.engine import (
    FULL,
    LORA,
    Engine,
    TrainingRecord,
    model_folder,
)
from crucible_adapters.torch_engine.failures import storage_errors
from crucible_adapters.torch_engine.lora_config import describe_lora, parse_lora
from crucible_adapters.torch_engine.loss import TokenLoss
from crucible_adapters.torch_engine.operations import Cancelled, ComputeExecutor, Work
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.requests import (
    parse_adam,
    parse_data,
    parse_loss,
)
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.chunks import crc32
from crucible_kit.errors import field_error
from crucible_kit.faults import fault_point
from crucible_kit.tensors import to_tensor

_SERVICE = pb.DESCRIPTOR.services_by_name["TrainingService"].full_name


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Sessions that train a local transformers model, all of it or a LoRA adapter."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions = engine.training

    async def CreateTrainingSession(
        self, request: pb.CreateTrainingSessionRequest, context: Any
    ) -> pb.CreateTrainingSessionResponse:
        folder = model_folder(request.base_model)
        engine = self._engine
        spec = parse_lora(request.lora, max_rank=engine.options.max_lora_rank) if request.HasField("lora") else None

        async def make() -> TrainingRecord:
            if spec is None:
                model, release = await engine.load(folder, request.dtype), nothing_to_release
            else:
                model, release = await engine.open_lora(folder, request.dtype, spec, request.seed)
            session = TrainingSession(
                model,
                micro_batch_tokens=engine.options.micro_batch_tokens,
                base_model_name=request.base_model_name,
            )

            async def release_all() -> None:
                await engine.on_compute(engine.parking.forget, session)
                await release()

            return TrainingRecord(
                operations=OrderedOperations(
                    ComputeExecutor(engine.compute.queue()), source=_SERVICE, limits=engine.in_flight
                ),
                session=session,
                base_model=request.base_model,
                parking=engine.parking,
                trainable_parameters=model.parameter_count,
                release=release_all,
            )

        record = await self._sessions.create(request.request_id, request, make, kind=FULL if spec is None else LORA)
        return pb.CreateTrainingSessionResponse(session=self._describe(record))

    async def GetTrainingSession(
        self, request: pb.GetTrainingSessionRequest, context: Any
    ) -> pb.GetTrainingSessionResponse:
        return pb.GetTrainingSessionResponse(session=self._describe(self._sessions.get(request.session_id)))

    async def Forward(self, request: pb.ForwardRequest, context: Any) -> pb.ForwardResponse:
        record = self._sessions.get(request.session_id)
        loss, parameters, data = await self._parse_pass(request, record)
        run = record.resident(partial(_run_pass, record.session.forward, data, loss, parameters))
        work = Work(run=run, tokens=_count_tokens(data))
        operation = await record.operations.submit(request.sequence, request, work)
        return pb.ForwardResponse(operation=operation.now())

    async def ForwardBackward(self, request: pb.ForwardBackwardRequest, context: Any) -> pb.ForwardBackwardResponse:
        record = self._sessions.get(request.session_id)
        loss, parameters, data = await self._parse_pass(request, record)
        run = record.resident(partial(_run_pass, record.session.forward_backward, data, loss, parameters))
        dropped = record.resident(partial(record.session.invalidate_gradients, "it was cancelled"))
        work = Work(run=run, on_dropped=dropped, tokens=_count_tokens(data))
        operation = await record.operations.submit(request.sequence, request, work)
        return pb.ForwardBackwardResponse(operation=operation.now())

    async def OptimStep(self, request: pb.OptimStepRequest, context: Any) -> pb.OptimStepResponse:
        record = self._sessions.get(request.session_id)
        run = record.resident(partial(_run_optim_step, record.session, parse_adam(request.adam)))
        operation = await record.operations.submit(request.sequence, request, Work(run=run))
        return pb.OptimStepResponse(operation=operation.now())

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Any) -> pb.SaveCheckpointResponse:
        record = self._sessions.get(request.session_id)
        store = self._engine.store

        ttl_ns = parse_ttl(request)
        write = partial(save_checkpoint, record.session, weights_only=request.weights_only)

        def run(_: Cancelled) -> Result:
            return "checkpoint", store.describe(store.save(request.name, write, ttl_ns))

        operation = await record.operations.submit(request.sequence, request, Work(run=record.resident(run)))
        return pb.SaveCheckpointResponse(operation=operation.now())

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Any) -> pb.LoadCheckpointResponse:
        record = self._sessions.get(request.session_id)
        store = self._engine.store

        def run(_: Cancelled) -> Result:
            # looked up here: an earlier call in the queue may be the one that saves it
            with store.pinned(request.uri) as folder:
                checkpoint = load_checkpoint(record.session, folder, weights_only=request.weights_only)
            return "checkpoint", store.describe(checkpoint)

        operation = await record.operations.submit(request.sequence, request, Work(run=record.resident(run)))
        return pb.LoadCheckpointResponse(operation=operation.now())

    async def AwaitOperation(self, request: pb.AwaitOperationRequest, context: Any) -> pb.AwaitOperationResponse:
        record = self._sessions.get(request.session_id)
        response = await record.operations.wait(request, pb.AwaitOperationResponse)
        record.renew()
        return response

    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Any) -> pb.CancelOperationResponse:
        operation = self._sessions.get(request.session_id).operations.cancel(request.operation_id)
        return pb.CancelOperationResponse(operation=operation.now())

    async def ReadCheckpointFile(
        self, request: pb.ReadCheckpointFileRequest, context: Any
    ) -> AsyncIterator[pb.ReadCheckpointFileResponse]:
        chunks = self._engine.store.read_file(request.uri, request.path)
        while (chunk := await self._engine.on_io(lambda: next(chunks, None))) is not None:
            offset, data = chunk
            fault_point("engine.read.mid")
            yield pb.ReadCheckpointFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def UploadCheckpoint(
        self, request_iterator: AsyncIterator[pb.UploadCheckpointRequest], context: Any
    ) -> pb.UploadCheckpointResponse:
        engine, store = self._engine, self._engine.store
        first = await anext(request_iterator, pb.UploadCheckpointRequest())
        if first.WhichOneof("part") != "header":
            raise field_error("header", "missing: the first message of an upload is its header")
        with storage_errors():
            checkpoint = await engine.on_io(store.existing, first.header)
            if checkpoint is None:
                checkpoint = await self._receive(first.header, request_iterator)
        return pb.UploadCheckpointResponse(checkpoint=store.describe(checkpoint))

    async def _receive(
        self, header: pb.UploadCheckpointHeader, requests: AsyncIterator[pb.UploadCheckpointRequest]
    ) -> Checkpoint:
        engine = self._engine
        upload = await engine.on_io(
            partial(CheckpointUpload, engine.store, header, max_lora_rank=engine.options.max_lora_rank)
        )
        try:
            async for request in requests:
                if request.WhichOneof("part") != "chunk":
                    raise field_error("chunk", "missing: after the header come chunks only")
                await engine.on_io(upload.write, request.chunk)
            return await engine.on_io(upload.commit)
        finally:
            await engine.on_io(upload.close)

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> pb.DeleteCheckpointResponse:
        with storage_errors():
            await self._engine.on_io(self._engine.store.delete, request.uri)
        return pb.DeleteCheckpointResponse()

    async def CloseTrainingSession(
        self, request: pb.CloseTrainingSessionRequest, context: Any
    ) -> pb.CloseTrainingSessionResponse:
        await self._sessions.close(request.session_id)
        return pb.CloseTrainingSessionResponse()

    async def _parse_pass(
        self, request: pb.ForwardRequest | pb.ForwardBackwardRequest, record: TrainingRecord
    ) -> tuple[TokenLoss, dict[str, float], list[Datum]]:
        loss, parameters = parse_loss(request.loss_fn)
        data = await self._engine.on_io(parse_data, request.data, loss, record.session.model)
        check_tokens_in_flight(_count_tokens(data), self._engine.in_flight.tokens, "data", "send it in several calls")
        return loss, parameters, data

    def _describe(self, record: TrainingRecord) -> pb.TrainingSession:
        model = record.session.model
        return pb.TrainingSession(
            session_id=record.session_id,
            base_model=record.base_model,
            trainable_parameters=record.trainable_parameters,
            vocab_size=model.vocab_size,
            max_sequence_tokens=model.max_positions,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            optim_steps=record.session.optim_steps,
            weights_version=record.session.weights_version,
            next_sequence=record.operations.next_sequence,
            lease=duration_pb2.Duration(seconds=int(self._sessions.lease_seconds)),
            lora=None if model.adapter is None else describe_lora(model.adapter.spec, model.adapter.target_modules),
        )


def _count_tokens(data: list[Datum]) -> int:
    return sum(len(datum.tokens) for datum in data)


def _run_pass(run: Any, data: list[Datum], loss: TokenLoss, parameters: dict[str, float], _: Cancelled) -> Result:
    start = time.perf_counter()
    result = run(data, loss, parameters)
    seconds = time.perf_counter() - start
    outputs = [pb.LossOutput(logprobs=to_tensor(row.astype("float32"))) for row in result.logprobs]
    metrics = {"compute_seconds": seconds, "tokens": float(_count_tokens(data))}
    return "forward", pb.ForwardResult(loss=result.loss, outputs=outputs, metrics=metrics)


def _run_optim_step(session: TrainingSession, options: AdamWOptions, _: Cancelled) -> Result:
    start = time.perf_counter()
    result = session.optim_step(options)
    return "optim_step", pb.OptimStepResult(
        grad_norm=result.grad_norm,
        update_norm=result.update_norm,
        learning_rate=result.learning_rate,
        optim_steps=result.optim_steps,
        weights_version=result.weights_version,
        metrics={"compute_seconds": time.perf_counter() - start},
    )
