"""Learning-rate schedules: pure functions of the step and the planned total."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int,
    *,
    total_steps: int,
    peak: float,
    schedule: ScheduleName,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
) -> float:
    """Learning rate of the 0-based `step`.

    Rises linearly to `peak` over the first `warmup_steps` (step k has peak * (k + 1) / warmup_steps), then over the
    remaining n steps goes from `peak` towards `peak * final_fraction`: linear (1 - i / n) or cosine
    ((1 + cos(pi * i / n)) / 2); constant stays at `peak`.

    Raises:
        ValueError: for a step outside the plan. A schedule run past its plan would go negative and ascend.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the plan of {total_steps} steps")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    remaining = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (final_fraction + (1 - final_fraction) * remaining)
