"""The losses of the wire: sums over tokens, each with its slope in the token's logprob. NumPy, float64.

Shape suffix: T tokens of one datum. p is the logprob of the target, q what the sampler said it was, A the advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

# (p_T, inputs by name, each T, parameters) -> (loss_T, d loss_T / d p_T)
LossFn = Callable[[np.ndarray, Mapping[str, np.ndarray], Mapping[str, float]], tuple[np.ndarray, np.ndarray]]


class Loss(NamedTuple):
    """A loss, the float inputs that a datum must carry beside target_tokens, and its parameters with their defaults."""

    fn: LossFn
    inputs: tuple[str, ...]
    parameters: Mapping[str, float]


def cross_entropy(p_T: np.ndarray, inputs: Mapping[str, np.ndarray], _: Mapping[str, float]) -> tuple:
    """-w p."""
    return -inputs["weights"] * p_T, -inputs["weights"]


def importance_sampling(p_T: np.ndarray, inputs: Mapping[str, np.ndarray], _: Mapping[str, float]) -> tuple:
    """-exp(p - q) A."""
    weighted_T = np.exp(p_T - inputs["logprobs"]) * inputs["advantages"]
    return -weighted_T, -weighted_T


def ppo(p_T: np.ndarray, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, float]) -> tuple:
    """-min(r A, clip(r, low, high) A) with r = exp(p - q)."""
    ratio_T, advantages_T = np.exp(p_T - inputs["logprobs"]), inputs["advantages"]
    free_T = ratio_T * advantages_T
    clipped_T = _clip(ratio_T, parameters) * advantages_T
    return -np.minimum(free_T, clipped_T), -np.where(free_T <= clipped_T, free_T, 0.0)


def cispo(p_T: np.ndarray, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, float]) -> tuple:
    """-c p A, where c = clip(r, low, high) counts as a constant."""
    slope_T = -_clip(np.exp(p_T - inputs["logprobs"]), parameters) * inputs["advantages"]
    return slope_T * p_T, slope_T


def dro(p_T: np.ndarray, inputs: Mapping[str, np.ndarray], parameters: Mapping[str, float]) -> tuple:
    """-(p A - beta / 2 (p - q)^2)."""
    beta, away_T = parameters["beta"], p_T - inputs["logprobs"]
    loss_T = -(p_T * inputs["advantages"] - beta / 2 * away_T**2)
    return loss_T, -(inputs["advantages"] - beta * away_T)


def _clip(ratio_T: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
    return np.clip(ratio_T, parameters["clip_low_threshold"], parameters["clip_high_threshold"])


_POLICY = ("advantages", "logprobs")
LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, ("weights",), {}),
    "importance_sampling": Loss(importance_sampling, _POLICY, {}),
    "ppo": Loss(ppo, _POLICY, {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
    "cispo": Loss(cispo, _POLICY, {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    "dro": Loss(dro, _POLICY, {"beta": 0.05}),
}
