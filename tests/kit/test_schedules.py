"""Learning-rate schedules against torch's schedulers and transformers' formulas, at every step of the plan."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from crucible_kit.schedules import ScheduleName, learning_rate

PEAK = 3e-4
PLANS = [(1, 0), (2, 1), (7, 0), (7, 3), (100, 0), (100, 1), (100, 10), (100, 99)]
SCHEDULES: list[ScheduleName] = ["constant", "linear", "cosine"]


def rates(schedule: ScheduleName, total: int, warmup: int, final: float = 0.0) -> list[float]:
    return [
        learning_rate(step, total_steps=total, peak=PEAK, schedule=schedule, warmup_steps=warmup, final_fraction=final)
        for step in range(total)
    ]


def stepped(make: Any, total: int) -> list[float]:
    """The rates that a scheduler gives an optimizer, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a chained scheduler steps once before the optimizer does
        scheduler = make(optimizer)
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize(("total", "warmup"), PLANS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_torch_s_schedulers_give_the_same(schedule: ScheduleName, total: int, warmup: int, final: float) -> None:
    def make(optimizer: Any) -> Any:
        n = total - warmup
        after = {
            "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
            "linear": lambda: lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=n),
            "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=n, eta_min=PEAK * final),
        }[schedule]()
        if not warmup:
            return after
        # From peak / warmup to the peak in the last step of the warm-up.
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
        return lr_scheduler.SequentialLR(optimizer, [rise, after], milestones=[warmup])

    # Torch's schedulers multiply from step to step, which rounds.
    assert rates(schedule, total, warmup, final) == pytest.approx(stepped(make, total), rel=1e-9, abs=PEAK * 1e-12)


@pytest.mark.parametrize(("total", "warmup"), PLANS)
@pytest.mark.parametrize(
    ("schedule", "make", "final"),
    [
        ("constant", lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup), 0.0),
        ("linear", get_linear_schedule_with_warmup, 0.0),
        ("cosine", get_cosine_schedule_with_warmup, 0.0),
        (
            "cosine",
            lambda optimizer, warmup, total: get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, warmup, total, min_lr_rate=0.1
            ),
            0.1,
        ),
    ],
)
def test_transformers_gives_the_same(schedule: ScheduleName, make: Any, final: float, total: int, warmup: int) -> None:
    """Its warm-up begins at 0 and so wastes the first step; ours begins with what it gives at its second."""
    theirs = stepped(lambda optimizer: make(optimizer, warmup, total), total + 1)
    expected = theirs[1 : warmup + 1] + theirs[warmup:total]
    assert rates(schedule, total, warmup, final) == pytest.approx(expected, rel=1e-12, abs=PEAK * 1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_rate_is_negative_or_above_the_peak(schedule: ScheduleName) -> None:
    for total, warmup in PLANS:
        assert all(0 < rate <= PEAK for rate in rates(schedule, total, warmup))
