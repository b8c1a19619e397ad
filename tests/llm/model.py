"""A model behind the providers' forms: it obeys what a request asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.llm.server import Answer, Asked, Server
from tests.llm.wires import MODEL, AnthropicWire, Counts, OpenAIWire, ToolUse, Wire

_MODELS = (MODEL, "another-model")
_CONTEXT_TOKENS = 8192
_LETTERS = "a\nb\nc\nd\ne"
_SPOKEN = "It is a city that many people know."
_JSON = '{"city": "Paris", "degrees": 21}'
_CALL = {"city": "Paris"}


@dataclass(frozen=True)
class Question:
    """What a request asks for, whichever form it has.

    Attributes:
        text: all that the messages say.
        named: the tool that the reply has to call; empty: none.
        may_think: thinking was not forbidden.
    """

    model: str
    text: str
    max_tokens: int
    stops: tuple[str, ...]
    named: str
    wants_json: bool
    may_think: bool
    is_streamed: bool


class ModelServer(Server):
    """Answers every request as the model does, in a provider's form."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def answer(self, asked: Asked) -> Answer:
        wire = self._wire
        if asked.method == "GET":
            return wire.models(*_MODELS, context_tokens=_CONTEXT_TOKENS)
        question = _READERS[wire.name](asked)
        if question.model not in _MODELS:
            return wire.error(404, f"There is no model {question.model}.")
        if len(question.text.split()) > _CONTEXT_TOKENS:
            return wire.error(400, _too_long(wire))
        if question.named:
            calls = [ToolUse(question.named, _CALL, "call_1")]
            return Answer.stream(wire.streamed(calls=calls)) if question.is_streamed else wire.reply(calls=calls)
        text, finish = _said(question)
        if question.is_streamed:
            return Answer.stream(wire.streamed([text[:5], text[5:]]))
        thinking = 5 if question.may_think and wire.name != OpenAIWire.name else 0
        counts = Counts(output=min(question.max_tokens, 20), thinking=thinking)
        return wire.reply(text, finish=finish, counts=counts)


def _said(question: Question) -> tuple[str, str]:
    """The reply's text, and why it ends in Wire.reply's words."""
    if question.wants_json:
        return _JSON, ""
    text = _LETTERS if "a b c d e" in question.text else _SPOKEN
    if "1 to 1000" in question.text:
        return "one two three", "length"
    for stop in question.stops:
        text = text.partition(stop)[0]
    return text, ""


def _too_long(wire: Wire) -> str:
    if wire.name == AnthropicWire.name:
        return f"prompt is too long: 9001 tokens > {_CONTEXT_TOKENS} maximum"
    if wire.name == OpenAIWire.name:
        return f"This model's maximum context length is {_CONTEXT_TOKENS} tokens. However, you asked for 9001."
    return f"The input token count (9001) exceeds the maximum number of tokens allowed ({_CONTEXT_TOKENS})."


def _anthropic(asked: Asked) -> Question:
    body = asked.body
    choice = body.get("tool_choice") or {}
    return Question(
        model=body["model"],
        text=_texts(body["messages"]),
        max_tokens=body["max_tokens"],
        stops=tuple(body.get("stop_sequences") or ()),
        named=choice["name"] if choice.get("type") == "tool" else "",
        wants_json="format" in (body.get("output_config") or {}),
        may_think=(body.get("thinking") or {}).get("type") != "disabled",
        is_streamed=bool(body.get("stream")),
    )


def _openai(asked: Asked) -> Question:
    body = asked.body
    choice = body.get("tool_choice")
    return Question(
        model=body["model"],
        text=_texts(body["messages"]),
        max_tokens=body["max_completion_tokens"],
        stops=tuple(body.get("stop") or ()),
        named=choice["function"]["name"] if isinstance(choice, dict) else "",
        wants_json="response_format" in body,
        may_think=True,
        is_streamed=bool(body.get("stream")),
    )


def _google(asked: Asked) -> Question:
    name, _, method = asked.path.rpartition("/")[2].partition(":")
    config = asked.body.get("generationConfig") or {}
    # The library sends the fields of some messages by their names in Python, which the API takes too.
    thinking = config.get("thinkingConfig") or {}
    choice = (asked.body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    return Question(
        model=name,
        text=_texts(asked.body["contents"]),
        max_tokens=config["maxOutputTokens"],
        stops=tuple(config.get("stopSequences") or ()),
        named=next(iter(choice.get("allowedFunctionNames") or ()), ""),
        wants_json=config.get("responseMimeType") == "application/json",
        may_think=thinking.get("thinking_budget") != 0,
        is_streamed=method.startswith("stream"),
    )


_READERS = {"anthropic": _anthropic, "openai": _openai, "google_genai": _google}


def _texts(value: Any) -> str:
    """Every text in a JSON value."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return " ".join(_texts(each) for each in inner)
