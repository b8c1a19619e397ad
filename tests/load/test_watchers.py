"""Many watchers and callers at once, bounded: the figures are benchmarks/load.py's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from crucible.kitchen.v1.run_pb2 import GetRunRequest, ListRunsRequest, WatchRunRequest
from crucible.kitchen.v1.run_pb2_grpc import RunServiceStub
from tests.server.fakes import Api, log_event, serve

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def clients(api: Api, count: int) -> AsyncIterator[list[Any]]:
    """Stubs, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(api.address, options=options) for _ in range(count)]
        yield [RunServiceStub(await stack.enter_async_context(channel)) for channel in channels]


async def sequences(watching: AsyncIterator[Any]) -> list[int]:
    """Of all events until the run has ended."""
    return [event.sequence async for response in watching for event in response.events]


def resident_bytes() -> int:
    """Memory of this process, which holds the server and its clients."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


async def test_each_of_many_watchers_gets_every_event_once(tmp_path: Path) -> None:
    """They come at different times, with batches of different sizes, while the log grows."""
    async with serve(tmp_path, max_watchers_per_run=48) as api, clients(api, 48) as stubs:
        await api.new_run(events=40)
        watches = []
        for index, stub in enumerate(stubs):
            request = WatchRunRequest(run_id="run-1", after_sequence=index % 5, max_batch=1 + index % 7)
            watches.append(asyncio.create_task(sequences(stub.WatchRun(request))))
            if index % 4 == 0:
                await api.store.append("run-1", [log_event("live"), log_event("live")])
        await api.complete()
        last = (await api.store.get_run("run-1")).last_sequence
        assert last == 41 + 24 + 1
        for index, seen in enumerate(await asyncio.gather(*watches)):
            assert seen == list(range(index % 5 + 1, last + 1))


async def test_watchers_at_the_same_place_share_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(tmp_path) as api, clients(api, 20) as stubs:
        await api.new_run(events=319)
        await api.complete()
        read, reads = api.store.event_page, []

        async def counted(*arguments: Any, **options: Any) -> Any:
            reads.append(arguments)
            return await read(*arguments, **options)

        monkeypatch.setattr(api.store, "event_page", counted)
        request = WatchRunRequest(run_id="run-1", max_batch=32)
        watched = await asyncio.gather(*(sequences(stub.WatchRun(request)) for stub in stubs))
        assert watched == [list(range(1, 322))] * 20
        assert len(reads) == 11


async def test_what_came_event_by_event_is_replayed_in_batches(tmp_path: Path) -> None:
    async with serve(tmp_path) as api, clients(api, 2) as stubs:
        await api.new_run()
        live = stubs[0].WatchRun(WatchRunRequest(run_id="run-1", after_sequence=1))
        assert not (await live.read()).events
        for _ in range(10):
            await api.store.append("run-1", [log_event("live")])
            assert len((await live.read()).events) == 1
        replayed = await stubs[1].WatchRun(WatchRunRequest(run_id="run-1", after_sequence=1)).read()
        assert len(replayed.events) == 10
        assert replayed.caught_up


async def test_watchers_that_never_read_cost_no_more_when_the_log_grows(tmp_path: Path) -> None:
    async with serve(tmp_path, max_watchers_per_run=9) as api, clients(api, 9) as stubs:
        await api.new_run()
        stalled = [stub.WatchRun(WatchRunRequest(run_id="run-1")) for stub in stubs[:8]]
        for each in stalled:
            await each.read()
        lively = stubs[8].WatchRun(WatchRunRequest(run_id="run-1"))

        async def grow(megabytes: int) -> None:
            """Lengthens the log, which the reading watcher follows to its end."""
            for _ in range(megabytes):
                record = await api.store.append("run-1", [log_event("x" * 62_500) for _ in range(16)])
            position = 0
            while position < record.last_sequence:
                position = (await lively.read()).last_sequence

        await grow(20)  # gRPC's buffers are full
        before = resident_bytes()
        await grow(40)
        assert resident_bytes() - before < 20e6  # of 320 MB that the eight have not read
        for each in stalled:
            each.cancel()


async def test_many_callers_beside_a_growing_log(tmp_path: Path) -> None:
    async with serve(tmp_path) as api, clients(api, 120) as stubs:
        for number in range(60):
            await api.new_run(f"run-{number}")

        async def call(stub: Any) -> None:
            at_least = 0
            for _ in range(3):
                listed = await stub.ListRuns(ListRunsRequest(page_size=50))
                assert len(listed.runs) == 50
                assert listed.next_page_token
                run = (await stub.GetRun(GetRunRequest(run_id="run-1"))).run
                assert run.last_sequence >= at_least
                at_least = run.last_sequence

        calls = [asyncio.create_task(call(stub)) for stub in stubs]
        for number in range(100):
            record = await api.store.append("run-1", [log_event("live")])
            # A reader sees what is committed, at once.
            assert (await api.store.get_run("run-1")) == record
            assert record.last_sequence == number + 2
        await asyncio.gather(*calls)
