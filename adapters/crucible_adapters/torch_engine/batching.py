"""Datums into right-padded micro-batches of similar length, under a token budget.

Shape suffixes: B rows of a micro-batch, T padded length, N real tokens of it (row after row, padding removed).

Padding is on the right and attention is causal, so a real token never sees padding and no mask is needed. The plan is
a function of the lengths alone, so the same call always runs the same micro-batches in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Datum:
    """One training sequence. Position i of `tokens` predicts `targets[i]`: the caller has shifted them."""

    tokens: NDArray[np.int64]
    """Input token ids, (T,), T >= 1."""
    targets: NDArray[np.int64]
    """Target token ids, (T,)."""
    inputs: Mapping[str, NDArray[np.floating]]
    """The loss's own inputs by name (`weights`, ...), each (T,)."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that run through the model together, on the model's device."""

    lengths: tuple[int, ...]
    tokens_BT: torch.Tensor
    targets_N: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    """Loss inputs, each (N,)."""
    real_N: torch.Tensor | None
    """Flat positions of the real tokens in B x T; None when there is no padding."""

    def unpad(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """hidden_ND: the real tokens' rows of a padded activation."""
        flat = hidden_BTD.flatten(0, 1)
        return flat if self.real_N is None else flat.index_select(0, self.real_N)


def plan_micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group row indices so that rows x longest row <= `budget` tokens; a longer row goes alone.

    Longest first: a batch too large for the memory fails at once, not at the end. Within a group rows keep the
    caller's order, so that a batch that fits one group runs through the model as a plain padded loop would run it.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    for row in order:
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group) for group in groups]


def build_micro_batch(data: Sequence[Datum], device: torch.device, dtype: torch.dtype) -> MicroBatch:
    """Pad the datums to one length; loss inputs become `dtype`."""
    lengths = tuple(len(datum.tokens) for datum in data)
    longest = max(lengths)
    tokens_BT = np.zeros((len(data), longest), dtype=np.int64)
    for row, datum in enumerate(data):
        tokens_BT[row, : lengths[row]] = datum.tokens
    real_N = None
    if min(lengths) < longest:
        real_N = np.concatenate([row * longest + np.arange(n) for row, n in enumerate(lengths)])
    inputs = {name: np.concatenate([datum.inputs[name] for datum in data]) for name in data[0].inputs}
    return MicroBatch(
        lengths=lengths,
        tokens_BT=torch.from_numpy(tokens_BT).to(device),
        targets_N=torch.from_numpy(np.concatenate([datum.targets for datum in data])).to(device, torch.int64),
        inputs={name: torch.from_numpy(value).to(device, dtype) for name, value in inputs.items()},
        real_N=None if real_N is None else torch.from_numpy(real_N).to(device),
    )


def split_rows(values_N: NDArray[np.floating], lengths: Sequence[int]) -> list[NDArray[np.floating]]:
    """Per-row arrays of a micro-batch's flat per-token values."""
    return np.split(values_N, np.cumsum(lengths)[:-1])
