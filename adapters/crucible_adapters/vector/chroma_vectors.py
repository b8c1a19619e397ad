"""Vectors in collections with the cosine metric: what Chroma, which keeps them at length 1, rounds away."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

BITS = "crucible:vector"
"""Metadata key of an item: the lowest byte of each number, or all four of them, in base64."""
# Between these float32 holds the squares of lengths too; Chroma makes zeros and NaN of others.
_SHORTEST, _LONGEST = 1e-15, 1e15
_ROUNDED = 1e-5
# Chroma was seen to be wrong by 1, in units of the last place. A byte tells numbers apart that are nearer than 128.
_EXPECTED_PLACES, _MOST_PLACES = 4, 16
# Of fewer numbers all bits are kept: by chance their lowest bytes could fit another vector.
_MANY = 64


def as_taken(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors as Chroma can take their directions: very short and very long ones at length 1."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    is_extreme_N1 = (lengths_N1 > 0) & ((lengths_N1 < _SHORTEST) | (lengths_N1 > _LONGEST))
    return np.divide(wide_ND, lengths_N1, out=wide_ND, where=is_extreme_N1).astype(np.float32)


def to_bits(vector_D: np.ndarray) -> str:
    """The value of BITS."""
    length = float(np.linalg.norm(vector_D.astype(np.float64)))
    kept = vector_D.astype("<f4").tobytes()
    if len(vector_D) >= _MANY and _SHORTEST <= length <= _LONGEST:
        again_D = vector_D / np.float32(length) * np.float32(length)
        off_D = np.abs(_magnitudes(again_D) - _magnitudes(vector_D))
        if off_D.max() <= _EXPECTED_PLACES and np.array_equal(np.signbit(again_D), np.signbit(vector_D)):
            kept = _magnitudes(vector_D).astype(np.uint8).tobytes()
    return base64.b64encode(kept).decode()


def from_bits(bits: Any, taken_D: np.ndarray) -> np.ndarray:
    """The vector that was stored.

    Args:
        bits: the value of BITS; anything else when there is none.
        taken_D: the vector that Chroma has. It is the result when it is another one: another program has replaced it.
    """
    try:
        kept = base64.b64decode(bits, validate=True)
    except (binascii.Error, TypeError, ValueError):
        return taken_D
    if len(kept) == 4 * len(taken_D):
        return _if_same(np.frombuffer(kept, "<f4").astype(np.float32), taken_D)
    if len(kept) == len(taken_D) >= _MANY:
        return _nearest(np.frombuffer(kept, np.uint8), taken_D)
    return taken_D


def _if_same(stored_D: np.ndarray, taken_D: np.ndarray) -> np.ndarray:
    expected_D = as_taken(stored_D[np.newaxis])[0]
    is_same = np.abs(expected_D - taken_D).max() <= _ROUNDED * np.abs(expected_D).max()
    return stored_D if is_same else taken_D


def _nearest(lowest_D: np.ndarray, taken_D: np.ndarray) -> np.ndarray:
    """The vector nearest to the taken one whose numbers have these lowest bytes."""
    taken = _magnitudes(taken_D)
    off_D = (lowest_D - taken + 128) % 256 - 128
    if np.abs(off_D).max() > _MOST_PLACES or (taken + off_D).min() < 0:
        return taken_D
    return np.copysign((taken + off_D).astype(np.uint32).view(np.float32), taken_D)


def _magnitudes(vector_D: np.ndarray) -> np.ndarray:
    """The bits without the sign, as int64: neighbours among the numbers are neighbours here."""
    return (vector_D.astype(np.float32).view(np.uint32) & 0x7FFFFFFF).astype(np.int64)
