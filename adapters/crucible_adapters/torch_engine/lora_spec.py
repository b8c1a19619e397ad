"""What a LoRA adapter is, apart from its tensors. Light: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ATTENTION: Final = "attention"
MLP: Final = "mlp"
UNEMBEDDING: Final = "unembedding"
GROUPS = frozenset({ATTENTION, MLP, UNEMBEDDING})


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Rank, scale and targets of an adapter (Hu et al. 2021): W x + alpha / rank x B A x."""

    rank: int
    """Of every adapted matrix, at least 1."""
    alpha: float
    """Above 0 and finite."""
    groups: frozenset[str] | None = None
    """Which of GROUPS are adapted; None when `target_modules` says it."""
    target_modules: tuple[str, ...] = ()
    """Names of the adapted matrices, sorted: a module is one of them when its name is, or ends with "." and it, as in
    PEFT. Empty when `groups` says it."""

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank
