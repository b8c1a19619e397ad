"""Language models, embeddings, vector stores and rewards with a defect: the fakes, changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible.port.embedding.v1 import embedding_pb2
from crucible.port.llm.v1 import llm_pb2
from crucible.port.reward.v1 import reward_pb2
from crucible.port.vector.v1 import vector_pb2
from crucible_adapters.fakes.embedding import FakeEmbedding
from crucible_adapters.fakes.llm import FakeLLM
from crucible_adapters.fakes.reward import FakeReward
from crucible_adapters.fakes.vector import FakeVectorStore
from crucible_kit.errors import from_status
from crucible_kit.tensors import from_tensor, to_tensor
from tests.conformance.mutants.mutant import adapter_mutant, changed


class AnyRole(FakeLLM):
    async def Chat(self, request: Any, context: Any) -> llm_pb2.ChatResponse:
        copy = changed(request)
        for message in copy.messages:
            message.role = "user" if message.role == "robot" else message.role
        return await super().Chat(copy, context)


class StopsStay(FakeLLM):
    async def Chat(self, request: Any, context: Any) -> llm_pb2.ChatResponse:
        response = await super().Chat(request, context)
        response.reply.content += "".join(request.options.stop_sequences[:1])
        return response


class ThinksAnyway(FakeLLM):
    async def Chat(self, request: Any, context: Any) -> llm_pb2.ChatResponse:
        response = await super().Chat(request, context)
        options = request.options
        if options.HasField("thinking_budget_tokens") and not options.thinking_budget_tokens:
            response.reply.thinking = "Hm."
        return response


class AnyJson(FakeLLM):
    async def Chat(self, request: Any, context: Any) -> llm_pb2.ChatResponse:
        response = await super().Chat(request, context)
        response.reply.content = "{}" if request.HasField("response_format") else response.reply.content
        return response


class PiecesAreLost(FakeLLM):
    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[llm_pb2.StreamChatResponse]:
        first = True
        async for each in super().StreamChat(request, context):
            if not (first and each.content_delta):
                yield each
            first = first and not each.content_delta


class PlacesMatter(FakeEmbedding):
    async def EmbedTexts(self, request: Any, context: Any) -> embedding_pb2.EmbedTextsResponse:
        response = await super().EmbedTexts(request, context)
        vectors_ND = from_tensor(response.vectors).copy()
        vectors_ND[1:] += 0.5
        response.vectors.CopyFrom(to_tensor(vectors_ND))
        return response


class NeverNormalised(FakeEmbedding):
    async def EmbedTexts(self, request: Any, context: Any) -> embedding_pb2.EmbedTextsResponse:
        return await super().EmbedTexts(changed(request, normalize=False), context)


class CutsTexts(FakeEmbedding):
    async def EmbedTexts(self, request: Any, context: Any) -> embedding_pb2.EmbedTextsResponse:
        copy = changed(request)
        copy.texts[:] = [" ".join(text.split()[:1000]) for text in request.texts]
        return await super().EmbedTexts(copy, context)


class FarthestFirst(FakeVectorStore):
    async def QueryItems(self, request: Any, context: Any) -> vector_pb2.QueryItemsResponse:
        response = await super().QueryItems(request, context)
        for result in response.results:
            for column in ("ids", "documents", "metadatas"):
                values = list(getattr(result, column))[::-1]
                result.ClearField(column)
                getattr(result, column).extend(values)
        return response


class FiltersAreIgnored(FakeVectorStore):
    async def QueryItems(self, request: Any, context: Any) -> vector_pb2.QueryItemsResponse:
        copy = changed(request)
        copy.ClearField("filter")
        return await super().QueryItems(copy, context)


class VectorsAreRounded(FakeVectorStore):
    async def UpsertItems(self, request: Any, context: Any) -> vector_pb2.UpsertItemsResponse:
        copy = changed(request)
        vectors_ND = from_tensor(request.vectors)
        copy.vectors.CopyFrom(to_tensor(vectors_ND + vectors_ND.dtype.type(0)))  # -0 becomes 0
        return await super().UpsertItems(copy, context)


class DeletesWithoutAsking(FakeVectorStore):
    async def DeleteItems(self, request: Any, context: Any) -> vector_pb2.DeleteItemsResponse:
        if not request.ids and not request.HasField("filter"):
            return vector_pb2.DeleteItemsResponse()
        return await super().DeleteItems(request, context)


class OutOfRange(FakeReward):
    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        response = await super().Score(request, context)
        for result in response.results:
            result.reward = 2.0
        return response


class BatchesFail(FakeReward):
    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        response = await super().Score(request, context)
        for result in response.results:
            if result.HasField("error"):
                raise from_status(result.error.status)
        return response


class LaterItemsGetLess(FakeReward):
    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        response = await super().Score(request, context)
        for number, result in enumerate(response.results):
            result.reward /= 1 + number
        return response


MODEL_MUTANTS = (
    adapter_mutant(AnyRole, "an unknown role is taken", "LLM-CHAT-05"),
    adapter_mutant(StopsStay, "the stop sequence is part of the reply", "LLM-CHAT-03"),
    adapter_mutant(ThinksAnyway, "it thinks with a budget of 0", "LLM-THINKING-01"),
    adapter_mutant(AnyJson, "JSON does not satisfy the schema", "LLM-JSON-01"),
    adapter_mutant(PiecesAreLost, "the first piece is lost", "LLM-STREAM-01"),
    adapter_mutant(PlacesMatter, "a text's place changes its vector", "EMB-EMBED-02", others=2),
    adapter_mutant(NeverNormalised, "normalize is ignored", "EMB-EMBED-03"),
    adapter_mutant(CutsTexts, "long texts are cut", "EMB-MODELS-02"),
    adapter_mutant(FarthestFirst, "the farthest come first", "VEC-QUERY-01", others=4),
    adapter_mutant(FiltersAreIgnored, "filters are ignored", "VEC-FILTER-01", others=2),
    adapter_mutant(VectorsAreRounded, "the sign of zero is lost", "VEC-UPSERT-04"),
    adapter_mutant(DeletesWithoutAsking, "nothing chosen is no error", "VEC-DELETE-01"),
    adapter_mutant(OutOfRange, "rewards leave their range", "RWD-SCORE-01"),
    adapter_mutant(BatchesFail, "one item fails its batch", "RWD-SCORE-03"),
    adapter_mutant(LaterItemsGetLess, "an item's place changes its reward", "RWD-SCORE-02", others=2),
)
