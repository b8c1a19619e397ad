from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from crucible.kitchen.v1.event_pb2 import (
    RUN_STATE_COMPLETED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RunEvent,
)
from crucible.kitchen.v1.run_pb2 import WatchRunRequest, WatchRunResponse
from crucible_kit.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.server.fakes import Api, log_event, serve, state_event

Watch = AsyncIterator[WatchRunResponse]


def watch(api: Api, after: int = 0, batch: int = 0, run_id: str = "run-1") -> Watch:
    return api.runs.WatchRun(WatchRunRequest(run_id=run_id, after_sequence=after, max_batch=batch), timeout=60)


async def events_until(watching: Watch, last: int) -> list[RunEvent]:
    """The events up to a sequence number."""
    found: list[RunEvent] = []
    async for response in watching:
        found.extend(response.events)
        if response.last_sequence >= last:
            break
    return found


async def anext_when_free(api: Api) -> WatchRunResponse:
    """The first response of a new watch. The server learns a moment later that another one was cancelled."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await anext(watch(api))
            except ResourceExhaustedError:
                continue


async def test_a_watch_replays_then_follows_and_ends_with_the_run(api: Api) -> None:
    await api.new_run(events=4)
    watching = watch(api, batch=2)
    replayed = [await anext(watching) for _ in range(3)]
    assert [[each.sequence for each in response.events] for response in replayed] == [[1, 2], [3, 4], [5]]
    assert [response.caught_up for response in replayed] == [False, False, True]
    await api.store.append("run-1", [log_event("live")])
    live = await anext(watching)
    assert [each.log_recorded.message for each in live.events] == ["live"]
    await api.complete()
    rest = [response async for response in watching]
    assert [each.state_changed.to_state for response in rest for each in response.events] == [RUN_STATE_COMPLETED]


async def test_a_watch_resumes_after_what_was_seen(api: Api) -> None:
    await api.new_run(events=9)
    await api.complete()
    whole = [each async for response in watch(api) for each in response.events]
    assert [each.sequence for each in whole] == list(range(1, 12))
    for cut in (1, 5, 10):
        first = await events_until(watch(api, batch=cut), cut)
        rest = [each async for response in watch(api, after=first[-1].sequence) for each in response.events]
        assert first + rest == whole
    ended = [response async for response in watch(api, after=11)]
    assert [(len(response.events), response.caught_up) for response in ended] == [(0, True)]


async def test_an_end_that_was_resumed_is_not_the_end(api: Api) -> None:
    await api.new_run()
    for state in (RUN_STATE_FAILED, RUN_STATE_QUEUED):
        await api.store.append("run-1", [state_event(state)], changes={"state": state})
    watching = watch(api, batch=1)
    assert [each.sequence for each in await events_until(watching, 3)] == [1, 2, 3]
    await api.complete()
    assert [each.sequence async for response in watching for each in response.events] == [4]


async def test_the_watch_of_a_paused_run_stays_open(api: Api) -> None:
    await api.new_run()
    await api.store.append("run-1", [state_event(RUN_STATE_PAUSED)], changes={"state": RUN_STATE_PAUSED})
    watching = watch(api)
    await events_until(watching, 2)
    await api.complete()
    assert [each.sequence async for response in watching for each in response.events] == [3]


async def test_silence_is_filled_with_the_position(tmp_path: Path) -> None:
    async with serve(tmp_path, heartbeat_seconds=0.02) as api:
        await api.new_run(events=2)
        watching = watch(api, after=1)
        first = await anext(watching)
        assert first.last_sequence == 3
        for _ in range(3):
            response = await anext(watching)
            assert (len(response.events), response.last_sequence, response.caught_up) == (0, 3, True)


async def test_nothing_to_replay_is_said_at_once(api: Api) -> None:
    await api.new_run()
    response = await anext(watch(api, after=1))
    assert (len(response.events), response.last_sequence, response.caught_up) == (0, 1, True)


async def test_bad_watches_are_refused(api: Api) -> None:
    await api.new_run(events=2)
    with pytest.raises(NotFoundError) as missing:
        await anext(watch(api, run_id="run-2"))
    assert missing.value.reason == "RUN_NOT_FOUND"
    with pytest.raises(OutOfRangeError) as past:
        await anext(watch(api, after=4))
    assert (past.value.reason, past.value.metadata["last_sequence"]) == ("SEQUENCE_OUT_OF_RANGE", "3")
    async with grpc.aio.insecure_channel(api.address) as raw:  # our own channel would refuse it before it leaves
        call = raw.unary_stream("/crucible.kitchen.v1.RunService/WatchRun")
        with pytest.raises(grpc.aio.AioRpcError) as negative:
            await call(WatchRunRequest(run_id="run-1", after_sequence=-1).SerializeToString()).read()
    assert negative.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidArgumentError):
        await anext(watch(api, batch=-1))


async def test_a_cancelled_watch_frees_its_place(tmp_path: Path) -> None:
    async with serve(tmp_path, max_watchers_per_run=2) as api:
        await api.new_run()
        await api.new_run("run-2")
        open_watches = [watch(api), watch(api)]
        for each in open_watches:
            await anext(each)
        with pytest.raises(ResourceExhaustedError) as caught:
            await anext(watch(api))
        assert (caught.value.reason, caught.value.retry_delay) == ("TOO_MANY_WATCHERS", None)
        await anext(watch(api, run_id="run-2"))  # the limit holds for each run
        await open_watches[0].aclose()  # type: ignore[attr-defined]
        await anext_when_free(api)


async def test_a_watcher_that_never_reads_holds_up_nobody(tmp_path: Path) -> None:
    async with serve(tmp_path, max_watchers_per_run=2) as api:
        await api.new_run()
        async with grpc.aio.insecure_channel(api.address) as raw:
            stalled = raw.unary_stream("/crucible.kitchen.v1.RunService/WatchRun")(
                WatchRunRequest(run_id="run-1", max_batch=1).SerializeToString()
            )
            await stalled.read()
            # 32 MB, far more than gRPC buffers for one that does not read.
            lively = watch(api, after=1)
            reading = asyncio.create_task(events_until(lively, 501))
            for _ in range(50):
                await api.store.append("run-1", [log_event("x" * 64_000) for _ in range(10)])
            read = await reading
            assert [each.sequence for each in read] == list(range(2, 502))
            with pytest.raises(ResourceExhaustedError):
                await anext(watch(api))
            stalled.cancel()
            await anext_when_free(api)


async def test_draining_ends_watches_after_what_is_in_the_log(api: Api) -> None:
    await api.new_run()
    watching = watch(api)
    await anext(watching)
    await api.endpoint.drain()
    await api.store.append("run-1", [log_event("saved before the end")])
    stopping = asyncio.create_task(api.endpoint.stop(5))
    response = await anext(watching)
    assert response.events[0].log_recorded.message == "saved before the end"
    with pytest.raises(UnavailableError) as caught:
        await anext(watching)
    assert caught.value.reason == "DRAINING"
    assert caught.value.retry_delay is not None
    await stopping
