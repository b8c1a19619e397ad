"""A bigram model: the logits of the next token are a row of one matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VOCABULARY = 12
LONGEST = 32
NAME = "toy"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def first_weights() -> np.ndarray:
    """Weights before any training, float32 of shape [V, V]."""
    return np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


@dataclass
class Weights:
    """A model with its optimizer.

    Attributes:
        matrix: logits of the next token by token, float32 of shape [V, V].
        moments: AdamW's first and second moment, float32 of shape [2, V, V].
        steps: optimizer steps taken, those before a loaded checkpoint included.
        moment_steps: steps that the moments have seen.
        version: changes of the weights.
    """

    matrix: np.ndarray = field(default_factory=first_weights)
    moments: np.ndarray = field(default_factory=lambda: np.zeros((2, VOCABULARY, VOCABULARY), np.float32))
    steps: int = 0
    moment_steps: int = 0
    version: int = 0

    def logprobs(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """log p(target after token), float32 of shape [n]."""
        return log_softmax(self.matrix)[tokens, targets]

    def gradient(self, tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of - sum of weight x logprob, float32 of shape [V, V]."""
        rows = np.exp(log_softmax(self.matrix))[tokens]
        rows[np.arange(len(tokens)), targets] -= 1
        result = np.zeros_like(self.matrix)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add.at(result, tokens, rows * weights[:, None])
        return result

    def adamw(self, gradient: np.ndarray, adam: dict[str, float]) -> float:
        """One step; the norm of the change."""
        self.moment_steps += 1
        first, second = self.moments
        first[:] = adam["beta1"] * first + (1 - adam["beta1"]) * gradient
        second[:] = adam["beta2"] * second + (1 - adam["beta2"]) * gradient**2
        unbiased = first / (1 - adam["beta1"] ** self.moment_steps)
        scale = np.sqrt(second / (1 - adam["beta2"] ** self.moment_steps)) + adam["eps"]
        change = -adam["learning_rate"] * (unbiased / scale + adam["weight_decay"] * self.matrix)
        self.matrix = (self.matrix + change).astype(np.float32)
        self.steps += 1
        self.version += 1
        return float(np.linalg.norm(change))

    def files(self, *, weights_only: bool) -> dict[str, bytes]:
        """The model as files."""
        about = {"steps": self.steps, "moment_steps": self.moment_steps, "version": self.version}
        files = {"config.json": json.dumps(about).encode(), "model.bin": self.matrix.tobytes()}
        return files if weights_only else {**files, "optimizer.bin": self.moments.tobytes()}

    @classmethod
    def from_files(cls, files: dict[str, bytes], *, weights_only: bool) -> Weights:
        """The model of these files; with `weights_only` with a new optimizer."""
        about: dict[str, Any] = json.loads(files["config.json"])
        shape = (VOCABULARY, VOCABULARY)
        loaded = cls(matrix=np.frombuffer(files["model.bin"], np.float32).reshape(shape).copy())
        loaded.steps, loaded.version = about["steps"], about["version"]
        if not weights_only:
            loaded.moments = np.frombuffer(files["optimizer.bin"], np.float32).reshape((2, *shape)).copy()
            loaded.moment_steps = about["moment_steps"]
        return loaded
