"""What every adapter of the Embedding port checks and computes alike."""

from __future__ import annotations

import numpy as np

from crucible.port.embedding.v1 import embedding_pb2
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kit.errors import InvalidArgumentError, ResourceExhaustedError, capability_missing, field_error

# Beside the vectors there must be room for the rest of the message.
_MAX_VECTORS_BYTES = MAX_MESSAGE_BYTES - 64 * 1024


def check_request(request: embedding_pb2.EmbedTextsRequest, capabilities: tuple[str, ...]) -> None:
    """Raises what is wrong with a request whatever the model.

    Raises:
        InvalidArgumentError: FIELD_INVALID, a text is empty.
        UnimplementedError: CAPABILITY_MISSING.
    """
    if request.use != embedding_pb2.TEXT_USE_UNSPECIFIED and "embedding.text_use" not in capabilities:
        raise capability_missing("embedding", "embedding.text_use", "leave `use` out")
    if request.HasField("dimension") and "embedding.dimension" not in capabilities:
        raise capability_missing("embedding", "embedding.dimension", "leave `dimension` out")
    for number, text in enumerate(request.texts):
        if not text:
            raise field_error(f"texts[{number}]", "is empty: leave it out")


def check_size(count: int, dimension: int) -> None:
    """Raises RESOURCE_EXHAUSTED RESULT_TOO_LARGE when so many vectors don't fit into a message."""
    if count * dimension * 4 > _MAX_VECTORS_BYTES:
        raise ResourceExhaustedError(
            f"{count} vectors of {dimension} float32 don't fit into a message: send fewer texts",
            reason="RESULT_TOO_LARGE",
            metadata={"limit_bytes": _MAX_VECTORS_BYTES},
        )


def text_too_long(number: int, limit: int | None, *, tokens: int | None = None) -> InvalidArgumentError:
    """The error of a text that the model does not take.

    Args:
        number: its index in the request.
        limit: of the model, in tokens; None: not known.
        tokens: that it has; None: not known.
    """
    field = f"texts[{number}]"
    has = "is too long" if tokens is None else f"has {tokens} tokens"
    taken = "" if limit is None else f", at most {limit}{' tokens' if tokens is None else ''} are taken"
    facts = {"field": field, "index": number, "limit": limit, "tokens": tokens}
    return InvalidArgumentError(
        f"{field}: {has}{taken}: split it",
        reason="TEXT_TOO_LONG",
        metadata={name: value for name, value in facts.items() if value is not None},
    )


def normalized(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors at length 1, float32; zeros stay zeros."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return np.divide(wide_ND, lengths_N1, out=wide_ND, where=lengths_N1 > 0).astype(np.float32)
