"""Every metric the server records, with unit and meaning. Recording another name is a defect."""

from __future__ import annotations

import re
from collections.abc import Iterable

from crucible.kitchen.v1 import catalog_pb2

# name -> (unit, description); <x> stands for one path part.
METRICS: dict[str, tuple[str, str]] = {
    "train/loss": (
        "nats/token",
        "Loss of the step: sum over tokens of weight x negative logprob, the weights scaled to sum to 1.",
    ),
    "train/mean_nll": ("nats/token", "Unweighted mean negative logprob of the tokens trained on."),
    "train/tokens": ("tokens", "Tokens trained on in the step."),
    "train/input_tokens": ("tokens", "Tokens the model read in the step, those with weight 0 too."),
    "train/tokens_per_second": ("tokens/s", "Tokens the model read over the step's wall-clock time."),
    "train/epoch": ("1", "Epochs done, as a fraction."),
    "optim/lr": ("1", "Learning rate of the step."),
    "optim/grad_norm": ("1", "Global norm of the gradients before clipping."),
    "optim/update_norm": ("1", "Global norm of the change of the weights."),
    "eval/<task>/mean_nll": ("nats/token", "Mean negative logprob of the held-out answers' tokens."),
    "eval/<task>/unigram_nll": (
        "nats/token",
        "The same of a unigram model of the training answers (add-one smoothing): what ignoring context reaches.",
    ),
    "eval/<task>/tokens": ("tokens", "Held-out tokens scored."),
    "time/<stage>": ("s", "Wall-clock time of a stage of the step loop since the last step event."),
    "time/step": ("s", "Wall-clock time of the step, without checkpoint and evaluation."),
    "progress/step": ("steps", "Optimizer steps done."),
    "progress/fraction": ("1", "Fraction of the planned steps done."),
}

_PATTERNS = [re.compile(re.sub(r"<\w+>", "[A-Za-z0-9_.-]+", name)) for name in METRICS]


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that the catalogue does not define."""
    for name in names:
        if not any(pattern.fullmatch(name) for pattern in _PATTERNS):
            raise ValueError(f"metric {name!r} is not in the catalogue: define it there with unit and description")


def definitions() -> list[catalog_pb2.MetricDefinition]:
    """The catalogue, sorted by name."""
    return [
        catalog_pb2.MetricDefinition(name=name, unit=unit, description=description)
        for name, (unit, description) in sorted(METRICS.items())
    ]
