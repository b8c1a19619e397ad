"""What every provider's adapter asks of a request before it is sent."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2
from crucible_adapters.llm.errors import unusable
from crucible_kit.errors import capability_missing, field_error
from crucible_kit.messages import refuse_unusable

ChatRequest = llm_pb2.ChatRequest | llm_pb2.StreamChatRequest
_ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_CAPABILITIES = ("tools", "thinking", "media_input")
_WHOLE = 2.0**53


def check_request(
    request: ChatRequest, capabilities: Collection[str], *, lacking: Mapping[str, str] | None = None
) -> None:
    """Refuses what is wrong in itself, or what the adapter does not declare.

    Args:
        capabilities: what it declares, such as llm.tools.
        lacking: fields without a capability of their own that the provider has nothing like, such as
            options.temperature or messages.name, with what to say of them.

    Raises:
        InvalidArgumentError: FIELD_INVALID.
        UnimplementedError: CAPABILITY_MISSING.
    """
    lacking = lacking or {}
    usable = [each for each in _MESSAGE_CAPABILITIES if f"llm.{each}" in capabilities]
    refuse_unusable(request.messages, port="llm", usable=usable)
    _check_capabilities(request, capabilities)
    for name in ("temperature", "top_p"):
        if request.options.HasField(name) and f"options.{name}" in lacking:
            raise unusable(f"options.{name}", lacking[f"options.{name}"])
    _check_messages(request, lacking)
    _check_tools(request)


def _check_capabilities(request: ChatRequest, capabilities: Collection[str]) -> None:
    needed = {
        "llm.seed": request.options.HasField("seed"),
        "llm.thinking": request.options.HasField("thinking_budget_tokens"),
        "llm.tools": bool(request.tools),
        "llm.json_schema": request.HasField("response_format"),
    }
    for capability, is_used in needed.items():
        if is_used and capability not in capabilities:
            raise capability_missing("llm", capability, "leave it out of the request")


def _check_messages(request: ChatRequest, lacking: Mapping[str, str]) -> None:
    asked: set[str] = set()
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        if message.role not in _ROLES:
            raise field_error(f"{where}.role", f"is {message.role!r}; it must be one of {', '.join(_ROLES)}")
        if (message.role == "tool") != bool(message.tool_call_id):
            raise field_error(f"{where}.tool_call_id", "must be set in a message of the role tool, and only there")
        if message.tool_call_id and message.tool_call_id not in asked:
            raise field_error(f"{where}.tool_call_id", f"{message.tool_call_id!r} was not asked for before")
        if message.role != "assistant":
            for name in ("tool_calls", "thinking", "thinking_signature"):
                if getattr(message, name):
                    raise field_error(f"{where}.{name}", "belongs to a message of the role assistant")
        if message.name and "messages.name" in lacking:
            raise unusable(f"{where}.name", lacking["messages.name"])
        for place, call in enumerate(message.tool_calls):
            if call.id in asked:
                raise field_error(f"{where}.tool_calls[{place}].id", f"{call.id!r} is there twice")
            if call.signature and "tool_calls.signature" in lacking:
                raise unusable(f"{where}.tool_calls[{place}].signature", lacking["tool_calls.signature"])
            asked.add(call.id)


def _check_tools(request: ChatRequest) -> None:
    names = [tool.name for tool in request.tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise field_error(f"tools[{number}].name", f"{name!r} is there twice")
    choice = request.tool_choice
    if request.HasField("tool_choice") and not names:
        raise field_error("tool_choice", "is set without tools: leave it out")
    is_named = choice.mode == llm_pb2.ToolChoice.MODE_NAMED
    if is_named != bool(choice.name):
        raise field_error("tool_choice.name", "must be set for MODE_NAMED, and only for it")
    if is_named and choice.name not in names:
        raise field_error("tool_choice.name", f"{choice.name!r} is none of the tools: {', '.join(names)}")


def plain(struct: Struct) -> dict[str, Any]:
    """A Struct as a JSON object.

    Its keys are sorted: a Struct has them in any order, and a provider's cache goes by bytes. Its whole numbers are
    integers again: providers refuse `maxItems: 3.0`.
    """
    return _whole(MessageToDict(struct))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _WHOLE:
        return int(value)
    return value


def arguments_of(call: message_pb2.ToolCall, field: str) -> dict[str, Any]:
    """A call's arguments as an object, for providers that take them so.

    Raises:
        InvalidArgumentError: FIELD_INVALID, they are no JSON object. `field` is the call's path in the request.
    """
    try:
        value = json.loads(call.arguments_json) if call.arguments_json.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise field_error(f"{field}.arguments_json", "is no JSON object, which the provider takes only")
    return value
