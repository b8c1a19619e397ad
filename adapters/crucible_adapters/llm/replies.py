"""A reply as it grows, piece by piece, into the one form that all providers' replies have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crucible.port.llm.v1 import llm_pb2
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_adapters.llm.options import ModelPrice
from crucible_kit.adapter import to_struct

Piece = llm_pb2.StreamChatResponse


@dataclass
class Draft:
    """A reply that is not whole yet. What adds to it returns the piece that a stream shows.

    Attributes:
        model: as in ReplyMeta.
        signature: as in ChatReply.thinking_signature.
        usage: as in ReplyMeta.
        finish_reason: as in ReplyMeta.
        stop_sequence: as in ReplyMeta.
        raw: as in ReplyMeta.
        ended: whether the provider said that it is whole.
    """

    model: str = ""
    signature: str = ""
    usage: usage_pb2.TokenUsage | None = None
    finish_reason: llm_pb2.FinishReason = llm_pb2.FINISH_REASON_UNSPECIFIED
    stop_sequence: str = ""
    raw: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    _content: list[str] = field(default_factory=list)
    _thinking: list[str] = field(default_factory=list)
    _calls: list[message_pb2.ToolCall] = field(default_factory=list)
    _arguments: list[list[str]] = field(default_factory=list)

    @property
    def call_count(self) -> int:
        """Tool calls so far."""
        return len(self._calls)

    def add_content(self, text: str) -> Piece:
        """More of the content."""
        piece = Piece(content_delta=text)
        self._content.append(text)
        return piece

    def add_thinking(self, text: str) -> Piece:
        """More of the thinking."""
        piece = Piece(thinking_delta=text)
        self._thinking.append(text)
        return piece

    def add_call(self, call_id: str, name: str, *, signature: str = "") -> Piece:
        """A further tool call, without its arguments."""
        index = len(self._calls)
        piece = Piece(tool_call_delta=llm_pb2.ToolCallDelta(index=index, id=call_id, name=name))
        self._calls.append(message_pb2.ToolCall(id=call_id, name=name, signature=signature))
        self._arguments.append([])
        return piece

    def add_arguments(self, index: int, text: str) -> Piece:
        """More of the arguments of the call at this place."""
        piece = Piece(tool_call_delta=llm_pb2.ToolCallDelta(index=index, arguments_json_delta=text))
        self._arguments[index].append(text)
        return piece

    def reply(
        self, *, provider: str, asked: str, prices: Mapping[str, ModelPrice], latency_ms: float
    ) -> llm_pb2.ChatReply:
        """The whole reply. `asked` is the model as the request, or the adapter's default, names it."""
        model = self.model or asked
        for call, parts in zip(self._calls, self._arguments, strict=True):
            call.arguments_json = "".join(parts)
        meta = llm_pb2.ReplyMeta(
            provider=provider,
            model=model,
            usage=self.usage,
            finish_reason=self.finish_reason,
            tool_calls=self._calls,
            latency_ms=latency_ms,
            # JSON has no NaN, and Python's reader takes it.
            raw=to_struct(json.loads(json.dumps(self.raw), parse_constant=str)),
            stop_sequence=self.stop_sequence,
        )
        price = prices.get(model) or prices.get(asked)
        if price is not None and self.usage is not None:
            meta.cost.CopyFrom(cost_of(self.usage, price))
        return llm_pb2.ChatReply(
            content="".join(self._content),
            meta=meta,
            thinking="".join(self._thinking),
            thinking_signature=self.signature,
        )


def cost_of(usage: usage_pb2.TokenUsage, price: ModelPrice) -> usage_pb2.Cost:
    """What so many tokens cost."""
    cached, written = usage.cached_input_tokens, usage.cache_write_input_tokens
    fresh = usage.input_tokens - cached - written
    amount = fresh * price.input + usage.output_tokens * price.output
    amount += cached * (price.input if price.cached_input is None else price.cached_input)
    amount += written * (price.input if price.cache_write_input is None else price.cache_write_input)
    return usage_pb2.Cost(amount=amount / 1e6, currency="USD")


def without(value: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The entries but those of these names, and but empty ones."""
    return {key: each for key, each in value.items() if key not in names and each not in (None, [], {}, "")}
