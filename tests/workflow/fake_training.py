"""A training adapter and a sampling adapter that compute nothing: weights are a hash of all that was done to them.

Equal histories give equal bytes, so a run that stopped and went on can be compared with one that did not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2, sampling_pb2_grpc
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.type.v1 import operation_pb2
from crucible_kit.chunks import crc32
from crucible_kit.errors import FailedPreconditionError, field_error
from crucible_kit.tensors import pack_tokens, to_tensor, unpack_tokens

MANIFEST = "crucible_manifest.json"
SUCCEEDED = operation_pb2.OPERATION_STATE_SUCCEEDED
# As a model with these matrices would answer.
GROUPS = {
    "train_attention": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "train_mlp": ["down_proj", "gate_proj", "up_proj"],
    "train_unembedding": ["lm_head"],
}


@dataclass
class Session:
    """One session: its weights and optimizer are bytes."""

    lora: training_pb2.LoraConfig | None
    weights: bytes = b"base"
    optimizer: bytes = b"new"
    gradient: bytes = b""
    steps: int = 0


@dataclass
class FakeTraining(training_pb2_grpc.TrainingServiceServicer):
    """See the module.

    Attributes:
        created: requests for sessions.
        trained: input ids of every row that gradients were asked for.
        scored: the same of Forward.
        loaded: (weights loaded, weights_only) of every LoadCheckpoint.
        uploaded: file names of every UploadCheckpoint.
        before_step: called with the number of the step that is to be taken; may raise.
    """

    max_sequence_tokens: int = 512
    created: list[training_pb2.CreateTrainingSessionRequest] = field(default_factory=list)
    trained: list[tuple[int, ...]] = field(default_factory=list)
    scored: list[tuple[int, ...]] = field(default_factory=list)
    loaded: list[tuple[bytes, bool]] = field(default_factory=list)
    uploaded: list[list[str]] = field(default_factory=list)
    before_step: Callable[[int], None] = lambda step: None

    def __post_init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self.checkpoints: dict[str, dict[str, bytes]] = {}

    def _done(self, **result: Any) -> operation_pb2.Operation:
        operation_id = f"op-{len(self._results)}"
        self._results[operation_id] = result
        return operation_pb2.Operation(id=operation_id)

    async def CreateTrainingSession(self, request: Any, context: Any) -> training_pb2.CreateTrainingSessionResponse:
        lora = None
        if request.HasField("lora"):
            if request.lora.rank > 64:
                raise field_error("lora.rank", f"is {request.lora.rank}, this engine takes at most 64")
            given = list(request.lora.target_modules)
            groups = [name for group, names in GROUPS.items() if getattr(request.lora, group) for name in names]
            lora = training_pb2.LoraConfig(
                rank=request.lora.rank, alpha=request.lora.alpha, target_modules=sorted(given or groups)
            )
        self.created.append(request)
        session_id = f"session-{len(self.created)}"
        self._sessions[session_id] = Session(lora=lora)
        described = training_pb2.TrainingSession(
            session_id=session_id,
            base_model=request.base_model,
            vocab_size=2048,
            max_sequence_tokens=self.max_sequence_tokens,
            next_sequence=1,
            lora=lora,
        )
        return training_pb2.CreateTrainingSessionResponse(session=described)

    async def Forward(self, request: Any, context: Any) -> training_pb2.ForwardResponse:
        result = self._pass(request, self.scored)
        return training_pb2.ForwardResponse(operation=self._done(forward=result))

    async def ForwardBackward(self, request: Any, context: Any) -> training_pb2.ForwardBackwardResponse:
        session = self._sessions[request.session_id]
        result = self._pass(request, self.trained)
        rows = b"".join(each.SerializeToString(deterministic=True) for each in request.data)
        session.gradient = hashlib.sha256(rows).digest()
        return training_pb2.ForwardBackwardResponse(operation=self._done(forward=result))

    def _pass(self, request: Any, seen: list[tuple[int, ...]]) -> training_pb2.ForwardResult:
        session = self._sessions[request.session_id]
        seen += [tuple(unpack_tokens(each.model_input.chunks[0].tokens_int32).tolist()) for each in request.data]
        outputs = [
            training_pb2.LossOutput(
                logprobs=to_tensor(np.full(each.loss_fn_inputs["target_tokens"].shape[0], -1.0, dtype=np.float32))
            )
            for each in request.data
        ]
        return training_pb2.ForwardResult(loss=8.0 / (1 + session.steps), outputs=outputs)

    async def OptimStep(self, request: Any, context: Any) -> training_pb2.OptimStepResponse:
        session = self._sessions[request.session_id]
        self.before_step(session.steps + 1)
        session.steps += 1
        session.weights = hashlib.sha256(session.weights + session.optimizer + session.gradient).digest()
        session.optimizer = hashlib.sha256(session.optimizer + session.gradient).digest()
        result = training_pb2.OptimStepResult(grad_norm=1, update_norm=1, learning_rate=request.adam.learning_rate)
        return training_pb2.OptimStepResponse(operation=self._done(optim_step=result))

    async def SaveCheckpoint(self, request: Any, context: Any) -> training_pb2.SaveCheckpointResponse:
        session = self._sessions[request.session_id]
        files = {"model.safetensors": session.weights, "config.json": b"{}"}
        if session.lora is not None:
            config = {"r": session.lora.rank, "lora_alpha": session.lora.alpha}
            config["target_modules"] = list(session.lora.target_modules)
            files = {"adapter_model.safetensors": session.weights, "adapter_config.json": json.dumps(config).encode()}
        if not request.weights_only:
            files["optimizer.safetensors"] = session.optimizer + session.steps.to_bytes(8, "little")
        self.checkpoints[request.name] = with_manifest(files)
        return training_pb2.SaveCheckpointResponse(operation=self._done(checkpoint=self._describe(request.name)))

    def _describe(self, name: str) -> training_pb2.CheckpointResult:
        files = self.checkpoints[name]
        result = training_pb2.CheckpointResult(
            uri=name,
            files=[
                training_pb2.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                for path, data in sorted(files.items())
                if path != MANIFEST
            ],
            manifest_sha256=hashlib.sha256(files[MANIFEST]).hexdigest(),
            manifest_path=MANIFEST,
        )
        if "adapter_config.json" in files:
            config = json.loads(files["adapter_config.json"])
            result.lora.CopyFrom(
                training_pb2.LoraConfig(
                    rank=config["r"], alpha=config["lora_alpha"], target_modules=sorted(config["target_modules"])
                )
            )
        return result

    async def LoadCheckpoint(self, request: Any, context: Any) -> training_pb2.LoadCheckpointResponse:
        session, files = self._sessions[request.session_id], self.checkpoints[request.uri]
        weights = files.get("adapter_model.safetensors" if session.lora else "model.safetensors")
        if weights is None:
            raise FailedPreconditionError("holds another kind of weights", reason="CHECKPOINT_MISMATCH")
        self.loaded.append((weights, request.weights_only))
        session.weights, session.optimizer, session.steps = weights, b"new", 0
        if not request.weights_only:
            state = files["optimizer.safetensors"]
            session.optimizer, session.steps = state[:-8], int.from_bytes(state[-8:], "little")
        return training_pb2.LoadCheckpointResponse(operation=self._done(checkpoint=self._describe(request.uri)))

    async def AwaitOperation(self, request: Any, context: Any) -> training_pb2.AwaitOperationResponse:
        operation = operation_pb2.Operation(id=request.operation_id, state=SUCCEEDED)
        return training_pb2.AwaitOperationResponse(operation=operation, **self._results[request.operation_id])

    async def ReadCheckpointFile(
        self, request: Any, context: Any
    ) -> AsyncIterator[training_pb2.ReadCheckpointFileResponse]:
        data = self.checkpoints[request.uri][request.path]
        yield training_pb2.ReadCheckpointFileResponse(crc32=crc32(data), data=data)

    async def UploadCheckpoint(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> training_pb2.UploadCheckpointResponse:
        header = (await anext(request_iterator)).header
        contents = [b""] * len(header.files)
        async for request in request_iterator:
            assert request.chunk.offset == len(contents[request.chunk.file_index])
            contents[request.chunk.file_index] += request.chunk.data
        files = {file.path: data for file, data in zip(header.files, contents, strict=True)}
        for file in header.files:
            assert (file.size_bytes, file.sha256) == (
                len(files[file.path]),
                hashlib.sha256(files[file.path]).hexdigest(),
            )
        self.uploaded.append(list(files))
        self.checkpoints[header.name] = files if MANIFEST in files else with_manifest(files)
        return training_pb2.UploadCheckpointResponse(checkpoint=self._describe(header.name))

    async def DeleteCheckpoint(self, request: Any, context: Any) -> training_pb2.DeleteCheckpointResponse:
        self.checkpoints.pop(request.uri, None)
        return training_pb2.DeleteCheckpointResponse()

    async def CloseTrainingSession(self, request: Any, context: Any) -> training_pb2.CloseTrainingSessionResponse:
        self._sessions.pop(request.session_id, None)
        return training_pb2.CloseTrainingSessionResponse()


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a checkpoint with the manifest that lists them."""
    listed = {path: {"sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()}
    return {**files, MANIFEST: json.dumps({"files": listed}).encode()}


@dataclass
class FakeSampling(sampling_pb2_grpc.SamplingServiceServicer):
    """Answers every prompt with its first two tokens.

    Attributes:
        prompts: ids of every prompt.
        stop_tokens: of every request.
    """

    prompts: list[list[int]] = field(default_factory=list)
    stop_tokens: list[list[int]] = field(default_factory=list)

    async def CreateSamplingSession(self, request: Any, context: Any) -> sampling_pb2.CreateSamplingSessionResponse:
        return sampling_pb2.CreateSamplingSessionResponse(session_id="sampling")

    async def Sample(self, request: Any, context: Any) -> sampling_pb2.SampleResponse:
        self.prompts.append(unpack_tokens(request.prompt_tokens_int32).tolist())
        self.stop_tokens.append(list(request.params.stop_tokens))
        return sampling_pb2.SampleResponse(operation=operation_pb2.Operation(id=str(len(self.prompts) - 1)))

    async def AwaitOperation(self, request: Any, context: Any) -> sampling_pb2.AwaitOperationResponse:
        tokens = pack_tokens(np.asarray(self.prompts[int(request.operation_id)][:2], dtype=np.int32))
        return sampling_pb2.AwaitOperationResponse(
            operation=operation_pb2.Operation(id=request.operation_id, state=SUCCEEDED),
            sample=sampling_pb2.SampleResult(sequences=[sampling_pb2.SampledSequence(tokens_int32=tokens)]),
        )

    async def CloseSamplingSession(self, request: Any, context: Any) -> sampling_pb2.CloseSamplingSessionResponse:
        return sampling_pb2.CloseSamplingSessionResponse()
