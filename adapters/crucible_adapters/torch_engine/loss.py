"""Losses as sums over tokens, computed without ever holding the (tokens x vocabulary) logits.

Shape suffixes: N tokens of a micro-batch (padding removed), C tokens of one chunk, D hidden size, V vocabulary, R rank
of an adapted head.

A loss here is a function of each token's own logprob. It is evaluated chunk by chunk, and its gradient with respect to
the hidden states and the lm head is computed in the same pass: two matrix products a chunk instead of the three that
recomputing the logits in a backward pass costs. Nothing is divided by a token or example count: a mean is the
caller's weights, so micro-batching cannot change a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from crucible_adapters.torch_engine.lora import LoraMatrix
from crucible_kit.errors import field_error


@dataclass(frozen=True, kw_only=True)
class Head:
    """The lm head and, for training it, the gradients to add into (None for a frozen one)."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    grad_weight_VD: torch.Tensor | None = None
    grad_bias_V: torch.Tensor | None = None
    lora: LoraMatrix | None = None
    grad_lora_a_RD: torch.Tensor | None = None
    grad_lora_b_VR: torch.Tensor | None = None


TokenLossFn = Callable[[torch.Tensor, Mapping[str, torch.Tensor], Mapping[str, float]], torch.Tensor]
"""(logprobs_C, inputs by name, each C, config) -> losses_C, differentiable in logprobs_C."""

CHUNK_ELEMENTS = 2**21
"""Logits per chunk the CPU works on at once: 8 MiB of float32."""

MIN_CHUNK_TOKENS = 128
"""Fewer rows make the head's gradient (V x D, rewritten for every chunk) cost more than the products themselves."""


def chunk_tokens(head: Head) -> int:
    """Tokens per chunk for a head's vocabulary and device."""
    elements = CHUNK_ELEMENTS if head.weight_VD.device.type == "cpu" else 64 * CHUNK_ELEMENTS
    return max(MIN_CHUNK_TOKENS, elements // head.weight_VD.shape[0])


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """A named loss and the exact inputs it takes."""

    name: str
    inputs: tuple[str, ...]
    """Names of the float inputs, one value per token, that a datum must carry: no more, no less."""
    config: Mapping[str, float]
    """Option names and their defaults; other options are refused."""
    fn: TokenLossFn


_LOSSES: dict[str, TokenLoss] = {}


def register_loss(
    name: str, *, inputs: tuple[str, ...], config: Mapping[str, float] | None = None
) -> Callable[[TokenLossFn], TokenLossFn]:
    """Register a per-token loss under its wire name."""

    def register(fn: TokenLossFn) -> TokenLossFn:
        _LOSSES[name] = TokenLoss(name=name, inputs=inputs, config=dict(config or {}), fn=fn)
        return fn

    return register


def loss_names() -> list[str]:
    """Names of the registered losses, sorted."""
    return sorted(_LOSSES)


def get_loss(name: str) -> TokenLoss:
    """The registered loss, or InvalidArgument naming those that exist."""
    if name not in _LOSSES:
        raise field_error("loss_fn.name", f"unknown loss {name!r}: use one of {', '.join(loss_names())}")
    return _LOSSES[name]


@register_loss("cross_entropy", inputs=("weights",))
def cross_entropy(
    logprobs_C: torch.Tensor, inputs: Mapping[str, torch.Tensor], config: Mapping[str, float]
) -> torch.Tensor:
    """-w * logprob (nats); any float weight, negative ones included."""
    return -inputs["weights"] * logprobs_C


def head_logits(hidden_CD: torch.Tensor, head: Head) -> torch.Tensor:
    """logits_CV in at least float32."""
    logits_CV = torch.nn.functional.linear(hidden_CD, head.weight_VD, head.bias_V)
    if head.lora is not None:
        logits_CV = head.lora.add_to(logits_CV, hidden_CD)
    return logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()


@torch.no_grad()
def target_logprobs(
    hidden_ND: torch.Tensor, head: Head, targets_N: torch.Tensor, *, chunk: int | None = None
) -> torch.Tensor:
    """logprobs_N of the targets in nats; float32, or float64 for a float64 model."""
    parts = [
        _gather(_log_softmax(hidden_CD, head), targets_C)
        for hidden_CD, targets_C in zip(
            hidden_ND.split(chunk or chunk_tokens(head)), targets_N.split(chunk or chunk_tokens(head)), strict=True
        )
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class LossGradients:
    """What one pass over a micro-batch gives."""

    loss: float
    """Sum of the tokens' losses, nats, added up in float64."""
    logprobs_N: torch.Tensor
    """log p(target) of every token, those of weight zero included."""
    grad_hidden_ND: torch.Tensor
    """Gradient of the sum with respect to the hidden states."""


@torch.no_grad()
def token_loss_gradients(
    hidden_ND: torch.Tensor,
    head: Head,
    targets_N: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    loss: TokenLoss,
    config: Mapping[str, float],
    *,
    chunk: int | None = None,
) -> LossGradients:
    """Sum of `loss` over N tokens with its exact gradients; the head's are added into `head.grad_*`, where given."""
    step = chunk or chunk_tokens(head)
    options = {**loss.config, **config}
    total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
    grad_hidden_ND = torch.zeros_like(hidden_ND)
    grad_head = _HeadGradient(head)
    logprobs = []
    for start in range(0, hidden_ND.shape[0], step):
        part = slice(start, start + step)
        hidden_CD, targets_C = hidden_ND[part], targets_N[part]
        logprobs_CV = _log_softmax(hidden_CD, head)
        logprobs.append(_gather(logprobs_CV, targets_C))
        with torch.enable_grad():
            leaf_C = logprobs[-1].detach().requires_grad_()
            loss_C = loss.fn(leaf_C, {name: value[part] for name, value in inputs.items()}, options)
            (slope_C,) = torch.autograd.grad(loss_C.sum(), leaf_C)
        total += loss_C.detach().sum(dtype=torch.float64)
        # prompt tokens have weight zero: their two gradient products are not done
        rows = slope_C.nonzero()[:, 0]
        if not rows.numel():
            continue
        if rows.numel() < slope_C.numel():
            hidden_CD, targets_C, slope_C = hidden_CD[rows], targets_C[rows], slope_C[rows]
            logprobs_CV = logprobs_CV[rows]
        grad_logits_CV = _grad_logits(logprobs_CV, targets_C, slope_C).to(hidden_ND.dtype)
        grad_hidden_CD = grad_logits_CV @ head.weight_VD
        if head.lora is not None:
            grad_hidden_CD += grad_head.add_lora(head.lora, grad_logits_CV, hidden_CD)
        grad_hidden_ND[start + rows] = grad_hidden_CD
        grad_head.add(grad_logits_CV, hidden_CD)
    grad_head.finish()
    return LossGradients(float(total), torch.cat(logprobs), grad_hidden_ND)


def _log_softmax(hidden_CD: torch.Tensor, head: Head) -> torch.Tensor:
    """logprobs_CV of every token of the vocabulary."""
    return head_logits(hidden_CD, head).log_softmax(-1)


def _gather(logprobs_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """logprobs_C of the targets."""
    return logprobs_CV.gather(-1, targets_C[:, None])[:, 0]


def _grad_logits(logprobs_CV: torch.Tensor, targets_C: torch.Tensor, slope_C: torch.Tensor) -> torch.Tensor:
    """slope x (onehot - softmax), by the kernel that autograd runs: its bits are those of a plain loop."""
    slope_CV = torch.zeros_like(logprobs_CV).scatter_(-1, targets_C[:, None], slope_C[:, None])
    return torch.ops.aten._log_softmax_backward_data(slope_CV, logprobs_CV, -1, logprobs_CV.dtype)


class _HeadGradient:
    """Adds the chunks' gradients of the head and its adapter; half-precision ones are summed in float32 first."""

    def __init__(self, head: Head) -> None:
        self._head = head
        narrow = head.grad_weight_VD is not None and head.grad_weight_VD.dtype not in (torch.float32, torch.float64)
        self._sum_VD = torch.zeros_like(head.weight_VD, dtype=torch.float32) if narrow else None

    def add(self, grad_logits_CV: torch.Tensor, hidden_CD: torch.Tensor) -> None:
        if self._head.grad_bias_V is not None:
            self._head.grad_bias_V.add_(grad_logits_CV.sum(0))
        if self._sum_VD is not None:
            self._sum_VD += grad_logits_CV.T @ hidden_CD
        elif self._head.grad_weight_VD is not None:
            self._head.grad_weight_VD.addmm_(grad_logits_CV.T, hidden_CD)

    def add_lora(self, lora: LoraMatrix, grad_logits_CV: torch.Tensor, hidden_CD: torch.Tensor) -> torch.Tensor:
        """Adds the gradients of the head's adapter; returns its part of grad_hidden_CD."""
        scaled_CV = grad_logits_CV.to(lora.a_RI.dtype) * lora.scale
        hidden_CD = hidden_CD.to(lora.a_RI.dtype)
        grad_low_CR = scaled_CV @ lora.b_OR
        if self._head.grad_lora_a_RD is not None and self._head.grad_lora_b_VR is not None:
            self._head.grad_lora_a_RD.addmm_(grad_low_CR.T, hidden_CD)
            self._head.grad_lora_b_VR.addmm_(scaled_CV.T, hidden_CD @ lora.a_RI.T)
        return (grad_low_CR @ lora.a_RI).to(grad_logits_CV.dtype)

    def finish(self) -> None:
        if self._sum_VD is not None and self._head.grad_weight_VD is not None:
            self._head.grad_weight_VD.add_(self._sum_VD)
