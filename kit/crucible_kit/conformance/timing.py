"""What the times of calls suggest. Advice only: no verdict hangs on a clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

_SLOW_SECONDS = 0.020
_ENOUGH = 20


def timing_advice(unary_seconds: Sequence[float]) -> list[str]:
    """Remarks on the times of the unary calls that were answered."""
    if len(unary_seconds) < _ENOUGH:
        return []
    median = statistics.median(unary_seconds)
    text = f"half of the {len(unary_seconds)} unary calls took {median * 1000:.1f} ms or less"
    if median > _SLOW_SECONDS:
        text += "; on one machine that is slow: does the server set TCP_NODELAY on its connections?"
    return [text]
