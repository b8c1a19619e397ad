"""The keys of providers, whatever these say about them, stand in nothing that a server tells, logs or leaves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crucible.port.embedding.v1 import embedding_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2
from crucible_client import KitchenClient
from crucible_kit.cassettes.format import read_cassette
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.redaction import Redactor
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.redaction import MARK
from tests.llm.server import Answer, Asked, Server, event
from tests.llm.wires import OpenAIWire
from tests.system.harness import serving
from tests.system.secrets import leaks, told

LLM_KEY, EMBEDDING_KEY = 'sk-"planted\\0123456789/llm', "em+planted=0123456789/embedding"
ROOT = Path(__file__).resolve().parents[2]
STATUSES = (400, 401, 403, 404, 429, 500)
CHAT = llm_pb2.ChatRequest(messages=[message_pb2.Message(role="user", content="Hello")])
STREAM = llm_pb2.StreamChatRequest(messages=CHAT.messages)
EMBED = embedding_pb2.EmbedTextsRequest(texts=["Hello"])


class Indiscreet(Server):
    """Says the key that it was given in every place that it has."""

    def answer(self, asked: Asked) -> Answer:
        key = asked.headers["authorization"].removeprefix("Bearer ")
        answer = super().answer(asked)
        headers = {"x-request-id": key, "retry-after": "0", "openai-organization": key}
        return Answer(_filled(answer.body, key), answer.status, headers, answer.content_type)


def _filled(body: Any, key: str) -> Any:
    if isinstance(body, dict):
        return {name: _filled(value, key) for name, value in body.items()}
    if isinstance(body, list):
        return [_filled(each, key) for each in body]
    if isinstance(body, bytes):
        return body.replace(b"KEY", key.encode())
    return body.replace("KEY", key) if isinstance(body, str) else body


@pytest.fixture
async def provider() -> AsyncIterator[Server]:
    server = Indiscreet()
    await server.start()
    yield server
    await server.stop()


async def kitchen_says(*words: str) -> bytes:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crucible_kitchen.cli", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said


async def test_keys_that_providers_say_again_show_nowhere(tmp_path: Path, provider: Server) -> None:
    options = {"base_url": f"{provider.address}/v1", "model": "m", "retries": {"tries": 2}}
    ports = {
        "llm": {"adapter": "builtin:openai", "options": options, "secrets": {"api_key": "LLM_KEY_OF_TEST"}},
        "embedding": {"adapter": "builtin:openai", "options": options, "secrets": {"api_key": "EMB_KEY_OF_TEST"}},
    }
    manifest = tmp_path / "kitchen.yaml"
    manifest.write_text(yaml.safe_dump({"ports": ports}))
    # The library tells its requests then, headers among them.
    environment = {"LLM_KEY_OF_TEST": LLM_KEY, "EMB_KEY_OF_TEST": EMBEDDING_KEY, "OPENAI_LOG": "debug"}
    wire, seen = OpenAIWire(), dict[str, bytes]()
    with serving(tmp_path / "data", "--manifest", str(manifest), environment=environment) as server:
        errors = CassetteWriter(tmp_path / "errors.jsonl")
        recorder = RecordingProxy(errors, server.address)
        async with KitchenClient.connect(recorder.start("127.0.0.1:0")) as kitchen:
            llm, embedding = kitchen.port("llm"), kitchen.port("embedding")

            async def streamed() -> list[Any]:
                return [each async for each in llm.StreamChat(STREAM)]

            for status in STATUSES:
                provider.will(wire.error(status, "no: KEY, in a URL: ?key=KEY", kind="KEY", code="KEY"))
                for name, call in (
                    ("chat", llm.Chat(CHAT)),
                    ("stream", streamed()),
                    ("embed", embedding.EmbedTexts(EMBED)),
                ):
                    seen[f"{name} {status}"] = await told(call)
                    assert (MARK.encode() in seen[f"{name} {status}"]) == (status != 401)
            for name, answer in {
                "html": Answer(b"<html>KEY</html>", content_type="text/html"),
                "json": Answer({"choices": "KEY", "data": "KEY"}),
                "event": Answer.stream([event({"error": {"message": "no: KEY", "type": "KEY", "code": "KEY"}})]),
            }.items():
                provider.will(answer)
                seen[f"chat {name}"] = await told(llm.Chat(CHAT))
                seen[f"stream {name}"] = await told(streamed())
                seen[f"embed {name}"] = await told(embedding.EmbedTexts(EMBED))
        await asyncio.to_thread(recorder.stop)
        # What a model says is its caller's; a recording that is told of the key does without it.
        replies = CassetteWriter(tmp_path / "replies.jsonl", redactor=Redactor([LLM_KEY]))
        recorder = RecordingProxy(replies, server.address)
        async with KitchenClient.connect(recorder.start("127.0.0.1:0")) as kitchen:
            provider.will(wire.reply("You are KEY."))
            assert (await kitchen.port("llm").Chat(CHAT)).reply.content == f"You are {LLM_KEY}."
        await asyncio.to_thread(recorder.stop)
        for words in (("list", "--json"), ("probe", "llm"), ("probe", "embedding", "--json")):
            seen[" ".join(words)] = await kitchen_says("adapters", *words, "--server", server.address)
        assert b"LLM_KEY_OF_TEST" in seen["list --json"]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        seen |= {str(path): path.read_bytes() for path in files}
    seen["log"] = Path(f"{server.data}.log").read_bytes()
    assert {each.headers["authorization"] for each in provider.asked} == {
        f"Bearer {LLM_KEY}",
        f"Bearer {EMBEDDING_KEY}",
    }
    assert len(read_cassette(tmp_path / "errors.jsonl").calls) == 3 * (len(STATUSES) + 3)
    assert "kitchen.db" in {path.name for path in files} and b"openai._base_client" in seen["log"]
    assert leaks(seen, LLM_KEY, EMBEDDING_KEY) == []
