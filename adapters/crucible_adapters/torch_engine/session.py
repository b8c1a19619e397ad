"""A training session: trained weights (all of a model's, or an adapter's), accumulated gradients and optimizer.

Life of a step:

    forward_backward(data) ... forward_backward(data)   gradients add up; nothing is averaged
    optim_step(options)                                 clip, AdamW, weights_version + 1, gradients gone

Not safe for threads: the engine's one compute thread owns it. Samplers read the live weights between calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from crucible_adapters.torch_engine.batching import Datum, build_micro_batch, plan_micro_batches, split_rows
from crucible_adapters.torch_engine.loss import TokenLoss, target_logprobs, token_loss_gradients
from crucible_adapters.torch_engine.models import LoadedModel
from crucible_adapters.torch_engine.optimizer import AdamWOptions, AdamWState, adamw_step, global_norm
from crucible_kit.errors import FailedPreconditionError
from crucible_kit.faults import fault_point

DEFAULT_MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class ForwardResult:
    """What forward and forward_backward answer."""

    loss: float
    """Sum over all tokens of all datums, nats."""
    logprobs: list[NDArray[np.floating]]
    """log p(target) per datum, each (T,), in the order of the call."""


@dataclass(frozen=True, kw_only=True)
class OptimResult:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the accumulated gradients, before clipping."""
    update_norm: float
    """L2 norm of the change of all weights."""
    learning_rate: float
    optim_steps: int
    weights_version: int


class TrainingSession:
    """Trains a model's adapter, or every parameter of a model without one."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
        base_model_name: str = "",
    ) -> None:
        self.model = model
        self.base_model_name = base_model_name or str(model.folder)
        """How an adapter's checkpoints name the model it belongs to."""
        self.optimizer = AdamWState()
        self.optim_steps = 0
        """Optimizer steps these weights have had, those before a loaded checkpoint included."""
        self.weights_version = 0
        """Changes of the weights in this session: steps and loads."""
        self.parameters = model.named_parameters()
        """What is trained, by name."""
        self._micro_batch_tokens = micro_batch_tokens
        self._failure: str | None = None
        self._lost = False

    def check_weights(self) -> None:
        """Raises FailedPreconditionError NUMERIC_ERROR when a step has left weights that are not finite."""
        if self._lost:
            raise FailedPreconditionError(
                "the weights are not finite since an optimizer step: load a checkpoint, and lower the learning rate",
                reason="NUMERIC_ERROR",
            )

    def forward(self, data: Sequence[Datum], loss: TokenLoss, config: Mapping[str, float]) -> ForwardResult:
        """Loss and logprobs; gradients and weights stay as they are."""
        self.check_weights()
        with torch.no_grad():
            return self._run(data, loss, config, backward=False)

    def forward_backward(self, data: Sequence[Datum], loss: TokenLoss, config: Mapping[str, float]) -> ForwardResult:
        """Loss and logprobs, and the loss's gradients added to those already accumulated.

        A failure zeroes the gradients and makes the next optim_step fail: half a batch must not become a step.
        """
        try:
            self.check_weights()
            result = self._run(data, loss, config, backward=True)
            if self.model.adapter is not None:
                _gather_gradients(self.parameters.values())
            return result
        except Exception as error:
            self.invalidate_gradients(f"it ended with {type(error).__name__}")
            raise

    def optim_step(self, options: AdamWOptions) -> OptimResult:
        """One AdamW step on the accumulated gradients, which are zeroed whether it succeeds or not.

        Raises FailedPreconditionError, weights and moments untouched: GRADIENTS_INVALID when a forward_backward since
        the last step failed, NO_GRADIENTS when there was none, NUMERIC_ERROR when the gradient norm is not finite. When
        the update's is not, that is NUMERIC_ERROR too, and the session does nothing more until a checkpoint is loaded.
        """
        self.check_weights()
        failure, self._failure = self._failure, None
        try:
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            if failure is not None:
                raise FailedPreconditionError(
                    f"a forward_backward of this step did not take effect: {failure}; send the whole step again",
                    reason="GRADIENTS_INVALID",
                )
            if not gradients:
                raise FailedPreconditionError(
                    "no gradients: send a forward_backward before this optim_step", reason="NO_GRADIENTS"
                )
            norm = global_norm(gradients)
            grad_norm = float(norm)
            if not math.isfinite(grad_norm):
                raise FailedPreconditionError(
                    f"the gradient norm is {grad_norm}, the weights stay as they were: "
                    "look at the loss weights, or lower the learning rate",
                    reason="NUMERIC_ERROR",
                    metadata={"grad_norm": grad_norm},
                )
            fault_point("engine.optim_step.before")
            update_norm = adamw_step(self.parameters, self.optimizer, options, norm)
            fault_point("engine.optim_step.after")
        finally:
            self.zero_gradients()
        self.optim_steps += 1
        self.weights_version += 1
        if not math.isfinite(update_norm):
            self._lost = True
            self.check_weights()
        return OptimResult(
            grad_norm=grad_norm,
            update_norm=update_norm,
            learning_rate=options.learning_rate,
            optim_steps=self.optim_steps,
            weights_version=self.weights_version,
        )

    def replace_state(self, optimizer: AdamWState, optim_steps: int) -> None:
        """After the weights were changed in place by a load: a new optimizer, no gradients, a new version."""
        self.optimizer = optimizer
        self.optim_steps = optim_steps
        self.weights_version += 1
        self._failure = None
        self._lost = False
        self.zero_gradients()

    def _run(
        self, data: Sequence[Datum], loss: TokenLoss, config: Mapping[str, float], *, backward: bool
    ) -> ForwardResult:
        total = 0.0
        logprobs: dict[int, NDArray[np.floating]] = {}
        for rows in plan_micro_batches([len(d.tokens) for d in data], self._micro_batch_tokens):
            value, row_logprobs = self._run_micro_batch([data[row] for row in rows], loss, config, backward=backward)
            total += value
            logprobs.update(zip(rows, row_logprobs, strict=True))
        return ForwardResult(loss=total, logprobs=[logprobs[row] for row in range(len(data))])

    def invalidate_gradients(self, reason: str) -> None:
        """Zero the gradients and make the next optim_step fail, because a forward_backward did not take effect."""
        self._failure = reason
        self.zero_gradients()

    def zero_gradients(self) -> None:
        """Drop the accumulated gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _run_micro_batch(
        self, data: Sequence[Datum], loss: TokenLoss, config: Mapping[str, float], *, backward: bool
    ) -> tuple[float, list[NDArray[np.floating]]]:
        model = self.model
        input_dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        batch = build_micro_batch(data, model.device, input_dtype)
        hidden_ND = batch.unpad(model.hidden_states(batch.tokens_BT))
        if backward:
            result = token_loss_gradients(
                hidden_ND.detach(), model.head(train=True), batch.targets_N, batch.inputs, loss, config
            )
            fault_point("engine.forward_backward.mid")
            # only the unembedding may be adapted
            if hidden_ND.requires_grad:
                hidden_ND.backward(result.grad_hidden_ND)
            total, logprobs_N = result.loss, result.logprobs_N
        else:
            logprobs_N = target_logprobs(hidden_ND, model.head(), batch.targets_N)
            loss_N = loss.fn(logprobs_N, batch.inputs, {**loss.config, **config})
            total = float(loss_N.sum(dtype=torch.float64))
        return total, split_rows(logprobs_N.cpu().numpy(), batch.lengths)


def _gather_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Move the gradients into one block.

    They outlive the pass, and as many small blocks between its large ones they would keep the allocator from using that
    memory again: 64 waiting sessions held 40 MiB each for gradients of 0.6 MiB.
    """
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    block = torch.cat([gradient.flatten() for gradient in gradients.values()])
    for parameter, part in zip(gradients, block.split([each.numel() for each in gradients]), strict=True):
        parameter.grad = part.view_as(parameter)
