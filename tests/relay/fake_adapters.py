"""Adapters that compute nothing: they write down what reaches them and answer what a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from crucible.port.hub.v1 import hub_pb2, hub_pb2_grpc
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible.port.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from crucible.port.training.v1 import training_pb2 as tp
from crucible.port.training.v1 import training_pb2_grpc
from crucible.type.v1 import operation_pb2
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError

LEASE = 100
LONGEST = 32


class FakeAdapter:
    """What all of them do.

    Attributes:
        calls: method and request of each call, in order.
        errors: what a method answers in place of its answer.
        gates: a method waits for its gate before it answers.
        cancelled: methods whose call was cancelled while they waited.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Message]] = []
        self.errors: dict[str, KitchenError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self._at_gate: list[str] = []
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def until(self, true: Callable[[], bool]) -> None:
        """Returns when something has happened here that makes it true."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((true, future))
        self._happened()
        await asyncio.wait_for(future, 20)

    def _happened(self) -> None:
        for true, future in self._waiting:
            if not future.done() and true():
                future.set_result(None)

    async def enter(self, method: str, request: Message) -> None:
        copy = type(request)()
        copy.CopyFrom(request)
        self.calls.append((method, copy))
        if method in self.gates:
            self._at_gate.append(method)
        self._happened()
        if method in self.gates:
            try:
                await self.gates[method].wait()
            except asyncio.CancelledError:
                self.cancelled.append(method)
                self._happened()
                raise
        if method in self.errors:
            raise self.errors[method]

    async def reached(self, method: str) -> None:
        """Returns when a call of the method waits, or has waited, at its gate."""
        await self.until(lambda: method in self._at_gate)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]


class FakeSessions(FakeAdapter):
    """Sessions with ids that anybody can guess, and operations that finish when a test says so."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._made = 0
        self.open: dict[str, Any] = {}
        self.by_request: dict[str, str] = {}
        self.operations: dict[str, operation_pb2.Operation] = {}

    def create(self, request: Any) -> str:
        if request.request_id in self.by_request:
            session_id = self.by_request[request.request_id]
            if self.open[session_id] != request:
                raise InvalidArgumentError("request_id: was used", reason="REQUEST_ID_REUSED")
            return session_id
        self._made += 1
        session_id = f"{self._prefix}-{self._made}"
        copy = type(request)()
        copy.CopyFrom(request)
        self.open[session_id], self.by_request[request.request_id] = copy, session_id
        return session_id

    def check(self, session_id: str) -> None:
        if session_id not in self.open:
            raise NotFoundError(
                f"no session {session_id}", reason="SESSION_NOT_FOUND", metadata={"session_id": session_id}
            )

    def end(self, session_id: str) -> None:
        self.open.pop(session_id, None)
        self.by_request = {key: value for key, value in self.by_request.items() if value != session_id}

    def enqueued(self, request: Any) -> operation_pb2.Operation:
        self.check(request.session_id)
        name = f"{request.session_id}/{request.sequence}"
        state = operation_pb2.OPERATION_STATE_QUEUED
        fresh = operation_pb2.Operation(id=name, sequence=request.sequence, state=state)
        return self.operations.setdefault(name, fresh)

    def operation(self, request: Any) -> operation_pb2.Operation:
        self.check(request.session_id)
        if request.operation_id not in self.operations:
            raise NotFoundError("it has expired", reason="OPERATION_NOT_FOUND")
        return self.operations[request.operation_id]

    def finish(self, name: str, state: operation_pb2.OperationState | None = None) -> None:
        self.operations[name].state = operation_pb2.OPERATION_STATE_SUCCEEDED if state is None else state


class FakeTraining(FakeSessions, training_pb2_grpc.TrainingServiceServicer):
    """Attributes:
    checkpoints: what each is, by name.
    results: names of the checkpoints that operations saved or loaded.
    """

    def __init__(self) -> None:
        super().__init__("training")
        self.checkpoints: dict[str, tp.CheckpointResult] = {}
        self.results: dict[str, str] = {}

    async def CreateTrainingSession(self, request, context):
        await self.enter("CreateTrainingSession", request)
        session_id = self.create(request)
        session = tp.TrainingSession(
            session_id=session_id,
            base_model=request.base_model,
            max_sequence_tokens=LONGEST,
            lease=Duration(seconds=LEASE),
        )
        return tp.CreateTrainingSessionResponse(session=session)

    async def GetTrainingSession(self, request, context):
        await self.enter("GetTrainingSession", request)
        self.check(request.session_id)
        session = tp.TrainingSession(session_id=request.session_id, base_model=self.open[request.session_id].base_model)
        return tp.GetTrainingSessionResponse(session=session)

    async def Forward(self, request, context):
        await self.enter("Forward", request)
        return tp.ForwardResponse(operation=self.enqueued(request))

    async def ForwardBackward(self, request, context):
        await self.enter("ForwardBackward", request)
        return tp.ForwardBackwardResponse(operation=self.enqueued(request))

    async def OptimStep(self, request, context):
        await self.enter("OptimStep", request)
        return tp.OptimStepResponse(operation=self.enqueued(request))

    async def SaveCheckpoint(self, request, context):
        await self.enter("SaveCheckpoint", request)
        operation = self.enqueued(request)
        self.add_checkpoint(request.name)
        self.results[operation.id] = request.name
        self.finish(operation.id)
        return tp.SaveCheckpointResponse(operation=operation)

    def add_checkpoint(self, name: str, base_model: str = "/recorded/base") -> str:
        result = tp.CheckpointResult(uri=f"fake:{name}", base_model=base_model)
        self.checkpoints[name] = result
        return result.uri

    async def LoadCheckpoint(self, request, context):
        await self.enter("LoadCheckpoint", request)
        operation = self.enqueued(request)
        self.results[operation.id] = request.uri.removeprefix("fake:")
        self.finish(operation.id)
        return tp.LoadCheckpointResponse(operation=operation)

    async def AwaitOperation(self, request, context):
        await self.enter("AwaitOperation", request)
        operation = self.operation(request)
        response = tp.AwaitOperationResponse(operation=operation)
        if request.operation_id in self.results:
            response.checkpoint.CopyFrom(self.checkpoints[self.results[request.operation_id]])
        return response

    async def CancelOperation(self, request, context):
        await self.enter("CancelOperation", request)
        operation = self.operation(request)
        operation.state = operation_pb2.OPERATION_STATE_CANCELLED
        return tp.CancelOperationResponse(operation=operation)

    async def ReadCheckpointFile(self, request, context):
        await self.enter("ReadCheckpointFile", request)
        for offset in range(3):
            yield tp.ReadCheckpointFileResponse(offset=offset, data=request.uri.encode())
            await self.enter("ReadCheckpointFile/more", request)

    async def UploadCheckpoint(self, request_iterator: AsyncIterator[tp.UploadCheckpointRequest], context):
        name = ""
        async for request in request_iterator:
            await self.enter("UploadCheckpoint", request)
            name = request.header.name or name
        self.add_checkpoint(name)
        return tp.UploadCheckpointResponse(checkpoint=self.checkpoints[name])

    async def DeleteCheckpoint(self, request, context):
        await self.enter("DeleteCheckpoint", request)
        self.checkpoints.pop(request.uri.removeprefix("fake:"), None)
        return tp.DeleteCheckpointResponse()

    async def CloseTrainingSession(self, request, context):
        await self.enter("CloseTrainingSession", request)
        self.end(request.session_id)
        return tp.CloseTrainingSessionResponse()


class FakeSampling(FakeSessions, sampling_pb2_grpc.SamplingServiceServicer):
    def __init__(self) -> None:
        super().__init__("sampling")

    async def CreateSamplingSession(self, request, context):
        await self.enter("CreateSamplingSession", request)
        return sp.CreateSamplingSessionResponse(
            session_id=self.create(request), max_sequence_tokens=LONGEST, lease=Duration(seconds=LEASE)
        )

    async def Sample(self, request, context):
        await self.enter("Sample", request)
        return sp.SampleResponse(operation=self.enqueued(request))

    async def StreamSample(self, request, context):
        await self.enter("StreamSample", request)
        self.check(request.session_id)
        for index in range(2):
            yield sp.StreamSampleResponse(index=index)
            await self.enter("StreamSample/more", request)

    async def ComputeLogprobs(self, request, context):
        await self.enter("ComputeLogprobs", request)
        return sp.ComputeLogprobsResponse(operation=self.enqueued(request))

    async def AwaitOperation(self, request, context):
        await self.enter("AwaitOperation", request)
        return sp.AwaitOperationResponse(operation=self.operation(request))

    async def CancelOperation(self, request, context):
        await self.enter("CancelOperation", request)
        return sp.CancelOperationResponse(operation=self.operation(request))

    async def CloseSamplingSession(self, request, context):
        await self.enter("CloseSamplingSession", request)
        self.end(request.session_id)
        return sp.CloseSamplingSessionResponse()


class FakeHub(FakeAdapter, hub_pb2_grpc.HubServiceServicer):
    async def GetRepoInfo(self, request, context):
        await self.enter("GetRepoInfo", request)
        return hub_pb2.GetRepoInfoResponse(ref=request.ref, num_files=3)

    async def ListRepoFiles(self, request, context):
        await self.enter("ListRepoFiles", request)
        return hub_pb2.ListRepoFilesResponse()

    async def DownloadFile(self, request, context):
        await self.enter("DownloadFile", request)
        yield hub_pb2.DownloadFileResponse(data=b"content")

    async def SnapshotRepo(self, request, context):
        await self.enter("SnapshotRepo", request)
        name = request.ref.repo
        if "missing" in name:
            raise NotFoundError(f"repository {name!r}: not here", reason="REPO_NOT_FOUND", metadata={"repo": name})
        if name.startswith("/outside"):
            raise InvalidArgumentError("ref.repo: outside", reason="PATH_NOT_ALLOWED", metadata={"field": "ref.repo"})
        return hub_pb2.SnapshotRepoResponse(local_path=f"/hub/{name}", ref=request.ref)


class FakeTokenizer(FakeAdapter, tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Attributes:
    metadata: what came with the last call.
    """

    metadata: Any = None

    async def GetTokenizerInfo(self, request, context):
        self.metadata = dict(context.invocation_metadata() or ())
        await self.enter("GetTokenizerInfo", request)
        return tokenizer_pb2.GetTokenizerInfoResponse(vocab_size=7)

    async def EncodeBatch(self, request, context):
        await self.enter("EncodeBatch", request)
        return tokenizer_pb2.EncodeBatchResponse()
