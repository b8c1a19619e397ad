"""The toy model: next-token logits are a bias plus the row of a bigram matrix. NumPy, float64.

Shape suffixes: T tokens of one sequence, V vocabulary, R rows of the bigram matrix, L rank of a LoRA adapter.

    logits_TV = bias_V + bigram_RV[tokens_T % R] (+ scale * (B_VL A_LR)^T of the same rows)

An adapter's matrices have PEFT's shapes, as if the bigram matrix were a linear layer on one-hot tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from crucible_kit.determinism import derive_seed

TARGET = "bigram"
"""Name of the matrix that an adapter adapts."""
LORA_A, LORA_B = "base_model.model.bigram.lora_A.weight", "base_model.model.bigram.lora_B.weight"
_INIT_STD = 0.02


class ToySize(NamedTuple):
    """V and R."""

    vocab_size: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter: rank, and the alpha that its update is scaled by over the rank."""

    rank: int
    alpha: float


@dataclass(kw_only=True)
class ToyModel:
    """Weights. Arrays are changed in place by the optimizer; `frozen_copy` is what must not change.

    Attributes:
        base: bias [V] and bigram [R, V].
        lora: the adapter's shape; None: every weight is trained.
        adapter: lora_A [L, R] and lora_B [V, L] under PEFT's names; empty without one.
    """

    base: dict[str, np.ndarray]
    lora: Lora | None = None
    adapter: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> ToySize:
        """V and R."""
        rows, vocab_size = self.base[TARGET].shape
        return ToySize(vocab_size, rows)

    @property
    def trained(self) -> dict[str, np.ndarray]:
        """What is trained, by name."""
        return self.base if self.lora is None else self.adapter

    def frozen_copy(self) -> ToyModel:
        """The same weights in arrays of their own."""
        base = {name: array.copy() for name, array in self.base.items()}
        return replace(self, base=base, adapter={name: array.copy() for name, array in self.adapter.items()})

    def log_softmax(self, tokens_T: np.ndarray) -> np.ndarray:
        """Logprobs of every next token, shape [T, V], in nats."""
        rows_T = tokens_T % self.size.rows
        logits_TV = self.base["bias"] + self.base[TARGET][rows_T]
        if self.lora is not None:
            logits_TV = logits_TV + self._scale * (self.adapter[LORA_A].T[rows_T] @ self.adapter[LORA_B].T)
        logits_TV -= logits_TV.max(axis=-1, keepdims=True)
        return logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))

    def gradients(self, tokens_T: np.ndarray, grad_logits_TV: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients of what is trained, from those of the logits."""
        rows_T = tokens_T % self.size.rows
        grad_RV = np.zeros(self.base[TARGET].shape)
        np.add.at(grad_RV, rows_T, grad_logits_TV)
        if self.lora is None:
            return {"bias": grad_logits_TV.sum(axis=0), TARGET: grad_RV}
        a_LR, b_VL = self.adapter[LORA_A], self.adapter[LORA_B]
        return {LORA_A: self._scale * (grad_RV @ b_VL).T, LORA_B: self._scale * (grad_RV.T @ a_LR.T)}

    @property
    def _scale(self) -> float:
        assert self.lora is not None
        return self.lora.alpha / self.lora.rank


def base_model(name: str, size: ToySize, seed: int) -> ToyModel:
    """The base model of a name: the same small random weights forever."""
    generator = np.random.default_rng(derive_seed(seed, "base_model", name))
    bias_V = generator.normal(scale=_INIT_STD, size=size.vocab_size)
    return ToyModel(base={"bias": bias_V, TARGET: generator.normal(scale=_INIT_STD, size=(size.rows, size.vocab_size))})


def with_adapter(model: ToyModel, lora: Lora, seed: int) -> ToyModel:
    """The model with a new adapter: A random by the seed, B zero, so that it changes nothing yet."""
    generator = np.random.default_rng(derive_seed(seed, "adapter"))
    a_LR = generator.normal(scale=1 / lora.rank, size=(lora.rank, model.size.rows))
    return replace(model, lora=lora, adapter={LORA_A: a_LR, LORA_B: np.zeros((model.size.vocab_size, lora.rank))})


class AdamOptions(NamedTuple):
    """One step's AdamW parameters; grad_clip_norm 0: not clipped."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(kw_only=True)
class Adam:
    """AdamW's state: steps taken with it, and the moments of each trained array by its name."""

    step: int = 0
    first: dict[str, np.ndarray] = field(default_factory=dict)
    second: dict[str, np.ndarray] = field(default_factory=dict)

    def update(self, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray], options: AdamOptions) -> float:
        """One step in place; returns the norm of the weights' change."""
        self.step += 1
        clip = 1.0
        if options.grad_clip_norm:
            clip = min(1.0, options.grad_clip_norm / (norm(gradients) + 1e-6))
        changes: dict[str, np.ndarray] = {}
        for name, weight in weights.items():
            gradient = gradients[name] * clip
            first = self.first.get(name, np.zeros(weight.shape))
            second = self.second.get(name, np.zeros(weight.shape))
            self.first[name] = first = options.beta1 * first + (1 - options.beta1) * gradient
            self.second[name] = second = options.beta2 * second + (1 - options.beta2) * gradient**2
            first = first / (1 - options.beta1**self.step)
            second = second / (1 - options.beta2**self.step)
            # A step that overflows is told by its norm.
            with np.errstate(over="ignore", invalid="ignore"):
                decayed = options.weight_decay * weight
                changes[name] = -options.learning_rate * (first / (np.sqrt(second) + options.eps) + decayed)
                weight += changes[name]
        return norm(changes)


def norm(arrays: dict[str, np.ndarray]) -> float:
    """The L2 norm of all arrays together."""
    return math.sqrt(sum(float((array**2).sum()) for array in arrays.values()))


class SamplingOptions(NamedTuple):
    """How to choose tokens; see SamplingParams."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_tokens: frozenset[int] = frozenset()


class Completion(NamedTuple):
    """Tokens and their logprobs, each of shape [n]; whether a stop token ended them."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


def complete(model: ToyModel, prompt_T: np.ndarray, options: SamplingOptions, *, index: int, room: int) -> Completion:
    """Sample number `index` of a prompt: a function of weights, prompt, options and index alone.

    Args:
        room: most tokens that the model's longest sequence leaves.
    """
    key = np.array([options.seed % 2**64, index], dtype=np.uint64)
    uniforms = np.random.Generator(np.random.Philox(key=key))
    completion = Completion([], [], False)
    last_1 = prompt_T[-1:]
    for _ in range(min(options.max_tokens, room)):
        logprobs_V = model.log_softmax(last_1)[0]
        token = _choose(logprobs_V, options, uniforms.random())
        completion.tokens.append(token)
        completion.logprobs.append(float(logprobs_V[token]))
        if token in options.stop_tokens:
            return completion._replace(stopped=True)
        last_1 = np.array([token])
    return completion


def score(model: ToyModel, tokens_T: np.ndarray) -> np.ndarray:
    """logprob of each token but the first, shape [T - 1], in nats."""
    return np.take_along_axis(model.log_softmax(tokens_T[:-1]), tokens_T[1:, None], axis=1)[:, 0]


def _choose(logprobs_V: np.ndarray, options: SamplingOptions, uniform: float) -> int:
    if options.temperature == 0:
        return int(logprobs_V.argmax())
    # The best one's becomes 0: the smallest temperature must not make infinities of them all.
    scaled_V = (logprobs_V - logprobs_V.max()) / options.temperature
    order_V = np.argsort(-scaled_V, kind="stable")
    if 0 < options.top_k < len(order_V):
        order_V = order_V[: options.top_k]
    probabilities = np.exp(scaled_V[order_V])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = max(1, int(np.count_nonzero(before < options.top_p)))
    cumulative = np.cumsum(probabilities[:kept])
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(order_V[min(int(place), kept - 1)])
