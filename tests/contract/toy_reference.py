"""The Elixir adapter's toy model once more, in NumPy: what its numbers are compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROWS = 8


def first_weights(name: str, vocabulary: int) -> NDArray[np.float64]:
    """Bias and table, shape [1 + ROWS, vocabulary], of an untrained model."""
    count = (1 + ROWS) * vocabulary
    data = b"".join(hashlib.sha256(f"{name}:{block}".encode()).digest() for block in range((count * 8 - 1) // 32 + 1))
    bits = np.frombuffer(data[: count * 8], ">u8") >> np.uint64(11)
    return ((bits / 2.0**53 - 0.5) * 0.2).reshape(1 + ROWS, vocabulary)


@dataclass(kw_only=True)
class Sequence:
    """One datum: ids, the ids that follow, and weights, each of shape [n]."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass
class ToyReference:
    """Weights of shape [1 + ROWS, vocabulary] with AdamW's moments."""

    weights: NDArray[np.float64]
    gradients: NDArray[np.float64] = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.first = np.zeros_like(self.weights)
        self.second = np.zeros_like(self.weights)
        self.gradients = np.zeros_like(self.weights)

    def logprobs(self, tokens: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """logprob of each target after its token."""
        logits = self.weights[0] + self.weights[1 + tokens % ROWS]
        shifted = logits - logits.max(-1, keepdims=True)
        rows = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return rows[np.arange(len(tokens)), targets]

    def forward_backward(self, data: list[Sequence]) -> float:
        """The loss; the gradients are added."""
        loss = 0.0
        for each in data:
            logits = self.weights[0] + self.weights[1 + each.tokens % ROWS]
            exponents = np.exp(logits - logits.max(-1, keepdims=True))
            slopes = exponents / exponents.sum(-1, keepdims=True)
            slopes[np.arange(len(each.tokens)), each.targets] -= 1
            slopes *= each.weights[:, None]
            self.gradients[0] += slopes.sum(0)
            np.add.at(self.gradients, 1 + each.tokens % ROWS, slopes)
            loss -= float((each.weights * self.logprobs(each.tokens, each.targets)).sum())
        return loss

    def optim_step(
        self, rate: float, *, beta1: float, beta2: float, eps: float, decay: float, clip: float
    ) -> tuple[float, float]:
        """One AdamW step; the norms of gradient and change."""
        norm = float(np.sqrt((self.gradients**2).sum()))
        gradients = self.gradients * min(1.0, clip / (norm + 1e-6)) if clip else self.gradients
        self.step += 1
        self.first = beta1 * self.first + (1 - beta1) * gradients
        self.second = beta2 * self.second + (1 - beta2) * gradients**2
        before = self.weights.copy()
        self.weights = self.weights * (1 - rate * decay)
        root = np.sqrt(self.second / (1 - beta2**self.step)) + eps
        self.weights -= rate * (self.first / (1 - beta1**self.step)) / root
        self.gradients = np.zeros_like(self.weights)
        return norm, float(np.sqrt(((self.weights - before) ** 2).sum()))
