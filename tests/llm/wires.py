"""The three providers' forms on the wire, as their published schemas have them, by the same names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from crucible_adapters.llm.anthropic import AnthropicLLM
from crucible_adapters.llm.google_genai import GoogleGenAILLM
from crucible_adapters.llm.openai import OpenAILLM
from tests.llm.server import Answer, event

MODEL = "test-model"
INPUT, OUTPUT, CACHED, THINKING = 100, 20, 40, 5
"""Tokens of every reply, those of the cache and of thinking among them where the provider tells."""


@dataclass(frozen=True)
class Counts:
    """Tokens of one reply; `output` has those of thinking among them."""

    output: int = OUTPUT
    thinking: int = THINKING


_USUAL = Counts()


@dataclass(frozen=True)
class ToolUse:
    """A call that a reply asks for; no id: the provider gives none."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class AnthropicWire:
    """POST /v1/messages."""

    name = "anthropic"
    adapter = AnthropicLLM
    variable = "ANTHROPIC_API_KEY"
    live_model = "claude-haiku-4-5"
    base_path = ""
    key_header = ("authorization", "Bearer {}")
    finish: ClassVar[dict[str, str]] = {"length": "max_tokens", "filter": "refusal"}

    def reply(
        self,
        text: str = "",
        *,
        thinking: str = "",
        calls: Sequence[ToolUse] = (),
        finish: str = "",
        model: str = MODEL,
        counts: Counts = _USUAL,
    ) -> Answer:
        blocks: list[dict[str, Any]] = []
        if thinking:
            blocks.append({"type": "thinking", "thinking": thinking, "signature": "c2ln"})
        if text:
            blocks.append({"type": "text", "text": text, "citations": None})
        blocks += [{"type": "tool_use", "id": each.id, "name": each.name, "input": each.arguments} for each in calls]
        reason = self.finish.get(finish) or ("tool_use" if calls else "end_turn")
        return Answer(
            {
                **self._head(model),
                "content": blocks,
                "stop_reason": reason,
                "stop_sequence": None,
                "usage": self._usage(counts.output, counts.thinking),
            }
        )

    def streamed(
        self, pieces: Sequence[str] = (), *, thinking: Sequence[str] = (), calls: Sequence[ToolUse] = ()
    ) -> list[bytes]:
        """The events of a stream; the last one tells the end."""
        head = {
            **self._head(MODEL),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(1, THINKING),
        }
        events: list[dict[str, Any]] = [{"type": "message_start", "message": head}, {"type": "ping"}]
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if thinking:
            deltas = [{"type": "thinking_delta", "thinking": each} for each in thinking]
            deltas.append({"type": "signature_delta", "signature": "c2ln"})
            blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
        if pieces:
            blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": each} for each in pieces]))
        for call in calls:
            parts = ["", *halves(json.dumps(call.arguments))]
            deltas = [{"type": "input_json_delta", "partial_json": each} for each in parts]
            blocks.append(({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, deltas))
        for index, (block, deltas) in enumerate(blocks):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        reason = {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}
        usage = {"output_tokens": OUTPUT, "output_tokens_details": {"thinking_tokens": THINKING}}
        events += [{"type": "message_delta", "delta": reason, "usage": usage}, {"type": "message_stop"}]
        return [event(each, each["type"]) for each in events]

    def error(self, status: int, message: str, *, kind: str = "invalid_request_error", **more: Any) -> Answer:
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
        return Answer(body, status=status, **more)

    def error_event(self) -> bytes:
        return event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error")

    def models(self, *names: str, context_tokens: int = 200_000) -> Answer:
        data = [
            {
                "type": "model",
                "id": each,
                "display_name": each,
                "created_at": "2026-01-01T00:00:00Z",
                "lifecycle": "active",
                "max_input_tokens": context_tokens,
                "max_tokens": 8_192,
            }
            for each in names
        ]
        return Answer({"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})

    def _head(self, model: str) -> dict[str, Any]:
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model}

    def _usage(self, output: int, thinking: int) -> dict[str, Any]:
        return {
            "input_tokens": INPUT - CACHED,
            "cache_read_input_tokens": CACHED,
            "cache_creation_input_tokens": 0,
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": thinking},
            "service_tier": "standard",
        }


class OpenAIWire:
    """POST /chat/completions."""

    name = "openai"
    adapter = OpenAILLM
    variable = "OPENAI_API_KEY"
    live_model = "gpt-5.4-mini"
    base_path = "/v1"
    key_header = ("authorization", "Bearer {}")
    finish: ClassVar[dict[str, str]] = {"length": "length", "filter": "content_filter"}

    def reply(
        self,
        text: str = "",
        *,
        thinking: str = "",
        calls: Sequence[ToolUse] = (),
        finish: str = "",
        model: str = MODEL,
        counts: Counts = _USUAL,
    ) -> Answer:
        message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None, "annotations": []}
        if thinking:
            message["reasoning_content"] = thinking
        if calls:
            message["tool_calls"] = [self._call(each, json.dumps(each.arguments)) for each in calls]
        reason = self.finish.get(finish) or ("tool_calls" if calls else "stop")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return Answer({**self._head("chat.completion", model), "choices": [choice], "usage": self._usage(counts)})

    def streamed(
        self, pieces: Sequence[str] = (), *, thinking: Sequence[str] = (), calls: Sequence[ToolUse] = ()
    ) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
        deltas += [{"reasoning_content": each} for each in thinking]
        deltas += [{"content": each} for each in pieces]
        for index, call in enumerate(calls):
            deltas.append({"tool_calls": [{"index": index, **self._call(call, "")}]})
            parts = halves(json.dumps(call.arguments))
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": each}}]} for each in parts]
        head = {**self._head("chat.completion.chunk", MODEL), "usage": None}
        chunks = [{**head, "choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
        reason = "tool_calls" if calls else "stop"
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        chunks.append({**head, "choices": [], "usage": self._usage()})
        return [*(event(each) for each in chunks), event("[DONE]")]

    def error(self, status: int, message: str, *, kind: str = "invalid_request_error", **more: Any) -> Answer:
        code = more.pop("code", None)
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return Answer(body, status=status, **more)

    def error_event(self) -> bytes:
        return event({"error": {"message": "The server had an error", "type": "server_error", "code": None}})

    def models(self, *names: str, context_tokens: int | None = None) -> Answer:
        # Servers of open models tell the length, OpenAI does not.
        more = {} if context_tokens is None else {"max_model_len": context_tokens}
        data = [{"id": each, "object": "model", "created": 1, "owned_by": "x", **more} for each in names]
        return Answer({"object": "list", "data": data})

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1_790_000_000, "model": model, "service_tier": "default"}

    def _call(self, call: ToolUse, arguments: str) -> dict[str, Any]:
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _usage(self, counts: Counts = _USUAL) -> dict[str, Any]:
        return {
            "prompt_tokens": INPUT,
            "completion_tokens": counts.output,
            "total_tokens": INPUT + counts.output,
            "prompt_tokens_details": {"cached_tokens": CACHED},
            "completion_tokens_details": {"reasoning_tokens": counts.thinking},
        }


class GoogleWire:
    """POST /v1/models/MODEL:generateContent."""

    name = "google_genai"
    adapter = GoogleGenAILLM
    variable = "GEMINI_API_KEY"
    live_model = "gemini-3.8-flash"
    base_path = ""
    key_header = ("x-goog-api-key", "{}")
    finish: ClassVar[dict[str, str]] = {"length": "MAX_TOKENS", "filter": "SAFETY"}

    def reply(
        self,
        text: str = "",
        *,
        thinking: str = "",
        calls: Sequence[ToolUse] = (),
        finish: str = "",
        model: str = MODEL,
        counts: Counts = _USUAL,
    ) -> Answer:
        parts = self._parts([text] if text else [], [thinking] if thinking else [], calls)
        return Answer(self._response(parts, self.finish.get(finish) or "STOP", model, counts))

    def streamed(
        self, pieces: Sequence[str] = (), *, thinking: Sequence[str] = (), calls: Sequence[ToolUse] = ()
    ) -> list[bytes]:
        parts = self._parts(pieces, thinking, calls)
        chunks = [self._response([part], "", MODEL) for part in parts[:-1]]
        return [event(each) for each in [*chunks, self._response(parts[-1:], "STOP", MODEL)]]

    def error(self, status: int, message: str, *, kind: str = "INVALID_ARGUMENT", **more: Any) -> Answer:
        details = more.pop("details", [])
        body = {"error": {"code": status, "message": message, "status": kind, "details": details}}
        return Answer(body, status=status, **more)

    def error_event(self) -> bytes:
        return event({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}})

    def models(self, *names: str, context_tokens: int = 200_000) -> Answer:
        more = {
            "inputTokenLimit": context_tokens,
            "outputTokenLimit": 8_192,
            "supportedGenerationMethods": ["generateContent"],
        }
        return Answer({"models": [{"name": f"models/{each}", "displayName": each, **more} for each in names]})

    def _parts(self, pieces: Sequence[str], thinking: Sequence[str], calls: Sequence[ToolUse]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"text": each, "thought": True} for each in thinking]
        parts += [{"text": each} for each in pieces]
        for call in calls:
            told = {"id": call.id} if call.id else {}
            parts.append(
                {"functionCall": {**told, "name": call.name, "args": call.arguments}, "thoughtSignature": "c2ln"}
            )
        return parts

    def _response(
        self, parts: list[dict[str, Any]], finish: str, model: str, counts: Counts = _USUAL
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": INPUT, "cachedContentTokenCount": CACHED, "totalTokenCount": INPUT + counts.output}
        usage |= {"candidatesTokenCount": counts.output - counts.thinking, "thoughtsTokenCount": counts.thinking}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "resp_1"}


Wire = AnthropicWire | OpenAIWire | GoogleWire
WIRES: tuple[Wire, ...] = (AnthropicWire(), OpenAIWire(), GoogleWire())


def halves(text: str) -> list[str]:
    """The text in two pieces."""
    return [text[: len(text) // 2], text[len(text) // 2 :]]
