"""The same, asked of the providers themselves: `make test-live`, with a key in the environment."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import NotFoundError, UnauthenticatedError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.llm.conftest import chat, stream
from tests.llm.test_chat import struct
from tests.llm.wires import Wire

pytestmark = pytest.mark.live
_PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


async def open_stub(wire: Wire, binding: Binding, folder: Path, key: str) -> Any:
    kind: Any = wire.adapter
    model = os.environ.get(f"LIVE_MODEL_{wire.name.upper()}", wire.live_model)
    options = kind.description.options(model=model, max_tokens=2000, prices={model: {"input": 1, "output": 1}})
    return await binding.stub(kind(options, AdapterContext(data_dir=folder, secrets={"api_key": key})))


@pytest.fixture
async def live(wire: Wire, serialised: Binding, tmp_path: Path) -> AsyncIterator[Any]:
    key = os.environ.get(wire.variable, "")
    if not key:
        pytest.skip(f"{wire.variable} is not set")
    yield await open_stub(wire, serialised, tmp_path, key)


async def test_a_reply_tells_how_it_came_about(wire: Wire, live: Any) -> None:
    reply = await chat(live, "Say good day and nothing else.")
    assert "good day" in reply.content.lower()
    meta = reply.meta
    assert (meta.provider, meta.finish_reason) == (wire.name, pb.FINISH_REASON_STOP)
    assert meta.usage.input_tokens > 0 and meta.usage.output_tokens > 0 and meta.cost.amount > 0
    assert meta.latency_ms > 0 and meta.raw.fields


async def test_a_stream_s_pieces_are_the_reply(live: Any) -> None:
    events = await stream(live, "Count from one to twenty in words.")
    reply = events[-1].reply
    assert "".join(each.content_delta for each in events) == reply.content
    assert "twenty" in reply.content.lower() and reply.meta.usage.output_tokens > 0


async def test_tools_are_called(live: Any) -> None:
    tool = pb.Tool(name="weather", description="the weather of a city", parameters=struct(_PLACE))
    choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED, name="weather")
    reply = await chat(live, "What is the weather in Rome?", tools=[tool], tool_choice=choice)
    assert reply.meta.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert "rome" in json.loads(reply.meta.tool_calls[0].arguments_json)["city"].lower()


async def test_structured_output_satisfies_its_schema(live: Any) -> None:
    wanted = pb.ResponseFormat(name="place", json_schema=struct(_PLACE))
    reply = await chat(live, "Which city is the capital of Italy?", response_format=wanted)
    assert json.loads(reply.content) == {"city": "Rome"}


async def test_models_are_listed(live: Any) -> None:
    assert (await live.ListModels(pb.ListModelsRequest())).models


async def test_an_unknown_model_and_a_wrong_key_are_told(
    wire: Wire, live: Any, serialised: Binding, tmp_path: Path
) -> None:
    with refused(NotFoundError, "MODEL_NOT_FOUND"):
        await chat(live, "Hello", model="no-such-model-4711")
    stub = await open_stub(wire, serialised, tmp_path, "sk-wrong-0123456789abcdefghij")
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS"):
        await chat(stub, "Hello")
