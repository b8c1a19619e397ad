"""Requests on the wire: what each provider is sent, and what is refused before it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from crucible_kit.settings import parse_settings
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused
from tests.llm.conftest import Make, chat, stream, user
from tests.llm.server import Answer, Server, event
from tests.llm.test_chat import CALLS, SCHEMA, TOOLS, struct
from tests.llm.wires import MODEL, AnthropicWire, GoogleWire, OpenAIWire, ToolUse, Wire

Message = message_pb2.Message
MODES = pb.ToolChoice.Mode
FORMAT = pb.ResponseFormat(name="place", json_schema=struct(SCHEMA))


async def asked(make: Make, server: Server, wire: Wire, *messages: str | Message, **fields: Any) -> Any:
    """The body that the provider is sent."""
    server.asked.clear()
    server.will(wire.reply("Good day."))
    await chat(await make(wire, **fields.pop("adapter", {})), *(messages or ("Hello",)), **fields)
    return server.asked[0].body


async def test_options_are_sent_or_left_to_the_provider(make: Make, server: Server) -> None:
    options = pb.ChatOptions(max_tokens=7, temperature=0, top_p=0.5, seed=3, stop_sequences=["END"])
    body = await asked(make, server, OpenAIWire(), options=options, adapter={"reasoning_effort": "low"})
    expected = {"temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["END"], "max_completion_tokens": 7}
    assert {name: body.get(name) for name in expected} == expected and body["reasoning_effort"] == "low"
    assert set(await asked(make, server, OpenAIWire())) == {"model", "messages"}
    body = await asked(make, server, OpenAIWire(), adapter={"max_tokens_parameter": "max_tokens", "max_tokens": 9})
    assert body["max_tokens"] == 9 and "max_completion_tokens" not in body

    body = await asked(make, server, GoogleWire(), options=options)
    told = body["generationConfig"]
    expected = {"temperature": 0, "topP": 0.5, "seed": 3, "stopSequences": ["END"], "maxOutputTokens": 7}
    assert {name: told.get(name) for name in expected} == expected
    assert set(await asked(make, server, GoogleWire())) <= {"contents", "generationConfig"}

    options = pb.ChatOptions(max_tokens=7, stop_sequences=["END"])
    body = await asked(make, server, AnthropicWire(), options=options, adapter={"effort": "low"})
    assert (body["max_tokens"], body["stop_sequences"], body["output_config"]) == (7, ["END"], {"effort": "low"})
    body = await asked(make, server, AnthropicWire())
    assert set(body) == {"model", "messages", "max_tokens"} and body["max_tokens"] == 4096


async def test_the_model_is_the_request_s_or_the_adapter_s(wire: Wire, make: Make, server: Server) -> None:
    server.will(wire.reply("Good day.", model="other-1"))
    stub = await make(wire, prices={"other": {"input": 1, "output": 1}})
    reply = await chat(stub, "Hello", model="other")
    assert reply.meta.model == "other-1" and reply.meta.cost.amount == pytest.approx(120 / 1e6)
    assert "other" in json.dumps([server.asked[0].path, server.asked[0].body])
    with refused(InvalidArgumentError, "FIELD_INVALID", field="model"):
        await chat(await make(wire, model=""), "Hello")


async def test_structured_output_is_asked_for_by_schema(wire: Wire, make: Make, server: Server) -> None:
    server.will(wire.reply('{"city": "Rome"}'))
    reply = await chat(await make(wire), "Where?", response_format=FORMAT)
    assert json.loads(reply.content) == {"city": "Rome"}
    body = server.asked[0].body
    match wire:
        case AnthropicWire():
            assert body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
        case OpenAIWire():
            schema = {"name": "place", "schema": SCHEMA, "strict": True}
            assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
        case GoogleWire():
            assert body["generationConfig"]["responseMimeType"] == "application/json"
            assert body["generationConfig"]["responseJsonSchema"] == SCHEMA


async def test_any_json_is_asked_for_where_the_provider_has_it(make: Make, server: Server) -> None:
    body = await asked(make, server, OpenAIWire(), response_format=pb.ResponseFormat())
    assert body["response_format"] == {"type": "json_object"}
    body = await asked(make, server, GoogleWire(), response_format=pb.ResponseFormat())
    assert body["generationConfig"] == {"responseMimeType": "application/json"}
    with refused(UnimplementedError, "CAPABILITY_MISSING", field="response_format.json_schema"):
        await asked(make, server, AnthropicWire(), response_format=pb.ResponseFormat())


CHOICES = {
    MODES.MODE_AUTO: ({"type": "auto"}, "auto", {"mode": "AUTO"}),
    MODES.MODE_NONE: ({"type": "none"}, "none", {"mode": "NONE"}),
    MODES.MODE_REQUIRED: ({"type": "any"}, "required", {"mode": "ANY"}),
    MODES.MODE_NAMED: (
        {"type": "tool", "name": "time"},
        {"type": "function", "function": {"name": "time"}},
        {"mode": "ANY", "allowedFunctionNames": ["time"]},
    ),
}


async def test_the_choice_of_tools_is_sent(make: Make, server: Server) -> None:
    for mode, (anthropic, openai, google) in CHOICES.items():
        choice = pb.ToolChoice(mode=mode, name="time" if mode == MODES.MODE_NAMED else "")
        fields = {"tools": TOOLS, "tool_choice": choice}
        assert (await asked(make, server, AnthropicWire(), **fields))["tool_choice"] == anthropic
        assert (await asked(make, server, OpenAIWire(), **fields))["tool_choice"] == openai
        assert (await asked(make, server, GoogleWire(), **fields))["toolConfig"]["functionCallingConfig"] == google


async def test_a_conversation_with_tools_goes_back_as_it_came(wire: Wire, make: Make, server: Server) -> None:
    thinking = "" if isinstance(wire, OpenAIWire) else "Hm."
    server.will(wire.reply("Let me see.", thinking=thinking, calls=CALLS), wire.reply("It rains."))
    stub = await make(wire)
    first = await chat(stub, "Weather?", tools=TOOLS)
    said = Message(
        role="assistant",
        content=first.content,
        tool_calls=first.meta.tool_calls,
        thinking=first.thinking,
        thinking_signature=first.thinking_signature,
    )
    results = [Message(role="tool", tool_call_id=f"call_{number}", content=f"result {number}") for number in (1, 2)]
    reply = await chat(stub, Message(role="system", content="Be brief."), "Weather?", said, *results, tools=TOOLS)
    assert reply.content == "It rains."
    body = server.asked[1].body
    match wire:
        case AnthropicWire():
            assert body["system"] == [{"type": "text", "text": "Be brief."}]
            _, assistant, tool = body["messages"]
            assert [each["type"] for each in assistant["content"]] == ["thinking", "text", "tool_use", "tool_use"]
            assert assistant["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
            assert assistant["content"][2]["input"] == {"city": "Köln"}
            found = [(each["tool_use_id"], each["content"]) for each in tool["content"]]
            assert tool["role"] == "user" and found == [("call_1", "result 1"), ("call_2", "result 2")]
        case OpenAIWire():
            roles = [each["role"] for each in body["messages"]]
            assert roles == ["system", "user", "assistant", "tool", "tool"]
            calls = body["messages"][2]["tool_calls"]
            assert [each["id"] for each in calls] == ["call_1", "call_2"]
            assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln"}
            assert body["messages"][4] == {"role": "tool", "tool_call_id": "call_2", "content": "result 2"}
        case GoogleWire():
            assert body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
            _, model, tool = body["contents"]
            assert model["parts"][0] == {"text": "Hm.", "thought": True}
            assert model["parts"][1] == {"text": "Let me see."}
            call = {"id": "call_1", "name": "weather", "args": {"city": "Köln"}}
            assert model["parts"][2] == {"functionCall": call, "thoughtSignature": "c2ln"}
            result = {"id": "call_2", "name": "time", "response": {"output": "result 2"}}
            assert len(tool["parts"]) == 2 and tool["parts"][1] == {"functionResponse": result}


async def test_thinking_is_asked_for_with_a_budget(make: Make, server: Server) -> None:
    options = pb.ChatOptions(thinking_budget_tokens=2000, max_tokens=4000)
    body = await asked(make, server, AnthropicWire(), options=options)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2000, "display": "summarized"}
    body = await asked(make, server, GoogleWire(), options=options)
    assert body["generationConfig"]["thinkingConfig"] == {"thinking_budget": 2000, "include_thoughts": True}
    none = pb.ChatOptions(thinking_budget_tokens=0)
    assert (await asked(make, server, AnthropicWire(), options=none))["thinking"] == {"type": "disabled"}
    body = await asked(make, server, GoogleWire(), options=none)
    assert body["generationConfig"]["thinkingConfig"] == {"thinking_budget": 0, "include_thoughts": False}
    for budget in (1023, 4000):
        options = pb.ChatOptions(thinking_budget_tokens=budget, max_tokens=4000)
        with refused(InvalidArgumentError, "FIELD_INVALID", field="options.thinking_budget_tokens", says="1024"):
            await asked(make, server, AnthropicWire(), options=options)


async def test_several_thoughts_of_anthropic_go_back_one_by_one(make: Make, server: Server) -> None:
    wire = AnthropicWire()
    answer = wire.reply("Good day.")
    thoughts = [
        {"type": "thinking", "thinking": "One. ", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "ZGF0YQ=="},
        {"type": "thinking", "thinking": "Two.", "signature": "bmFt"},
    ]
    server.will(Answer({**answer.body, "content": [*thoughts, *answer.body["content"]]}), answer)
    stub = await make(wire)
    reply = await chat(stub, "Hello")
    assert reply.thinking == "One. Two."
    said = Message(
        role="assistant",
        content=reply.content,
        thinking=reply.thinking,
        thinking_signature=reply.thinking_signature,
    )
    await chat(stub, "Hello", said, "Again")
    assert server.asked[1].body["messages"][1]["content"] == [*thoughts, {"type": "text", "text": "Good day."}]
    said.thinking = "One. Two. Three."
    with refused(InvalidArgumentError, "PROVIDER_REFUSED_REQUEST", field="messages[1].thinking_signature"):
        await chat(stub, "Hello", said, "Again")


async def test_calls_of_google_without_an_id_get_one(make: Make, server: Server) -> None:
    wire = GoogleWire()
    server.will(wire.reply(calls=[ToolUse("time", {}), ToolUse("time", {})]))
    calls = (await chat(await make(wire), "Time?", tools=TOOLS)).meta.tool_calls
    assert len({each.id for each in calls}) == 2 and all(each.signature == "c2ln" for each in calls)


async def test_finish_reasons_are_one_set(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    for finish, reason in (("length", pb.FINISH_REASON_LENGTH), ("filter", pb.FINISH_REASON_CONTENT_FILTER)):
        server.will(wire.reply("Good", finish=finish))
        assert (await chat(stub, "Hello")).meta.finish_reason == reason


async def test_what_is_withheld_is_an_answer(make: Make, server: Server) -> None:
    server.will(Answer({"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": MODEL}))
    reply = await chat(await make(GoogleWire()), "Hello")
    assert (reply.content, reply.meta.finish_reason) == ("", pb.FINISH_REASON_CONTENT_FILTER)
    assert "SAFETY" in str(reply.meta.raw) and not reply.meta.HasField("usage")
    wire = OpenAIWire()
    stub = await make(wire)
    server.will(wire.error(400, "The response was filtered.", code="content_filter"))
    for found in (await chat(stub, "Hello"), (await stream(stub, "Hello"))[-1].reply):
        assert found.meta.finish_reason == pb.FINISH_REASON_CONTENT_FILTER
    refusal = wire.reply("")
    refusal.body["choices"][0]["message"]["refusal"] = "I can't."
    server.will(refusal)
    reply = await chat(stub, "Hello")
    assert (reply.content, reply.meta.finish_reason) == ("", pb.FINISH_REASON_CONTENT_FILTER)
    assert reply.meta.raw.fields["refusal"].string_value == "I can't."


async def test_the_stop_sequence_is_told_where_the_provider_tells(make: Make, server: Server) -> None:
    options = pb.ChatOptions(stop_sequences=["END"])
    answer = AnthropicWire().reply("Good")
    server.will(Answer({**answer.body, "stop_reason": "stop_sequence", "stop_sequence": "END"}))
    meta = (await chat(await make(AnthropicWire()), "Hello", options=options)).meta
    assert (meta.finish_reason, meta.stop_sequence) == (pb.FINISH_REASON_STOP, "END")
    answer = OpenAIWire().reply("Good")
    answer.body["choices"][0]["stop_reason"] = "END"
    server.will(answer)
    assert (await chat(await make(OpenAIWire()), "Hello", options=options)).meta.stop_sequence == "END"


async def test_another_server_than_openai_s_needs_no_key(
    make: Make, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None of it is for another server.
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, f"outside-{name}")
    wire = OpenAIWire()
    chunks = wire.streamed(["Good day."])
    # Of vLLM: no usage, a role in every delta.
    sparse = [each for each in chunks if b"prompt_tokens" not in each]
    server.will(Answer.stream(sparse))
    stub = await make(wire, key="", model="Qwen/Qwen3-0.6B", prices={MODEL: {"input": 1, "output": 1}})
    reply = (await stream(stub, "Hello"))[-1].reply
    assert reply.content == "Good day." and not reply.meta.HasField("usage") and not reply.meta.HasField("cost")
    assert "authorization" not in server.asked[0].headers and "outside" not in repr(server.asked)
    assert (server.asked[0].path, server.asked[0].body["model"]) == ("/v1/chat/completions", "Qwen/Qwen3-0.6B")
    server.will(Answer({"object": "list", "data": [{"id": "Qwen/Qwen3-0.6B", "max_model_len": 4096}]}))
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(each.name, each.context_tokens) for each in models] == [("Qwen/Qwen3-0.6B", 4096)]
    server.will(Answer(b"Not Found", status=404, content_type="text/plain"))
    with refused(UnimplementedError, "CAPABILITY_MISSING", says="no list of models"):
        await stub.ListModels(pb.ListModelsRequest())


async def test_an_address_where_no_such_api_is_is_told(wire: Wire, make: Make, server: Server) -> None:
    server.will(Answer(b"<html>Not Found</html>", status=404, content_type="text/html"))
    address = f"{server.address}/shop"
    advice = f"{address} has no '{MODEL}': check the model's name, and that base_url is"
    with refused(NotFoundError, "MODEL_NOT_FOUND", says=advice):
        await chat(await make(wire, base_url=address), "Hello")


async def test_a_stream_without_the_end_of_its_last_event_is_whole_only_with_a_reason(
    make: Make, server: Server
) -> None:
    chunks = [event({"id": "1", "choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "eos"}]})]
    server.will(Answer.stream(chunks))
    reply = (await stream(await make(OpenAIWire()), "Hello"))[-1].reply
    assert (reply.content, reply.meta.model) == ("A", MODEL)
    assert reply.meta.finish_reason == pb.FINISH_REASON_UNSPECIFIED
    assert reply.meta.raw.fields["finish_reason"].string_value == "eos"


async def test_calls_of_one_index_are_told_apart_by_their_ids(make: Make, server: Server) -> None:
    def chunk(delta: dict[str, Any] | None, finish: str | None = None) -> bytes:
        return event({"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def call(**told: Any) -> bytes:
        return chunk({"tool_calls": [told]})

    chunks = [
        call(index=0, id="a", function={"name": "time", "arguments": '{"x":'}),
        call(index=0, function={"arguments": "1}"}),
        call(index=0, id="b", function={"name": "time", "arguments": "{}"}),
        chunk(None, "tool_calls"),
    ]
    server.will(Answer.stream(chunks))
    events = await stream(await make(OpenAIWire()), "Time?", tools=TOOLS)
    calls = events[-1].reply.meta.tool_calls
    assert [(each.id, each.arguments_json) for each in calls] == [("a", '{"x":1}'), ("b", "{}")]
    assert [each.tool_call_delta.index for each in events[:-1]] == [0, 0, 0, 1, 1]


async def test_an_address_with_a_password_is_refused_and_not_shown(wire: Wire, make: Make) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await make(wire, base_url="https://me:secret-4711@host/v1")
    assert caught.value.reason == "MANIFEST_INVALID" and "4711" not in repr(caught.value.__dict__)


@pytest.mark.parametrize("address", ["api.openai.com", "https://host/v1?key=1"])
def test_an_address_that_can_t_be_used_is_refused(wire: Wire, address: str) -> None:
    with refused(InvalidArgumentError, "MANIFEST_INVALID", field="options.base_url"):
        parse_settings(
            wire.adapter.description.options, {"base_url": address}, where="options", reason="MANIFEST_INVALID"
        )


async def test_models_are_listed_by_name_with_their_prices(wire: Wire, make: Make, server: Server) -> None:
    server.will(wire.models("b-model", "a-model"))
    stub = await make(wire, prices={"a-model": {"input": 3, "output": 15}})
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [each.name for each in models] == ["a-model", "b-model"]
    assert models[0].input_price_per_million_tokens.amount == 3
    assert models[0].output_price_per_million_tokens.amount == 15
    assert not models[1].HasField("input_price_per_million_tokens")
    if not isinstance(wire, OpenAIWire):
        assert (models[0].context_tokens, models[0].max_output_tokens) == (200_000, 8_192)
    await assert_pages(stub.ListModels, pb.ListModelsRequest(), "models")


def image() -> Message:
    media = message_pb2.Media(media_type="image/png", data=b"\x89")
    return Message(role="user", parts=[message_pb2.ContentPart(media=media)])


MISSING: list[tuple[type[Any], str, dict[str, Any]]] = [
    (AnthropicWire, "", {"options": pb.ChatOptions(seed=1)}),
    (AnthropicWire, "options.temperature", {"options": pb.ChatOptions(temperature=0)}),
    (AnthropicWire, "options.top_p", {"options": pb.ChatOptions(top_p=1)}),
    (AnthropicWire, "messages[0].name", {"messages": [Message(role="user", name="Ann", content="a")]}),
    (AnthropicWire, "messages[0].parts", {"messages": [image()]}),
    (OpenAIWire, "", {"options": pb.ChatOptions(thinking_budget_tokens=1)}),
    (OpenAIWire, "messages[0].thinking", {"messages": [Message(role="assistant", thinking="Hm.")]}),
    (
        OpenAIWire,
        "messages[0].tool_calls[0].signature",
        {
            "messages": [
                Message(role="assistant", tool_calls=[message_pb2.ToolCall(id="1", name="a", signature="c2ln")])
            ]
        },
    ),
    (GoogleWire, "messages[0].name", {"messages": [Message(role="user", name="Ann", content="a")]}),
]
TOOL = pb.Tool(name="a")
CALL = message_pb2.ToolCall(id="1", name="a", arguments_json="{")
BAD: list[tuple[str, dict[str, Any]]] = [
    ("messages[0].role", {"messages": [Message(role="robot")]}),
    ("messages[0].tool_call_id", {"messages": [Message(role="tool", content="x")]}),
    ("messages[0].tool_call_id", {"messages": [Message(role="tool", tool_call_id="1", content="x")]}),
    ("messages[0].tool_calls", {"messages": [Message(role="user", tool_calls=[CALL])]}),
    ("messages[1].tool_calls[0].id", {"messages": [Message(role="assistant", tool_calls=[CALL])] * 2}),
    ("tools[1].name", {"tools": [TOOL, TOOL]}),
    ("tool_choice", {"tool_choice": pb.ToolChoice(mode=MODES.MODE_AUTO)}),
    ("tool_choice.name", {"tools": [TOOL], "tool_choice": pb.ToolChoice(mode=MODES.MODE_NAMED, name="b")}),
    ("tool_choice.name", {"tools": [TOOL], "tool_choice": pb.ToolChoice(mode=MODES.MODE_AUTO, name="a")}),
]
BAD_FOR_SOME: list[tuple[type[Any], str, dict[str, Any]]] = [
    (
        AnthropicWire,
        "messages[0].tool_calls[0].arguments_json",
        {"messages": [Message(role="assistant", tool_calls=[CALL])]},
    ),
    (AnthropicWire, "messages", {"messages": [Message(role="system", content="a")]}),
    (AnthropicWire, "messages[0].content", {"messages": [Message(role="user")]}),
    (AnthropicWire, "messages[0].thinking_signature", {"messages": [Message(role="assistant", thinking="Hm.")]}),
    (GoogleWire, "messages[1].role", {"messages": [user("a"), Message(role="system", content="b")]}),
    (GoogleWire, "model", {"model": "../../secrets?x="}),
    (GoogleWire, "options.seed", {"options": pb.ChatOptions(seed=2**31)}),
]


async def test_what_a_provider_has_nothing_like_is_refused(make: Make, server: Server) -> None:
    for kind, field, fields in MISSING:
        request = pb.ChatRequest(**{"messages": [user("Hello")], **fields})
        with refused(UnimplementedError, "CAPABILITY_MISSING", field=field):
            await (await make(kind())).Chat(request)
    assert not server.asked


async def test_bad_requests_name_their_field(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    own = [(field, fields) for kind, field, fields in BAD_FOR_SOME if isinstance(wire, kind)]
    for field, fields in BAD + own:
        given = {"messages": [user("Hello")], **fields}
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await stub.Chat(pb.ChatRequest(**given))
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            [each async for each in stub.StreamChat(pb.StreamChatRequest(**given))]
    assert not server.asked
