"""Language models of others: one form of reply, and nothing of a request ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from pydantic import Field

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused, collect, one_by_one
from crucible_kit.conformance.paging import Page, all_keys, check_names
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings

_WEATHER = pb.Tool(
    name="get_weather",
    description="Tells the weather of a city.",
    parameters=to_struct(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        }
    ),
)
_ANSWER = to_struct(
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
        "required": ["city", "degrees"],
        "additionalProperties": False,
    }
)
_FINISHED = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
_FEW_TOKENS = 16


class LLMSettings(SuiteSettings):
    """Settings of the suite of language models."""

    call_seconds: float = Field(default=120.0, gt=0, description="Deadline of each call, in seconds.")
    model: str = Field(default="", description="Model to ask. Empty: the adapter's default.")
    question: str = Field(default="What is the capital of France?", description="What it is asked.")
    max_tokens: int = Field(default=256, ge=32, description="The most tokens of a reply.")


SUITE = Suite(port="llm", settings=LLMSettings)
LLM = Context[LLMSettings]


def user(text: str) -> message_pb2.Message:
    """A message of the user."""
    return message_pb2.Message(role="user", content=text)


def fields(context: LLM, *messages: message_pb2.Message, **given: Any) -> dict[str, Any]:
    """The fields of a request; options that are not given are max_tokens alone."""
    options = pb.ChatOptions(**{"max_tokens": context.settings.max_tokens, **given.pop("options", {})})
    asked = messages or (user(context.settings.question),)
    return {"model": context.settings.model, "messages": asked, "options": options, **given}


async def chat(context: LLM, *messages: message_pb2.Message, **given: Any) -> pb.ChatReply:
    """One reply."""
    return (await context.stub.Chat(pb.ChatRequest(**fields(context, *messages, **given)))).reply


async def check_missing(context: LLM, what: str, *messages: message_pb2.Message, **given: Any) -> None:
    """The request needs a capability that is not declared."""
    call = chat(context, *messages, **given)
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what=what)


def check_reply(reply: pb.ChatReply) -> None:
    """What every reply has."""
    meta = reply.meta
    check(bool(meta.provider), "a provider", "an empty one")
    check(bool(meta.model), "the model that answered", "an empty one")
    known = meta.finish_reason != pb.FINISH_REASON_UNSPECIFIED
    check(known, "a finish reason", pb.FinishReason.Name(meta.finish_reason))
    check(meta.latency_ms >= 0, "a latency of at least 0", meta.latency_ms)
    calls = meta.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    check_equal(calls, bool(meta.tool_calls), "whether the reply has tool calls, as its finish reason says,")
    if meta.HasField("usage"):
        check_usage(meta.usage)
    if meta.HasField("cost"):
        check_cost(meta.cost)


def check_usage(usage: usage_pb2.TokenUsage) -> None:
    """Counts that fit each other."""
    check(usage.input_tokens > 0, "input_tokens above 0", usage.input_tokens)
    check(usage.output_tokens >= 0, "output_tokens of at least 0", usage.output_tokens)
    check(
        0 <= usage.thinking_tokens <= usage.output_tokens, "thinking_tokens among output_tokens", usage.thinking_tokens
    )
    cached = usage.cached_input_tokens + usage.cache_write_input_tokens
    check(0 <= cached <= usage.input_tokens, "cached tokens among input_tokens", cached)


def check_cost(cost: usage_pb2.Cost) -> None:
    """A price in the contract's currency."""
    check_equal(cost.currency, "USD", "the currency of a cost")
    check(cost.amount >= 0, "a cost of at least 0", cost.amount)


@SUITE.samples
async def _samples(context: LLM) -> Samples:
    given: dict[str, Any] = fields(context)
    if "llm.tools" in context.capabilities:
        given["tools"] = [_WEATHER]
    return {
        "Chat": pb.ChatRequest(**given),
        "StreamChat": pb.StreamChatRequest(**given),
        "ListModels": pb.ListModelsRequest(),
    }


@SUITE.requirement(
    "LLM-CHAT-01",
    "A reply MUST have content, the provider and model that gave it, why it ended, and usage and cost that fit.",
    quote="A reply has the same form whoever the provider is.",
)
async def _replies(context: LLM) -> None:
    reply = await chat(
        context, message_pb2.Message(role="system", content="Be brief."), user(context.settings.question)
    )
    check_reply(reply)
    check(bool(reply.content), "some content", "none")
    finished = pb.FinishReason.Name(reply.meta.finish_reason)
    check(reply.meta.finish_reason in _FINISHED, "FINISH_REASON_STOP or FINISH_REASON_LENGTH", finished)


@SUITE.requirement(
    "LLM-CHAT-02",
    "max_tokens MUST be obeyed: a reply that is cut by it says FINISH_REASON_LENGTH.",
    quote="max_tokens or the model's longest sequence was reached.",
)
async def _cut(context: LLM) -> None:
    reply = await chat(context, user("Count from 1 to 1000, in words."), options={"max_tokens": _FEW_TOKENS})
    check_reply(reply)
    if reply.meta.HasField("usage"):
        written = reply.meta.usage.output_tokens
        check(written <= _FEW_TOKENS, f"at most {_FEW_TOKENS} tokens written", written)
        if written == _FEW_TOKENS and reply.meta.finish_reason != pb.FINISH_REASON_STOP:
            check_equal(reply.meta.finish_reason, pb.FINISH_REASON_LENGTH, "the finish reason of a reply that was cut")


@SUITE.requirement(
    "LLM-CHAT-03",
    "A stop sequence MUST not be part of the reply that it ends.",
    quote="Texts that end the reply; the one that did is not part of it.",
)
async def _stops(context: LLM) -> None:
    reply = await chat(
        context, user("Write these letters, one a line: a b c d e"), options={"stop_sequences": ["c", "e"]}
    )
    check_reply(reply)
    check("c" not in reply.content and "e" not in reply.content, "content without the stop sequences", reply.content)


@SUITE.requirement(
    "LLM-CHAT-04",
    "An unknown model MUST be NOT_FOUND MODEL_NOT_FOUND.",
    quote="NOT_FOUND MODEL_NOT_FOUND",
)
async def _unknown_model(context: LLM) -> None:
    call = chat(context, model="no-model-is-called-so")
    await check_refused(call, "NOT_FOUND", "MODEL_NOT_FOUND", what="an unknown model")


@SUITE.requirement(
    "LLM-CHAT-05",
    "What the model cannot honour MUST be refused, never ignored: an unknown role, a choice of tools without tools.",
    quote="is refused, never ignored",
)
async def _refuses(context: LLM) -> None:
    robot = message_pb2.Message(role="robot", content="Beep.")
    cases: dict[str, Any] = {
        "a message of an unknown role": chat(context, robot, user("Hello.")),
        "a choice of tools without tools": chat(context, tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
    }
    for what, call in one_by_one(cases):
        await check_refused(call, "INVALID_ARGUMENT|UNIMPLEMENTED", "FIELD_INVALID", "CAPABILITY_MISSING", what=what)


@SUITE.requirement(
    "LLM-TOOLS-01",
    "A tool that the request names MUST be called: a call with an id and arguments that are JSON.",
    quote="It calls the one named.",
    capability="llm.tools",
)
async def _calls(context: LLM) -> None:
    choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED, name=_WEATHER.name)
    question = user("How is the weather in Paris?")
    reply = await chat(context, question, tools=[_WEATHER], tool_choice=choice)
    check_reply(reply)
    check_equal(reply.meta.finish_reason, pb.FINISH_REASON_TOOL_CALLS, "the finish reason")
    calls = list(reply.meta.tool_calls)
    check_equal({call.name for call in calls}, {_WEATHER.name}, "the tools that are called")
    ids = [call.id for call in calls]
    check(all(ids) and len(set(ids)) == len(ids), "an id of its own for each call", ids)
    for call in calls:
        arguments = json.loads(call.arguments_json or "{}")
        check(isinstance(arguments, dict), "arguments that are a JSON object", call.arguments_json)
    asked = message_pb2.Message(
        role="assistant",
        content=reply.content,
        tool_calls=calls,
        thinking=reply.thinking,
        thinking_signature=reply.thinking_signature,
    )
    answers = [message_pb2.Message(role="tool", content="Sunny.", tool_call_id=call.id) for call in calls]
    check_reply(await chat(context, question, asked, *answers, tools=[_WEATHER]))


@SUITE.requirement(
    "LLM-TOOLS-02",
    "With MODE_NONE no tool MUST be called; a named tool has to be among the request's.",
    quote="set exactly when the mode is MODE_NAMED, and one of the request's tools.",
    capability="llm.tools",
)
async def _chooses(context: LLM) -> None:
    none = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
    reply = await chat(context, user("How is the weather in Paris?"), tools=[_WEATHER], tool_choice=none)
    check_equal(len(reply.meta.tool_calls), 0, "the number of tool calls with MODE_NONE")
    choices = {
        "a tool that is not there": pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED, name="no_tool"),
        "MODE_NAMED without a name": pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED),
    }
    for what, choice in choices.items():
        call = chat(context, tools=[_WEATHER], tool_choice=choice)
        await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what=what)


@SUITE.requirement(
    "LLM-TOOLS-03",
    "Tools MUST be UNIMPLEMENTED CAPABILITY_MISSING where llm.tools is not declared.",
    quote="Need the capability `llm.tools`.",
    without="llm.tools",
)
async def _no_tools(context: LLM) -> None:
    await check_missing(context, "a request with tools", tools=[_WEATHER])


@SUITE.requirement(
    "LLM-JSON-01",
    "Content that was asked for as JSON MUST satisfy its schema, when the reply is not cut.",
    quote="JSON Schema that the content will satisfy. Absent: any JSON object.",
    capability="llm.json_schema",
)
async def _json(context: LLM) -> None:
    wanted = pb.ResponseFormat(name="weather", json_schema=_ANSWER)
    reply = await chat(context, user("It is 21 degrees in Paris. Answer as JSON."), response_format=wanted)
    check_reply(reply)
    if reply.meta.finish_reason == pb.FINISH_REASON_LENGTH:
        raise CheckSkipped("the reply was cut: give a larger max_tokens")
    answer = json.loads(reply.content)
    good = (
        isinstance(answer, dict)
        and set(answer) == {"city", "degrees"}
        and isinstance(answer["city"], str)
        and isinstance(answer["degrees"], int)
    )
    check(good, "a JSON object with the text `city` and the whole number `degrees`", reply.content)


@SUITE.requirement(
    "LLM-JSON-02",
    "A response format MUST be UNIMPLEMENTED CAPABILITY_MISSING where llm.json_schema is not declared.",
    quote="Asks for JSON. Needs the capability `llm.json_schema`.",
    without="llm.json_schema",
)
async def _no_json(context: LLM) -> None:
    await check_missing(context, "a request for JSON", response_format=pb.ResponseFormat())


@SUITE.requirement(
    "LLM-SEED-01",
    "The same request with the same seed SHOULD give the same reply.",
    quote="the same request with the same seed gives the same reply as far as the provider can.",
    capability="llm.seed",
)
async def _seeds(context: LLM) -> None:
    first, again = [await chat(context, options={"seed": 7}) for _ in range(2)]
    check_equal(again.content, first.content, "the reply of the same seed")


@SUITE.requirement(
    "LLM-SEED-02",
    "A seed MUST be UNIMPLEMENTED CAPABILITY_MISSING where llm.seed is not declared.",
    quote="Needs the capability `llm.seed`.",
    without="llm.seed",
)
async def _no_seeds(context: LLM) -> None:
    await check_missing(context, "a request with a seed", options={"seed": 0})


@SUITE.requirement(
    "LLM-THINKING-01",
    "With a thinking budget of 0 the model MUST not think.",
    quote="How many tokens the model may think; 0: it does not think.",
    capability="llm.thinking",
)
async def _no_thoughts(context: LLM) -> None:
    reply = await chat(context, options={"thinking_budget_tokens": 0})
    check_reply(reply)
    check_equal(reply.thinking, "", "the thinking with a budget of 0")
    check_equal(reply.meta.usage.thinking_tokens, 0, "thinking_tokens with a budget of 0")


@SUITE.requirement(
    "LLM-THINKING-02",
    "A thinking budget MUST be UNIMPLEMENTED CAPABILITY_MISSING where llm.thinking is not declared.",
    quote="Needs the capability `llm.thinking`.",
    without="llm.thinking",
)
async def _no_thinking(context: LLM) -> None:
    await check_missing(context, "a thinking budget", options={"thinking_budget_tokens": 1024})


@SUITE.requirement(
    "LLM-MEDIA-01",
    "Media MUST be UNIMPLEMENTED CAPABILITY_MISSING where llm.media_input is not declared.",
    quote="Media need the capability `llm.media_input`.",
    without="llm.media_input",
)
async def _no_media(context: LLM) -> None:
    image = message_pb2.Media(media_type="image/png", data=b"\x89PNG\r\n\x1a\n")
    message = message_pb2.Message(role="user", parts=[message_pb2.ContentPart(media=image)])
    await check_missing(context, "a message with an image", message)


@SUITE.requirement(
    "LLM-STREAM-01",
    "The pieces of a stream MUST make up its reply, which is the last message, once.",
    quote="The whole reply. The last message, exactly once; a stream that ends without it has failed.",
    capability="llm.stream",
)
async def _streams(context: LLM) -> None:
    requests = [fields(context)]
    if "llm.tools" in context.capabilities:
        choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED, name=_WEATHER.name)
        requests.append(fields(context, user("How is the weather in Paris?"), tools=[_WEATHER], tool_choice=choice))
    for request in requests:
        messages = await collect(context.stub.StreamChat(pb.StreamChatRequest(**request)))
        kinds = [message.WhichOneof("event") for message in messages]
        check(None not in kinds, "messages that hold something", kinds)
        check_equal((kinds.count("reply"), kinds[-1]), (1, "reply"), "(number of replies, last message)")
        _check_pieces(messages[:-1], messages[-1].reply)


def _check_pieces(messages: Sequence[pb.StreamChatResponse], reply: pb.ChatReply) -> None:
    check_reply(reply)
    check_equal("".join(each.content_delta for each in messages), reply.content, "the content's pieces in order")
    check_equal("".join(each.thinking_delta for each in messages), reply.thinking, "the thinking's pieces in order")
    deltas = [each.tool_call_delta for each in messages if each.WhichOneof("event") == "tool_call_delta"]
    for index, call in enumerate(reply.meta.tool_calls):
        mine = [delta for delta in deltas if delta.index == index]
        check(len(mine) > 0, f"pieces of tool call {index}", "none")
        check_equal((mine[0].id, mine[0].name), (call.id, call.name), f"(id, name) of the first piece of call {index}")
        arguments = "".join(delta.arguments_json_delta for delta in mine)
        check_equal(arguments, call.arguments_json, f"the arguments' pieces of call {index}")


@SUITE.requirement(
    "LLM-STREAM-02",
    "A stream that its caller leaves MUST leave the adapter serving.",
    capability="llm.stream",
)
async def _leaves(context: LLM) -> None:
    for _ in range(4):
        async with aclosing(context.stub.StreamChat(pb.StreamChatRequest(**fields(context)))) as stream:
            await anext(stream)
    check_reply(await chat(context))


@SUITE.requirement(
    "LLM-MODELS-01",
    "ListModels MUST list the models by name, each once, in pages of any size, with prices in USD.",
    quote="ListModels lists the models, sorted by name.",
    capability="llm.list_models",
)
async def _models(context: LLM) -> None:
    names = await check_names(_pages(context), "the models")
    check(len(names) > 0, "at least one model", "none")
    for model in (await context.stub.ListModels(pb.ListModelsRequest())).models:
        for price in ("input_price_per_million_tokens", "output_price_per_million_tokens"):
            if model.HasField(price):
                check_cost(getattr(model, price))


def _pages(context: LLM) -> Any:
    async def page(size: int, token: str) -> Page:
        response = await context.stub.ListModels(pb.ListModelsRequest(page_size=size, page_token=token))
        return Page([model.name for model in response.models], response.next_page_token)

    return page


@SUITE.requirement(
    "LLM-MODELS-02",
    "A conversation longer than the model takes MUST be INVALID_ARGUMENT CONTEXT_LENGTH_EXCEEDED.",
    quote="INVALID_ARGUMENT CONTEXT_LENGTH_EXCEEDED with the limit in tokens",
    capability="llm.list_models",
)
async def _too_long(context: LLM) -> None:
    await all_keys(_pages(context), 0)
    models = (await context.stub.ListModels(pb.ListModelsRequest())).models
    wanted = context.settings.model
    small = [each for each in models if 0 < each.context_tokens <= 65536 and wanted in ("", each.name)]
    if not small:
        raise CheckSkipped("no model is known to take so little that a longer conversation is cheap")
    text = "word " * (small[0].context_tokens + 16)
    call = chat(context, user(text), model=small[0].name)
    await check_refused(call, "INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED", what="a conversation that is too long")
