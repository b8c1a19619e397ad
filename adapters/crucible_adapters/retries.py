"""Trying a provider again: how often, after how long, and never beyond the caller's deadline."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import grpc
from pydantic import Field

from crucible_kit.adapter import AdapterOptions
from crucible_kit.errors import KitchenError

T = TypeVar("T")
STATUS = "http_status"
"""Key of an error's metadata: the HTTP status that it stands for. Without it the provider was not reached."""
_RATE_LIMITED = "RATE_LIMITED"


class RetryPolicy(AdapterOptions):
    """When a request is sent again before its caller hears of an error."""

    tries: int = Field(default=4, ge=1, le=20, description="Requests for one call, the first among them; 1: no retry.")
    initial_backoff_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Wait before the second request; every further wait is twice as long."
    )
    longest_backoff_seconds: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Longest wait between two requests. A Retry-After beyond it is not waited for: the call ends with "
        "the error, which tells the delay.",
    )
    jitter: float = Field(
        default=0.25, ge=0, le=1, description="Share of a wait that chance takes away; a Retry-After is kept whole."
    )
    status_codes: tuple[int, ...] = Field(
        default=(408, 409, 429, 500, 502, 503, 504, 529),
        description="HTTP statuses after which a request is sent again. A connection that breaks always counts.",
    )

    def backoff(self, failures: int, chance: float) -> float:
        """Seconds to wait after so many failures, from 1; `chance` is from 0 to 1."""
        # 2**60 s is beyond every longest wait, and an exponent without a limit overflows.
        whole = min(self.initial_backoff_seconds * 2.0 ** min(failures - 1, 60), self.longest_backoff_seconds)
        return whole * (1 - self.jitter * chance)

    def covers(self, error: KitchenError) -> bool:
        """Whether the same request may be answered when it is sent again."""
        status = error.metadata.get(STATUS)
        if status is not None and int(status) not in self.status_codes:
            return False
        return error.code is grpc.StatusCode.UNAVAILABLE or error.reason == _RATE_LIMITED


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time and chance, which tests replace.

    Attributes:
        monotonic: seconds on a clock that never goes back.
        wall: seconds since 1970.
        sleep: waits so many seconds.
        chance: a number from 0 to 1.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


async def retried(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, *, time_remaining: float | None, clock: Clock
) -> T:
    """The result of the first attempt that succeeds. Cancelling it ends an attempt and a wait at once.

    Args:
        attempt: one request; raises KitchenErrors, with the HTTP status under STATUS in their metadata.
        time_remaining: seconds to the caller's deadline, from now; None: no deadline.

    Raises:
        KitchenError: the last attempt's, when the policy does not cover it, no try is left, or the wait would end after
            the deadline. One that the policy covers tells after how long the same call may succeed.
    """
    deadline = None if time_remaining is None else clock.monotonic() + time_remaining
    failures = 0
    while True:
        try:
            return await attempt()
        except KitchenError as error:
            if not policy.covers(error):
                raise
            failures += 1
            told = error.retry_delay
            wait = policy.backoff(failures, clock.chance()) if told is None else told
            if error.reason == _RATE_LIMITED:
                error.retry_delay = wait
            late = deadline is not None and clock.monotonic() + wait >= deadline
            if failures >= policy.tries or late or wait > policy.longest_backoff_seconds:
                raise
        await clock.sleep(wait)


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that an answer asks to wait: of retry-after-ms, or Retry-After in seconds or as a date.

    Args:
        headers: the answer's, found by names in lower case.
        now: seconds since 1970.

    Returns:
        None without such a header, or with one that can't be read.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            seconds = _until(value, now)
        # NaN and infinities are no delays, and RetryInfo holds at most 10,000 years.
        if seconds is not None and 0 <= seconds < 1e9:
            return seconds
    return None


def _until(date: str, now: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now)
    except (ValueError, OverflowError):
        return None
