"""A watch that loses its streams still hands on every event once and in order, and hides no refusal."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient, WatchPolicy
from crucible_kit.errors import (
    DataLossError,
    InternalError,
    KitchenError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownError,
)
from tests.client.fake_kitchen import FakeKitchen, events, served, turn

QUICK = WatchPolicy(silence=0.2, first_backoff=0.01, max_backoff=0.02, patience=5.0)
DRAINING = UnavailableError("bye", reason="DRAINING", retry_delay=0.01)


async def watched(kitchen: FakeKitchen, after: int = 0, policy: WatchPolicy = QUICK) -> list[int]:
    async with served(kitchen) as address, KitchenClient.connect(address, policy=policy) as client:
        return [event.sequence async for event in client.watch("r", after)]


@pytest.mark.parametrize(
    "failure",
    [
        DRAINING,
        UnavailableError("gone", reason="INTERRUPTED"),
        ResourceExhaustedError("later", reason="TOO_MANY_WATCHERS", retry_delay=0.01),
        # What a transport says when it lost the stream: a code without a reason of its own.
        UnknownError("Stream removed", reason="UNKNOWN"),
        InternalError("Received RST_STREAM", reason="INTERNAL"),
        "hang",  # silence
    ],
    ids=lambda failure: failure if isinstance(failure, str) else failure.reason,
)
async def test_a_lost_stream_is_resumed_after_the_last_event(failure: KitchenError | str) -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 2), events(3, 3), then=failure), turn(events(4, 5))]
    assert await watched(kitchen) == [1, 2, 3, 4, 5]
    assert [request.after_sequence for request in kitchen.asked("WatchRun")] == [0, 3]


async def test_events_that_come_again_are_dropped() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 3), then=DRAINING), turn(events(2, 4), events(3, 5))]
    assert await watched(kitchen) == [1, 2, 3, 4, 5]


async def test_it_starts_where_it_is_told() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(8, 9))]
    assert await watched(kitchen, after=7) == [8, 9]


@pytest.mark.parametrize(
    "refusal",
    [
        OutOfRangeError("past the end", reason="SEQUENCE_OUT_OF_RANGE"),
        NotFoundError("no run", reason="RUN_NOT_FOUND"),
        ResourceExhaustedError("full", reason="TOO_MANY_WATCHERS"),
        InternalError("bug", reason="INTERNAL_BUG"),
    ],
    ids=lambda refusal: refusal.reason,
)
async def test_refusals_are_never_hidden(refusal: KitchenError) -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 1), then=DRAINING), turn(then=refusal)]
    with pytest.raises(type(refusal)) as caught:
        await watched(kitchen)
    assert caught.value.reason == refusal.reason
    assert len(kitchen.asked("WatchRun")) == 2


async def test_a_gap_is_an_error() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 2), events(4, 4))]
    with pytest.raises(DataLossError) as caught:
        await watched(kitchen)
    assert caught.value.reason == "EVENT_GAP"


async def test_empty_messages_keep_a_quiet_watch_alive() -> None:
    """Longer in all than the silence that kills it, with a heartbeat now and then."""
    kitchen = FakeKitchen()

    async def heartbeats(request: run_pb2.WatchRunRequest):
        for _ in range(5):
            await asyncio.sleep(0.2)
            yield run_pb2.WatchRunResponse()
        yield run_pb2.WatchRunResponse(events=events(1, 1))

    kitchen.watches = [heartbeats]
    assert await watched(kitchen, policy=WatchPolicy(silence=0.7)) == [1]
    assert len(kitchen.asked("WatchRun")) == 1


async def test_patience_ends_with_the_last_error() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(then=DRAINING)]
    impatient = WatchPolicy(first_backoff=0.01, max_backoff=0.01, patience=0.05)
    with pytest.raises(UnavailableError) as caught:
        await watched(kitchen, policy=impatient)
    assert caught.value.reason == "DRAINING"
    assert len(kitchen.asked("WatchRun")) > 1


async def test_a_server_that_goes_away_and_comes_back() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 2), then="hang"), turn(events(3, 4))]
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 's'}"
        async with KitchenClient.connect(address, policy=WatchPolicy(first_backoff=0.01, max_backoff=0.1)) as client:
            watch = client.watch("r")
            async with served(kitchen, address):
                assert [(await anext(watch)).sequence for _ in range(2)] == [1, 2]
            third = asyncio.ensure_future(anext(watch))
            async with served(kitchen, address):
                assert (await third).sequence == 3
                assert [event.sequence async for event in watch] == [4]


async def test_leaving_a_watch_ends_its_stream() -> None:
    kitchen = FakeKitchen()
    kitchen.watches = [turn(events(1, 1), then="hang")]
    async with served(kitchen) as address, KitchenClient.connect(address) as client:
        watch = client.watch("r")
        assert (await anext(watch)).sequence == 1
        await watch.aclose()
        await asyncio.wait_for(kitchen.watch_left.wait(), 10)


async def test_wait_asks_again_until_the_run_has_stopped() -> None:
    kitchen = FakeKitchen()
    answers = iter(
        [
            run_pb2.WaitRunResponse(run=run_pb2.Run(state=event_pb2.RUN_STATE_RUNNING)),
            *[UnavailableError("bye", reason="DRAINING", retry_delay=0.01)] * 5,  # more than the channel itself retries
            run_pb2.WaitRunResponse(run=run_pb2.Run(state=event_pb2.RUN_STATE_PAUSED)),
        ]
    )
    kitchen.answers["WaitRun"] = lambda _: next(answers)
    async with served(kitchen) as address, KitchenClient.connect(address, policy=QUICK) as client:
        assert (await client.wait("r")).state == event_pb2.RUN_STATE_PAUSED


async def test_wait_hides_no_refusal() -> None:
    kitchen = FakeKitchen()
    kitchen.answers["WaitRun"] = NotFoundError("no run", reason="RUN_NOT_FOUND")
    async with served(kitchen) as address, KitchenClient.connect(address, policy=QUICK) as client:
        with pytest.raises(NotFoundError):
            await client.wait("r")
