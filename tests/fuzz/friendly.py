"""What a friendly client does with a target: what requests refer to, and answers that must never change."""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from google.protobuf import duration_pb2

from crucible.port.blob.v1 import blob_pb2
from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2, message_pb2, operation_pb2, tensor_pb2
from crucible_kit.errors import KitchenError
from tests.fuzz.messages import UPLOAD_FRAMES
from tests.fuzz.values import tokens
from tests.fuzz.world import World, upload_frames

_WAIT = duration_pb2.Duration(seconds=20)
ROWS = "".join(
    json.dumps({"question": f"What is {number} + {number}?", "answer": str(2 * number)}) + "\n" for number in range(12)
)


class Serves(Protocol):
    """What is played against."""

    folder: Path
    world: World

    def stub(self, port: str) -> Any: ...


class Sessions:
    """Training and sampling sessions of a target, with what belongs to them."""

    def __init__(self, target: Serves, model: str) -> None:
        self._target = target
        self._world = target.world
        self._model = model

    async def refresh(self) -> None:
        """At least one session of each kind, an operation and a checkpoint of it."""
        world, training, sampling = self._world, self._target.stub("training"), self._target.stub("sampling")
        for session_id in world.take_evicted("training_session"):
            await training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))
        for session_id in world.take_evicted("sampling_session"):
            await sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=session_id))
        for session_id in list(world.dirty):
            world.dirty.discard(session_id)
            try:
                known = await training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session_id))
                world.next_sequence[session_id] = known.session.next_sequence
            except KitchenError:
                world.remove("training_session", session_id)
        if not world.pools["training_session"]:
            world.add("training_session", await self.open_training())
        if not world.pools["sampling_session"]:
            world.add("sampling_session", await self.open_sampling())
        if not world.pools["checkpoint"]:
            await self._checkpoint()

    async def open_training(self, **fields: Any) -> str:
        request = tp.CreateTrainingSessionRequest(
            request_id=str(uuid.uuid4()), base_model=self._model, lora=tp.LoraConfig(rank=2), **fields
        )
        return (await self._target.stub("training").CreateTrainingSession(request)).session.session_id

    async def open_sampling(self, **fields: Any) -> str:
        fields = fields or {"base_model": self._model}
        request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **fields)
        return (await self._target.stub("sampling").CreateSamplingSession(request)).session_id

    async def _checkpoint(self) -> None:
        world, training = self._world, self._target.stub("training")
        session_id = await self.open_training()
        request = tp.SaveCheckpointRequest(session_id=session_id, sequence=1, name=f"base-{uuid.uuid4().hex[:8]}")
        saved = await _result(training, session_id, await training.SaveCheckpoint(request))
        world.add("training_session", session_id)
        world.accepted(session_id, 1, saved.operation.id)
        world.add("checkpoint", saved.checkpoint.uri)
        if "upload_frame" not in world.statics:
            files = []
            for path in ("adapter_config.json", "adapter_model.safetensors"):
                chunks = training.ReadCheckpointFile(tp.ReadCheckpointFileRequest(uri=saved.checkpoint.uri, path=path))
                files.append((path, b"".join([chunk.data async for chunk in chunks])))
            world.statics["upload_frame"] = upload_frames(files, "uploaded", at_least=UPLOAD_FRAMES)

    async def use(self) -> list[Any]:
        """Losses of three steps, and samples from the weights that come out."""
        training, sampling = self._target.stub("training"), self._target.stub("sampling")
        session_id = await self.open_training(seed=5)
        losses: list[Any] = []
        for step in range(3):
            data = [_datum([9 + step, 30, 40, 7]), _datum([1, 2, 3])]
            loss_fn = tp.LossFunction(name="cross_entropy")
            request = tp.ForwardBackwardRequest(
                session_id=session_id, sequence=2 * step + 1, data=data, loss_fn=loss_fn
            )
            passed = await _result(training, session_id, await training.ForwardBackward(request))
            losses.append(passed.forward.loss)
            adam = tp.AdamParams(learning_rate=1e-2, eps=1e-8)
            step_request = tp.OptimStepRequest(session_id=session_id, sequence=2 * step + 2, adam=adam)
            await _result(training, session_id, await training.OptimStep(step_request))
        follower = await self.open_sampling(training_session_id=session_id)
        request = sp.SampleRequest(
            session_id=follower,
            sequence=1,
            prompt_tokens_int32=tokens(9, 30),
            params=sp.SamplingParams(max_tokens=6, seed=4),
            num_samples=2,
        )
        operation = (await sampling.Sample(request)).operation
        waiting = sp.AwaitOperationRequest(session_id=follower, operation_id=operation.id, wait=_WAIT)
        sampled = await sampling.AwaitOperation(waiting)
        await sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=follower))
        await training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))
        assert sampled.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED, sampled
        return [losses, [each.tokens_int32 for each in sampled.sample.sequences]]


async def _result(training: Any, session_id: str, response: Any) -> tp.AwaitOperationResponse:
    request = tp.AwaitOperationRequest(session_id=session_id, operation_id=response.operation.id, wait=_WAIT)
    ended = await training.AwaitOperation(request)
    assert ended.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED, ended
    return ended


def _datum(ids: list[int]) -> datum_pb2.Datum:
    count = len(ids)
    chunk = datum_pb2.ModelInputChunk(tokens_int32=tokens(*ids))
    targets = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_INT32, shape=[count], dense=tokens(*ids[1:], 2))
    weights = np.ones(count, "<f4").tobytes()
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={
            "target_tokens": targets,
            "weights": tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[count], dense=weights),
        },
    )


async def refresh_stores(target: Serves) -> None:
    """At least one open dataset and one blob."""
    world, datasets = target.world, target.stub("dataset")
    for dataset_id in world.take_evicted("dataset"):
        await datasets.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=dataset_id))
    if not world.pools["dataset"]:
        source = dataset_pb2.DatasetSource(uri=str(target.folder / "files" / "rows.jsonl"))
        opened = await datasets.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source))
        world.add("dataset", opened.dataset.dataset_id)
    if not world.pools["blob"]:
        await target.stub("blob").WriteBlob(_blob("fuzz/seed", b"seed"))
        world.add("blob", "fuzz/seed")


async def _blob(key: str, data: bytes) -> AsyncIterator[blob_pb2.WriteBlobRequest]:
    yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
    yield blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(offset=0, crc32=zlib.crc32(data), data=data))
    finish = blob_pb2.WriteBlobFinish(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    yield blob_pb2.WriteBlobRequest(finish=finish)


async def use_stores(target: Serves) -> list[Any]:
    """A blob as it was written, rows of a dataset, and token ids of a conversation."""
    blobs, datasets, tokenizers = target.stub("blob"), target.stub("dataset"), target.stub("tokenizer")
    await blobs.WriteBlob(_blob("friendly/blob", bytes(range(256))))
    stream = blobs.ReadBlob(blob_pb2.ReadBlobRequest(key="friendly/blob"))
    content = b"".join([chunk.data async for chunk in stream])
    source = dataset_pb2.DatasetSource(uri=str(target.folder / "files" / "rows.jsonl"))
    request = dataset_pb2.OpenDatasetRequest(source=source, transforms=[dataset_pb2.DatasetTransform(shuffle_seed=3)])
    dataset_id = (await datasets.OpenDataset(request)).dataset.dataset_id
    read = dataset_pb2.ReadRowsRequest(dataset_id=dataset_id, range=dataset_pb2.RowRange())
    rows = [row async for batch in datasets.ReadRows(read) for row in batch.rows_json]
    await datasets.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=dataset_id))
    chat = message_pb2.Conversation(messages=[message_pb2.Message(role="user", content="What is 1 + 1?")])
    name = target.world.statics["tokenizer"][0]
    rendered = await tokenizers.ApplyChatTemplate(
        tokenizer_pb2.ApplyChatTemplateRequest(
            tokenizer=name.decode() if isinstance(name, bytes) else "", conversations=[chat], add_generation_prompt=True
        )
    )
    return [content, rows, rendered.rendered[0].tokens_int32]
