"""The Gemini API: its form of requests, replies and streams. Pure functions on JSON, with bytes for signatures."""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_adapters.llm.checks import ChatRequest, arguments_of, plain
from crucible_adapters.llm.replies import Draft, Piece, without
from crucible_kit.errors import field_error
from crucible_kit.messages import message_text

_CUT = ("MAX_TOKENS", "CONTINUATION")
_WITHHELD = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "ESCALATION", "MODEL_ARMOR"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "PUP_LIMITED_DISABLED"),
)
_CHOICES = {
    llm_pb2.ToolChoice.MODE_UNSPECIFIED: "AUTO",
    llm_pb2.ToolChoice.MODE_AUTO: "AUTO",
    llm_pb2.ToolChoice.MODE_NONE: "NONE",
    llm_pb2.ToolChoice.MODE_REQUIRED: "ANY",
    llm_pb2.ToolChoice.MODE_NAMED: "ANY",
}
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_MAX_SEED = 2**31 - 1
_COUNTED = ("prompt_token_count", "candidates_token_count", "thoughts_token_count", "cached_content_token_count")
_ENVELOPE = ("sdk_http_response", "candidates", "model_version", "usage_metadata", "parsed")


def request_form(request: ChatRequest, model: str, max_tokens: int | None) -> dict[str, Any]:
    """The arguments of models.generate_content.

    Raises:
        InvalidArgumentError: FIELD_INVALID.
    """
    check_model(model)
    options = request.options
    # The kitchen calls the tools, not the library.
    config: dict[str, Any] = {"automatic_function_calling": {"disable": True}}
    leading = 0
    while leading < len(request.messages) and request.messages[leading].role == "system":
        leading += 1
    system = [{"text": text} for each in request.messages[:leading] if (text := message_text(each))]
    if system:
        config["system_instruction"] = {"parts": system}
    if request.tools:
        config["tools"] = [{"function_declarations": [_tool(each) for each in request.tools]}]
    if request.HasField("tool_choice"):
        config["tool_config"] = {"function_calling_config": _choice(request.tool_choice)}
    if request.HasField("response_format"):
        config["response_mime_type"] = "application/json"
        if request.response_format.HasField("json_schema"):
            config["response_json_schema"] = plain(request.response_format.json_schema)
    if max_tokens is not None:
        config["max_output_tokens"] = max_tokens
    for name in ("temperature", "top_p", "seed"):
        if options.HasField(name):
            config[name] = getattr(options, name)
    if options.HasField("seed") and not -_MAX_SEED - 1 <= options.seed <= _MAX_SEED:
        raise field_error("options.seed", f"is {options.seed}; the Gemini API takes 32 bits")
    if options.stop_sequences:
        config["stop_sequences"] = list(options.stop_sequences)
    if options.HasField("thinking_budget_tokens"):
        budget = options.thinking_budget_tokens
        config["thinking_config"] = {"thinking_budget": budget, "include_thoughts": budget > 0}
    contents = _contents(request.messages, leading)
    if not contents:
        raise field_error("messages", "are all of the role system, and the Gemini API wants one of another role")
    return {"model": model, "contents": contents, "config": config}


def check_model(model: str) -> None:
    """Raises FIELD_INVALID for a name that no model has: it is a part of the address."""
    if not _MODEL.fullmatch(model) or ".." in model:
        raise field_error("model", f"{model!r} is no name of a model of the Gemini API, such as gemini-2.5-flash")


def _tool(tool: llm_pb2.Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    schema = {"parameters_json_schema": plain(tool.parameters)} if tool.HasField("parameters") else {}
    return {"name": tool.name, **described, **schema}


def _choice(choice: llm_pb2.ToolChoice) -> dict[str, Any]:
    named = {"allowed_function_names": [choice.name]} if choice.name else {}
    return {"mode": _CHOICES[choice.mode], **named}


def _contents(messages: Any, start: int) -> list[dict[str, Any]]:
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number in range(start, len(messages)):
        message, where = messages[number], f"messages[{number}]"
        if message.role == "system":
            raise field_error(f"{where}.role", "is system, which the Gemini API takes at the start only")
        names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            part = _result(message, names[message.tool_call_id])
            # The results of one turn's calls belong into one turn.
            if contents and "function_response" in contents[-1]["parts"][-1]:
                contents[-1]["parts"].append(part)
            else:
                contents.append({"role": "user", "parts": [part]})
            continue
        role = "model" if message.role == "assistant" else "user"
        contents.append({"role": role, "parts": _parts(message, where)})
    return contents


def _result(message: message_pb2.Message, name: str) -> dict[str, Any]:
    response = {"output": message_text(message)}
    return {"function_response": {"id": message.tool_call_id, "name": name, "response": response}}


def _parts(message: message_pb2.Message, where: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if message.thinking:
        parts.append({"text": message.thinking, "thought": True})
    text = message_text(message)
    if text or message.thinking_signature:
        signed = _signed(message.thinking_signature, f"{where}.thinking_signature")
        parts.append({"text": text, **signed})
    for place, call in enumerate(message.tool_calls):
        field = f"{where}.tool_calls[{place}]"
        form = {"id": call.id, "name": call.name, "args": arguments_of(call, field)}
        parts.append({"function_call": form, **_signed(call.signature, f"{field}.signature")})
    if not parts:
        raise field_error(f"{where}.content", "is empty, which the Gemini API refuses")
    return parts


def _signed(signature: str, field: str) -> dict[str, bytes]:
    if not signature:
        return {}
    try:
        return {"thought_signature": base64.b64decode(signature, validate=True)}
    except (binascii.Error, ValueError):
        problem = "is not what the Gemini API gave: send it back as it came"
        raise field_error(field, problem, reason="PROVIDER_REFUSED_REQUEST") from None


class ResponseReader:
    """Reads a whole reply, or the chunks of a stream, into a draft."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._reason: str | None = None
        self._is_blocked = False

    def read(self, response: Mapping[str, Any], shown: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a response, or of a chunk.

        Args:
            response: with bytes and enumerations as the library has them.
            shown: the same in JSON, for people.

        Raises:
            KeyError, TypeError or ValueError: it does not have the API's form.
        """
        draft = self._draft
        draft.model = response.get("model_version") or draft.model
        draft.raw.update(without(shown, *_ENVELOPE))
        if response.get("usage_metadata"):
            draft.usage = _usage(response["usage_metadata"]) or draft.usage
            draft.raw.update(without({"usage_metadata": without(shown["usage_metadata"], *_COUNTED)}))
        self._is_blocked = self._is_blocked or bool((response.get("prompt_feedback") or {}).get("block_reason"))
        pieces: list[Piece] = []
        candidates: list[Any] = response.get("candidates") or []
        forms: list[Any] = shown.get("candidates") or []
        for candidate, form in zip(candidates[:1], forms[:1], strict=True):
            parts = zip(_parts_of(candidate), _parts_of(form), strict=True)
            for part, shown_part in parts:
                pieces += self._part(part, shown_part)
            reason = candidate.get("finish_reason")
            self._reason = getattr(reason, "value", reason) or self._reason
            draft.raw.update(without({"candidate": without(form, "content", "finish_reason", "index")}))
        return pieces

    def _part(self, part: Mapping[str, Any], shown: Mapping[str, Any]) -> list[Piece]:
        draft, signature = self._draft, base64.b64encode(part.get("thought_signature") or b"").decode()
        call = part.get("function_call")
        if call is not None:
            index = draft.call_count
            # The API may leave the id out; an answer needs one.
            call_id = call.get("id") or f"call_{uuid.uuid4().hex}"
            pieces = [draft.add_call(call_id, call["name"], signature=signature)]
            if call.get("args"):
                pieces.append(draft.add_arguments(index, json.dumps(call["args"], ensure_ascii=False)))
            return pieces
        draft.signature = signature or draft.signature
        text = part.get("text")
        rest = without(shown, "text", "thought", "thought_signature")
        if rest:
            draft.raw.setdefault("parts", []).append(rest)
        if not text:
            return []
        return [draft.add_thinking(text) if part.get("thought") else draft.add_content(text)]

    def end(self) -> None:
        """Nothing more comes."""
        draft = self._draft
        if self._reason is None:
            if self._is_blocked:
                draft.finish_reason, draft.ended = llm_pb2.FINISH_REASON_CONTENT_FILTER, True
            return
        draft.ended = True
        if self._reason in _CUT:
            draft.finish_reason = llm_pb2.FINISH_REASON_LENGTH
        elif self._reason in _WITHHELD:
            draft.finish_reason = llm_pb2.FINISH_REASON_CONTENT_FILTER
        elif self._reason == "STOP":
            is_call = draft.call_count > 0
            draft.finish_reason = llm_pb2.FINISH_REASON_TOOL_CALLS if is_call else llm_pb2.FINISH_REASON_STOP
        if self._reason not in ("STOP", "MAX_TOKENS"):
            draft.raw["finish_reason"] = self._reason


def _parts_of(candidate: Mapping[str, Any]) -> list[Any]:
    return (candidate.get("content") or {}).get("parts") or []


def _usage(told: Mapping[str, Any]) -> usage_pb2.TokenUsage | None:
    if "prompt_token_count" not in told:
        return None
    thinking = told.get("thoughts_token_count")
    return usage_pb2.TokenUsage(
        input_tokens=told["prompt_token_count"] + (told.get("tool_use_prompt_token_count") or 0),
        output_tokens=(told.get("candidates_token_count") or 0) + (thinking or 0),
        thinking_tokens=thinking,
        cached_input_tokens=told.get("cached_content_token_count"),
    )
