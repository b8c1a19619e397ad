"""Sampling with a KV cache, and scoring of given tokens.

Shape suffixes: R rows decoded together, V vocabulary, T completion length.

A completion is a function of (weights, prompt, options, seed, its index) and of nothing else:
- each sample draws from a counter-based stream of its own, keyed by (seed, index);
- rows are decoded in multiples of four, because torch's CPU matrix products give a row the same bits for any such
  number of rows, but other bits for one to three.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from crucible_adapters.torch_engine.loss import head_logits, target_logprobs
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_kit.errors import FailedPreconditionError

ROW_MULTIPLE = 4
MAX_ROWS = 64
"""Rows decoded at a time; more samples run in turns and share the prefill."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to choose tokens. Filters apply in this order: temperature, top_k, top_p."""

    max_tokens: int
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int = 0
    """Only so many most likely tokens; 0 is all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability; at least one."""
    seed: int = 0
    stop_tokens: frozenset[int] = frozenset()
    """Ids that end a completion. The caller names the model's end tokens: nothing is assumed here."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled sequence."""

    tokens: NDArray[np.int32]
    """(T,), a stop token included."""
    logprobs: NDArray[np.float32]
    """(T,), nats, under the model at temperature 1 without filters: what a trainer computes for the same tokens."""
    stopped: bool
    """A stop token came; otherwise the length ended it."""


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """The completions of one prompt."""

    completions: list[Completion]
    prompt_logprobs: NDArray[np.float32] | None
    """(prompt length - 1,): the first token has none."""


class SamplingCancelled(Exception):
    """The caller asked to stop; nothing is returned."""


@torch.inference_mode()
def sample(
    model: LoadedModel,
    prompt: Sequence[int] | NDArray[np.integer],
    num_samples: int,
    options: SamplingOptions,
    *,
    prompt_logprobs: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> SampleResult:
    """Complete `prompt` `num_samples` times; the prompt runs through the model once.

    Completions end at the model's longest sequence too. Raises SamplingCancelled between tokens once `cancelled()`.
    """
    tokens_1T = torch.as_tensor(np.asarray(prompt, dtype=np.int64), device=model.device)[None]
    cache = DynamicCache(config=model.net.config)
    hidden_TD = model.hidden_states(tokens_1T, cache)[0]
    scores = None
    if prompt_logprobs:
        scores = target_logprobs(hidden_TD[:-1], model.head(), tokens_1T[0, 1:]).float().cpu().numpy()
    logits_1V = head_logits(hidden_TD[-1:], model.head())
    length = min(options.max_tokens, model.max_positions - tokens_1T.shape[1])
    completions: list[Completion] = []
    for start in range(0, num_samples, MAX_ROWS):
        indices = range(start, min(start + MAX_ROWS, num_samples))
        last = indices.stop == num_samples
        rows = _Rows(model, cache if last else copy.deepcopy(cache), logits_1V, indices, length, options)
        completions += rows.decode(cancelled)
    return SampleResult(completions=completions, prompt_logprobs=scores)


@torch.inference_mode()
def compute_logprobs(model: LoadedModel, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
    """logprob of each token but the first given those before it, (n - 1,), nats."""
    tokens_1T = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=model.device)[None]
    hidden_TD = model.hidden_states(tokens_1T[:, :-1])[0]
    return target_logprobs(hidden_TD, model.head(), tokens_1T[0, 1:]).float().cpu().numpy()


class _Rows:
    """Samples of one prompt being decoded together; rows that are done leave the batch."""

    def __init__(
        self,
        model: LoadedModel,
        cache: Any,
        logits_1V: torch.Tensor,
        indices: range,
        length: int,
        options: SamplingOptions,
    ) -> None:
        self._model, self._cache, self._options, self._length = model, cache, options, length
        self._uniforms = [_uniforms(options.seed, index, length) for index in indices]
        self._tokens: list[list[int]] = [[] for _ in indices]
        self._logprobs: list[list[float]] = [[] for _ in indices]
        self._stopped = [False for _ in indices]
        # which sample each row decodes; rows that only fill up the multiple repeat the last one
        self._rows = _fill_up(list(range(len(indices))))
        cache.batch_repeat_interleave(len(self._rows))
        self._logits_RV = logits_1V.expand(len(self._rows), -1)

    def decode(self, cancelled: Callable[[], bool]) -> list[Completion]:
        step = 0
        while self._rows and step < self._length:
            if cancelled():
                raise SamplingCancelled
            next_R = self._take(step)
            step += 1
            if step < self._length and self._rows:
                hidden_R1D = self._model.hidden_states(next_R[:, None], self._cache)
                self._logits_RV = head_logits(hidden_R1D[:, -1], self._model.head())
        return [
            Completion(tokens=np.array(tokens, np.int32), logprobs=np.array(logprobs, np.float32), stopped=stopped)
            for tokens, logprobs, stopped in zip(self._tokens, self._logprobs, self._stopped, strict=True)
        ]

    def _take(self, step: int) -> torch.Tensor:
        """Choose a token for every row, record it, drop finished samples; returns the tokens of the rows that go on."""
        if not torch.isfinite(self._logits_RV).all():
            raise FailedPreconditionError(
                "the model's logits are not finite: its weights are damaged, sample from an earlier checkpoint",
                reason="NUMERIC_ERROR",
            )
        uniforms_R = None
        if self._options.temperature > 0:
            uniforms_R = torch.tensor([self._uniforms[i][step] for i in self._rows], dtype=torch.float64)
        next_R = choose(self._logits_RV, self._options, uniforms_R)
        logprobs_R = self._logits_RV.log_softmax(-1).gather(-1, next_R[:, None])[:, 0]
        finished = set()
        chosen = zip(dict.fromkeys(self._rows), next_R.tolist(), logprobs_R.tolist(), strict=False)
        for sample_index, token, logprob in chosen:
            self._tokens[sample_index].append(token)
            self._logprobs[sample_index].append(logprob)
            if token in self._options.stop_tokens:
                self._stopped[sample_index] = True
                finished.add(sample_index)
        if not finished:
            return next_R
        going_on = [row for row, i in enumerate(dict.fromkeys(self._rows)) if i not in finished]
        samples = [self._rows[row] for row in going_on]
        self._rows = _fill_up(samples)
        keep = torch.tensor(_fill_up(going_on), dtype=torch.int64, device=next_R.device)
        if self._rows:
            self._cache.batch_select_indices(keep)
        return next_R[keep]


def choose(logits_RV: torch.Tensor, options: SamplingOptions, uniforms_R: torch.Tensor | None) -> torch.Tensor:
    """tokens_R: the most likely without `uniforms_R`, else by inverse CDF of the filtered distribution in id order.

    `uniforms_R` are numbers in [0, 1), float64. Deterministic: equal rows with equal numbers choose the same token.
    """
    if uniforms_R is None:
        return logits_RV.argmax(-1)
    # the best token's logit becomes 0: the smallest temperature must not make infinities of them all
    scaled_RV = (logits_RV.double() - logits_RV.double().amax(-1, keepdim=True)) / options.temperature
    if 0 < options.top_k < scaled_RV.shape[-1]:
        kept = scaled_RV.topk(options.top_k, dim=-1).indices
        scaled_RV = torch.full_like(scaled_RV, -torch.inf).scatter_(-1, kept, scaled_RV.gather(-1, kept))
    probs_RV = scaled_RV.softmax(-1)
    if options.top_p < 1.0:
        sorted_RV, order_RV = torch.sort(probs_RV, dim=-1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        kept_RV = before_RV < options.top_p
        kept_RV[:, 0] = True
        probs_RV = torch.zeros_like(probs_RV).scatter_(-1, order_RV, sorted_RV * kept_RV)
    cumulative_RV = probs_RV.cumsum(-1)
    total_R1 = cumulative_RV[:, -1:]
    points_R1 = uniforms_R.to(total_R1.device)[:, None] * total_R1
    # rounding may lift the point to the total itself, past the last token
    points_R1 = torch.minimum(points_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    return torch.searchsorted(cumulative_RV, points_R1, right=True)[:, 0]


def _uniforms(seed: int, index: int, count: int) -> NDArray[np.float64]:
    """The numbers in [0, 1) that sample `index` of a request draws with, one a token."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, index], dtype=np.uint64))).random(count)


def _fill_up(rows: list[int]) -> list[int]:
    """The rows and enough repeats of the last one to make a multiple of four; nothing stays nothing."""
    return rows + rows[-1:] * (-len(rows) % ROW_MULTIPLE)
