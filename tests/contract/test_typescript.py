"""The adapter kit in JavaScript: the handshake, the rules of the protos, errors, and how a process begins and ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2, unknown_fields
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.port.reward.v1 import reward_pb2, reward_pb2_grpc
from crucible.type.v1 import message_pb2
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import connect, open_channel
from crucible_kit.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    UnimplementedError,
    from_rpc_error,
)
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE, AdapterProcess, node
from tests.contract.refusals import refused
from tests.stalls import longer

pytestmark = pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)
BLOB = PORTS["blob"].service.full_name
REWARD = PORTS["reward"].service.full_name
ADAPTER = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name


class Nodes:
    """Starts adapters, and ends them with the test."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    def start(self, script: str, *arguments: str) -> AdapterProcess:
        return self.keep(node(script, *arguments))

    def keep(self, process: AdapterProcess) -> AdapterProcess:
        self._stack.push_async_callback(asyncio.to_thread, process.stop)
        return process

    async def channel(self, address: str) -> Any:
        channel = connect(address)
        self.when_closed(channel.close)
        return channel

    def when_closed(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._stack.push_async_callback(callback)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    yield nodes
    await nodes.close()


async def info(channel: Any, *versions: int) -> adapter_pb2.GetAdapterInfoResponse:
    stub = adapter_pb2_grpc.AdapterServiceStub(channel)
    return await stub.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=versions or (1,)))


async def test_the_handshake_tells_what_the_adapter_is(nodes: Nodes, tmp_path: Path) -> None:
    channels = [await nodes.channel(nodes.start("blob_store.mjs", "--root", str(tmp_path)).address) for _ in range(2)]
    first, second = [await info(channel) for channel in channels]
    assert (first.name, first.language, list(first.contract_versions)) == ("node-blobs", "javascript", [1])
    [support] = first.ports
    assert support.service == BLOB
    assert MessageToDict(support.config_schema)["properties"]["root"]["type"] == "string"
    assert first.max_message_bytes == 32 * 1024 * 1024
    assert first.instance_id == (await info(channels[0])).instance_id != second.instance_id
    with refused(FailedPreconditionError, "CONTRACT_VERSION_UNSUPPORTED", says="node-blobs speaks 1"):
        await info(channels[0], 2, 3)
    stub = adapter_pb2_grpc.AdapterServiceStub(channels[0])
    assert (await stub.Probe(adapter_pb2.ProbeRequest())).state == adapter_pb2.ProbeResponse.STATE_READY


def settings(**values: Any) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


async def test_settings_arrive_through_configure(nodes: Nodes, tmp_path: Path) -> None:
    channel = await nodes.channel(nodes.start("blob_store.mjs").address)
    adapter, blobs = adapter_pb2_grpc.AdapterServiceStub(channel), blob_pb2_grpc.BlobStoreServiceStub(channel)
    with refused(FailedPreconditionError, "NOT_CONFIGURED", says="--root"):
        await blobs.StatBlob(blob_pb2.StatBlobRequest(key="k"))

    async def configure(generation: int, service: str = BLOB, instance: str = "", **values: Any) -> None:
        given = settings(**values)
        request = adapter_pb2.ConfigureRequest(
            service=service, generation=generation, settings=given, instance=instance
        )
        await adapter.Configure(request)

    with refused(InvalidArgumentError, "FIELD_INVALID", field="settings.folder"):
        await configure(1, folder=str(tmp_path))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="settings.root"):
        await configure(1)
    for generation in (2, 2, 3):
        await configure(generation, root=str(tmp_path))
    (tmp_path / "k").write_bytes(b"abc")
    assert (await blobs.StatBlob(blob_pb2.StatBlobRequest(key="k"))).blob.size_bytes == 3
    with refused(FailedPreconditionError, "STALE_GENERATION"):
        await configure(2, root=str(tmp_path))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="service"):
        await configure(4, service=REWARD)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="instance"):
        await configure(4, instance="second")
    rewards = adapter_pb2_grpc.AdapterServiceStub(await nodes.channel(nodes.start("reward.mjs").address))
    with refused(UnimplementedError, "CAPABILITY_MISSING"):
        await rewards.Configure(adapter_pb2.ConfigureRequest(service=REWARD, generation=1))


def with_unknown(message: Message, number: int = 99) -> bytes:
    """The message's bytes with a field that its proto lacks."""
    extra = bytes([(number << 3 | 0) & 0x7F | 0x80, number >> 4, 1])
    data = message.SerializeToString() + extra
    assert [each.field_number for each in unknown_fields.UnknownFieldSet(type(message).FromString(data))] == [number]
    return data


CONFIGURE = adapter_pb2.ConfigureRequest(service="x", generation=1)
ITEM = reward_pb2.ScoreItem(completion=[message_pb2.Message(role="assistant", content="#### 1")])
BAD: dict[str, tuple[str, bytes]] = {
    "absent": (f"{BLOB}/StatBlob", b""),
    "too long": (f"{BLOB}/StatBlob", blob_pb2.StatBlobRequest(key="\u00e9\U0001f389" * 600).SerializeToString()),
    "too small": (f"{BLOB}/ListBlobs", blob_pb2.ListBlobsRequest(page_size=-7).SerializeToString()),
    "too small, 64 bits": (f"{BLOB}/ReadBlob", blob_pb2.ReadBlobRequest(key="k", offset=-(2**60)).SerializeToString()),
    "several": (f"{BLOB}/ReadBlob", blob_pb2.ReadBlobRequest(offset=-1, limit=-1).SerializeToString()),
    "no message": (f"{BLOB}/StatBlob", b"\x0a\xff"),
    "unknown": (f"{BLOB}/StatBlob", with_unknown(blob_pb2.StatBlobRequest(key="k"))),
    "identifier": (
        f"{ADAPTER}/Configure",
        adapter_pb2.ConfigureRequest(instance="A b", service="x", generation=1).SerializeToString(),
    ),
    "map of too many": (
        f"{ADAPTER}/Configure",
        adapter_pb2.ConfigureRequest(
            service="x", generation=1, secrets={str(n): "" for n in range(65)}
        ).SerializeToString(),
    ),
    "long key of a map": (
        f"{ADAPTER}/Configure",
        adapter_pb2.ConfigureRequest(service="x", generation=1, secrets={"k" * 4097: "v"}).SerializeToString(),
    ),
    "long value of a map": (
        f"{ADAPTER}/Configure",
        adapter_pb2.ConfigureRequest(service="x", generation=1, secrets={"k": "v" * 4097}).SerializeToString(),
    ),
    "an empty list": (f"{REWARD}/Score", b""),
    "nested": (
        f"{REWARD}/Score",
        reward_pb2.ScoreRequest(
            items=[ITEM, reward_pb2.ScoreItem(completion=[message_pb2.Message()])]
        ).SerializeToString(),
    ),
    "many": (f"{REWARD}/Score", reward_pb2.ScoreRequest(items=[reward_pb2.ScoreItem()] * 40).SerializeToString()),
    "nested and unknown": (f"{REWARD}/Score", b""),
}
# completion[0] of items[1], with field 99.
ITEM_BYTES = reward_pb2.ScoreRequest(items=[ITEM]).SerializeToString()
_INNER = with_unknown(message_pb2.Message(role="user"))
_ITEM = bytes([2 << 3 | 2, len(_INNER)]) + _INNER
BAD["nested and unknown"] = (f"{REWARD}/Score", ITEM_BYTES + bytes([2 << 3 | 2, len(_ITEM)]) + _ITEM)


async def outcome(channel: grpc.aio.Channel, method: str, data: bytes) -> KitchenError:
    """What a server makes of a request, which nobody checks before."""
    streamed = method.endswith("/ReadBlob")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if streamed:
            async for _ in channel.unary_stream(f"/{method}")(data):
                pass
        else:
            await channel.unary_unary(f"/{method}")(data)
    assert dict(caught.value.trailing_metadata() or ())["crucible-reason"]
    return from_rpc_error(caught.value)


class Unasked(reward_pb2_grpc.RewardServiceServicer):
    """A Python service behind the same boundary."""

    async def Score(self, request: Any, context: Any) -> Any:
        raise AssertionError("the request was let through")


async def test_requests_are_refused_as_python_refuses_them(
    nodes: Nodes, tmp_path: Path, context: AdapterContext
) -> None:
    store = LocalBlobStore(LocalBlobOptions(root=tmp_path / "blobs"), context)
    served = await serve_ports(
        {"blob": store, "reward": Unasked()}, "127.0.0.1:0", name="python", capabilities={"blob": (), "reward": ()}
    )
    in_node = {BLOB: nodes.start("blob_store.mjs", "--root", str(tmp_path)), REWARD: nodes.start("reward.mjs")}
    in_node[ADAPTER] = in_node[BLOB]
    nodes.when_closed(store.close)
    nodes.when_closed(served.stop)
    for what, (method, data) in BAD.items():
        answers = []
        for address in (served.address, in_node[method.partition("/")[0]].address):
            channel = open_channel(address)
            answers.append(await outcome(channel, method, data))
            await channel.close()
        python, javascript = answers
        assert type(javascript) is type(python) is InvalidArgumentError, what
        assert javascript.reason == python.reason, what
        assert javascript.fields == python.fields, what
        assert javascript.metadata == python.metadata, what
        if python.reason == "FIELD_INVALID":
            assert javascript.message == python.message, what


THROWS = """
import {{ AdapterError, runAdapter }} from '{kit}/adapter.mjs';

class Rewards {{
  async Score({{ reward }}, call) {{
    if (reward === 'long') {{
      throw new AdapterError('NOT_FOUND', 'REWARD_NOT_FOUND', '\u00e9'.repeat(9000), {{ retryAfterMs: 1500 }});
    }}
    if (reward === 'wait') {{
      await new Promise((resolve) => call.signal.addEventListener('abort', resolve));
      console.log('gone');
    }}
    throw new TypeError('a secret');
  }}
}}

const adapter = {{ name: 'throws', ports: {{ reward: new Rewards() }}, capabilities: {{ reward: ['b', 'a'] }} }};
await runAdapter({{ ...adapter, listen: process.argv.at(-1) }});
"""


def throwing(tmp_path: Path) -> AdapterProcess:
    script = tmp_path / "throws.mjs"
    script.write_text(THROWS.format(kit=TYPESCRIPT))
    return AdapterProcess("node", str(script))


async def test_errors_arrive_whole_and_defects_tell_nothing(nodes: Nodes, tmp_path: Path) -> None:
    channel = await nodes.channel(nodes.keep(throwing(tmp_path)).address)
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    assert list((await info(channel)).ports[0].capabilities) == ["a", "b"]
    with pytest.raises(InternalError) as caught:
        await stub.Score(reward_pb2.ScoreRequest(items=[ITEM]))
    assert caught.value.reason == "INTERNAL_BUG"
    assert "secret" not in caught.value.message
    assert caught.value.metadata["error_id"] in caught.value.message
    with pytest.raises(NotFoundError) as found:
        await stub.Score(reward_pb2.ScoreRequest(reward="long", items=[ITEM]))
    assert (found.value.reason, found.value.retry_delay) == ("REWARD_NOT_FOUND", 1.5)
    assert found.value.message.endswith("\u2026")
    with refused(UnimplementedError, "METHOD_MISSING", says="ListRewards"):
        await stub.ListRewards(reward_pb2.ListRewardsRequest())
    with refused(InvalidArgumentError, "MESSAGE_TOO_LARGE"):
        large = reward_pb2.ScoreItem(completion=[message_pb2.Message(role="a", content="x" * 2**20)])
        await stub.Score(reward_pb2.ScoreRequest(items=[large] * 33))


async def test_a_method_learns_that_its_caller_has_gone(nodes: Nodes, tmp_path: Path) -> None:
    process = nodes.keep(throwing(tmp_path))
    stub = reward_pb2_grpc.RewardServiceStub(await nodes.channel(process.address))
    assert process.process.stdout is not None
    told = asyncio.create_task(asyncio.to_thread(process.process.stdout.readline))
    for seconds in longer(0.2):
        with pytest.raises(KitchenError) as caught:
            await stub.Score(reward_pb2.ScoreRequest(reward="wait", items=[ITEM]), timeout=seconds)
        assert caught.value.reason == "DEADLINE_EXCEEDED"
        if (await asyncio.wait({told}, timeout=10))[0]:
            break
    assert await told == "gone\n"


async def write(stub: Any, key: str, data: bytes, finish: asyncio.Event | None = None) -> Any:
    """Writes a blob; its finish is sent when it may be."""

    async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key, media_type="text/plain"))
        yield blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(crc32=zlib.crc32(data), data=data))
        if finish is not None:
            await finish.wait()
        digest = hashlib.sha256(data).hexdigest()
        yield blob_pb2.WriteBlobRequest(finish=blob_pb2.WriteBlobFinish(sha256=digest, size_bytes=len(data)))

    return (await stub.WriteBlob(requests())).blob


async def staged(folder: Path) -> None:
    """Returns when a write has arrived in part."""
    async with asyncio.timeout(20):
        # Another process writes it and tells nobody.
        while not sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_lists_beside_deletions_name_what_is_there(nodes: Nodes, tmp_path: Path) -> None:
    channel = await nodes.channel(nodes.start("blob_store.mjs", "--root", str(tmp_path)).address)
    stub = blob_pb2_grpc.BlobStoreServiceStub(channel)
    keys = [f"k-{number}" for number in range(60)]
    await asyncio.gather(*(write(stub, key, b"x") for key in keys))
    request = blob_pb2.ListBlobsRequest(page_size=100)
    deleting = asyncio.gather(*(stub.DeleteBlob(blob_pb2.DeleteBlobRequest(key=key)) for key in keys))
    while not deleting.done():
        for response in await asyncio.gather(*(stub.ListBlobs(request) for _ in range(8))):
            assert {each.key for each in response.blobs} <= set(keys)
    await deleting
    assert not (await stub.ListBlobs(blob_pb2.ListBlobsRequest())).blobs


async def test_a_call_that_runs_is_finished_before_the_end(tmp_path: Path) -> None:
    process = node("blob_store.mjs", "--root", str(tmp_path))
    channel = connect(process.address)
    finish = asyncio.Event()
    call = asyncio.ensure_future(write(blob_pb2_grpc.BlobStoreServiceStub(channel), "k", b"abc", finish))
    await staged(tmp_path)
    ending = asyncio.create_task(asyncio.to_thread(process.stop))
    finish.set()
    assert (await call).size_bytes == 3
    await ending
    await channel.close()
    assert (tmp_path / "k").read_bytes() == b"abc"


async def test_a_killed_writer_leaves_nothing(nodes: Nodes, tmp_path: Path) -> None:
    first = node("blob_store.mjs", "--root", str(tmp_path))
    channel = connect(first.address)
    stub = blob_pb2_grpc.BlobStoreServiceStub(channel)
    call = asyncio.ensure_future(write(stub, "k", b"x" * 1000, asyncio.Event()))
    await staged(tmp_path)
    await asyncio.to_thread(first.kill)
    call.cancel()
    await asyncio.wait([call])
    await channel.close()
    again = await nodes.channel(nodes.start("blob_store.mjs", "--root", str(tmp_path)).address)
    listed = await blob_pb2_grpc.BlobStoreServiceStub(again).ListBlobs(blob_pb2.ListBlobsRequest())
    assert not listed.blobs
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_python_and_javascript_keep_the_same_folder(
    nodes: Nodes, tmp_path: Path, context: AdapterContext
) -> None:
    store = LocalBlobStore(LocalBlobOptions(root=tmp_path), context)
    served = await serve_ports({"blob": store}, "127.0.0.1:0", name="python", capabilities={"blob": ()})
    nodes.when_closed(store.close)
    nodes.when_closed(served.stop)
    python = blob_pb2_grpc.BlobStoreServiceStub(await nodes.channel(served.address))
    channel = await nodes.channel(nodes.start("blob_store.mjs", "--root", str(tmp_path)).address)
    javascript = blob_pb2_grpc.BlobStoreServiceStub(channel)
    for writer, reader, key in ((python, javascript, "a/\u00e9 \U0001f389"), (javascript, python, "b/\u00e9#?")):
        written = await write(writer, key, key.encode())
        assert (await reader.StatBlob(blob_pb2.StatBlobRequest(key=key))).blob == written
        assert [each.data async for each in reader.ReadBlob(blob_pb2.ReadBlobRequest(key=key))] == [key.encode()]
    listed = [(await stub.ListBlobs(blob_pb2.ListBlobsRequest())).blobs for stub in (python, javascript)]
    assert listed[0] == listed[1]


def test_a_child_listens_where_it_is_told_and_ends_with_its_stdin(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/s"
        command = ("node", str(TYPESCRIPT / "blob_store.mjs"), "--root", str(tmp_path))
        for end in ("stdin", "term"):
            child = AdapterProcess(*command, environment={"CRUCIBLE_ADAPTER_LISTEN": address})
            assert child.address == address
            if end == "stdin":
                assert child.process.stdin is not None
                child.process.stdin.close()
            else:
                child.process.send_signal(signal.SIGTERM)
            assert child.wait() == 0


def test_an_address_is_needed_and_only_of_this_machine(tmp_path: Path) -> None:
    command = ["node", str(TYPESCRIPT / "reward.mjs")]
    environment = {key: value for key, value in os.environ.items() if key != "CRUCIBLE_ADAPTER_LISTEN"}
    nowhere = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (nowhere.returncode, "--listen" in nowhere.stderr) == (2, True)
    everywhere = [*command, "--listen", "0.0.0.0:0"]
    refusal = subprocess.run(everywhere, capture_output=True, text=True, timeout=30, check=False)
    assert refusal.returncode != 0
    assert "without TLS only" in refusal.stderr


def said(*texts: str, role: str = "assistant") -> list[message_pb2.Message]:
    return [message_pb2.Message(role=role, content=text) for text in texts]


async def test_answers_behind_the_mark_are_compared(nodes: Nodes) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(await nodes.channel(nodes.start("reward.mjs").address))
    item = reward_pb2.ScoreItem
    parts = [message_pb2.ContentPart(text="so "), message_pb2.ContentPart(text="#### 21")]
    picture = message_pb2.ContentPart(media=message_pb2.Media(media_type="image/png", data=b"x"))
    items = [
        item(completion=said("18 + 3 = 21\n#### 21"), reference_answer="Nina has 18 + 3.\n#### 21"),
        item(completion=said("#### 1", "first #### 3, no #### 21 \nbye"), reference_answer=" 21"),
        item(completion=said("#### 20"), reference_answer="21"),
        item(completion=said("21"), reference_answer="21"),
        item(completion=said("####"), reference_answer=""),
        item(completion=said("#### 21")),
        item(completion=[message_pb2.Message(role="assistant", parts=parts)], reference_answer="21"),
        item(completion=[message_pb2.Message(role="assistant", parts=[*parts, picture])], reference_answer="21"),
        item(completion=said("#### ABC"), reference_answer="abc"),
    ]
    results = (await stub.Score(reward_pb2.ScoreRequest(items=items))).results
    pb = reward_pb2
    assert [(each.reward, each.outcome, each.answer) for each in results] == [
        (1, pb.OUTCOME_CORRECT, "21"),
        (1, pb.OUTCOME_CORRECT, "21"),
        (0, pb.OUTCOME_WRONG, "20"),
        (0, pb.OUTCOME_UNPARSEABLE, ""),
        (1, pb.OUTCOME_CORRECT, ""),
        (0, pb.OUTCOME_UNSPECIFIED, ""),
        (1, pb.OUTCOME_CORRECT, "21"),
        (0, pb.OUTCOME_UNSPECIFIED, ""),
        (0, pb.OUTCOME_WRONG, "ABC"),
    ]
    assert dict(results[2].parts) == {"correct": 0, "format": 1}
    assert dict(results[3].parts) == {"correct": 0, "format": 0}
    assert [each.error.reason for each in results] == [""] * 5 + [
        "REFERENCE_ANSWER_MISSING",
        "",
        "CAPABILITY_MISSING",
        "",
    ]
    assert results[5].error.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    anycase = reward_pb2.ScoreRequest(items=items[-1:], options=settings(ignore_case=True), reward="exact_match")
    assert (await stub.Score(anycase)).results[0].reward == 1


async def test_rewards_are_listed_and_others_refused(nodes: Nodes) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(await nodes.channel(nodes.start("reward.mjs").address))
    [reward] = (await stub.ListRewards(reward_pb2.ListRewardsRequest(page_size=1))).rewards
    assert (reward.name, reward.min_reward, reward.max_reward) == ("exact_match", 0, 1)
    assert list(reward.parts) == ["correct", "format"]
    assert reward.needs_reference_answer
    assert "ignore_case" in MessageToDict(reward.options_schema)["properties"]
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        await stub.ListRewards(reward_pb2.ListRewardsRequest(page_token="AAAA"))
    with refused(NotFoundError, "REWARD_NOT_FOUND", says="exact_match"):
        await stub.Score(reward_pb2.ScoreRequest(reward="other", items=[ITEM]))
    for options, field in (({"x": 1}, "options.x"), ({"ignore_case": 1}, "options.ignore_case")):
        with refused(InvalidArgumentError, "OPTIONS_INVALID", field=field):
            await stub.Score(reward_pb2.ScoreRequest(items=[ITEM], options=settings(**options)))
