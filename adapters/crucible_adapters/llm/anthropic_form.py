"""Anthropic's Messages API: its form of requests, replies and streams. Pure functions on JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_adapters.llm.checks import ChatRequest, arguments_of, plain
from crucible_adapters.llm.errors import unusable
from crucible_adapters.llm.replies import Draft, Piece, without
from crucible_kit.errors import field_error
from crucible_kit.messages import message_text

_LEAST_THINKING = 1024
_FINISH = {
    "end_turn": llm_pb2.FINISH_REASON_STOP,
    "stop_sequence": llm_pb2.FINISH_REASON_STOP,
    "max_tokens": llm_pb2.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": llm_pb2.FINISH_REASON_LENGTH,
    "tool_use": llm_pb2.FINISH_REASON_TOOL_CALLS,
    "refusal": llm_pb2.FINISH_REASON_CONTENT_FILTER,
}
_CHOICES = {
    llm_pb2.ToolChoice.MODE_UNSPECIFIED: "auto",
    llm_pb2.ToolChoice.MODE_AUTO: "auto",
    llm_pb2.ToolChoice.MODE_NONE: "none",
    llm_pb2.ToolChoice.MODE_REQUIRED: "any",
    llm_pb2.ToolChoice.MODE_NAMED: "tool",
}
# A signature of Anthropic is base64 and has no colon.
_SEVERAL = "blocks:"
_COUNTED = (
    *("input_tokens", "output_tokens", "output_tokens_details"),
    *("cache_read_input_tokens", "cache_creation_input_tokens"),
)


def request_form(request: ChatRequest, model: str, max_tokens: int) -> dict[str, Any]:
    """The arguments of messages.create.

    Raises:
        InvalidArgumentError: FIELD_INVALID.
        UnimplementedError: CAPABILITY_MISSING.
    """
    leading = 0
    while leading < len(request.messages) and request.messages[leading].role == "system":
        leading += 1
    arguments: dict[str, Any] = {"model": model, "max_tokens": max_tokens}
    system = [{"type": "text", "text": text} for each in request.messages[:leading] if (text := message_text(each))]
    if system:
        arguments["system"] = system
    arguments["messages"] = _turns(request.messages, leading)
    if not arguments["messages"]:
        raise field_error("messages", "are all of the role system, and Anthropic wants one of another role")
    if request.tools:
        arguments["tools"] = [_tool(each) for each in request.tools]
    if request.HasField("tool_choice"):
        choice = request.tool_choice
        named = {"name": choice.name} if choice.name else {}
        arguments["tool_choice"] = {"type": _CHOICES[choice.mode], **named}
    if request.HasField("response_format"):
        arguments["output_config"] = {"format": _response_format(request.response_format)}
    if request.options.stop_sequences:
        arguments["stop_sequences"] = list(request.options.stop_sequences)
    if request.options.HasField("thinking_budget_tokens"):
        arguments["thinking"] = _thinking(request.options.thinking_budget_tokens, max_tokens)
    return arguments


def _tool(tool: llm_pb2.Tool) -> dict[str, Any]:
    schema = plain(tool.parameters) if tool.HasField("parameters") else {"type": "object", "properties": {}}
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "input_schema": schema}


def _response_format(wanted: llm_pb2.ResponseFormat) -> dict[str, Any]:
    if not wanted.HasField("json_schema"):
        raise unusable("response_format.json_schema", "is absent, and Anthropic has no mode of any JSON: give a schema")
    return {"type": "json_schema", "schema": plain(wanted.json_schema)}


def _thinking(budget: int, max_tokens: int) -> dict[str, Any]:
    if budget == 0:
        return {"type": "disabled"}
    if not _LEAST_THINKING <= budget < max_tokens:
        problem = (
            f"is {budget}; Anthropic takes 0, or {_LEAST_THINKING} and more, and less than max_tokens ({max_tokens})"
        )
        raise field_error("options.thinking_budget_tokens", problem)
    return {"type": "enabled", "budget_tokens": budget, "display": "summarized"}


def _turns(messages: Sequence[message_pb2.Message], start: int) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for number in range(start, len(messages)):
        message = messages[number]
        role = "user" if message.role == "tool" else message.role
        blocks = _blocks(message, f"messages[{number}]")
        # The results of one turn's calls belong into one turn.
        if message.role == "tool" and turns and turns[-1]["content"][-1]["type"] == "tool_result":
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: message_pb2.Message, where: str) -> list[dict[str, Any]]:
    text = message_text(message)
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": text}]
    blocks = _thinking_blocks(message, where)
    if text:
        blocks.append({"type": "text", "text": text})
    for place, call in enumerate(message.tool_calls):
        arguments = arguments_of(call, f"{where}.tool_calls[{place}]")
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    if not blocks:
        raise field_error(f"{where}.content", "is empty, which Anthropic refuses")
    return blocks


def _thinking_blocks(message: message_pb2.Message, where: str) -> list[dict[str, Any]]:
    thinking, signature = message.thinking, message.thinking_signature
    if not signature:
        if thinking:
            problem = "is empty: Anthropic takes back only thinking that it has signed; leave thinking out"
            raise field_error(f"{where}.thinking_signature", problem)
        return []
    if not signature.startswith(_SEVERAL):
        return [{"type": "thinking", "thinking": thinking, "signature": signature}]
    try:
        blocks, end = [], 0
        for length, kind, value in json.loads(signature.removeprefix(_SEVERAL)):
            if kind == "redacted":
                blocks.append({"type": "redacted_thinking", "data": str(value)})
                continue
            part = thinking[end : end + length]
            end += length
            blocks.append({"type": "thinking", "thinking": part, "signature": str(value)})
    except (TypeError, ValueError):
        end = -1
    if end != len(thinking):
        problem = "does not belong to the thinking: send both back as they came"
        raise field_error(f"{where}.thinking_signature", problem, reason="PROVIDER_REFUSED_REQUEST")
    return blocks


def read_message(message: Mapping[str, Any], draft: Draft) -> None:
    """Reads a whole reply. Raises KeyError, TypeError or ValueError when it does not have the API's form."""
    reader = StreamReader(draft)
    blocks = message["content"]
    reader.start(message)
    for index, block in enumerate(blocks):
        for _ in reader.block(index, block):
            pass
        reader.stop(index)
    reader.finish(message, message["usage"])
    reader.end()


class StreamReader:
    """Reads a stream's events into a draft."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, int] = {}
        # What is said of each thinking block when the blocks are several: length, kind, signature or data.
        self._thoughts: dict[int, list[Any]] = {}
        self._others: list[Mapping[str, Any]] = []

    def read(self, event: Mapping[str, Any]) -> list[Piece]:
        """The pieces of an event. Raises KeyError, TypeError or ValueError when it does not have the API's form."""
        match event["type"]:
            case "message_start":
                self.start(event["message"])
            case "content_block_start":
                return list(self.block(event["index"], event["content_block"]))
            case "content_block_delta":
                return list(self._delta(event["index"], event["delta"]))
            case "content_block_stop":
                self.stop(event["index"])
            case "message_delta":
                self.finish(event["delta"], event["usage"])
            case "message_stop":
                self.end()
        return []

    def start(self, message: Mapping[str, Any]) -> None:
        """The reply begins; all but its content and its end may be there."""
        self._draft.model = message["model"]
        self._usage.update(_told(message.get("usage") or {}))
        self._draft.raw.update(without(message, "content", "model", "usage", "stop_reason", "stop_sequence"))

    def block(self, index: int, block: Mapping[str, Any]) -> Iterator[Piece]:
        """A block of the content, as far as it has come."""
        match block["type"]:
            case "text":
                if block["text"]:
                    yield self._draft.add_content(block["text"])
            case "thinking":
                self._thoughts[index] = [0, "thinking", block.get("signature") or ""]
                yield from self._thought(index, block["thinking"])
            case "redacted_thinking":
                self._thoughts[index] = [0, "redacted", block["data"]]
            case "tool_use":
                self._calls[index] = self._draft.call_count
                yield self._draft.add_call(block["id"], block["name"])
                if block["input"]:
                    yield self._draft.add_arguments(self._calls[index], json.dumps(block["input"], ensure_ascii=False))
            case _:
                self._others.append(block)

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Iterator[Piece]:
        match delta["type"]:
            case "text_delta":
                yield self._draft.add_content(delta["text"])
            case "thinking_delta":
                yield from self._thought(index, delta["thinking"])
            case "signature_delta":
                self._thoughts[index][2] += delta["signature"]
            case "input_json_delta" if index in self._calls and delta["partial_json"]:
                yield self._draft.add_arguments(self._calls[index], delta["partial_json"])

    def _thought(self, index: int, text: str) -> Iterator[Piece]:
        self._thoughts[index][0] += len(text)
        if text:
            yield self._draft.add_thinking(text)

    def stop(self, index: int) -> None:
        """A block is whole."""
        self._draft.signature = self._signature()

    def _signature(self) -> str:
        thoughts = [self._thoughts[index] for index in sorted(self._thoughts)]
        if len(thoughts) == 1 and thoughts[0][1] == "thinking":
            return thoughts[0][2]
        return _SEVERAL + json.dumps(thoughts, separators=(",", ":")) if thoughts else ""

    def finish(self, delta: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        """The reply's end is told."""
        self._usage.update(_told(usage))
        reason = delta.get("stop_reason")
        if reason is None:
            return
        self._draft.finish_reason = _FINISH.get(reason, llm_pb2.FINISH_REASON_UNSPECIFIED)
        self._draft.stop_sequence = delta.get("stop_sequence") or ""
        unmapped = {} if reason in _FINISH else {"stop_reason": reason}
        self._draft.raw.update(without({"stop_details": delta.get("stop_details"), **unmapped}))

    def end(self) -> None:
        """Nothing more comes."""
        self._draft.usage = _usage(self._usage)
        rest = without(self._usage, *_COUNTED)
        self._draft.raw.update(without({"usage": rest, "content": self._others}))
        self._draft.ended = True


def _told(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in usage.items() if value is not None}


def _usage(told: Mapping[str, Any]) -> usage_pb2.TokenUsage:
    read, written = told.get("cache_read_input_tokens"), told.get("cache_creation_input_tokens")
    return usage_pb2.TokenUsage(
        # The provider counts tokens of the cache apart.
        input_tokens=told["input_tokens"] + (read or 0) + (written or 0),
        output_tokens=told["output_tokens"],
        thinking_tokens=(told.get("output_tokens_details") or {}).get("thinking_tokens"),
        cached_input_tokens=read,
        cache_write_input_tokens=written,
    )
