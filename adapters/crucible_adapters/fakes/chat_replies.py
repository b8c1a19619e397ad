"""What the fake model says: pure functions of a seed and a conversation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.json_values import WORDS, value_of
from crucible_adapters.fakes.providers import TOKEN, count_tokens
from crucible_adapters.fakes.seeded import content_of, digest, pick, plain, to_json
from crucible_kit.messages import message_text

ChatRequest = llm_pb2.ChatRequest | llm_pb2.StreamChatRequest
_NO_CALLS = llm_pb2.ToolChoice.MODE_NONE
_MUST_CALL = (llm_pb2.ToolChoice.MODE_REQUIRED, llm_pb2.ToolChoice.MODE_NAMED)
_LEAST_WORDS, _MOST_WORDS = 8, 20
_LAST_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


@dataclass
class Reply:
    """What the model says.

    Attributes:
        content, thinking: as in ChatReply.
        tool_calls: as in ReplyMeta.
        finish_reason: as in ReplyMeta.
        stop_sequence: as in ReplyMeta.
    """

    content: str = ""
    thinking: str = ""
    tool_calls: list[message_pb2.ToolCall] = field(default_factory=list)
    finish_reason: llm_pb2.FinishReason = llm_pb2.FINISH_REASON_STOP
    stop_sequence: str = ""

    @property
    def output_tokens(self) -> int:
        """Tokens that were written."""
        calls = sum(count_tokens(each.name) + count_tokens(each.arguments_json) for each in self.tool_calls)
        return count_tokens(self.content) + self.thinking_tokens + calls

    @property
    def thinking_tokens(self) -> int:
        """Of them, those of thinking."""
        return count_tokens(self.thinking)


def reply_to(request: ChatRequest, seed: int, model: str, script: dict[str, str]) -> Reply:
    """The reply to a conversation, cut to the request's limits.

    Args:
        seed: the adapter's.
        script: replies by the last message's text.
    """
    options = request.options
    place = (seed, model, *(content_of(each).hex() for each in request.messages))
    # At temperature 0 there is nothing to choose.
    if not options.HasField("temperature") or options.temperature > 0:
        place = (*place, options.seed)
    reply = Reply()
    if options.thinking_budget_tokens:
        words = [pick(WORDS, *place, "thinking", number) for number in range(min(options.thinking_budget_tokens, 12))]
        reply.thinking = " ".join(words)
    called = _called_tools(request)
    if called:
        reply.finish_reason = llm_pb2.FINISH_REASON_TOOL_CALLS
        reply.tool_calls = [_tool_call(tool, number, place) for number, tool in enumerate(called)]
    else:
        reply.content = _content(request, place, script)
    _cut(reply, options)
    return reply


def _called_tools(request: ChatRequest) -> list[llm_pb2.Tool]:
    """The tools that the model asks for: those that the last message names, or the first when one must be called."""
    choice, last = request.tool_choice, request.messages[-1]
    if choice.mode == _NO_CALLS or not request.tools:
        return []
    if choice.mode == llm_pb2.ToolChoice.MODE_NAMED:
        return [tool for tool in request.tools if tool.name == choice.name]
    words = re.findall(r"[A-Za-z0-9_-]+", message_text(last)) if last.role == "user" else []
    named = [tool for tool in request.tools if tool.name in words]
    return named or (list(request.tools[:1]) if choice.mode in _MUST_CALL else [])


def _tool_call(tool: llm_pb2.Tool, number: int, place: tuple[object, ...]) -> message_pb2.ToolCall:
    schema = plain(tool.parameters) or {"type": "object"}
    arguments = value_of(schema, *place, tool.name, field=f"tools[{tool.name}].parameters")
    call_id = f"call_{digest(*place, number)[:12]}"
    return message_pb2.ToolCall(id=call_id, name=tool.name, arguments_json=to_json(arguments))


def _content(request: ChatRequest, place: tuple[object, ...], script: dict[str, str]) -> str:
    if request.HasField("response_format"):
        schema = plain(request.response_format.json_schema) or {"type": "object"}
        return to_json(value_of(schema, *place, field="response_format.json_schema"))
    last = request.messages[-1]
    text = message_text(last)
    if text in script:
        return script[text]
    if last.role == "tool":
        return f"The tool says: {text}"
    count = _LEAST_WORDS + int(digest(*place, "length")[:6], 16) % (_MOST_WORDS - _LEAST_WORDS + 1)
    words = [pick(WORDS, *place, number) for number in range(count)]
    return f"{words[0].capitalize()} {' '.join(words[1:])}."


def _cut(reply: Reply, options: llm_pb2.ChatOptions) -> None:
    """Ends the content at the first stop sequence, and everything at max_tokens."""
    found = [(reply.content.find(each), -len(each), each) for each in options.stop_sequences if each in reply.content]
    if found:
        place, _, reply.stop_sequence = min(found)
        reply.content = reply.content[:place]
    if not options.HasField("max_tokens") or reply.output_tokens <= options.max_tokens:
        return
    reply.finish_reason, reply.stop_sequence = llm_pb2.FINISH_REASON_LENGTH, ""
    reply.thinking = _first_tokens(reply.thinking, options.max_tokens)
    left = options.max_tokens - reply.thinking_tokens
    # A call that is cut can't be made.
    reply.tool_calls = []
    reply.content = _first_tokens(reply.content, left)


def _first_tokens(text: str, count: int) -> str:
    ends = [match.end() for match in TOKEN.finditer(text)]
    return text if len(ends) <= count else text[: ends[count - 1]] if count > 0 else ""


def pieces(text: str) -> list[str]:
    """A text as it comes in a stream: one token, with the space before it, at a time."""
    found = _LAST_TOKEN.findall(text)
    rest = text[len("".join(found)) :]
    return [*found, rest] if rest else found
