"""Embeddings by feature hashing: texts that share words are near each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.embedding.checks import check_request, check_size, normalized, text_too_long
from crucible_adapters.fakes.providers import TOKEN, model_not_found, ordered_error
from crucible_adapters.fakes.seeded import digest
from crucible_adapters.listing import page
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.tensors import to_tensor

_DIMENSIONS = {"fake-embedding": 64, "fake-embedding-large": 256}
_DEFAULT = "fake-embedding"
_MAX_TOKENS = 2048
_USD_PER_MILLION = 0.1


class FakeEmbeddingOptions(AdapterOptions):
    """What its vectors follow from."""

    seed: int = Field(default=0, description="Seed of the hash that gives a word its place in the vectors.")


class FakeEmbedding(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Each word of a text adds +1 or -1 in one place of its vector. `raise REASON` as a text gives that error."""

    description = AdapterDescription(
        name="fake-embedding",
        port="embedding",
        capabilities=("embedding.dimension", "embedding.list_models"),
        options=FakeEmbeddingOptions,
    )

    def __init__(self, options: FakeEmbeddingOptions, context: AdapterContext) -> None:
        self._seed = options.seed
        self._threads = Threads("fake-embedding", 1)

    async def close(self) -> None:
        """Ends the thread."""
        await self._threads.close()

    async def EmbedTexts(
        self, request: embedding_pb2.EmbedTextsRequest, context: Any
    ) -> embedding_pb2.EmbedTextsResponse:
        model = request.model or _DEFAULT
        if model not in _DIMENSIONS:
            raise model_not_found(model, sorted(_DIMENSIONS))
        check_request(request, self.description.capabilities)
        return await self._threads.run(self._embed, request, model)

    def _embed(self, request: embedding_pb2.EmbedTextsRequest, model: str) -> embedding_pb2.EmbedTextsResponse:
        dimension = request.dimension if request.HasField("dimension") else _DIMENSIONS[model]
        check_size(len(request.texts), dimension)
        tokens = [_tokens(text, number) for number, text in enumerate(request.texts)]
        vectors_ND = np.zeros((len(tokens), dimension), np.float32)
        for vector_D, words in zip(vectors_ND, tokens, strict=True):
            for word in words:
                bits = int(digest(self._seed, model, word)[:16], 16)
                vector_D[(bits >> 1) % dimension] += 1.0 if bits & 1 else -1.0
        if request.normalize:
            vectors_ND = normalized(vectors_ND)
        count = sum(len(each) for each in tokens)
        return embedding_pb2.EmbedTextsResponse(
            model=model,
            dimension=dimension,
            vectors=to_tensor(vectors_ND),
            usage=usage_pb2.TokenUsage(input_tokens=count),
            cost=usage_pb2.Cost(amount=count * _USD_PER_MILLION / 1e6, currency="USD"),
        )

    async def ListModels(
        self, request: embedding_pb2.ListModelsRequest, context: Any
    ) -> embedding_pb2.ListModelsResponse:
        models, token = page([_model(name) for name in sorted(_DIMENSIONS)], lambda each: each.name, request, "models")
        return embedding_pb2.ListModelsResponse(models=models, next_page_token=token)


def _model(name: str) -> embedding_pb2.EmbeddingModel:
    return embedding_pb2.EmbeddingModel(
        name=name,
        dimension=_DIMENSIONS[name],
        max_input_tokens=_MAX_TOKENS,
        price_per_million_tokens=usage_pb2.Cost(amount=_USD_PER_MILLION, currency="USD"),
    )


def _tokens(text: str, number: int) -> list[str]:
    error = ordered_error(text, "raise")
    if error is not None:
        raise error
    tokens = TOKEN.findall(text.casefold())
    if len(tokens) > _MAX_TOKENS:
        raise text_too_long(number, _MAX_TOKENS, tokens=len(tokens))
    return tokens
