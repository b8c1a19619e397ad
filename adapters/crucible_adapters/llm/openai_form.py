"""OpenAI's Chat Completions API: its form of requests, replies and streams. Pure functions on JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_adapters.llm.checks import ChatRequest, plain
from crucible_adapters.llm.replies import Draft, Piece, without
from crucible_kit.messages import message_text

_FINISH = {
    "stop": llm_pb2.FINISH_REASON_STOP,
    "length": llm_pb2.FINISH_REASON_LENGTH,
    "tool_calls": llm_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": llm_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": llm_pb2.FINISH_REASON_CONTENT_FILTER,
}
_CHOICES = {
    llm_pb2.ToolChoice.MODE_UNSPECIFIED: "auto",
    llm_pb2.ToolChoice.MODE_AUTO: "auto",
    llm_pb2.ToolChoice.MODE_NONE: "none",
    llm_pb2.ToolChoice.MODE_REQUIRED: "required",
}
# OpenAI tells no thinking; servers of open models do, under one of these names.
_THINKING = ("reasoning_content", "reasoning")
_COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
_TOLD_OF_CHOICE = ("delta", "message", "finish_reason", "index", "stop_reason")
_TOLD_OF_MESSAGE = ("role", "content", "refusal", "tool_calls", *_THINKING)
_ENVELOPE = ("choices", "usage", "model", "object", "obfuscation")


def request_form(request: ChatRequest, model: str) -> dict[str, Any]:
    """The arguments of chat.completions.create, but the limit of the reply."""
    options = request.options
    arguments: dict[str, Any] = {"model": model, "messages": [_message(each) for each in request.messages]}
    if request.tools:
        arguments["tools"] = [_tool(each) for each in request.tools]
    if request.HasField("tool_choice"):
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice.name}}
        arguments["tool_choice"] = named if choice.name else _CHOICES[choice.mode]
    if request.HasField("response_format"):
        arguments["response_format"] = _response_format(request.response_format)
    for name in ("temperature", "top_p", "seed"):
        if options.HasField(name):
            arguments[name] = getattr(options, name)
    if options.stop_sequences:
        arguments["stop"] = list(options.stop_sequences)
    return arguments


def _message(message: message_pb2.Message) -> dict[str, Any]:
    form: dict[str, Any] = {"role": message.role, "content": message_text(message)}
    if message.name:
        form["name"] = message.name
    if message.tool_call_id:
        form["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        form["tool_calls"] = [_call(each) for each in message.tool_calls]
        form["content"] = form["content"] or None
    return form


def _call(call: message_pb2.ToolCall) -> dict[str, Any]:
    arguments = call.arguments_json or "{}"
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: llm_pb2.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.HasField("parameters"):
        function["parameters"] = plain(tool.parameters)
    return {"type": "function", "function": function}


def _response_format(wanted: llm_pb2.ResponseFormat) -> dict[str, Any]:
    if not wanted.HasField("json_schema"):
        return {"type": "json_object"}
    # Only strict output is sure to satisfy the schema.
    schema = {"name": wanted.name or "reply", "schema": plain(wanted.json_schema), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def read_completion(completion: Mapping[str, Any], draft: Draft, request: ChatRequest) -> None:
    """Reads a whole reply. Raises KeyError, TypeError or ValueError when it does not have the API's form."""
    reader = StreamReader(draft, request)
    choice = completion["choices"][0]
    message = choice["message"]
    calls = [{**call, "index": index} for index, call in enumerate(message.get("tool_calls") or [])]
    reader.read({**completion, "choices": [{**choice, "delta": {**message, "tool_calls": calls}}]})
    reader.end()


class StreamReader:
    """Reads a stream's chunks into a draft."""

    def __init__(self, draft: Draft, request: ChatRequest) -> None:
        self._draft = draft
        self._stops = frozenset(request.options.stop_sequences)
        # Place among the draft's calls, and id, by the provider's index: some servers give all calls the same one.
        self._calls: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._refusal: list[str] = []
        self._reason: str | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a chunk. Raises KeyError, TypeError or ValueError when it does not have the API's form."""
        draft = self._draft
        draft.model = chunk.get("model") or draft.model
        draft.raw.update(without(chunk, *_ENVELOPE))
        if chunk.get("usage"):
            draft.usage = _usage(chunk["usage"])
            draft.raw.update(without({"usage": without(chunk["usage"], *_COUNTED)}))
        pieces: list[Piece] = []
        for choice in chunk["choices"][:1]:
            # Servers leave it out, or null, of the chunk that tells the end.
            delta = choice.get("delta") or {}
            pieces = self._delta(delta)
            rest = {"choice": without(choice, *_TOLD_OF_CHOICE), "message": without(delta, *_TOLD_OF_MESSAGE)}
            draft.raw.update(without(rest))
            self._end_of(choice)
        return pieces

    def _delta(self, delta: Mapping[str, Any]) -> list[Piece]:
        pieces: list[Piece] = []
        thinking = next((text for name in _THINKING if (text := delta.get(name))), None)
        if thinking:
            pieces.append(self._draft.add_thinking(thinking))
        if delta.get("content"):
            pieces.append(self._draft.add_content(delta["content"]))
        if delta.get("refusal"):
            self._refusal.append(delta["refusal"])
        for call in delta.get("tool_calls") or []:
            index, function, call_id = call.get("index") or 0, call.get("function") or {}, call.get("id")
            if index not in self._calls or (call_id and call_id != self._ids[index]):
                self._calls[index], self._ids[index] = self._draft.call_count, call["id"]
                pieces.append(self._draft.add_call(call["id"], function["name"]))
            if function.get("arguments"):
                pieces.append(self._draft.add_arguments(self._calls[index], function["arguments"]))
        return pieces

    def _end_of(self, choice: Mapping[str, Any]) -> None:
        self._reason = choice.get("finish_reason") or self._reason
        # vLLM and its like tell which stop sequence it was.
        stop = choice.get("stop_reason")
        if isinstance(stop, str) and stop in self._stops:
            self._draft.stop_sequence = stop

    def end(self) -> None:
        """Nothing more comes."""
        draft = self._draft
        if self._reason is None:
            return
        draft.ended = True
        draft.finish_reason = _FINISH.get(self._reason, llm_pb2.FINISH_REASON_UNSPECIFIED)
        if self._reason not in _FINISH:
            draft.raw["finish_reason"] = self._reason
        if self._refusal:
            draft.finish_reason = llm_pb2.FINISH_REASON_CONTENT_FILTER
            draft.raw["refusal"] = "".join(self._refusal)
        elif draft.call_count and draft.finish_reason == llm_pb2.FINISH_REASON_STOP:
            # So the API says of calls that the request demands.
            draft.finish_reason = llm_pb2.FINISH_REASON_TOOL_CALLS


def _usage(told: Mapping[str, Any]) -> usage_pb2.TokenUsage:
    read, written = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    return usage_pb2.TokenUsage(
        input_tokens=told["prompt_tokens"],
        output_tokens=told.get("completion_tokens") or 0,
        thinking_tokens=written.get("reasoning_tokens"),
        cached_input_tokens=read.get("cached_tokens"),
        cache_write_input_tokens=read.get("cache_write_tokens"),
    )
