"""The stubs in tests/stubs: they hold for this build, and clients work against them with no adapter present."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.blob.v1 import blob_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, message_pb2
from crucible_kit.cassettes.format import read_cassette
from crucible_kit.cassettes.verify import verify_cassette
from crucible_kit.chunks import check_crc
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
)
from crucible_kit.tensors import from_tensor, pack_tokens, to_tensor, unpack_floats, unpack_tokens
from crucible_kit.training import TrainingSession
from crucible_kitchen.ports.sampling import SamplingSession
from tests.cassettes.conftest import Studio, all_of

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "tests" / "stubs"
FILES = sorted(STUBS.rglob("*.jsonl"))
NODE_CLIENT = ROOT / "clients" / "typescript"
CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
ADAM = training_pb2.AdamParams(learning_rate=1e-3, eps=1e-3, grad_clip_norm=1.0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(STUBS)))
def test_they_hold(path: Path) -> None:
    """`kitchen cassettes verify`: every message comes out of its bytes as it stands in the file."""
    verdict = verify_cassette(path)
    assert verdict.problems == []
    assert verdict.calls > 2


def test_the_command_verifies_them() -> None:
    command = [sys.executable, "-m", "crucible_kitchen.cli", "cassettes", "verify", str(STUBS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert len([line for line in done.stdout.splitlines() if line.endswith(", ok")]) == len(FILES)


def test_they_are_small_and_every_file_is_used() -> None:
    files = [path for path in STUBS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200 * 1024
    assert {path.parent.name for path in FILES} == {"training", "sampling", "blob", "llm"}
    text = "".join(path.read_text() for path in FILES)
    assert [path for path in files if path.parent.name == "blobs" and path.name not in text] == []


@pytest.mark.parametrize("damage", ["stale", "changed", "cut", "unnamed"])
def test_what_verify_finds(tmp_path: Path, damage: str) -> None:
    source = STUBS / "blob"
    shutil.copytree(source, tmp_path / "blob")
    path = tmp_path / "blob" / "local.jsonl"
    text = path.read_text()
    descriptor = read_cassette(path).header.descriptor_sha256["crucible.port.blob.v1.BlobStoreService"]
    changed = {
        "stale": text.replace(descriptor, "0" * 64),
        "changed": text.replace('"sizeBytes":"386"', '"sizeBytes":386', 1),
        "cut": text[: text.rindex('{"end"')],
        "unnamed": text.replace('"pageToken":"${token_1}"', '"pageToken":"${token_9}"', 1),
    }[damage]
    path.write_text(changed)
    verdict = verify_cassette(path)
    if damage == "stale":
        assert (verdict.ok, "crucible.port.blob.v1.BlobStoreService" in verdict.stale) == (True, True)
        return
    told = {"changed": "this build writes it otherwise", "cut": "the end is missing", "unnamed": "stands for nothing"}
    assert len(verdict.problems) == 1
    assert told[damage] in verdict.problems[0]


def datum(tokens: list[int]) -> datum_pb2.Datum:
    ids = np.asarray(tokens, np.int32)
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(ids[:-1]))
    weights = np.full(len(ids) - 1, 0.25, np.float32)
    inputs = {"target_tokens": to_tensor(ids[1:]), "weights": to_tensor(weights)}
    return datum_pb2.Datum(model_input=datum_pb2.ModelInput(chunks=[chunk]), loss_fn_inputs=inputs)


DATA = [[datum([5, 17, 42, 99, 7]), datum([3, 8, 21, 144])], [datum([11, 12, 13, 14, 15, 16])]]


@pytest.mark.parametrize(("name", "rank"), [("full", 0), ("lora", 4)])
async def test_the_kits_training_session_trains_on_a_recording(studio: Studio, name: str, rank: int) -> None:
    stub, replayer = await studio.replay(read_cassette(STUBS / "training" / f"{name}.jsonl"), port="training")
    lora = training_pb2.LoraConfig(rank=rank) if rank else None
    session = await TrainingSession.create(stub, base_model="some/model", lora=lora, seed=7, dtype="float32")
    assert session.info.base_model == "some/model"
    operations = [each for data in DATA for each in await session.enqueue_forward_backward(data, CROSS_ENTROPY)]
    step = await session.enqueue_optim_step(ADAM)
    results = [(await session.result(each)).forward for each in operations]
    for data, result in zip(DATA, results, strict=True):
        logprobs = [from_tensor(output.logprobs) for output in result.outputs]
        assert [len(each) for each in logprobs] == [len(each.loss_fn_inputs["weights"].dense) // 4 for each in data]
        assert result.loss == pytest.approx(-0.25 * sum(float(each.sum()) for each in logprobs), rel=1e-5)
    stepped = (await session.result(step)).optim_step
    assert (stepped.optim_steps, stepped.learning_rate) == (1, 1e-3)
    info = training_pb2.GetTrainingSessionRequest(session_id=session.session_id)
    assert (await stub.GetTrainingSession(info)).session.weights_version == 1
    assert (await session.forward(DATA[0], CROSS_ENTROPY)).loss < results[0].loss
    saved = await session.save_checkpoint(f"stubs/{name}", weights_only=True)
    file = "adapter_config.json" if rank else "config.json"
    data = b""
    async for chunk in session.read_checkpoint_file(saved.uri, file):
        check_crc(chunk.data, chunk.crc32, file)
        data += chunk.data
    assert len(data) == next(each.size_bytes for each in saved.files if each.path == file)
    assert json.loads(data)["r" if rank else "hidden_size"] == (rank or 256)
    await session.load_checkpoint(saved.uri, weights_only=True)
    await session.delete_checkpoint(saved.uri)
    await session.close()
    assert replayer.playback.tracks[0].played
    assert replayer.playback.mismatches == []


async def test_a_training_session_that_does_something_else(studio: Studio) -> None:
    stub, _ = await studio.replay(read_cassette(STUBS / "training" / "full.jsonl"), port="training")
    session = await TrainingSession.create(stub, base_model="m", seed=7, dtype="float32")
    with pytest.raises(FailedPreconditionError) as caught:
        await session.enqueue_forward_backward([datum([5, 17, 42, 99, 8]), DATA[0][1]], CROSS_ENTROPY)
    assert caught.value.reason == "CASSETTE_MISMATCH"
    assert caught.value.metadata["field"] == "request.data[0].loss_fn_inputs['target_tokens'].dense"


async def test_the_engines_refusals(studio: Studio) -> None:
    stub, replayer = await studio.replay(read_cassette(STUBS / "training" / "errors.jsonl"), port="training")
    session = await TrainingSession.create(stub, base_model="m", lora=training_pb2.LoraConfig(rank=4), dtype="float32")
    with pytest.raises(InvalidArgumentError) as refused:
        await session.enqueue_forward_backward([datum([5, 6, 1_000_000, 7])], CROSS_ENTROPY)
    assert refused.value.fields[0].field == "data[0].model_input.chunks[0].tokens_int32[2]"
    gap = training_pb2.OptimStepRequest(session_id=session.session_id, sequence=200, adam=ADAM)
    with pytest.raises(FailedPreconditionError) as missed:
        await stub.OptimStep(gap)
    assert (missed.value.reason, missed.value.metadata["expected"]) == ("SEQUENCE_GAP", "1")
    # The refused call has used up no number.
    with pytest.raises(FailedPreconditionError) as failed:
        await session.result(await session.enqueue_optim_step(ADAM))
    assert failed.value.reason == "NO_GRADIENTS"
    assert replayer.playback.mismatches == []


async def test_the_runtimes_sampling_session_samples_from_a_recording(studio: Studio) -> None:
    stub, replayer = await studio.replay(read_cassette(STUBS / "sampling" / "checkpoint.jsonl"), port="sampling")
    request = sampling_pb2.CreateSamplingSessionRequest(
        request_id="2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11", checkpoint_uri="any:checkpoint"
    )
    opened = await stub.CreateSamplingSession(request)
    session = SamplingSession(stub, opened.session_id)
    prompt = np.array([5, 17, 42, 99, 7], np.int32)
    tokens = await session.sample(prompt, sampling_pb2.SamplingParams(max_tokens=8, temperature=0))
    assert 1 <= len(tokens) <= 8
    assert ((tokens >= 0) & (tokens < opened.vocab_size)).all()
    # Again: the same number, the same answer.
    again = SamplingSession(stub, opened.session_id)
    same = await again.sample(prompt, sampling_pb2.SamplingParams(max_tokens=8, temperature=0))
    assert same.tolist() == tokens.tolist()
    with pytest.raises(FailedPreconditionError, match=r"request\.params\.max_tokens"):
        await session.sample(prompt, sampling_pb2.SamplingParams(max_tokens=9, temperature=0))
    assert len(replayer.playback.mismatches) == 1


async def test_a_recorded_stream_of_tokens(studio: Studio) -> None:
    stub, _ = await studio.replay(read_cassette(STUBS / "sampling" / "stream.jsonl"), port="sampling")
    request = sampling_pb2.CreateSamplingSessionRequest(
        request_id="2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11", base_model="scripted"
    )
    session_id = (await stub.CreateSamplingSession(request)).session_id
    stream = sampling_pb2.StreamSampleRequest(
        session_id=session_id,
        prompt_tokens_int32=pack_tokens([10]),
        params=sampling_pb2.SamplingParams(max_tokens=5, seed=1),
        num_samples=2,
    )
    completions: dict[int, list[int]] = {}
    for piece in await all_of(stub.StreamSample(stream)):
        tokens = unpack_tokens(piece.tokens_int32)
        assert len(unpack_floats(piece.logprobs_float32)) == len(tokens)
        completions.setdefault(piece.index, []).extend(tokens.tolist())
    assert completions == {0: [11, 12, 13, 14, 15], 1: [11, 12, 13, 14, 15]}


async def test_recorded_blobs_in_any_order(studio: Studio) -> None:
    cassette = read_cassette(STUBS / "blob" / "local.jsonl")
    stub, _ = await studio.replay(cassette, port="blob", order="any")
    part = await all_of(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="notes/one", offset=5, limit=20)))
    assert part[0].data == b"0 of a text that is "
    page = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2))
    rest = await stub.ListBlobs(blob_pb2.ListBlobsRequest(page_size=2, page_token=page.next_page_token))
    assert [each.key for each in [*page.blobs, *rest.blobs]] == ["notes/one", "notes/two", "other"]
    for call, kind, reason in (
        (stub.StatBlob(blob_pb2.StatBlobRequest(key="missing")), NotFoundError, "BLOB_NOT_FOUND"),
        (stub.ListBlobs(blob_pb2.ListBlobsRequest(page_token="bm9uZQ")), InvalidArgumentError, "PAGE_TOKEN_INVALID"),
        (anext(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="notes/one", offset=10_000))), KitchenError, "RANGE"),
    ):
        with pytest.raises(kind) as caught:
            await call
        assert caught.value.reason == reason


async def test_a_recorded_conversation(studio: Studio) -> None:
    stub, _ = await studio.replay(read_cassette(STUBS / "llm" / "chat.jsonl"), port="llm")
    asked = message_pb2.Message(role="user", content="one two three")
    reply = (await stub.Chat(llm_pb2.ChatRequest(messages=[asked]))).reply
    assert reply.content == "three two one"
    stream = await all_of(stub.StreamChat(llm_pb2.StreamChatRequest(model="scripted-small", messages=[asked])))
    assert "".join(each.content_delta for each in stream) == stream[-1].reply.content == reply.content
    free, _ = await studio.replay(read_cassette(STUBS / "llm" / "chat.jsonl"), port="llm", order="any")
    with pytest.raises(ResourceExhaustedError) as caught:
        await free.Chat(llm_pb2.ChatRequest(model="scripted-busy", messages=[asked]))
    assert (caught.value.reason, caught.value.retry_delay) == ("RATE_LIMITED", 2.0)


@pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_CLIENT / "node_modules").exists(),
    reason="node or its packages are not installed (`make test` installs them where node and npm are)",
)
async def test_node_trains_with_no_adapter_and_no_torch(studio: Studio) -> None:
    """Protos loaded at run time, against `kitchen replay` in a process of its own, which has loaded no torch."""
    address = studio.socket()
    recording = str(STUBS / "training" / "full.jsonl")
    command = [sys.executable, "-m", "crucible_kitchen.cli", "replay", recording, "--listen", address]
    replaying = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert replaying.stdout is not None
    assert json.loads(await replaying.stdout.readline()) == {"crucible": 1, "address": address}
    node = await asyncio.create_subprocess_exec(
        *("node", "replay_client.mjs", address, "some/model"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=NODE_CLIENT,
    )
    out, errors = await node.communicate()
    maps = Path(f"/proc/{replaying.pid}/maps")
    loaded = maps.read_text() if maps.exists() else ""
    replaying.terminate()
    _, told = await replaying.communicate()
    assert node.returncode == 0, errors.decode()
    assert "torch" not in loaded
    assert replaying.returncode == 0
    assert "11 of 11 calls came" in told.decode()
    said = {key: value for line in out.decode().splitlines() for key, value in json.loads(line).items()}
    recorded: Any = read_cassette(Path(recording)).calls
    step = next(
        call.responses[0].optim_step
        for call in recorded
        if call.responses[0].DESCRIPTOR.name.startswith("Await") and call.responses[0].HasField("optim_step")
    )
    assert (said["step"], said["gradNorm"]) == (1, step.grad_norm), "recorded numbers, to the bit"
    assert (said["weightsVersion"], said["architecture"]) == (1, "Qwen3ForCausalLM")
    assert said["lossAfter"] < next(json.loads(line)["loss"] for line in out.decode().splitlines() if '"loss"' in line)
