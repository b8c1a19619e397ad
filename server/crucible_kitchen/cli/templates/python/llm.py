"""my-adapter: an adapter of the port llm. It says again what it was told."""

from __future__ import annotations

import time
from typing import Any

from crucible.port.llm.v1 import llm_pb2, llm_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_kit.author import run_adapter
from crucible_kit.errors import NotFoundError, capability_missing, field_error
from crucible_kit.messages import message_text, refuse_unusable

MODEL = "echo"
ROLES = ("system", "user", "assistant")


class Chats(llm_pb2_grpc.LLMServiceServicer):
    """LLMService with one model, and no capabilities: what needs one is refused, never ignored."""

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        check(request)
        start = time.perf_counter()
        # Your model goes here; in this one temperature and top_p have nothing to choose. A provider's client has to be
        # async, or to run in asyncio.to_thread.
        words = " ".join(message_text(message) for message in request.messages if message.role == "user").split()
        content, stop_sequence = until_stop("You said: " + " ".join(words), request.options.stop_sequences)
        reply, finish_reason = content.split(" "), llm_pb2.FINISH_REASON_STOP
        if request.options.HasField("max_tokens") and len(reply) > request.options.max_tokens:
            reply, finish_reason = reply[: request.options.max_tokens], llm_pb2.FINISH_REASON_LENGTH
            stop_sequence = ""
        read = sum(1 + len(message_text(message).split()) for message in request.messages)
        meta = llm_pb2.ReplyMeta(
            provider="my-adapter",
            model=MODEL,
            usage=usage_pb2.TokenUsage(input_tokens=read, output_tokens=len(reply)),
            finish_reason=finish_reason,
            latency_ms=(time.perf_counter() - start) * 1000,
            stop_sequence=stop_sequence,
        )
        return llm_pb2.ChatResponse(reply=llm_pb2.ChatReply(content=" ".join(reply), meta=meta))


def check(request: llm_pb2.ChatRequest) -> None:
    """Refuses what this model can't honour."""
    if request.model not in ("", MODEL):
        raise NotFoundError(
            f"model: there is no {request.model!r}; there is {MODEL}",
            reason="MODEL_NOT_FOUND",
            metadata={"model": request.model},
        )
    refuse_unusable(request.messages, port="llm")
    for number, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise field_error(f"messages[{number}].role", f"is {message.role!r}; it must be one of {', '.join(ROLES)}")
    given = {
        "llm.tools": bool(request.tools) or request.HasField("tool_choice"),
        "llm.json_schema": request.HasField("response_format"),
        "llm.seed": request.options.HasField("seed"),
        "llm.thinking": request.options.HasField("thinking_budget_tokens"),
    }
    for capability, is_given in given.items():
        if is_given:
            raise capability_missing("llm", capability, "leave out what needs it")


def until_stop(text: str, stop_sequences: Any) -> tuple[str, str]:
    """The text before the first stop sequence in it, and that sequence; the whole text and nothing without one."""
    found = [(text.find(each), each) for each in stop_sequences if each and each in text]
    if not found:
        return text, ""
    place, stop_sequence = min(found)
    return text[:place], stop_sequence


if __name__ == "__main__":
    run_adapter(name="my-adapter", ports={"llm": Chats()})
