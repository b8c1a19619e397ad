"""The conversations that scripts/record_stubs.py records; what an adapter must refuse is checked to be refused."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import numpy as np
from google.protobuf import struct_pb2

from crucible.port.blob.v1 import blob_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, message_pb2
from crucible_kit.channel import RemoteChannel
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import TrainingSession

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
UUID = "00000000-0000-4000-8000-{:012d}"


async def refused(call: Awaitable[Any]) -> None:
    """Makes a call that the adapter must refuse."""
    try:
        answer = await call
    except KitchenError as error:
        print(f"  refused as it should be: {error.reason}", flush=True)
        return
    raise AssertionError(f"this call should have been refused, it was answered {answer}")


def datum(tokens: list[int], weight: float = 0.25) -> datum_pb2.Datum:
    """A row in which every token is trained on."""
    ids = np.asarray(tokens, np.int32)
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(ids[:-1]))
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={
            "target_tokens": to_tensor(ids[1:]),
            "weights": to_tensor(np.full(len(ids) - 1, weight, np.float32)),
        },
    )


DATA = [[datum([5, 17, 42, 99, 7]), datum([3, 8, 21, 144])], [datum([11, 12, 13, 14, 15, 16])]]
# A large eps: with a small one the sign of a tiny gradient, which another machine may see otherwise, is a whole step.
ADAM = training_pb2.AdamParams(learning_rate=1e-3, eps=1e-3, grad_clip_norm=1.0)


async def one_step(session: TrainingSession) -> None:
    """Two passes and a step, all sent before the first is awaited."""
    operations = [each for data in DATA for each in await session.enqueue_forward_backward(data, CROSS_ENTROPY)]
    operations.append(await session.enqueue_optim_step(ADAM))
    for each in operations:
        await session.result(each)


async def train(channel: RemoteChannel, model: str, lora: training_pb2.LoraConfig | None) -> None:
    """A step, a pass, a checkpoint and a file of it."""
    stub = PORTS["training"].stub(channel)
    session = await TrainingSession.create(stub, base_model=model, lora=lora, seed=7, dtype="float32")
    await one_step(session)
    await stub.GetTrainingSession(training_pb2.GetTrainingSessionRequest(session_id=session.session_id))
    await session.forward(DATA[0], CROSS_ENTROPY)
    saved = await session.save_checkpoint("stubs/lora" if lora else "stubs/full", weights_only=True)
    async for _ in session.read_checkpoint_file(saved.uri, "adapter_config.json" if lora else "config.json"):
        pass
    await session.load_checkpoint(saved.uri, weights_only=True)
    await session.delete_checkpoint(saved.uri)
    await session.close()


async def training_errors(channel: RemoteChannel, model: str) -> None:
    """What a session refuses, and what uses up no number."""
    stub = PORTS["training"].stub(channel)
    lora = training_pb2.LoraConfig(rank=4)
    request = training_pb2.CreateTrainingSessionRequest(
        request_id=UUID.format(1), base_model=model, lora=lora, dtype="float32"
    )
    session_id = (await stub.CreateTrainingSession(request)).session.session_id
    await stub.CreateTrainingSession(request)  # the same session again
    one_pass = training_pb2.ForwardBackwardRequest(
        session_id=session_id, sequence=1, data=[datum([5, 6, 1_000_000, 7])], loss_fn=CROSS_ENTROPY
    )
    await refused(stub.ForwardBackward(one_pass))  # no such token; the number stays free
    step = training_pb2.OptimStepRequest(session_id=session_id, sequence=200, adam=ADAM)
    await refused(stub.OptimStep(step))  # a gap
    step.sequence = 1
    operation = (await stub.OptimStep(step)).operation  # a step without gradients
    poll = training_pb2.AwaitOperationRequest(session_id=session_id, operation_id=operation.id)
    poll.wait.seconds = 20
    await stub.AwaitOperation(poll)
    await stub.OptimStep(step)  # the same operation again
    step.adam.learning_rate = 0.5
    await refused(stub.OptimStep(step))  # its number, with something else
    await refused(stub.AwaitOperation(training_pb2.AwaitOperationRequest(session_id=session_id, operation_id="none")))
    await refused(stub.GetTrainingSession(training_pb2.GetTrainingSessionRequest(session_id="nobody")))
    unknown = training_pb2.ReadCheckpointFileRequest(uri="elsewhere:nothing", path="config.json")
    await refused(anext(stub.ReadCheckpointFile(unknown)))
    await stub.CloseTrainingSession(training_pb2.CloseTrainingSessionRequest(session_id=session_id))
    await refused(stub.GetTrainingSession(training_pb2.GetTrainingSessionRequest(session_id=session_id)))


async def sample(channel: RemoteChannel, checkpoint: str) -> None:
    """Samples and scores of a checkpoint, and what is refused."""
    stub = PORTS["sampling"].stub(channel)
    create = sampling_pb2.CreateSamplingSessionRequest(request_id=UUID.format(2), checkpoint_uri=checkpoint)
    session_id = (await stub.CreateSamplingSession(create)).session_id
    prompt = pack_tokens([5, 17, 42, 99, 7])

    async def result(operation: Any) -> None:
        poll = sampling_pb2.AwaitOperationRequest(session_id=session_id, operation_id=operation.id)
        poll.wait.seconds = 20
        await stub.AwaitOperation(poll)

    greedy = sampling_pb2.SamplingParams(max_tokens=8, temperature=0)
    first = sampling_pb2.SampleRequest(
        session_id=session_id, sequence=1, prompt_tokens_int32=prompt, params=greedy, num_samples=1
    )
    await result((await stub.Sample(first)).operation)
    # Seeded, from the few most likely tokens: with whole distributions another machine's last bit may change a token.
    seeded = sampling_pb2.SamplingParams(max_tokens=6, temperature=0.8, top_k=4, seed=11)
    second = sampling_pb2.SampleRequest(
        session_id=session_id,
        sequence=2,
        prompt_tokens_int32=prompt,
        params=seeded,
        num_samples=2,
        prompt_logprobs=True,
    )
    score = sampling_pb2.ComputeLogprobsRequest(session_id=session_id, sequence=3, tokens_int32=prompt)
    both = [(await stub.Sample(second)).operation, (await stub.ComputeLogprobs(score)).operation]
    for each in both:
        await result(each)
    bad = sampling_pb2.SampleRequest()
    bad.CopyFrom(first)
    bad.sequence, bad.prompt_tokens_int32 = 4, pack_tokens([1_000_000])
    await refused(stub.Sample(bad))
    stream = sampling_pb2.StreamSampleRequest(
        session_id=session_id, prompt_tokens_int32=prompt, params=greedy, num_samples=1
    )
    await refused(anext(stub.StreamSample(stream)))  # this engine does not declare it
    await stub.CloseSamplingSession(sampling_pb2.CloseSamplingSessionRequest(session_id=session_id))
    await refused(stub.Sample(first))


async def stream_sample(channel: RemoteChannel) -> None:
    """Two completions as they come."""
    stub = PORTS["sampling"].stub(channel)
    create = sampling_pb2.CreateSamplingSessionRequest(request_id=UUID.format(3), base_model="scripted")
    session_id = (await stub.CreateSamplingSession(create)).session_id
    params = sampling_pb2.SamplingParams(max_tokens=5, seed=1)
    stream = sampling_pb2.StreamSampleRequest(
        session_id=session_id, prompt_tokens_int32=pack_tokens([10]), params=params, num_samples=2
    )
    async for _ in stub.StreamSample(stream):
        pass
    await stub.CloseSamplingSession(sampling_pb2.CloseSamplingSessionRequest(session_id=session_id))


async def write_blob(stub: Any, key: str, data: bytes, *, claim: str = "", create_only: bool = False) -> Any:
    """Writes a blob in chunks; `claim` is a hash to announce in place of its own."""

    async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        header = blob_pb2.WriteBlobHeader(key=key, media_type="text/plain", create_only=create_only)
        yield blob_pb2.WriteBlobRequest(header=header)
        for start in range(0, len(data), CHUNK_BYTES):
            part = data[start : start + CHUNK_BYTES]
            chunk = blob_pb2.BlobChunk(offset=start, crc32=crc32(part), data=part)
            yield blob_pb2.WriteBlobRequest(chunk=chunk)
        sha256 = claim or hashlib.sha256(data).hexdigest()
        yield blob_pb2.WriteBlobRequest(finish=blob_pb2.WriteBlobFinish(sha256=sha256, size_bytes=len(data)))

    return await stub.WriteBlob(requests())


async def blobs(channel: RemoteChannel) -> None:
    """Writes, reads, pages, refusals, deletes."""
    stub = PORTS["blob"].stub(channel)
    text = b"".join(b"line %d of a text that is stored\n" % number for number in range(12))
    await write_blob(stub, "notes/one", text)
    await write_blob(stub, "notes/two", b"")
    await write_blob(stub, "other", b"short")
    await stub.StatBlob(blob_pb2.StatBlobRequest(key="notes/one"))
    for request in (
        blob_pb2.ReadBlobRequest(key="notes/one"),
        blob_pb2.ReadBlobRequest(key="notes/one", offset=5, limit=20),
        blob_pb2.ReadBlobRequest(key="notes/two"),
    ):
        async for _ in stub.ReadBlob(request):
            pass
    page = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2))
    await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2, page_token=page.next_page_token))
    await stub.ListBlobs(blob_pb2.ListBlobsRequest(prefix="notes/"))
    await write_blob(stub, "other", b"short", create_only=True)  # the same content is there
    await refused(write_blob(stub, "other", b"changed", create_only=True))
    await refused(write_blob(stub, "damaged", b"abc", claim="0" * 64))
    await refused(anext(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="notes/one", offset=10_000))))
    await refused(stub.StatBlob(blob_pb2.StatBlobRequest(key="missing")))
    await refused(stub.StatBlob(blob_pb2.StatBlobRequest(key="../outside")))
    await refused(stub.ListBlobs(blob_pb2.ListBlobsRequest(page_token="bm9uZQ")))
    for key in ("notes/one", "notes/two", "other"):
        await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key))
    await refused(stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="other")))
    await stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key="other", allow_missing=True))
    await stub.ListBlobs(blob_pb2.ListBlobsRequest())


async def chat(channel: RemoteChannel) -> None:
    """Replies, a tool call, pages of models, refusals."""
    stub = PORTS["llm"].stub(channel)
    asked = message_pb2.Message(role="user", content="one two three")
    await stub.Chat(llm_pb2.ChatRequest(messages=[asked]))
    async for _ in stub.StreamChat(llm_pb2.StreamChatRequest(model="scripted-small", messages=[asked])):
        pass
    schema = struct_pb2.Struct()
    schema.update({"type": "object", "properties": {"text": {"type": "string"}}})
    tools = [llm_pb2.Tool(name="look_up", description="Looks a text up.", parameters=schema)]
    called = (await stub.Chat(llm_pb2.ChatRequest(messages=[asked], tools=tools))).reply.meta.tool_calls
    answer = message_pb2.Message(role="tool", content="found it", tool_call_id=called[0].id)
    said = message_pb2.Message(role="assistant", tool_calls=called)
    await stub.Chat(llm_pb2.ChatRequest(messages=[asked, said, answer], tools=tools))
    page = await stub.ListModels(llm_pb2.ListModelsRequest(page_size=1))
    await stub.ListModels(llm_pb2.ListModelsRequest(page_size=1, page_token=page.next_page_token))
    await refused(stub.Chat(llm_pb2.ChatRequest(model="scripted-busy", messages=[asked])))
    await refused(stub.Chat(llm_pb2.ChatRequest(model="none", messages=[asked])))
