"""When a request is sent again."""

from __future__ import annotations

import pytest

from crucible_adapters.retries import RetryPolicy, retried, retry_after
from crucible_kit.errors import DataLossError, KitchenError, ResourceExhaustedError, UnavailableError
from tests.providers import Waits

NOW = 1_790_000_000.0


class Flaky:
    """Fails with these errors, one after another, then succeeds."""

    def __init__(self, *errors: KitchenError) -> None:
        self._errors = list(errors)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def away(status: int | None = 503, delay: float | None = None) -> KitchenError:
    metadata = {} if status is None else {"http_status": status}
    return UnavailableError("away", reason="PROVIDER_UNAVAILABLE", metadata=metadata, retry_delay=delay)


async def test_waits_double_up_to_the_longest(waits: Waits) -> None:
    policy = RetryPolicy(tries=6, initial_backoff_seconds=1, longest_backoff_seconds=5, jitter=0)
    flaky = Flaky(*[away() for _ in range(5)])
    assert await retried(flaky, policy, time_remaining=None, clock=waits.clock()) == "done"
    assert waits.told == [1, 2, 4, 5, 5]


async def test_only_what_may_pass_is_tried_again(waits: Waits) -> None:
    spent = ResourceExhaustedError("spent", reason="QUOTA_EXHAUSTED", metadata={"http_status": 429})
    broken = DataLossError("broken", reason="PROVIDER_REPLY_MALFORMED")
    for error in (spent, broken, away(501)):
        flaky = Flaky(error)
        with pytest.raises(KitchenError) as caught:
            await retried(flaky, RetryPolicy(), time_remaining=None, clock=waits.clock())
        assert caught.value is error and flaky.count == 1
    for error in (away(None), away(500), ResourceExhaustedError("slow", reason="RATE_LIMITED")):
        assert await retried(Flaky(error), RetryPolicy(), time_remaining=None, clock=waits.clock()) == "done"


async def test_the_deadline_counts_from_the_call(waits: Waits) -> None:
    policy = RetryPolicy(tries=20, initial_backoff_seconds=1, longest_backoff_seconds=4, jitter=0)
    flaky = Flaky(*[away() for _ in range(19)])
    with pytest.raises(UnavailableError):
        await retried(flaky, policy, time_remaining=10.0, clock=waits.clock())
    # 1 + 2 + 4 s; the next wait would end after the tenth.
    assert waits.told == [1, 2, 4] and flaky.count == 4


async def test_one_try_is_one(waits: Waits) -> None:
    flaky = Flaky(away())
    with pytest.raises(UnavailableError):
        await retried(flaky, RetryPolicy(tries=1), time_remaining=None, clock=waits.clock())
    assert flaky.count == 1 and not waits.told


HEADERS = [
    ({"retry-after": "7"}, 7.0),
    ({"retry-after": "0.5"}, 0.5),
    ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
    ({"retry-after": "Mon, 21 Sep 2026 14:13:50 GMT"}, 30.0),
    ({"retry-after": "Mon, 21 Sep 2026 10:00:00 GMT"}, 0.0),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "-3"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), HEADERS)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds
