"""LLM: one form of reply, in one piece or in many, and nothing of a request is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.llm import FakeLLM, FakeLLMOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused

MODES = pb.ToolChoice.Mode
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["city", "days"],
}


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeLLM(FakeLLMOptions(replies={"say it": "One two. Three, four five!"}), context))


def user(text: str) -> message_pb2.Message:
    return message_pb2.Message(role="user", content=text)


def struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


def tool(name: str, schema: dict[str, Any] | None = None) -> pb.Tool:
    return pb.Tool(name=name, description=f"the {name}", parameters=struct(schema) if schema else None)


async def chat(stub: Any, *messages: str | message_pb2.Message, **fields: Any) -> pb.ChatReply:
    given = [user(each) if isinstance(each, str) else each for each in messages]
    return (await stub.Chat(pb.ChatRequest(messages=given, **fields))).reply


async def stream(stub: Any, *messages: str, **fields: Any) -> list[pb.StreamChatResponse]:
    request = pb.StreamChatRequest(messages=[user(each) for each in messages], **fields)
    return [event async for event in stub.StreamChat(request)]


async def test_a_reply_tells_how_it_came_about(stub: Any) -> None:
    reply = await chat(stub, "say it")
    assert reply.content == "One two. Three, four five!"
    meta = reply.meta
    assert (meta.provider, meta.model, meta.finish_reason) == ("fake", "fake-chat", pb.FINISH_REASON_STOP)
    assert (meta.usage.input_tokens, meta.usage.output_tokens) == (3, 8)
    assert not meta.usage.HasField("thinking_tokens") and not meta.tool_calls and not meta.stop_sequence
    assert meta.cost.currency == "USD" and meta.cost.amount == pytest.approx((3 * 1 + 8 * 4) / 1e6)
    assert meta.latency_ms > 0 and meta.raw.fields["id"].string_value


async def test_the_same_request_gets_the_same_reply_and_a_seed_another(stub: Any) -> None:
    first = await chat(stub, "hello")
    assert await chat(stub, "hello") == first
    assert (await chat(stub, "hallo")).content != first.content
    seeded = [await chat(stub, "hello", options=pb.ChatOptions(seed=seed)) for seed in (1, 2, 1)]
    assert seeded[0] == seeded[2] and seeded[0].content != seeded[1].content
    # Nothing is chosen at temperature 0.
    greedy = [await chat(stub, "hello", options=pb.ChatOptions(seed=seed, temperature=0)) for seed in (1, 2)]
    assert greedy[0].content == greedy[1].content


async def test_a_price_that_is_not_known_is_no_cost(stub: Any) -> None:
    reply = await chat(stub, "hello", model="fake-chat-unpriced")
    assert reply.meta.model == "fake-chat-unpriced" and reply.meta.HasField("usage") and not reply.meta.HasField("cost")


async def test_a_stream_s_pieces_are_the_reply(stub: Any) -> None:
    tools = [tool("weather", SCHEMA), tool("time")]
    options = pb.ChatOptions(thinking_budget_tokens=5)
    for text in ("say it", "the weather and the time please"):
        events = await stream(stub, text, tools=tools, options=options)
        reply = await chat(stub, text, tools=tools, options=options)
        assert [each.WhichOneof("event") for each in events].index("reply") == len(events) - 1
        assert events[-1].reply == reply
        assert "".join(each.content_delta for each in events) == reply.content
        assert "".join(each.thinking_delta for each in events) == reply.thinking != ""
        for index, call in enumerate(reply.meta.tool_calls):
            found = [each.tool_call_delta for each in events if each.HasField("tool_call_delta")]
            deltas = [each for each in found if each.index == index]
            assert (deltas[0].id, deltas[0].name) == (call.id, call.name)
            assert "".join(each.arguments_json_delta for each in deltas) == call.arguments_json
            assert not any(each.id or each.name for each in deltas[1:])
    assert len(events) > 4


async def test_a_stop_sequence_ends_the_reply_and_is_not_part_of_it(stub: Any) -> None:
    reply = await chat(stub, "say it", options=pb.ChatOptions(stop_sequences=["five", "Three"]))
    assert (reply.content, reply.meta.stop_sequence) == ("One two. ", "Three")
    assert reply.meta.finish_reason == pb.FINISH_REASON_STOP
    assert reply.meta.usage.output_tokens == 3


async def test_max_tokens_count_thinking_too(stub: Any) -> None:
    for limit, content in ((2, "One two"), (3, "One two."), (8, "One two. Three, four five!")):
        reply = await chat(stub, "say it", options=pb.ChatOptions(max_tokens=limit))
        cut = limit < 8
        assert reply.content == content
        assert reply.meta.finish_reason == (pb.FINISH_REASON_LENGTH if cut else pb.FINISH_REASON_STOP)
        assert reply.meta.usage.output_tokens == limit
    reply = await chat(stub, "say it", options=pb.ChatOptions(max_tokens=6, thinking_budget_tokens=4))
    assert reply.meta.usage.thinking_tokens == 4 == len(reply.thinking.split())
    assert (reply.content, reply.meta.usage.output_tokens) == ("One two", 6)
    assert not (await chat(stub, "say it", options=pb.ChatOptions(thinking_budget_tokens=0))).thinking


async def test_tools_are_called_with_arguments_of_their_schema(stub: Any) -> None:
    tools = [tool("weather", SCHEMA), tool("time")]
    reply = await chat(stub, "the time and the weather please", tools=tools)
    assert reply.meta.finish_reason == pb.FINISH_REASON_TOOL_CALLS and not reply.content
    assert [call.name for call in reply.meta.tool_calls] == ["weather", "time"]
    arguments = json.loads(reply.meta.tool_calls[0].arguments_json)
    assert set(arguments) == {"city", "days"} and arguments["days"] in (1, 2, 3) and isinstance(arguments["city"], str)
    assert len({call.id for call in reply.meta.tool_calls}) == 2
    assert (await chat(stub, "something else", tools=tools)).meta.finish_reason == pb.FINISH_REASON_STOP


async def test_a_tool_s_answer_goes_back_to_the_model(stub: Any) -> None:
    tools = [tool("weather", SCHEMA)]
    asked = await chat(stub, "weather?", tools=tools, options=pb.ChatOptions(thinking_budget_tokens=3))
    call = asked.meta.tool_calls[0]
    said = message_pb2.Message(
        role="assistant",
        tool_calls=[call],
        thinking=asked.thinking,
        thinking_signature=asked.thinking_signature,
    )
    answer = message_pb2.Message(role="tool", tool_call_id=call.id, content="it rains")
    reply = await chat(stub, "weather?", said, answer, tools=tools)
    assert "it rains" in reply.content and reply.meta.finish_reason == pb.FINISH_REASON_STOP
    answer.tool_call_id = "call_0"
    with refused(InvalidArgumentError, "FIELD_INVALID", field="messages[2].tool_call_id"):
        await chat(stub, "weather?", said, answer, tools=tools)
    said.thinking_signature = "forged"
    with refused(InvalidArgumentError, "PROVIDER_REFUSED_REQUEST", says="thinking_signature"):
        await chat(stub, "weather?", said, tools=tools)


async def test_a_choice_of_tools_is_kept(stub: Any) -> None:
    tools = [tool("weather"), tool("time")]

    async def called(text: str, **choice: Any) -> list[str]:
        reply = await chat(stub, text, tools=tools, tool_choice=pb.ToolChoice(**choice))
        return [call.name for call in reply.meta.tool_calls]

    assert await called("the time", mode=MODES.MODE_NONE) == []
    assert await called("the time", mode=MODES.MODE_AUTO) == ["time"]
    assert len(await called("hello", mode=MODES.MODE_REQUIRED)) == 1
    assert await called("the weather", mode=MODES.MODE_NAMED, name="time") == ["time"]


async def test_structured_output_satisfies_its_schema(stub: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3},
            "last": {"type": "null"},
            "sure": {"type": "boolean"},
            "nested": SCHEMA,
        },
    }
    reply = await chat(stub, "hello", response_format=pb.ResponseFormat(json_schema=struct(schema)))
    value = json.loads(reply.content)
    assert set(value) == set(schema["properties"])
    assert value["kind"] in ("a", "b") and 0 <= value["score"] <= 1 and value["last"] is None
    assert len(value["tags"]) == 3 and isinstance(value["sure"], bool) and set(value["nested"]) == {"city", "days"}
    assert isinstance(json.loads((await chat(stub, "hello", response_format=pb.ResponseFormat())).content), dict)
    bad = pb.ResponseFormat(json_schema=struct({"type": "object", "patternProperties": {}}))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="response_format.json_schema", says="patternProperties"):
        await chat(stub, "hello", response_format=bad)


async def test_what_the_adapter_can_t_use_is_refused(stub: Any) -> None:
    image = message_pb2.ContentPart(media=message_pb2.Media(media_type="image/png", data=b"\x89"))
    with refused(UnimplementedError, "CAPABILITY_MISSING", field="messages[0].parts", says="llm.media_input"):
        await chat(stub, message_pb2.Message(role="user", parts=[image]))
    parts = [message_pb2.ContentPart(text="say "), message_pb2.ContentPart(text="it")]
    reply = await chat(stub, message_pb2.Message(role="user", parts=parts, trainable=True))
    assert reply.content == "One two. Three, four five!"


BAD = {
    "messages[0].role": {"messages": [message_pb2.Message(role="robot")]},
    "messages[0].content": {
        "messages": [message_pb2.Message(role="user", content="a", parts=[message_pb2.ContentPart(text="b")])]
    },
    "messages[0].parts[0]": {"messages": [message_pb2.Message(role="user", parts=[message_pb2.ContentPart()])]},
    "messages[0].tool_call_id": {"messages": [message_pb2.Message(role="tool", content="x")]},
    "tools[1].name": {"tools": [tool("a"), tool("a")]},
    "tool_choice": {"tool_choice": pb.ToolChoice(mode=MODES.MODE_AUTO)},
    "tool_choice.name": {"tools": [tool("a")], "tool_choice": pb.ToolChoice(mode=MODES.MODE_NAMED, name="b")},
    "options.max_tokens": {"options": pb.ChatOptions(max_tokens=10**6)},
    "options.temperature": {"options": pb.ChatOptions(temperature=2.5)},
    "tools[0].name": {"tools": [tool("no spaces")]},
}


async def test_bad_requests_name_their_field(stub: Any) -> None:
    for field, fields in BAD.items():
        for method, kind in ((stub.Chat, pb.ChatRequest), (stub.StreamChat, pb.StreamChatRequest)):
            request = kind(**{"messages": [user("hello")], **fields})
            with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
                if kind is pb.ChatRequest:
                    await method(request)
                else:
                    [event async for event in method(request)]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="messages"):
        await chat(stub)
    with refused(NotFoundError, "MODEL_NOT_FOUND", says="'gpt'"):
        await chat(stub, "hello", model="gpt")


async def test_a_conversation_that_is_too_long_tells_the_limit(stub: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await chat(stub, "word " * 9000)
    assert (caught.value.reason, caught.value.metadata["limit"]) == ("CONTEXT_LENGTH_EXCEEDED", "8192")


ERRORS = {
    "PROVIDER_UNAVAILABLE": (UnavailableError, True),
    "RATE_LIMITED": (ResourceExhaustedError, True),
    "QUOTA_EXHAUSTED": (ResourceExhaustedError, False),
    "PROVIDER_TIMEOUT": (DeadlineExceededError, False),
    "PROVIDER_CREDENTIALS": (UnauthenticatedError, False),
    "PROVIDER_FORBIDDEN": (PermissionDeniedError, False),
    "PROVIDER_REPLY_MALFORMED": (DataLossError, False),
    "PROVIDER_REFUSED_REQUEST": (InvalidArgumentError, False),
}


async def test_errors_of_the_provider_say_whether_to_try_again(stub: Any) -> None:
    for reason, (kind, retry) in ERRORS.items():
        for call in (chat(stub, f"raise {reason}"), stream(stub, f"raise {reason}")):
            with pytest.raises(KitchenError) as caught:
                await call
            error = caught.value
            assert (type(error), error.reason, error.retry_delay is not None) == (kind, reason, retry)


async def test_an_error_ends_a_stream_whatever_has_come(stub: Any) -> None:
    events = []
    with pytest.raises(UnavailableError):
        request = pb.StreamChatRequest(messages=[user("break PROVIDER_UNAVAILABLE")])
        async for event in stub.StreamChat(request):
            events.append(event.WhichOneof("event"))  # noqa: PERF401 - a comprehension would lose them
    assert events == ["content_delta", "content_delta"]


async def test_a_withheld_reply_is_an_answer(stub: Any) -> None:
    reply = await chat(stub, "refuse")
    assert (reply.content, reply.meta.finish_reason) == ("", pb.FINISH_REASON_CONTENT_FILTER)


async def test_models_are_listed_with_their_prices(stub: Any) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [each.name for each in models] == ["fake-chat", "fake-chat-unpriced"]
    assert models[0].input_price_per_million_tokens.currency == "USD" and models[0].context_tokens == 8192
    assert not models[1].HasField("input_price_per_million_tokens")
    await assert_pages(stub.ListModels, pb.ListModelsRequest(), "models")
