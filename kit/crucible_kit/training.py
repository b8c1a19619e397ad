"""A training session over its port: numbered calls, long-polled results."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from google.protobuf import duration_pb2

from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_kit.errors import (
    DeadlineExceededError,
    InternalError,
    KitchenError,
    OperationCancelledError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownError,
    from_failure,
)

_POLL_SECONDS = 20
# An adapter that is so late with its answer to a poll hangs.
_SILENCE_SECONDS = 10
_CLOSE_SECONDS = 10.0
_CREATE_TIMEOUT = 600.0
# How long a new session waits for others to close.
_ROOM_SECONDS = 60.0
_UPLOAD_TIMEOUT = 3600.0
# Well under the 32 MiB that a message may have.
_MAX_CALL_BYTES = 8 * 1024 * 1024
# Calls of one large forward pass that are under way: one more than at work, so that the adapter never waits.
_FORWARD_AHEAD = 4
# The session's unfinished calls are too many or too large.
_FULL = ("TOO_MANY_IN_FLIGHT", "TOO_MANY_TOKENS")
_ENDED = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)


class TrainingSession:
    """One open session of the training port. Calls are numbered here, so one object must make them all."""

    def __init__(self, stub: Any, session: training_pb2.TrainingSession) -> None:
        self._stub = stub
        self.info = session
        self.session_id = session.session_id
        self._next = session.next_sequence or 1
        self._unfinished: deque[str] = deque()
        # A number belongs to one call until the adapter has answered it.
        self._numbering = asyncio.Lock()

    @classmethod
    async def create(cls, stub: Any, **fields: Any) -> TrainingSession:
        """Opens a session; `fields` are those of CreateTrainingSessionRequest without the request id. Waits a while for
        an adapter that has too many sessions.
        """
        request = training_pb2.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), **fields)
        loop = asyncio.get_running_loop()
        end = loop.time() + _ROOM_SECONDS
        while True:
            try:
                response = await stub.CreateTrainingSession(request, timeout=_CREATE_TIMEOUT)
                return cls(stub, response.session)
            except ResourceExhaustedError as error:
                if error.retry_delay is None or loop.time() + error.retry_delay > end:
                    raise
                await asyncio.sleep(error.retry_delay)

    async def _enqueue(self, call: Callable[[Any], Awaitable[Any]], request: Any) -> str:
        """Numbers a call, makes it and returns its operation's id. While the session is full, its oldest operation goes
        first. A call that is refused uses up no number.
        """
        async with self._numbering:
            request.sequence = self._next
            self._next += 1
            try:
                return await self._accepted(call, request)
            except (UnavailableError, DeadlineExceededError, OperationCancelledError, InternalError, UnknownError):
                raise  # it may have been accepted
            except KitchenError:
                self._next -= 1
                raise

    async def _accepted(self, call: Callable[[Any], Awaitable[Any]], request: Any) -> str:
        while True:
            try:
                operation_id = (await call(request)).operation.id
            except ResourceExhaustedError as error:
                if error.reason not in _FULL:
                    raise
                if not self._unfinished:
                    # It is this call alone that is too large: the promise that a retry may help is not kept.
                    raise ResourceExhaustedError(error.message, reason=error.reason, metadata=error.metadata) from error
                await self._ended(self._unfinished.popleft())
            else:
                self._unfinished.append(operation_id)
                return operation_id

    async def forward(
        self, data: Sequence[datum_pb2.Datum], loss_fn: training_pb2.LossFunction
    ) -> training_pb2.ForwardResult:
        """Losses and logprobs of the data at the current weights."""
        operations: deque[str] = deque()
        results = []
        for part in split_by_size(data):
            if len(operations) == _FORWARD_AHEAD:
                results.append((await self.result(operations.popleft())).forward)
            request = training_pb2.ForwardRequest(session_id=self.session_id, data=part, loss_fn=loss_fn)
            operations.append(await self._enqueue(self._stub.Forward, request))
        results += [(await self.result(each)).forward for each in operations]
        return merge(results)

    async def enqueue_forward_backward(
        self, data: Sequence[datum_pb2.Datum], loss_fn: training_pb2.LossFunction
    ) -> list[str]:
        """Enqueues the data's gradients, in several calls when it is large; returns the operations' ids."""
        operations = []
        for part in split_by_size(data):
            request = training_pb2.ForwardBackwardRequest(session_id=self.session_id, data=part, loss_fn=loss_fn)
            operations.append(await self._enqueue(self._stub.ForwardBackward, request))
        return operations

    async def enqueue_optim_step(self, adam: training_pb2.AdamParams) -> str:
        """Enqueues one optimizer step; returns the operation's id."""
        request = training_pb2.OptimStepRequest(session_id=self.session_id, adam=adam)
        return await self._enqueue(self._stub.OptimStep, request)

    async def save_checkpoint(
        self, name: str, *, weights_only: bool, ttl_seconds: int | None = None
    ) -> training_pb2.CheckpointResult:
        """Saves a checkpoint on the adapter's side, which deletes it after `ttl_seconds`; None: never by itself."""
        request = training_pb2.SaveCheckpointRequest(session_id=self.session_id, name=name, weights_only=weights_only)
        if ttl_seconds is not None:
            request.ttl.seconds = ttl_seconds
        return (await self.result(await self._enqueue(self._stub.SaveCheckpoint, request))).checkpoint

    async def load_checkpoint(self, uri: str, *, weights_only: bool) -> training_pb2.CheckpointResult:
        """Replaces the session's weights by a checkpoint's."""
        request = training_pb2.LoadCheckpointRequest(session_id=self.session_id, uri=uri, weights_only=weights_only)
        return (await self.result(await self._enqueue(self._stub.LoadCheckpoint, request))).checkpoint

    def read_checkpoint_file(self, uri: str, path: str) -> AsyncIterator[training_pb2.ReadCheckpointFileResponse]:
        """The chunks of one file."""
        return self._stub.ReadCheckpointFile(training_pb2.ReadCheckpointFileRequest(uri=uri, path=path))

    async def upload_checkpoint(
        self, requests: AsyncIterator[training_pb2.UploadCheckpointRequest]
    ) -> training_pb2.CheckpointResult:
        """Brings a checkpoint to the adapter."""
        return (await self._stub.UploadCheckpoint(requests, timeout=_UPLOAD_TIMEOUT)).checkpoint

    async def delete_checkpoint(self, uri: str) -> None:
        """Frees the adapter's copy of a checkpoint."""
        await self._stub.DeleteCheckpoint(training_pb2.DeleteCheckpointRequest(uri=uri))

    async def result(self, operation_id: str) -> training_pb2.AwaitOperationResponse:
        """Waits for an operation. Raises what it failed with."""
        response = await self._ended(operation_id)
        check_finished(response.operation, port="training")
        return response

    async def _ended(self, operation_id: str) -> training_pb2.AwaitOperationResponse:
        """Waits for an operation, however it ends."""
        request = training_pb2.AwaitOperationRequest(
            session_id=self.session_id, operation_id=operation_id, wait=duration_pb2.Duration(seconds=_POLL_SECONDS)
        )
        while True:
            response = await self._stub.AwaitOperation(request, timeout=_POLL_SECONDS + _SILENCE_SECONDS)
            if response.operation.state in _ENDED:
                if operation_id in self._unfinished:
                    self._unfinished.remove(operation_id)
                return response

    async def close(self) -> None:
        """Frees the session."""
        await self._stub.CloseTrainingSession(
            training_pb2.CloseTrainingSessionRequest(session_id=self.session_id), timeout=_CLOSE_SECONDS
        )


def check_finished(operation: operation_pb2.Operation, *, port: str = "") -> None:
    """Raises what the operation failed with, which came from the adapter of `port`; returns when it succeeded or goes
    on.
    """
    if operation.state == operation_pb2.OPERATION_STATE_FAILED:
        error = from_failure(operation.failure)
        error.port = port
        raise error
    if operation.state == operation_pb2.OPERATION_STATE_CANCELLED:
        raise OperationCancelledError(f"operation {operation.id} was cancelled", reason="OPERATION_CANCELLED")


def split_by_size(data: Sequence[datum_pb2.Datum]) -> list[list[datum_pb2.Datum]]:
    """The data in runs that fit one message each, at least one datum in each."""
    parts: list[list[datum_pb2.Datum]] = []
    size = 0
    for datum in data:
        datum_size = datum.ByteSize()
        if not parts or size + datum_size > _MAX_CALL_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(datum)
        size += datum_size
    return parts


def merge(results: Sequence[training_pb2.ForwardResult]) -> training_pb2.ForwardResult:
    """One result for data that was sent in several calls: losses and metrics add up, outputs follow each other."""
    if len(results) == 1:
        return results[0]
    merged = training_pb2.ForwardResult(loss=sum(result.loss for result in results))
    for result in results:
        merged.outputs.extend(result.outputs)
        for name, value in result.metrics.items():
            merged.metrics[name] += value
    return merged


def public_name(model: str) -> str:
    """What checkpoints call their base model for other tools: owner/name as it is. Empty for builtin models and
    folders, which other tools find by the folder that the adapter then writes down.
    """
    return "" if model.startswith(("builtin:", "/")) else model
