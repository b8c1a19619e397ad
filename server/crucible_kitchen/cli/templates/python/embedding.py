"""my-adapter: an adapter of the port embedding. Texts that share words are near each other."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible_kit.author import run_adapter
from crucible_kit.errors import NotFoundError, capability_missing, field_error
from crucible_kit.tensors import to_tensor

MODEL = "hashed-words"
DIMENSION = 64


class Embeddings(embedding_pb2_grpc.EmbeddingServiceServicer):
    """EmbeddingService with one model, and no capabilities: what needs one is refused, never ignored."""

    async def EmbedTexts(
        self, request: embedding_pb2.EmbedTextsRequest, context: Any
    ) -> embedding_pb2.EmbedTextsResponse:
        if request.model not in ("", MODEL):
            raise NotFoundError(
                f"model: there is no {request.model!r}; there is {MODEL}",
                reason="MODEL_NOT_FOUND",
                metadata={"model": request.model},
            )
        if request.HasField("dimension"):
            raise capability_missing("embedding", "embedding.dimension", "leave `dimension` out")
        if request.use != embedding_pb2.TEXT_USE_UNSPECIFIED:
            raise capability_missing("embedding", "embedding.text_use", "leave `use` out")
        for number, text in enumerate(request.texts):
            if not text:
                raise field_error(f"texts[{number}]", "is empty: leave it out")
        # Work that takes a while goes into a thread: the event loop answers the other calls meanwhile.
        vectors_ND = await asyncio.to_thread(embed, request.texts)
        if request.normalize:
            lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
            vectors_ND = np.divide(vectors_ND, lengths_N1, out=np.zeros_like(vectors_ND), where=lengths_N1 > 0)
        return embedding_pb2.EmbedTextsResponse(model=MODEL, dimension=DIMENSION, vectors=to_tensor(vectors_ND))


def embed(texts: Sequence[str]) -> np.ndarray:
    """Your model goes here: texts to float32 vectors of shape [n, d]."""
    vectors_ND = np.zeros((len(texts), DIMENSION), np.float32)
    for vector_D, text in zip(vectors_ND, texts, strict=True):
        for word in text.casefold().split():
            bits = zlib.crc32(word.encode())
            vector_D[bits % DIMENSION] += 1 if bits >> 31 else -1
    return vectors_ND


if __name__ == "__main__":
    run_adapter(name="my-adapter", ports={"embedding": Embeddings()})
