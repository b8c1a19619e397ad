"""The training port over Tinker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from google.protobuf import duration_pb2

from crucible.port.training.v1 import training_pb2 as pb
from crucible.port.training.v1 import training_pb2_grpc
from crucible_adapters.operations import OrderedOperations
from crucible_adapters.requests import parse_ttl
from crucible_adapters.retries import Clock
from crucible_adapters.tinker.checkpoints import REFERENCE, Upload, existing
from crucible_adapters.tinker.errors import NOT_THERE
from crucible_adapters.tinker.models import parse_lora
from crucible_adapters.tinker.operations import TinkerExecutor, Work
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.requests import parse_adam, parse_pass
from crucible_adapters.tinker.session import TinkerSession
from crucible_adapters.tinker.sessions import SYSTEM_CLOCK, TinkerSessions, TrainingRecord
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import KitchenError, NotFoundError, capability_missing, field_error

_SERVICE = pb.DESCRIPTOR.services_by_name["TrainingService"].full_name
_DTYPES = ("", "auto", "float32")


class TinkerTraining(training_pb2_grpc.TrainingServiceServicer):
    """LoRA adapters that Tinker trains.

    Args:
        clock: time and chance of retries; tests give their own.
    """

    description = AdapterDescription(
        name="tinker",
        port="training",
        capabilities=("training.checkpoint_files", "training.lora"),
        options=TinkerOptions,
        secrets=("api_key",),
    )

    def __init__(self, options: TinkerOptions, context: AdapterContext, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._options = options
        self._shared = TinkerSessions.join(options, context, clock)
        self._connection = self._shared.connection
        self._sessions = self._shared.training

    async def probe(self) -> str:
        """What keeps Tinker from answering now; empty: nothing."""
        return await self._connection.probe()

    async def close(self) -> None:
        """Leaves the connection, which ends with the last who does."""
        await self._shared.leave()

    async def CreateTrainingSession(
        self, request: pb.CreateTrainingSessionRequest, context: Any
    ) -> pb.CreateTrainingSessionResponse:
        if not request.HasField("lora"):
            raise capability_missing("training", "training.full", "Tinker trains LoRA adapters alone: set lora")
        if request.dtype not in _DTYPES:
            raise field_error("dtype", f"is {request.dtype!r}, but Tinker chooses the type itself: send auto")
        lora = parse_lora(request.lora)
        connection, limits = self._connection, self._shared.limits

        async def make() -> TrainingRecord:
            facts = await connection.facts(request.base_model)
            # One session at Tinker for each: a model there ends with its session.
            service = await connection.open_service()
            try:
                creating = await asyncio.to_thread(
                    service.create_lora_training_client,
                    base_model=facts.name,
                    rank=lora.rank,
                    seed=request.seed,
                    train_mlp=lora.train_mlp,
                    train_attn=lora.train_attention,
                    train_unembed=lora.train_unembedding,
                    user_metadata=dict(self._options.user_metadata) or None,
                )
                client = await connection.opened(creating, facts, request.base_model, field="base_model")
            except BaseException:
                await connection.close_service(service)
                raise
            name = request.base_model_name or request.base_model
            session = TinkerSession(connection, service, client, facts, lora, base_model_name=name)
            return TrainingRecord(
                operations=OrderedOperations(TinkerExecutor(in_order=True), source=_SERVICE, limits=limits),
                session=session,
                base_model=request.base_model,
                release=partial(connection.close_service, service),
            )

        self._shared.watch_leases()
        record = await self._sessions.create(request.request_id, request, make, kind="training")
        return pb.CreateTrainingSessionResponse(session=self._describe(record))

    async def GetTrainingSession(
        self, request: pb.GetTrainingSessionRequest, context: Any
    ) -> pb.GetTrainingSessionResponse:
        return pb.GetTrainingSessionResponse(session=self._describe(self._sessions.get(request.session_id)))

    async def Forward(self, request: pb.ForwardRequest, context: Any) -> pb.ForwardResponse:
        record = self._sessions.get(request.session_id)
        given = await self._parsed(request, record)
        work = Work(begin=partial(record.session.forward, given), tokens=given.tokens)
        return pb.ForwardResponse(operation=(await record.operations.submit(request.sequence, request, work)).now())

    async def ForwardBackward(self, request: pb.ForwardBackwardRequest, context: Any) -> pb.ForwardBackwardResponse:
        record = self._sessions.get(request.session_id)
        given = await self._parsed(request, record)
        # A dropped pass would leave the gradients of those beside it, which Tinker can't drop.
        begin = partial(record.session.forward_backward, given)
        work = Work(begin=begin, tokens=given.tokens, can_be_dropped=False)
        operation = await record.operations.submit(request.sequence, request, work)
        return pb.ForwardBackwardResponse(operation=operation.now())

    async def OptimStep(self, request: pb.OptimStepRequest, context: Any) -> pb.OptimStepResponse:
        record = self._sessions.get(request.session_id)
        work = Work(begin=partial(record.session.optim_step, parse_adam(request.adam)))
        return pb.OptimStepResponse(operation=(await record.operations.submit(request.sequence, request, work)).now())

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Any) -> pb.SaveCheckpointResponse:
        record = self._sessions.get(request.session_id)
        nanos = parse_ttl(request)
        ttl = None if nanos is None else nanos / 1e9
        save = partial(
            record.session.save,
            request.name,
            weights_only=request.weights_only,
            ttl_seconds=ttl,
            expires_at=None if ttl is None else time.time() + ttl,
        )
        operation = await record.operations.submit(request.sequence, request, Work(begin=save, is_barrier=True))
        return pb.SaveCheckpointResponse(operation=operation.now())

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Any) -> pb.LoadCheckpointResponse:
        record = self._sessions.get(request.session_id)
        load = partial(record.session.load, request.uri, weights_only=request.weights_only)
        operation = await record.operations.submit(request.sequence, request, Work(begin=load, is_barrier=True))
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
        saved = self._connection.checkpoints.find(request.uri)
        if request.path not in saved.files:
            raise NotFoundError(
                f"path: checkpoint {request.uri} has no file {request.path!r}, it has {', '.join(sorted(saved.files))}",
                reason="CHECKPOINT_FILE_NOT_FOUND",
                metadata={"uri": request.uri, "path": request.path},
            )
        if request.path == REFERENCE and not saved.is_copy and not saved.was_read:
            await self._keep(saved.reference.weights, saved.reference.sampler_weights, saved.expires_at is not None)
            saved.was_read = True
        content = saved.files[request.path]
        for offset in range(0, len(content) or 1, CHUNK_BYTES):
            data = content[offset : offset + CHUNK_BYTES]
            yield pb.ReadCheckpointFileResponse(offset=offset, crc32=crc32(data), data=data)

    async def _keep(self, weights: str, sampler_weights: str, expires: bool) -> None:
        """Has Tinker keep what a copy of a reference is going to name."""
        seconds = self._options.kept_seconds
        if expires or seconds is not None:
            rest = await self._connection.rest()
            for path in (weights, sampler_weights):
                await self._connection.result(rest.set_checkpoint_ttl_from_tinker_path(path, seconds))

    async def UploadCheckpoint(
        self, request_iterator: AsyncIterator[pb.UploadCheckpointRequest], context: Any
    ) -> pb.UploadCheckpointResponse:
        first = await anext(request_iterator, pb.UploadCheckpointRequest())
        if first.WhichOneof("part") != "header":
            raise field_error("header", "missing: the first message of an upload is its header")
        checkpoints = self._connection.checkpoints
        saved = existing(checkpoints, first.header)
        if saved is None:
            upload = Upload(first.header)
            async for request in request_iterator:
                if request.WhichOneof("part") != "chunk":
                    raise field_error("chunk", "missing: after the header come chunks only")
                upload.write(request.chunk)
            saved = checkpoints.add(upload.finish())
        return pb.UploadCheckpointResponse(checkpoint=saved.describe())

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> pb.DeleteCheckpointResponse:
        checkpoints = self._connection.checkpoints
        saved = checkpoints.to_delete(request.uri)
        if saved is not None and not saved.is_copy and not saved.was_read:
            rest = await self._connection.rest()
            for path in (saved.reference.weights, saved.reference.sampler_weights):
                try:
                    await self._connection.result(rest.delete_checkpoint_from_tinker_path(path))
                except KitchenError as error:
                    if error.reason != NOT_THERE:
                        raise
        checkpoints.forget(request.uri)
        return pb.DeleteCheckpointResponse()

    async def CloseTrainingSession(
        self, request: pb.CloseTrainingSessionRequest, context: Any
    ) -> pb.CloseTrainingSessionResponse:
        await self._sessions.close(request.session_id)
        return pb.CloseTrainingSessionResponse()

    async def _parsed(self, request: pb.ForwardRequest | pb.ForwardBackwardRequest, record: TrainingRecord) -> Any:
        most = self._options.max_tokens_in_flight
        return await asyncio.to_thread(parse_pass, request, record.session.facts, most)

    def _describe(self, record: TrainingRecord) -> pb.TrainingSession:
        session = record.session
        return pb.TrainingSession(
            session_id=record.session_id,
            base_model=record.base_model,
            trainable_parameters=session.lora.parameters(session.facts),
            vocab_size=session.facts.vocab_size,
            max_sequence_tokens=session.facts.max_sequence_tokens,
            dtype="float32",
            device="tinker",
            optim_steps=session.optim_steps,
            weights_version=session.weights_version,
            next_sequence=record.operations.next_sequence,
            lease=duration_pb2.Duration(seconds=self._options.lease_seconds),
            lora=session.lora.describe(session.facts),
        )
