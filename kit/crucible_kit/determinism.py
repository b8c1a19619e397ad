"""Random choices as functions of position: no shared generator, so a run that stops goes on with the same bytes."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(run_seed: int, *position: str | int) -> int:
    """A seed in [0, 2**63) for one place of a run, such as derive_seed(7, "evaluate", step).

    SHA-256 of the parts, so that places do not correlate.
    """
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """Order of the rows in an epoch: a permutation of shape [num_rows], int64."""
    return np.random.default_rng((seed, epoch)).permutation(num_rows)
