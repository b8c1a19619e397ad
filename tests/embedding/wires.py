"""The providers' forms on the wire, as their published schemas have them, by the same names."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from crucible_adapters.embedding.google_genai import GoogleGenAIEmbedding
from crucible_adapters.embedding.openai import OpenAIEmbedding
from tests.llm import wires
from tests.llm.server import Answer, Asked


class OpenAIWire:
    """POST /v1/embeddings."""

    name = "openai"
    adapter = OpenAIEmbedding
    variable = "OPENAI_API_KEY"
    model = "text-embedding-3-small"
    base_path = "/v1"
    path = "/v1/embeddings"
    key_header = ("authorization", "Bearer {}")
    error = wires.OpenAIWire().error

    def answer(self, *vectors: Any, tokens: int | None = 3, **more: Any) -> Answer:
        """Vectors come as base64, as the adapter asks for them."""
        rows = [
            {"object": "embedding", "index": number, "embedding": _encoded(vector)}
            for number, vector in enumerate(vectors)
        ]
        body: dict[str, Any] = {"object": "list", "data": rows, "model": self.model, **more}
        if tokens is not None:
            body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer(body)

    def too_long(self, place: int, limit: int) -> Answer:
        return self.error(400, f"Invalid 'input[{place}]': maximum input length is {limit} tokens.")

    def asked_model(self, asked: Asked) -> str:
        return asked.body["model"]

    def texts(self, asked: Asked) -> list[str]:
        """What was sent."""
        return asked.body["input"]

    def dimensions(self, asked: Asked) -> list[int | None]:
        """What was asked for, for each text."""
        return [asked.body.get("dimensions")] * len(self.texts(asked))


class GoogleWire:
    """POST /v1/models/MODEL:batchEmbedContents."""

    name = "google_genai"
    adapter = GoogleGenAIEmbedding
    variable = "GEMINI_API_KEY"
    model = "gemini-embedding-001"
    base_path = ""
    path = f"/v1/models/{model}:batchEmbedContents"
    key_header = ("x-goog-api-key", "{}")
    error = wires.GoogleWire().error

    def answer(self, *vectors: Any, tokens: int | None = 3) -> Answer:
        body: dict[str, Any] = {"embeddings": [{"values": [float(each) for each in vector]} for vector in vectors]}
        if tokens is not None:
            body["usageMetadata"] = {"promptTokenCount": tokens, "totalTokenCount": tokens}
        return Answer(body)

    def count(self, tokens: int) -> Answer:
        """Of POST /v1/models/MODEL:countTokens."""
        return Answer({"totalTokens": tokens})

    def asked_model(self, asked: Asked) -> str:
        return asked.path.rpartition("/")[2].partition(":")[0]

    def texts(self, asked: Asked) -> list[str]:
        return [part["text"] for each in asked.body["requests"] for part in each["content"]["parts"]]

    def dimensions(self, asked: Asked) -> list[int | None]:
        return [each.get("outputDimensionality") for each in asked.body["requests"]]


Wire = OpenAIWire | GoogleWire
WIRES: Sequence[Wire] = (OpenAIWire(), GoogleWire())


def _encoded(vector: Any) -> Any:
    return vector if isinstance(vector, str) else base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
