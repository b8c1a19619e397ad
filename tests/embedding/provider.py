"""A provider with a model of its own: what it answers follows from what it is asked, in each of the forms."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

import numpy as np

from tests.embedding.wires import GoogleWire, Wire
from tests.llm.server import Answer, Asked, Server

DIMENSION, MAX_TOKENS = 8, 32
"""Of the wire's model, the only one that there is. Tokens are words."""


class Provider(Server):
    """Speaks the form of a wire."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def answer(self, asked: Asked) -> Answer:
        wire = self._wire
        if wire.asked_model(asked) != wire.model:
            return wire.error(404, "There is no such model.")
        if isinstance(wire, GoogleWire) and asked.path.endswith(":countTokens"):
            return wire.count(sum(_tokens(part["text"]) for each in asked.body["contents"] for part in each["parts"]))
        texts = wire.texts(asked)
        if not isinstance(wire, GoogleWire):
            # Google may cut them without a word.
            for place, text in enumerate(texts):
                if _tokens(text) > MAX_TOKENS:
                    return wire.too_long(place, MAX_TOKENS)
        sizes = zip(texts, wire.dimensions(asked), strict=True)
        return wire.answer(*(_vector(text, size or DIMENSION) for text, size in sizes), tokens=sum(map(_tokens, texts)))


def _tokens(text: str) -> int:
    return len(text.split())


@cache
def _vector(text: str, dimension: int) -> np.ndarray:
    words = text.split()[:MAX_TOKENS]
    seed = int.from_bytes(sha256(" ".join(words).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
