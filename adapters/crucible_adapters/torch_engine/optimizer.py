"""AdamW over named parameters, with the size of the change it made.

Values are those of torch.optim.AdamW (decoupled weight decay). Written out because the update's norm comes for free
here (torch's needs a copy of all weights), the options may change on every step, and parameters in half precision get
a float32 master copy: bf16 weights alone would round most small updates away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    """One step's hyperparameters."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled: a step takes learning_rate x weight_decay x weight off each weight."""
    grad_clip_norm: float = 0.0
    """Global L2 norm the gradients are scaled down to; 0 does not clip."""


@dataclass
class AdamWState:
    """Moments by parameter name, made at the first step; an empty state is a fresh optimizer."""

    step: int = 0
    exp_avg: dict[str, torch.Tensor] = field(default_factory=dict)
    exp_avg_sq: dict[str, torch.Tensor] = field(default_factory=dict)
    master: dict[str, torch.Tensor] = field(default_factory=dict)
    """float32 copies of the parameters that are kept in half precision."""


def global_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """L2 norm over all elements of all tensors (norm of norms), a scalar of at least float32."""
    norms = [torch.linalg.vector_norm(t, dtype=_state_dtype(t)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def adamw_step(
    parameters: Mapping[str, torch.nn.Parameter],
    state: AdamWState,
    options: AdamWOptions,
    grad_norm: torch.Tensor,
) -> float:
    """Apply one step to every parameter that has a gradient; returns the L2 norm of the weights' change.

    `grad_norm` is the global norm of the gradients, which clipping scales by. Gradients are consumed. Each operation
    is the one that torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW do, in their order, so the bits are theirs.
    """
    state.step += 1
    clip = None
    if options.grad_clip_norm > 0:
        clip = (options.grad_clip_norm / (grad_norm + 1e-6)).clamp(max=1.0)
    step_size = options.learning_rate / (1.0 - options.beta1**state.step)
    root_correction = (1.0 - options.beta2**state.step) ** 0.5
    decay = options.learning_rate * options.weight_decay
    changes = []
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        grad = parameter.grad.to(_state_dtype(parameter))
        if clip is not None:
            grad = grad.mul_(clip)
        weight = _master(name, parameter, state)
        if name not in state.exp_avg:
            state.exp_avg[name] = torch.zeros_like(weight)
            state.exp_avg_sq[name] = torch.zeros_like(weight)
        exp_avg, exp_avg_sq = state.exp_avg[name], state.exp_avg_sq[name]
        decayed = weight * -decay if decay else None
        if decay:
            weight.mul_(1 - decay)
        exp_avg.lerp_(grad, 1 - options.beta1)
        exp_avg_sq.mul_(options.beta2).addcmul_(grad, grad, value=1 - options.beta2)
        denominator = (exp_avg_sq.sqrt() / root_correction).add_(options.eps)
        weight.addcdiv_(exp_avg, denominator, value=-step_size)
        change = torch.div(exp_avg, denominator, out=denominator).mul_(-step_size)
        if decayed is not None:
            change.add_(decayed)
        if weight is not parameter:
            parameter.copy_(weight)
        changes.append(torch.linalg.vector_norm(change))
    return float(torch.linalg.vector_norm(torch.stack(changes)))


def _state_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _master(name: str, parameter: torch.nn.Parameter, state: AdamWState) -> torch.Tensor:
    if parameter.dtype == _state_dtype(parameter):
        return parameter
    if name not in state.master:
        state.master[name] = parameter.detach().to(torch.float32)
    return state.master[name]
