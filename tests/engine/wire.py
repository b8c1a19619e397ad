"""The engine's services on a unix socket, and short forms of the calls that the tests make."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible.port.training.v1 import training_pb2 as tp
from crucible.port.training.v1 import training_pb2_grpc
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_adapters.torch_engine import service_sampling, service_training
from crucible_adapters.torch_engine.batching import Datum
from crucible_adapters.torch_engine.engine import Engine, EngineOptions
from crucible_adapters.torch_engine.spec import TORCH_ENGINE
from crucible_kit.channel import ObjectChannel, connect
from crucible_kit.errors import from_failure
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from crucible_kit.tensors import pack_tokens, to_tensor

WAIT = duration_pb2.Duration(seconds=30)
CROSS_ENTROPY = tp.LossFunction(name="cross_entropy")


def to_proto(datum: Datum) -> datum_pb2.Datum:
    """A core datum as the wire carries it."""
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(datum.tokens))
    inputs = {name: to_tensor(np.asarray(values, np.float32)) for name, values in datum.inputs.items()}
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={"target_tokens": to_tensor(np.asarray(datum.targets, np.int32)), **inputs},
    )


@dataclass
class Wire:
    """Stubs over one channel."""

    channel: Any
    training: Any = field(init=False)
    sampling: Any = field(init=False)

    def __post_init__(self) -> None:
        self.training = training_pb2_grpc.TrainingServiceStub(self.channel)  # type: ignore[arg-type]
        self.sampling = sampling_pb2_grpc.SamplingServiceStub(self.channel)  # type: ignore[arg-type]

    async def open(self, folder: Path, **fields: Any) -> str:
        """A new training session's id."""
        request = tp.CreateTrainingSessionRequest(
            request_id=str(uuid.uuid4()), base_model=str(folder), **{"dtype": "float32", **fields}
        )
        return (await self.training.CreateTrainingSession(request)).session.session_id

    async def info(self, session_id: str) -> tp.TrainingSession:
        """The session now."""
        request = tp.GetTrainingSessionRequest(session_id=session_id)
        return (await self.training.GetTrainingSession(request)).session

    async def send_pass(self, session_id: str, sequence: int, data: list[Datum]) -> operation_pb2.Operation:
        """Enqueue a forward_backward."""
        request = tp.ForwardBackwardRequest(
            session_id=session_id, sequence=sequence, data=[to_proto(d) for d in data], loss_fn=CROSS_ENTROPY
        )
        return (await self.training.ForwardBackward(request)).operation

    async def send_step(
        self, session_id: str, sequence: int, lr: float = 1e-2, **adam: float
    ) -> operation_pb2.Operation:
        """Enqueue an optimizer step."""
        options = tp.AdamParams(learning_rate=lr, **adam)
        request = tp.OptimStepRequest(session_id=session_id, sequence=sequence, adam=options)
        return (await self.training.OptimStep(request)).operation

    async def train(self, session_id: str, first_sequence: int, data: list[Datum]) -> tp.OptimStepResult:
        """One whole step."""
        await self.send_pass(session_id, first_sequence, data)
        return (await self.result(session_id, await self.send_step(session_id, first_sequence + 1))).optim_step

    async def save(
        self, session_id: str, sequence: int, name: str, *, weights_only: bool = False
    ) -> tp.CheckpointResult:
        """Save a checkpoint."""
        request = tp.SaveCheckpointRequest(
            session_id=session_id, sequence=sequence, name=name, weights_only=weights_only
        )
        operation = (await self.training.SaveCheckpoint(request)).operation
        return (await self.result(session_id, operation)).checkpoint

    async def result(self, session_id: str, operation: operation_pb2.Operation) -> tp.AwaitOperationResponse:
        """Wait for a training operation; raises what it failed with."""
        request = tp.AwaitOperationRequest(session_id=session_id, operation_id=operation.id, wait=WAIT)
        return _succeeded(await self.training.AwaitOperation(request))

    async def open_sampling(self, **model: Any) -> str:
        """A new sampling session's id."""
        request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **model)
        return (await self.sampling.CreateSamplingSession(request)).session_id

    async def sample(self, session_id: str, sequence: int, prompt: list[int], **fields: Any) -> sp.SampleResult:
        """Completions of a prompt."""
        request = sample_request(session_id, sequence, prompt, **fields)
        return (await self.sampled(session_id, (await self.sampling.Sample(request)).operation)).sample

    async def score(self, session_id: str, sequence: int, tokens: list[int]) -> np.ndarray:
        """Logprobs of tokens[1:]."""
        request = sp.ComputeLogprobsRequest(session_id=session_id, sequence=sequence, tokens_int32=pack_tokens(tokens))
        operation = (await self.sampling.ComputeLogprobs(request)).operation
        response = await self.sampled(session_id, operation)
        return np.frombuffer(response.logprobs.logprobs_float32, "<f4")

    async def sampled(self, session_id: str, operation: operation_pb2.Operation) -> sp.AwaitOperationResponse:
        """Wait for a sampling operation; raises what it failed with."""
        request = sp.AwaitOperationRequest(session_id=session_id, operation_id=operation.id, wait=WAIT)
        return _succeeded(await self.sampling.AwaitOperation(request))


def sample_request(session_id: str, sequence: int, prompt: list[int], **fields: Any) -> sp.SampleRequest:
    """A request for `num_samples` (1) completions with the other fields as SamplingParams."""
    num_samples = fields.pop("num_samples", 1)
    prompt_logprobs = fields.pop("prompt_logprobs", False)
    return sp.SampleRequest(
        session_id=session_id,
        sequence=sequence,
        prompt_tokens_int32=pack_tokens(prompt),
        params=sp.SamplingParams(**{"max_tokens": 8, **fields}),
        num_samples=num_samples,
        prompt_logprobs=prompt_logprobs,
    )


def _succeeded(response: Any) -> Any:
    if response.operation.state == operation_pb2.OPERATION_STATE_FAILED:
        raise from_failure(response.operation.failure)
    assert response.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    return response


@asynccontextmanager
async def serve(
    work_dir: Path, *, transport: Literal["unix", "object"] = "unix", **options: Any
) -> AsyncIterator[tuple[Engine, Wire]]:
    """An engine in this process with further `options`, behind a unix socket or an object channel, and its client."""
    engine = Engine(EngineOptions(work_dir=work_dir, device="cpu", threads=1, **options))
    servicers = {
        "training": service_training.TrainingService(engine),
        "sampling": service_sampling.SamplingService(engine),
    }
    if transport == "object":
        channel = ObjectChannel({PORTS[port].service.full_name: servicer for port, servicer in servicers.items()})
        try:
            yield engine, Wire(channel)
        finally:
            await engine.close()
        return
    sockets = Path(tempfile.mkdtemp(prefix="ck-"))  # a test's own folder has too long a path for a socket
    served = await serve_ports(
        servicers,
        f"unix:{sockets}/engine.sock",
        name="torch-engine",
        capabilities=TORCH_ENGINE.capabilities,
    )
    channel = connect(served.address)
    try:
        yield engine, Wire(channel)
    finally:
        await channel.close()
        await served.stop(0)
        await engine.close()
        shutil.rmtree(sockets)
