"""What a run tells of its sequences beside training on them."""

from __future__ import annotations

import numpy as np

from crucible_kit.sequences import Sequence


def unigram_nll(train: list[Sequence], held_out: list[Sequence], vocab_size: int) -> float:
    """Mean negative logprob in nats of the held-out targets under add-one smoothed counts of the training targets."""
    counts = np.ones(vocab_size, dtype=np.int64)
    for each in train:
        counts += np.bincount(each.targets, minlength=vocab_size)
    logprobs = np.log(counts) - np.log(counts.sum())
    targets = np.concatenate([each.targets for each in held_out])
    return float(-logprobs[targets].mean())
