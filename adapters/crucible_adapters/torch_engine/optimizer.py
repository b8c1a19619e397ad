"""AdamW over named parameters, with the size of the change it made.

The update is torch.optim's fused AdamW (decoupled weight decay). Around it stand what its class does not do: options
that change on every step, the norm of the weights' change, and a float32 master copy of parameters in half precision:
bf16 weights alone would round most small updates away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch.optim.adamw import adamw

_GROUP_ELEMENTS = 2**20
"""Weights that are updated in one call, at most: so few stay in the cache from one pass over them to the next."""


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

    `grad_norm` is the global norm of the gradients, which clipping scales by, as torch.nn.utils.clip_grad_norm_ does.
    Gradients are consumed.
    """
    clip = None
    if options.grad_clip_norm > 0:
        clip = (options.grad_clip_norm / (grad_norm + 1e-6)).clamp(max=1.0)
    changes = []
    for names in _groups(parameters):
        weights = [_master(name, parameters[name], state) for name in names]
        for name, weight in zip(names, weights, strict=True):
            if name not in state.exp_avg:
                state.exp_avg[name] = torch.zeros_like(weight)
                state.exp_avg_sq[name] = torch.zeros_like(weight)
        grads = [_gradient(parameters[name]) for name in names]
        if clip is not None:
            for grad in grads:
                grad.mul_(clip)
        before = [weight.clone() for weight in weights]
        adamw(
            weights,
            grads,
            [state.exp_avg[name] for name in names],
            [state.exp_avg_sq[name] for name in names],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(state.step), device=weight.device) for weight in weights],
            fused=True,
            amsgrad=False,
            beta1=options.beta1,
            beta2=options.beta2,
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            eps=options.eps,
            maximize=False,
        )
        for name, weight, old in zip(names, weights, before, strict=True):
            changes.append(torch.linalg.vector_norm(old.sub_(weight)))
            if weight is not parameters[name]:
                parameters[name].copy_(weight)
    state.step += 1
    return float(torch.linalg.vector_norm(torch.stack(changes)))


def _groups(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[list[str]]:
    """Names of parameters that have a gradient, in order, a bounded number of weights at a time."""
    group, elements = [], 0
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        if group and elements + parameter.numel() > _GROUP_ELEMENTS:
            yield group
            group, elements = [], 0
        group.append(name)
        elements += parameter.numel()
    if group:
        yield group


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.to(_state_dtype(parameter))


def _state_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _master(name: str, parameter: torch.nn.Parameter, state: AdamWState) -> torch.Tensor:
    if parameter.dtype == _state_dtype(parameter):
        return parameter
    if name not in state.master:
        state.master[name] = parameter.detach().to(torch.float32)
    return state.master[name]
