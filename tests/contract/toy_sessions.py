"""Sessions of the fakes of training and sampling for tests: small data, numbered calls, awaited results."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import check_finished

MODEL = "fake/model"
VOCAB = 24
OPTIONS: dict[str, Any] = {"vocab_size": VOCAB, "rows": VOCAB, "max_sequence_tokens": 16}
CROSS_ENTROPY = tp.LossFunction(name="cross_entropy")
WAIT = {"seconds": 20}


def datum(tokens: Sequence[int], weight: float = 1.0, **inputs: np.ndarray) -> datum_pb2.Datum:
    """A sequence whose targets are its own next tokens; `inputs` in place of the weights."""
    n = len(tokens) - 1
    given = inputs or {"weights": np.full(n, weight, np.float32)}
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(tokens[:-1]))]),
        loss_fn_inputs={"target_tokens": to_tensor(np.asarray(tokens[1:], np.int32))}
        | {name: to_tensor(value.astype(np.float32)) for name, value in given.items()},
    )


DATA = [datum([1, 2, 3, 4, 5, 1, 2, 3]), datum([7, 8, 9, 7, 8, 9, 7])]


class Trainer:
    """Numbers the calls of one training session."""

    def __init__(self, stub: Any, session: tp.TrainingSession) -> None:
        self.stub = stub
        self.id = session.session_id
        self.info = session
        self.sequence = session.next_sequence

    @classmethod
    async def create(cls, stub: Any, **fields: Any) -> Trainer:
        defaults: dict[str, Any] = {"request_id": str(uuid.uuid4()), "base_model": MODEL}
        request = tp.CreateTrainingSessionRequest(**(defaults | fields))
        return cls(stub, (await stub.CreateTrainingSession(request)).session)

    async def enqueue(self, method: str, **fields: Any) -> str:
        """Makes the next call; its operation's id."""
        request = getattr(tp, f"{method}Request")(session_id=self.id, sequence=self.sequence, **fields)
        response = await getattr(self.stub, method)(request)
        self.sequence += 1
        return response.operation.id

    async def finished(self, operation_id: str) -> tp.AwaitOperationResponse:
        """The result. Raises what the operation failed with."""
        request = tp.AwaitOperationRequest(session_id=self.id, operation_id=operation_id, wait=WAIT)
        response = await self.stub.AwaitOperation(request)
        check_finished(response.operation)
        return response

    async def call(self, method: str, **fields: Any) -> tp.AwaitOperationResponse:
        return await self.finished(await self.enqueue(method, **fields))

    async def forward(self, data: Sequence[datum_pb2.Datum] = DATA, loss: Any = CROSS_ENTROPY) -> tp.ForwardResult:
        return (await self.call("Forward", data=data, loss_fn=loss)).forward

    async def step(self, data: Sequence[datum_pb2.Datum] = DATA, learning_rate: float = 0.1) -> float:
        """One optimizer step; the loss before it."""
        passed = await self.enqueue("ForwardBackward", data=data, loss_fn=CROSS_ENTROPY)
        await self.call("OptimStep", adam=tp.AdamParams(learning_rate=learning_rate))
        return (await self.finished(passed)).forward.loss

    async def save(self, name: str, **fields: Any) -> tp.CheckpointResult:
        return (await self.call("SaveCheckpoint", name=name, **fields)).checkpoint

    async def load(self, uri: str, *, weights_only: bool = False) -> tp.CheckpointResult:
        return (await self.call("LoadCheckpoint", uri=uri, weights_only=weights_only)).checkpoint

    async def now(self) -> tp.TrainingSession:
        return (await self.stub.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=self.id))).session

    async def close(self) -> None:
        await self.stub.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=self.id))


async def checkpoint_files(stub: Any, checkpoint: tp.CheckpointResult) -> dict[str, bytes]:
    """Every file of a checkpoint by path, the manifest last."""
    files = {}
    for path in (*(file.path for file in checkpoint.files), checkpoint.manifest_path):
        request = tp.ReadCheckpointFileRequest(uri=checkpoint.uri, path=path)
        files[path] = b"".join([response.data async for response in stub.ReadCheckpointFile(request)])
    return files


class Sampler:
    """Numbers the calls of one sampling session."""

    def __init__(self, stub: Any, session_id: str) -> None:
        self.stub = stub
        self.id = session_id
        self.sequence = 1

    @classmethod
    async def create(cls, stub: Any, **fields: Any) -> Sampler:
        fields = fields or {"base_model": MODEL}
        request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **fields)
        return cls(stub, (await stub.CreateSamplingSession(request)).session_id)

    async def call(self, method: str, **fields: Any) -> sp.AwaitOperationResponse:
        request = getattr(sp, f"{method}Request")(session_id=self.id, sequence=self.sequence, **fields)
        self.sequence += 1
        operation_id = (await getattr(self.stub, method)(request)).operation.id
        request = sp.AwaitOperationRequest(session_id=self.id, operation_id=operation_id, wait=WAIT)
        response = await self.stub.AwaitOperation(request)
        check_finished(response.operation)
        return response

    async def sample(self, prompt: Sequence[int], *, samples: int = 1, **params: Any) -> sp.SampleResult:
        defaults: dict[str, Any] = {"max_tokens": 6}
        given = sp.SamplingParams(**(defaults | params))
        fields = {"prompt_tokens_int32": pack_tokens(prompt), "params": given, "num_samples": samples}
        return (await self.call("Sample", **fields)).sample

    async def logprobs(self, tokens: Sequence[int]) -> sp.LogprobsResult:
        return (await self.call("ComputeLogprobs", tokens_int32=pack_tokens(tokens))).logprobs

    async def close(self) -> None:
        await self.stub.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=self.id))
