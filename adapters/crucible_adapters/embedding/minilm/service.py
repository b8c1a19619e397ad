"""The port over a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible.type.v1 import usage_pb2
from crucible_adapters.embedding.checks import check_request, check_size, text_too_long
from crucible_adapters.embedding.minilm.spec import MINILM
from crucible_adapters.listing import page
from crucible_adapters.threads import Threads
from crucible_kit.errors import NotFoundError
from crucible_kit.tensors import to_tensor

MODEL = "all-MiniLM-L6-v2"


class Model(Protocol):
    """What turns texts into vectors; see model.MiniLM."""

    dimension: int
    max_tokens: int

    def tokens(self, text: str) -> Sequence[int]: ...

    def embed(self, tokens: Sequence[int]) -> np.ndarray: ...


class MiniLMEmbedding(embedding_pb2_grpc.EmbeddingServiceServicer):
    """The EmbeddingClient port over one model, in one thread: a text at a time, so that its vector does not depend, to
    the bit, on what else is in the batch, calls take turns, and one that is cancelled ends with the text at hand.

    Args:
        threads: the one that made the model.
    """

    def __init__(self, model: Model, threads: Threads) -> None:
        self._model = model
        self._threads = threads

    @classmethod
    async def open(cls, load: Callable[[], Model]) -> MiniLMEmbedding:
        """Loads the model in its thread."""
        threads = Threads("minilm", 1)
        return cls(await threads.run(load), threads)

    async def close(self) -> None:
        """Ends the thread."""
        await self._threads.close()

    async def EmbedTexts(
        self, request: embedding_pb2.EmbedTextsRequest, context: Any
    ) -> embedding_pb2.EmbedTextsResponse:
        if request.model not in ("", MODEL):
            raise NotFoundError(
                f"model: {request.model!r} is not served here, {MODEL} is: leave it out",
                reason="MODEL_NOT_FOUND",
                metadata={"model": request.model, "field": "model"},
            )
        check_request(request, MINILM.capabilities["embedding"])
        check_size(len(request.texts), self._model.dimension)
        # Equal texts are read and computed once.
        tokens: dict[str, Sequence[int]] = {}
        for number, text in enumerate(request.texts):
            if text not in tokens:
                tokens[text] = await self._threads.run(self._model.tokens, text)
                if len(tokens[text]) > self._model.max_tokens:
                    raise text_too_long(number, self._model.max_tokens, tokens=len(tokens[text]))
        vectors = {text: await self._threads.run(self._model.embed, ids) for text, ids in tokens.items()}
        return embedding_pb2.EmbedTextsResponse(
            model=MODEL,
            dimension=self._model.dimension,
            vectors=to_tensor(np.stack([vectors[text] for text in request.texts])),
            usage=usage_pb2.TokenUsage(input_tokens=sum(len(tokens[text]) for text in request.texts)),
        )

    async def ListModels(
        self, request: embedding_pb2.ListModelsRequest, context: Any
    ) -> embedding_pb2.ListModelsResponse:
        model = embedding_pb2.EmbeddingModel(
            name=MODEL, dimension=self._model.dimension, max_input_tokens=self._model.max_tokens
        )
        models, token = page([model], lambda each: each.name, request, "ListModels")
        return embedding_pb2.ListModelsResponse(models=models, next_page_token=token)
