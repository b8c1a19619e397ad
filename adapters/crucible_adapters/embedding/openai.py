"""Embeddings by models of OpenAI, or of any server that speaks its Embeddings API."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from crucible_adapters.embedding.provider import (
    Answer,
    Batch,
    ProvidedModel,
    ProviderEmbedding,
    ProviderOptions,
    TextTooLongError,
)
from crucible_adapters.llm.errors import context_limit
from crucible_adapters.llm.openai import open_client
from crucible_adapters.retries import retry_after
from crucible_kit.adapter import AdapterContext, AdapterDescription

_SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_TOO_LONG = re.compile(r"maximum input length is (\d+) tokens", re.IGNORECASE)
_PLACE = re.compile(r"input\[(\d+)\]")


class OpenAIEmbeddingOptions(ProviderOptions):
    """Which models, where, and how much in one request."""

    model: str = Field(
        default="text-embedding-3-small", min_length=1, max_length=255, description="Model of requests that name none."
    )
    batch_bytes: int = Field(
        default=600_000,
        ge=1,
        description="Most bytes of text (UTF-8) in one request, unless a single text is longer. OpenAI takes 300,000 "
        "tokens.",
    )
    organization: str = Field(default="", description="Organization that is billed; empty: the key's own.")
    project: str = Field(default="", description="Project that is billed; empty: the key's own.")
    encoding: Literal["base64", "float"] = Field(
        default="base64", description="How vectors are asked for; some servers know float only, which is slower."
    )
    models: dict[str, ProvidedModel] = Field(
        default_factory=lambda: {
            "text-embedding-3-large": ProvidedModel(dimension=3072, max_input_tokens=8192),
            "text-embedding-3-small": ProvidedModel(dimension=1536, max_input_tokens=8192),
            "text-embedding-ada-002": ProvidedModel(dimension=1536, max_input_tokens=8192),
        },
        description="What ListModels lists, by name, as the API does not tell it; others may be asked too.",
    )


class OpenAIEmbedding(ProviderEmbedding):
    """EmbeddingClient over the package openai. With a base_url of somebody else's it needs no key."""

    description = AdapterDescription(
        name="openai-embedding",
        port="embedding",
        capabilities=("embedding.dimension", "embedding.list_models"),
        options=OpenAIEmbeddingOptions,
        secrets=("api_key",),
    )
    provider = "openai"
    package = "openai"
    address = "https://api.openai.com/v1"

    def __init__(self, options: OpenAIEmbeddingOptions, context: AdapterContext, **more: Any) -> None:
        super().__init__(options, context, **more)
        self.needs_key = not options.base_url or options.base_url == self.address
        self._headers: dict[str, Any] = {}

    def _open(self, http: Any, timeout: Any) -> Any:
        client, self._headers = open_client(http, timeout, self._key, self._said.address, self._options)
        return client

    async def _embed(self, client: Any, batch: Batch) -> Answer:
        more = {} if batch.dimension is None else {"dimensions": batch.dimension}
        response = await client.embeddings.create(
            model=batch.model,
            input=list(batch.texts),
            encoding_format=self._options.encoding,
            extra_headers=self._headers,
            **more,
        )
        with self._said.reading():
            body = response.to_dict(mode="json", warnings=False)
            tokens = (body.get("usage") or {}).get("prompt_tokens")
            vectors_ND = _vectors(body["data"])
            return Answer(str(body.get("model") or batch.model), vectors_ND, None if tokens is None else int(tokens))

    def _translated(self, error: Exception, model: str) -> Exception | None:
        import openai

        match error:
            case openai.APITimeoutError():
                return self._said.by_transport(error.__cause__ or error) or self._said.timed_out()
            case openai.APIConnectionError():
                known = self._said.by_transport(error.__cause__) if error.__cause__ is not None else None
                return known or self._said.unavailable("can't be reached, or broke the connection")
            case openai.APIResponseValidationError():
                return self._said.malformed("with a body that is not of its API's form")
            case openai.APIStatusError():
                return self._by_status(error, model)
            case ValueError():
                # Of the library itself: it wants data, and JSON that can be read.
                return self._said.malformed("with a body that is not of its API's form")
        return None

    def _by_status(self, error: Any, model: str) -> Exception:
        body = error.body if isinstance(error.body, Mapping) else {}
        text, status = body.get("message"), error.status_code
        if error.code in _SPENT or error.type in _SPENT:
            return self._said.quota_exhausted(text, status)
        if status == 400 and isinstance(text, str):
            limit = _TOO_LONG.search(text)
            known = int(limit[1]) if limit else context_limit(text)
            if known is not None:
                place = _PLACE.search(text)
                return TextTooLongError(int(place[1]) if place else None, known)
        delay = retry_after(error.response.headers, now=self._clock.wall())
        return self._said.by_status(status, text, model=model, delay=delay)


def _vectors(data: list[Any]) -> np.ndarray:
    """The vectors of an answer in the order of its indices. Raises ValueError when those are no indices."""
    rows = {int(each["index"]): _vector(each["embedding"]) for each in data}
    if len(data) != len(rows) or sorted(rows) != list(range(len(rows))):
        raise ValueError("indices")
    return np.stack([rows[number] for number in range(len(rows))])


def _vector(value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    return np.asarray(value, np.float32)
