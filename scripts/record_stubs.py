"""Records the stubs in tests/stubs from real adapters: the torch engine, the local blob store, and two small scripts.

    python scripts/record_stubs.py                     # all of them, in place of those that are there
    python scripts/record_stubs.py --only blob         # those of one port
    python scripts/record_stubs.py --out /tmp/stubs    # elsewhere

A recording is a conversation through the recording proxy; docs/recorded_stubs.md says what each one holds. The torch
ones take about a minute, and their numbers are those of the machine that recorded them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from stub_servicers import LLM_CAPABILITIES, SAMPLING_CAPABILITIES, ScriptedModel, ScriptedSampler

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, message_pb2
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.builtin.weights import materialise
from crucible_kit.adapter import CONTRACT_VERSIONS, AdapterContext
from crucible_kit.cassettes.matching import Rules
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import TrainingSession

STUBS = Path(__file__).resolve().parents[1] / "tests" / "stubs"
MODEL = "tiny-qwen3-base"
CHECKPOINT = "stubs/to-sample-from"
CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
UUID = "00000000-0000-4000-8000-{:012d}"
# What a machine, a load or a build of torch decides.
TORCH_RULES = Rules(
    ignore=[
        "response.session.device",
        "response.session.lease",
        "response.lease",
        "response.**.metrics['*_seconds']",
        "response.checkpoint.base_model",
        "response.checkpoint.manifest_sha256",
        "response.checkpoint.files[*].sha256",
    ]
)
# The adapter's own configuration names the folder of its base model.
LORA_RULES = TORCH_RULES.extended(
    Rules(
        ignore=[
            "response.checkpoint.files[*].size_bytes",
            "ReadCheckpointFile/response.crc32",
            "ReadCheckpointFile/response.data",
        ]
    )
)
MODEL_PARAMETER = f"the model to train: builtin:{MODEL} on a kitchen, its folder on an engine"
CHECKPOINT_PARAMETER = (
    f"a checkpoint of builtin:{MODEL} with unchanged weights on the target, as SaveCheckpoint named it"
)

Scenario = Callable[[RemoteChannel], Awaitable[None]]


@asynccontextmanager
async def recorded(path: Path, target: str, work: Path, **details: Any) -> AsyncIterator[RemoteChannel]:
    """A channel through a recording proxy; the cassette is complete when the block ends."""
    proxy = RecordingProxy(CassetteWriter(path, **details), target)
    channel = connect(proxy.start(f"unix:{work}/proxy.sock"), retry=False)
    try:
        info = adapter_pb2.GetAdapterInfoRequest(host_version="0.1.0", host_contract_versions=CONTRACT_VERSIONS)
        await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(info)
        yield channel
    finally:
        await channel.close()
        await asyncio.to_thread(proxy.stop)


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


@asynccontextmanager
async def torch_engine(work: Path) -> AsyncIterator[str]:
    """The engine as a process, on a socket; ends with the block."""
    address = f"unix:{work}/engine.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crucible_adapters.torch_engine", "--listen", address),
        *("--work-dir", str(work / "checkpoints"), "--device", "cpu", "--threads", "1"),
    )
    channel = connect(address)
    try:
        await adapter_pb2_grpc.AdapterServiceStub(channel).Probe(adapter_pb2.ProbeRequest(), timeout=120)
        yield address
    finally:
        await channel.close()
        process.terminate()
        await process.wait()


async def save_checkpoint(address: str, model: str) -> str:
    """Address of a checkpoint with the model's own weights."""
    channel = connect(address)
    session = await TrainingSession.create(PORTS["training"].stub(channel), base_model=model, dtype="float32")
    saved = await session.save_checkpoint(CHECKPOINT, weights_only=True)
    await session.close()
    await channel.close()
    return saved.uri


async def record_torch(out: Path, work: Path, ports: set[str]) -> None:
    """The recordings of the torch engine."""
    model = str(materialise(MODEL, work / "model").path)
    lora = training_pb2.LoraConfig(rank=4)
    scenarios: dict[str, tuple[Scenario, tuple[str, ...]]] = {
        "full": (lambda channel: train(channel, model, None), ("training.checkpoint_files", "training.full")),
        "lora": (lambda channel: train(channel, model, lora), ("training.checkpoint_files", "training.lora")),
        "errors": (
            lambda channel: training_errors(channel, model),
            ("training.checkpoint_files", "training.lora"),
        ),
    }
    async with torch_engine(work) as address:
        for name, (scenario, requires) in scenarios.items():
            if "training" in ports:
                rules = LORA_RULES if name == "lora" else TORCH_RULES
                details = {"parameters": {"model": (model, MODEL_PARAMETER)}, "rules": rules}
                await record(out / "training" / f"{name}.jsonl", address, work, scenario, requires, **details)
        if "sampling" in ports:
            uri = await save_checkpoint(address, model)
            await record(
                out / "sampling" / "checkpoint.jsonl",
                address,
                work,
                lambda channel: sample(channel, uri),
                (),
                parameters={"checkpoint": (uri, CHECKPOINT_PARAMETER)},
                rules=TORCH_RULES,
            )


async def record_served(
    path: Path, work: Path, port: str, servicer: Any, scenario: Scenario, capabilities: tuple[str, ...], name: str
) -> None:
    """A recording of a servicer in this process."""
    served = await serve_ports(
        {port: servicer}, f"unix:{work}/{port}.sock", name=name, capabilities={port: capabilities}
    )
    await record(path, served.address, work, scenario, capabilities)
    await served.stop(0)


async def record(
    path: Path, target: str, work: Path, scenario: Scenario, requires: tuple[str, ...], **details: Any
) -> None:
    """One recording."""
    print(path, flush=True)
    async with recorded(path, target, work, requires=requires, **details) as channel:
        await scenario(channel)


async def record_all(out: Path, ports: set[str]) -> None:
    """The recordings of some ports, in place of those that are there."""
    for port in ports:
        shutil.rmtree(out / port, ignore_errors=True)
    # The folder's name is in some answers; the same one each time keeps the recordings alike.
    work = Path(tempfile.gettempdir()) / "crucible-stubs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if ports & {"training", "sampling"}:
            await record_torch(out, work, ports)
        if "sampling" in ports:
            await record_served(
                out / "sampling" / "stream.jsonl",
                work,
                "sampling",
                ScriptedSampler(),
                stream_sample,
                SAMPLING_CAPABILITIES,
                "scripted-sampler",
            )
        if "blob" in ports:
            store = LocalBlobStore(LocalBlobOptions(root=work / "blobs"), AdapterContext(data_dir=work))
            await record_served(out / "blob" / "local.jsonl", work, "blob", store, blobs, (), "local-blobs")
            await store.close()
        if "llm" in ports:
            model = ScriptedModel()
            await record_served(out / "llm" / "chat.jsonl", work, "llm", model, chat, LLM_CAPABILITIES, "scripted-llm")


PORTS_WITH_STUBS: Mapping[str, str] = {
    "training": "the torch engine: a full and a LoRA session, refusals",
    "sampling": "the torch engine on a checkpoint; a scripted stream",
    "blob": "the local blob store",
    "llm": "a scripted model",
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PORTS_WITH_STUBS), action="append", help="a port; repeatable")
    parser.add_argument("--out", type=Path, default=STUBS, help="folder of the stubs")
    arguments = parser.parse_args()
    asyncio.run(record_all(arguments.out, set(arguments.only or PORTS_WITH_STUBS)))


if __name__ == "__main__":
    main()
