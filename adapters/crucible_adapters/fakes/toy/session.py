"""A training session's weights, gradients and optimizer. Plain functions of one thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from crucible_adapters.fakes.toy.losses import Loss
from crucible_adapters.fakes.toy.model import Adam, AdamOptions, ToyModel, norm
from crucible_kit.errors import FailedPreconditionError, KitchenError


class Datum(NamedTuple):
    """One checked sequence: ids and targets of shape [T], and the loss's inputs by name, each [T], float64."""

    tokens: np.ndarray
    targets: np.ndarray
    inputs: Mapping[str, np.ndarray]


class PassResult(NamedTuple):
    """The summed loss, and the targets' logprobs of each datum, shape [T]."""

    loss: float
    logprobs: list[np.ndarray]


class StepResult(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float
    update_norm: float


class ToySession:
    """Trains a model.

    Attributes:
        model: the live weights.
        adam: the optimizer.
        optim_steps: steps these weights have had, those before a loaded checkpoint included.
        weights_version: changes of the weights in this session.
        gradients: accumulated since the last step, by the names of what is trained.
    """

    def __init__(self, model: ToyModel) -> None:
        self.model = model
        self.adam = Adam()
        self.optim_steps = 0
        self.weights_version = 0
        self.gradients: dict[str, np.ndarray] = {}
        self._failure = ""
        self._lost = False

    def check_weights(self) -> None:
        """Raises FAILED_PRECONDITION NUMERIC_ERROR when a step has left weights that are not finite."""
        if self._lost:
            raise _numeric("the weights are not finite since an optimizer step: load a checkpoint")

    def forward(self, data: Sequence[Datum], loss: Loss, parameters: Mapping[str, float]) -> PassResult:
        """Losses and logprobs; nothing changes."""
        return self._run(data, loss, parameters, None)

    def forward_backward(self, data: Sequence[Datum], loss: Loss, parameters: Mapping[str, float]) -> PassResult:
        """Losses and logprobs, and the gradients added to those accumulated. A failure makes the next step fail."""
        gradients = dict(self.gradients)
        try:
            result = self._run(data, loss, parameters, gradients)
        except KitchenError as error:
            self.invalidate_gradients(error.message)
            raise
        self.gradients = gradients
        return result

    def invalidate_gradients(self, reason: str) -> None:
        """Zeroes the gradients and makes the next step fail."""
        self.gradients, self._failure = {}, reason

    def optim_step(self, options: AdamOptions) -> StepResult:
        """One AdamW step with the accumulated gradients, which are zeroed whatever comes.

        Raises FAILED_PRECONDITION GRADIENTS_INVALID, NO_GRADIENTS or NUMERIC_ERROR.
        """
        self.check_weights()
        gradients, self.gradients = self.gradients, {}
        failure, self._failure = self._failure, ""
        if failure:
            raise FailedPreconditionError(
                f"a forward_backward of this step did not take effect: {failure}; send the whole step again",
                reason="GRADIENTS_INVALID",
            )
        if not gradients:
            raise FailedPreconditionError(
                "no gradients: send a forward_backward before this optim_step", reason="NO_GRADIENTS"
            )
        grad_norm = norm(gradients)
        if not math.isfinite(grad_norm):
            raise _numeric(f"the gradient norm is {grad_norm}, the weights stay as they were: look at the loss weights")
        update_norm = self.adam.update(self.model.trained, gradients, options)
        self.optim_steps += 1
        self.weights_version += 1
        if not math.isfinite(update_norm):
            self._lost = True
            self.check_weights()
        return StepResult(grad_norm, update_norm)

    def replace(self, weights: Mapping[str, np.ndarray], adam: Adam, optim_steps: int) -> None:
        """Puts a checkpoint's weights and optimizer in their place; gradients are zeroed."""
        for name, array in self.model.trained.items():
            array[...] = weights[name]
        self.adam, self.optim_steps = adam, optim_steps
        self.weights_version += 1
        self.gradients, self._failure, self._lost = {}, "", False

    def _run(
        self,
        data: Sequence[Datum],
        loss: Loss,
        parameters: Mapping[str, float],
        gradients: dict[str, np.ndarray] | None,
    ) -> PassResult:
        self.check_weights()
        total, logprobs = 0.0, []
        options = {**loss.parameters, **parameters}
        for datum in data:
            all_TV = self.model.log_softmax(datum.tokens)
            at_T = np.arange(len(datum.targets))
            logprobs_T = all_TV[at_T, datum.targets]
            # The sums of strange inputs may overflow: whoever steps with them is told.
            with np.errstate(over="ignore", invalid="ignore"):
                loss_T, slope_T = loss.fn(logprobs_T, datum.inputs, options)
                total += float(loss_T.sum())
                if gradients is not None:
                    grad_logits_TV = -slope_T[:, None] * np.exp(all_TV)
                    grad_logits_TV[at_T, datum.targets] += slope_T
                    for name, gradient in self.model.gradients(datum.tokens, grad_logits_TV).items():
                        gradients[name] = gradients.get(name, 0.0) + gradient
            logprobs.append(logprobs_T)
        return PassResult(total, logprobs)


def _numeric(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="NUMERIC_ERROR")
