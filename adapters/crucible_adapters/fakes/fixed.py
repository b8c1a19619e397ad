"""What is the same for all fakes, forever: the models there are, and the time.

Times that fakes tell stand still, so that equal requests get equal answers; leases and expiries go by a real clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

MODELS: Final = ("builtin:tiny-qwen3", "builtin:tiny-qwen3-base", "fake/model")
_TIME: Final = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())


def fixed_time(*, seconds: int = 0, nanos: int = 0) -> Timestamp:
    """The time it always is, or so long after it."""
    time = Timestamp()
    time.FromNanoseconds((_TIME + seconds) * 10**9 + nanos)
    return time
