"""Embeddings by models of Google through the Gemini API."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from crucible.port.embedding.v1 import embedding_pb2
from crucible_adapters.embedding.provider import (
    Answer,
    Batch,
    ProvidedModel,
    ProviderEmbedding,
    ProviderOptions,
    TextTooLongError,
)
from crucible_adapters.llm.errors import context_limit
from crucible_adapters.llm.google_form import check_model
from crucible_adapters.llm.google_genai import open_client, parsing, translated
from crucible_kit.adapter import AdapterDescription

_TASKS = {
    embedding_pb2.TEXT_USE_QUERY: "RETRIEVAL_QUERY",
    embedding_pb2.TEXT_USE_DOCUMENT: "RETRIEVAL_DOCUMENT",
}
_WORDS = {
    embedding_pb2.TEXT_USE_QUERY: "task: search result | query: ",
    embedding_pb2.TEXT_USE_DOCUMENT: "title: none | text: ",
}


class GoogleEmbeddingModel(ProvidedModel):
    """What ListModels tells of a model, and how it is told what a text is for."""

    text_use: Literal["task_type", "words"] = Field(
        default="task_type",
        description="How it is told what a text is for: a field of the request, or words before the text.",
    )


class GoogleGenAIEmbeddingOptions(ProviderOptions):
    """Which models, where, and how much in one request."""

    model: str = Field(
        default="gemini-embedding-001", min_length=1, max_length=255, description="Model of requests that name none."
    )
    batch_texts: int = Field(default=100, ge=1, le=2048, description="Most texts in one request; Google takes 100.")
    api_version: str = Field(
        default="", pattern=r"^[a-z0-9]*$", description="Version of the API, such as v1beta; empty: the library's own."
    )
    models: dict[str, GoogleEmbeddingModel] = Field(
        default_factory=lambda: {
            "gemini-embedding-001": GoogleEmbeddingModel(dimension=3072, max_input_tokens=2048),
            "gemini-embedding-2": GoogleEmbeddingModel(dimension=3072, max_input_tokens=8192, text_use="words"),
        },
        description="What ListModels lists, by name, as the API does not tell it; others may be asked too.",
    )


class GoogleGenAIEmbedding(ProviderEmbedding):
    """EmbeddingClient over the package google-genai."""

    description = AdapterDescription(
        name="google-genai-embedding",
        port="embedding",
        capabilities=("embedding.dimension", "embedding.list_models", "embedding.text_use"),
        options=GoogleGenAIEmbeddingOptions,
        secrets=("api_key",),
    )
    provider = "google_genai"
    package = "google.genai"
    address = "https://generativelanguage.googleapis.com"

    def _open(self, http: Any, timeout: Any) -> Any:
        return open_client(http, self._key, self._said.address, self._options)

    def _check_model(self, model: str) -> None:
        check_model(model)

    async def _embed(self, client: Any, batch: Batch) -> Answer:
        from google.genai import types

        known = self._options.models.get(batch.model)
        config: dict[str, Any] = {} if batch.dimension is None else {"output_dimensionality": batch.dimension}
        texts = batch.texts
        if batch.use != embedding_pb2.TEXT_USE_UNSPECIFIED:
            if known is not None and known.text_use == "words":
                texts = [_WORDS[batch.use] + each for each in texts]
            else:
                config["task_type"] = _TASKS[batch.use]
        # Not as the library's objects: it takes several times as long to check those. Nor as strings, which it joins.
        contents: list[Any] = [{"parts": [{"text": each}]} for each in texts]
        limit = 0 if known is None else known.max_input_tokens
        for place, text in enumerate(texts if limit else ()):
            # The API may cut what is too long without a word. No token is shorter than a byte.
            if len(text.encode()) > limit:
                await self._check_length(client, batch.model, contents[place], place, limit)
        with parsing(self._said):
            response = await client.aio.models.embed_content(
                model=batch.model, contents=contents, config=types.EmbedContentConfig(**config)
            )
        with self._said.reading():
            vectors_ND = np.array([each.values for each in response.embeddings], np.float32)
            usage = response.usage_metadata
            return Answer(batch.model, vectors_ND, None if usage is None else usage.prompt_token_count)

    async def _check_length(self, client: Any, model: str, content: Any, place: int, limit: int) -> None:
        with parsing(self._said):
            response = await client.aio.models.count_tokens(model=model, contents=[content])
        with self._said.reading():
            tokens = int(response.total_tokens)
        if tokens > limit:
            raise TextTooLongError(place, limit, tokens)

    def _translated(self, error: Exception, model: str) -> Exception | None:
        limit = context_limit(getattr(error, "message", None)) if getattr(error, "code", 0) == 400 else None
        if limit is not None:
            return TextTooLongError(None, limit)
        return translated(error, model, self._said, now=self._clock.wall())
