"""One form of reply, whoever the provider is: its own library asks a server that speaks its wire format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible.type.v1 import message_pb2
from tests.contract.conftest import Binding
from tests.llm.conftest import KEY, Make, chat, stream
from tests.llm.server import Answer, Server
from tests.llm.wires import CACHED, INPUT, MODEL, OUTPUT, THINKING, ToolUse, Wire

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "maxProperties": 3}
CALLS = (ToolUse("weather", {"city": "Köln"}, "call_1"), ToolUse("time", {}, "call_2"))


def struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


TOOLS = [pb.Tool(name="weather", description="the weather", parameters=struct(SCHEMA)), pb.Tool(name="time")]


async def test_a_reply_tells_how_it_came_about(wire: Wire, make: Make, bound: Binding, server: Server) -> None:
    server.will(wire.reply("Good day.", thinking="A greeting."))
    stub = await make(wire, binding=bound, prices={MODEL: {"input": 3, "output": 15, "cached_input": 0.3}})
    reply = await chat(stub, message_pb2.Message(role="system", content="Be kind."), "Hello")
    assert (reply.content, reply.thinking) == ("Good day.", "A greeting.")
    meta = reply.meta
    assert (meta.provider, meta.model, meta.finish_reason) == (wire.name, MODEL, pb.FINISH_REASON_STOP)
    usage = meta.usage
    assert (usage.input_tokens, usage.output_tokens) == (INPUT, OUTPUT)
    assert (usage.cached_input_tokens, usage.thinking_tokens) == (CACHED, THINKING)
    assert meta.cost.currency == "USD"
    assert meta.cost.amount == pytest.approx(((INPUT - CACHED) * 3 + CACHED * 0.3 + OUTPUT * 15) / 1e6)
    raw = json.dumps(MessageToDict(meta.raw))
    assert "_1" in raw or "-1" in raw
    assert "Good day" not in raw and "greeting" not in raw
    asked = server.asked[0]
    header, form = wire.key_header
    assert asked.headers[header] == form.format(KEY)
    assert "Be kind." in json.dumps(asked.body) and "Hello" in json.dumps(asked.body)


async def test_a_stream_s_pieces_are_the_reply(wire: Wire, make: Make, bound: Binding, server: Server) -> None:
    server.will(Answer.stream(wire.streamed(["Good ", "day."], thinking=["A ", "greeting."])))
    stub = await make(wire, binding=bound, prices={MODEL: {"input": 3, "output": 15}})
    events = await stream(stub, "Hello")
    kinds = [each.WhichOneof("event") for each in events]
    assert kinds == ["thinking_delta", "thinking_delta", "content_delta", "content_delta", "reply"]
    reply = events[-1].reply
    assert (reply.content, reply.thinking) == ("Good day.", "A greeting.")
    assert (reply.meta.finish_reason, reply.meta.model) == (pb.FINISH_REASON_STOP, MODEL)
    assert (reply.meta.usage.input_tokens, reply.meta.usage.output_tokens) == (INPUT, OUTPUT)
    assert (reply.meta.usage.cached_input_tokens, reply.meta.usage.thinking_tokens) == (CACHED, THINKING)
    assert reply.meta.cost.amount == pytest.approx((INPUT * 3 + OUTPUT * 15) / 1e6)


async def test_tools_are_called_whole_and_in_pieces(wire: Wire, make: Make, bound: Binding, server: Server) -> None:
    server.will(wire.reply(calls=CALLS), Answer.stream(wire.streamed(calls=CALLS)))
    stub = await make(wire, binding=bound)
    whole = await chat(stub, "What is it like?", tools=TOOLS)
    events = await stream(stub, "What is it like?", tools=TOOLS)
    for reply in (whole, events[-1].reply):
        assert reply.meta.finish_reason == pb.FINISH_REASON_TOOL_CALLS and not reply.content
        assert [(call.id, call.name) for call in reply.meta.tool_calls] == [("call_1", "weather"), ("call_2", "time")]
        assert json.loads(reply.meta.tool_calls[0].arguments_json) == {"city": "Köln"}
        assert json.loads(reply.meta.tool_calls[1].arguments_json or "{}") == {}
    deltas = [each.tool_call_delta for each in events if each.HasField("tool_call_delta")]
    for index, call in enumerate(events[-1].reply.meta.tool_calls):
        own = [each for each in deltas if each.index == index]
        assert (own[0].id, own[0].name) == (call.id, call.name)
        assert "".join(each.arguments_json_delta for each in own) == call.arguments_json
        assert not any(each.id or each.name for each in own[1:])
    # The schema's whole numbers are whole again: a Struct has none.
    assert '"maxProperties": 3, ' in json.dumps(server.asked[0].body)
