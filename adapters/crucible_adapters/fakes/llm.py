"""A language model that says the same to the same conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field

from crucible.port.llm.v1 import llm_pb2, llm_pb2_grpc
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_adapters.fakes.chat_replies import ChatRequest, Reply, pieces, reply_to
from crucible_adapters.fakes.providers import count_tokens, model_not_found, ordered_error
from crucible_adapters.fakes.seeded import content_of, digest
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions, to_struct
from crucible_kit.errors import InvalidArgumentError, field_error
from crucible_kit.messages import message_text, refuse_unusable

_MODEL, _UNPRICED = "fake-chat", "fake-chat-unpriced"
_CONTEXT_TOKENS, _OUTPUT_TOKENS = 8192, 1024
_USD_PER_MILLION = {"input": 1.0, "output": 4.0}
_ROLES = ("system", "user", "assistant", "tool")
_PIECE_CHARACTERS = 8


class FakeLLMOptions(AdapterOptions):
    """What it says."""

    seed: int = Field(default=0, description="Seed of everything it says.")
    replies: dict[str, str] = Field(
        default_factory=dict, description="Replies by the text of the last message; others are derived from the seed."
    )


class FakeLLM(llm_pb2_grpc.LLMServiceServicer):
    """Replies that follow from the conversation.

    It calls the tools that the last message of the user names. `raise REASON` as the last message is answered with that
    error, `break REASON` with it in the middle of a stream, and `refuse` with a withheld reply.
    """

    description = AdapterDescription(
        name="fake-llm",
        port="llm",
        capabilities=("llm.json_schema", "llm.list_models", "llm.seed", "llm.stream", "llm.thinking", "llm.tools"),
        options=FakeLLMOptions,
    )

    def __init__(self, options: FakeLLMOptions, context: AdapterContext) -> None:
        self._options = options

    async def close(self) -> None:
        """It holds nothing."""

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        text = message_text(request.messages[-1])
        error = ordered_error(text, "raise") or ordered_error(text, "break")
        if error is not None:
            raise error
        return llm_pb2.ChatResponse(reply=self._reply(request))

    async def StreamChat(
        self, request: llm_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[llm_pb2.StreamChatResponse]:
        text = message_text(request.messages[-1])
        error = ordered_error(text, "raise")
        if error is not None:
            raise error
        reply = self._reply(request)
        broken = ordered_error(text, "break")
        for number, event in enumerate(_events(reply)):
            if broken is not None and number == 2:
                raise broken
            yield event
        yield llm_pb2.StreamChatResponse(reply=reply)

    async def ListModels(self, request: llm_pb2.ListModelsRequest, context: Any) -> llm_pb2.ListModelsResponse:
        models, token = page([_model(name) for name in _models()], lambda each: each.name, request, "ListModels")
        return llm_pb2.ListModelsResponse(models=models, next_page_token=token)

    def _reply(self, request: ChatRequest) -> llm_pb2.ChatReply:
        self._check(request)
        model = request.model or _MODEL
        if model not in _models():
            raise model_not_found(model, _models())
        if request.options.max_tokens > _OUTPUT_TOKENS:
            problem = f"is {request.options.max_tokens}, a reply of {model} has at most {_OUTPUT_TOKENS}"
            raise field_error("options.max_tokens", problem)
        input_tokens = sum(_message_tokens(each) for each in request.messages)
        input_tokens += sum(count_tokens(f"{tool.name} {tool.description}") for tool in request.tools)
        if input_tokens >= _CONTEXT_TOKENS:
            raise InvalidArgumentError(
                f"messages: {input_tokens} tokens leave no room for a reply, {model} takes {_CONTEXT_TOKENS} in all",
                reason="CONTEXT_LENGTH_EXCEEDED",
                metadata={"field": "messages", "limit": _CONTEXT_TOKENS, "tokens": input_tokens},
            )
        reply = reply_to(request, self._options.seed, model, self._options.replies)
        if message_text(request.messages[-1]) == "refuse":
            reply = Reply(finish_reason=llm_pb2.FINISH_REASON_CONTENT_FILTER)
        return self._message(reply, model, input_tokens, request)

    def _message(self, reply: Reply, model: str, input_tokens: int, request: ChatRequest) -> llm_pb2.ChatReply:
        usage = usage_pb2.TokenUsage(input_tokens=input_tokens, output_tokens=reply.output_tokens)
        if request.options.thinking_budget_tokens:
            usage.thinking_tokens = reply.thinking_tokens
        meta = llm_pb2.ReplyMeta(
            provider="fake",
            model=model,
            usage=usage,
            finish_reason=reply.finish_reason,
            tool_calls=reply.tool_calls,
            # What it would take at a token a millisecond: a clock would tell two equal requests different things.
            latency_ms=float(usage.output_tokens),
            raw=to_struct({"id": f"fake-{digest(model, content_of(request).hex())[:12]}"}),
            stop_sequence=reply.stop_sequence,
        )
        if model != _UNPRICED:
            amount = input_tokens * _USD_PER_MILLION["input"] + usage.output_tokens * _USD_PER_MILLION["output"]
            meta.cost.CopyFrom(usage_pb2.Cost(amount=amount / 1e6, currency="USD"))
        signature = self._signature(reply.thinking)
        return llm_pb2.ChatReply(
            content=reply.content, meta=meta, thinking=reply.thinking, thinking_signature=signature
        )

    def _signature(self, thinking: str) -> str:
        return digest(self._options.seed, "thinking", thinking)[:24] if thinking else ""

    def _check(self, request: ChatRequest) -> None:
        refuse_unusable(request.messages, port="llm", usable=("tools", "thinking"))
        asked: set[str] = set()
        for number, message in enumerate(request.messages):
            where = f"messages[{number}]"
            if message.role not in _ROLES:
                raise field_error(f"{where}.role", f"is {message.role!r}; it must be one of {', '.join(_ROLES)}")
            if (message.role == "tool") != bool(message.tool_call_id):
                raise field_error(f"{where}.tool_call_id", "must be set in a message of the role tool, and only there")
            if message.tool_call_id and message.tool_call_id not in asked:
                raise field_error(f"{where}.tool_call_id", f"{message.tool_call_id!r} was not asked for before")
            if message.thinking_signature != self._signature(message.thinking):
                raise InvalidArgumentError(
                    f"{where}.thinking_signature: does not belong to the thinking: send both back as they came",
                    reason="PROVIDER_REFUSED_REQUEST",
                    metadata={"field": f"{where}.thinking_signature"},
                )
            asked.update(call.id for call in message.tool_calls)
        _check_tools(request)


def _check_tools(request: ChatRequest) -> None:
    names = [tool.name for tool in request.tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise field_error(f"tools[{number}].name", f"{name!r} is there twice")
    choice = request.tool_choice
    if request.HasField("tool_choice") and not names:
        raise field_error("tool_choice", "is set without tools: leave it out")
    named = choice.mode == llm_pb2.ToolChoice.MODE_NAMED
    if named != bool(choice.name):
        raise field_error("tool_choice.name", "must be set for MODE_NAMED, and only for it")
    if named and choice.name not in names:
        raise field_error("tool_choice.name", f"{choice.name!r} is none of the tools: {', '.join(names)}")


def _events(reply: llm_pb2.ChatReply) -> list[llm_pb2.StreamChatResponse]:
    events = [llm_pb2.StreamChatResponse(thinking_delta=each) for each in pieces(reply.thinking)]
    events += [llm_pb2.StreamChatResponse(content_delta=each) for each in pieces(reply.content)]
    for index, call in enumerate(reply.meta.tool_calls):
        events += [llm_pb2.StreamChatResponse(tool_call_delta=each) for each in _call_deltas(index, call)]
    return events


def _call_deltas(index: int, call: message_pb2.ToolCall) -> list[llm_pb2.ToolCallDelta]:
    text = call.arguments_json
    parts = [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]
    first = llm_pb2.ToolCallDelta(index=index, id=call.id, name=call.name)
    return [first, *(llm_pb2.ToolCallDelta(index=index, arguments_json_delta=each) for each in parts)]


def _message_tokens(message: message_pb2.Message) -> int:
    calls = sum(count_tokens(f"{call.name} {call.arguments_json}") for call in message.tool_calls)
    return 1 + count_tokens(message_text(message)) + count_tokens(message.thinking) + calls


def _models() -> list[str]:
    return [_MODEL, _UNPRICED]


def _model(name: str) -> llm_pb2.LanguageModel:
    model = llm_pb2.LanguageModel(name=name, context_tokens=_CONTEXT_TOKENS, max_output_tokens=_OUTPUT_TOKENS)
    if name != _UNPRICED:
        for kind, amount in _USD_PER_MILLION.items():
            price = getattr(model, f"{kind}_price_per_million_tokens")
            price.CopyFrom(usage_pb2.Cost(amount=amount, currency="USD"))
    return model
