"""Vectors in collections with the cosine metric, which Chroma keeps at length 1: their bits stand beside them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

BITS = "crucible:vector"
"""Metadata key of an item: the vector's float32 numbers, little-endian, in base64."""
# Between these float32 holds the squares of lengths too; Chroma makes zeros and NaN of others.
_SHORTEST, _LONGEST = 1e-15, 1e15
_ROUNDED = 1e-5


def as_taken(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors as Chroma can take their directions: very short and very long ones at length 1."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    is_extreme_N1 = (lengths_N1 > 0) & ((lengths_N1 < _SHORTEST) | (lengths_N1 > _LONGEST))
    return np.divide(wide_ND, lengths_N1, out=wide_ND, where=is_extreme_N1).astype(np.float32)


def to_bits(vector_D: np.ndarray) -> str:
    """The value of BITS."""
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


def from_bits(bits: Any, taken_D: np.ndarray) -> np.ndarray:
    """The vector that was stored.

    Args:
        bits: the value of BITS; anything else when there is none.
        taken_D: the vector that Chroma has. It is the result when it is another one: another program has replaced it.
    """
    try:
        stored_D = np.frombuffer(base64.b64decode(bits, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, TypeError, ValueError):
        return taken_D
    if stored_D.shape != taken_D.shape or not np.isfinite(stored_D).all():
        return taken_D
    expected_D = as_taken(stored_D[np.newaxis])[0]
    is_same = np.abs(expected_D - taken_D).max() <= _ROUNDED * np.abs(expected_D).max()
    return stored_D if is_same else taken_D
