"""Small adapters of ports that nobody serves offline, for scripts/record_stubs.py. The same to the same request."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from crucible.port.llm.v1 import llm_pb2, llm_pb2_grpc
from crucible.port.sampling.v1 import sampling_pb2, sampling_pb2_grpc
from crucible.type.v1 import message_pb2, usage_pb2
from crucible_kit.errors import NotFoundError, ResourceExhaustedError
from crucible_kit.tensors import pack_floats, pack_tokens

MODELS = ("scripted-large", "scripted-small")
LLM_CAPABILITIES = ("llm.list_models", "llm.stream", "llm.tools")
SAMPLING_CAPABILITIES = ("sampling.stream",)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class ScriptedModel(llm_pb2_grpc.LLMServiceServicer):
    """Says a message's words backwards, or calls the first tool it is given."""

    def _reply(self, request: Any) -> llm_pb2.ChatReply:
        model = request.model or MODELS[0]
        last = request.messages[-1].content
        if model == "scripted-busy":
            raise ResourceExhaustedError(
                "the provider takes no more requests now: try again after 2 s", reason="RATE_LIMITED", retry_delay=2.0
            )
        if model not in MODELS:
            known = ", ".join(MODELS)
            raise NotFoundError(f"model: there is no {model!r}, there are {known}", reason="MODEL_NOT_FOUND")
        words = last.split()
        reply = llm_pb2.ChatReply(
            content=" ".join(reversed(words)),
            meta=llm_pb2.ReplyMeta(
                provider="scripted",
                model=model,
                usage=usage_pb2.TokenUsage(input_tokens=len(words), output_tokens=len(words)),
                finish_reason=llm_pb2.FINISH_REASON_STOP,
            ),
        )
        if request.tools and request.messages[-1].role == "user":
            tool = request.tools[0].name
            call = message_pb2.ToolCall(
                id=f"call_{_digest(last)[:24]}", name=tool, arguments_json=f'{{"text":"{last}"}}'
            )
            reply.content = ""
            reply.meta.tool_calls.append(call)
            reply.meta.finish_reason = llm_pb2.FINISH_REASON_TOOL_CALLS
        return reply

    async def Chat(self, request: llm_pb2.ChatRequest, context: Any) -> llm_pb2.ChatResponse:
        return llm_pb2.ChatResponse(reply=self._reply(request))

    async def StreamChat(
        self, request: llm_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[llm_pb2.StreamChatResponse]:
        reply = self._reply(request)
        for index, word in enumerate(reply.content.split()):
            yield llm_pb2.StreamChatResponse(content_delta=f" {word}" if index else word)
        yield llm_pb2.StreamChatResponse(reply=reply)

    async def ListModels(self, request: llm_pb2.ListModelsRequest, context: Any) -> llm_pb2.ListModelsResponse:
        start = MODELS.index(bytes.fromhex(request.page_token).decode()) if request.page_token else 0
        end = start + (request.page_size or len(MODELS))
        models = [llm_pb2.LanguageModel(name=name, context_tokens=8192) for name in MODELS[start:end]]
        token = MODELS[end].encode().hex() if end < len(MODELS) else ""
        return llm_pb2.ListModelsResponse(models=models, next_page_token=token)


class ScriptedSampler(sampling_pb2_grpc.SamplingServiceServicer):
    """Counts on from a prompt's last token, and streams it two tokens at a time."""

    async def CreateSamplingSession(
        self, request: sampling_pb2.CreateSamplingSessionRequest, context: Any
    ) -> sampling_pb2.CreateSamplingSessionResponse:
        return sampling_pb2.CreateSamplingSessionResponse(
            session_id=_digest(request.request_id)[:32], vocab_size=1000, max_sequence_tokens=64
        )

    async def StreamSample(
        self, request: sampling_pb2.StreamSampleRequest, context: Any
    ) -> AsyncIterator[sampling_pb2.StreamSampleResponse]:
        first = int(np.frombuffer(request.prompt_tokens_int32, "<i4")[-1]) + 1
        tokens = np.arange(first, first + request.params.max_tokens, dtype=np.int32)
        for index in range(request.num_samples):
            for start in range(0, len(tokens), 2):
                piece = tokens[start : start + 2]
                last = start + 2 >= len(tokens)
                yield sampling_pb2.StreamSampleResponse(
                    index=index,
                    tokens_int32=pack_tokens(piece),
                    logprobs_float32=pack_floats(-0.5 / (1.0 + piece)),
                    stop_reason=sampling_pb2.STOP_REASON_LENGTH if last else sampling_pb2.STOP_REASON_UNSPECIFIED,
                )

    async def CloseSamplingSession(
        self, request: sampling_pb2.CloseSamplingSessionRequest, context: Any
    ) -> sampling_pb2.CloseSamplingSessionResponse:
        return sampling_pb2.CloseSamplingSessionResponse()
