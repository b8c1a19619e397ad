"""RunService: mutations go to the run manager, everything else reads the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Protocol

from crucible.kitchen.v1 import run_pb2, run_pb2_grpc
from crucible.kitchen.v1.event_pb2 import RUN_STATE_PAUSED
from crucible_kit.errors import field_error
from crucible_kit.paging import page_size
from crucible_kitchen.api.access import draining_error
from crucible_kitchen.api.convert import run_message
from crucible_kitchen.api.paging import from_token, to_token
from crucible_kitchen.api.watch import Watches
from crucible_kitchen.store.records import TERMINAL_STATES, RunRecord
from crucible_kitchen.store.store import Store

DEFAULT_WAIT_SECONDS = 30.0
MAX_WAIT_SECONDS = 60.0
# Half of what gRPC clients take in a message unless they are told otherwise.
_MAX_PAGE_BYTES = 2 * 1024 * 1024
# Answers before the caller's own deadline, the way back included.
_DEADLINE_MARGIN_SECONDS = 0.25


class Runs(Protocol):
    """What steers runs. Each method answers the run as it is afterwards."""

    def create(self, request: run_pb2.CreateRunRequest) -> Awaitable[RunRecord]: ...
    def begin(self, run_id: str, request: run_pb2.StartRunRequest) -> Awaitable[RunRecord]: ...
    def pause(self, run_id: str) -> Awaitable[RunRecord]: ...
    def resume(self, run_id: str, request: run_pb2.ResumeRunRequest) -> Awaitable[RunRecord]: ...
    def cancel(self, run_id: str, reason: str) -> Awaitable[RunRecord]: ...


class RunService(run_pb2_grpc.RunServiceServicer):
    """See run.proto."""

    def __init__(self, store: Store, runs: Runs, watches: Watches) -> None:
        self._store = store
        self._runs = runs
        self._watches = watches

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Any) -> run_pb2.CreateRunResponse:
        return run_pb2.CreateRunResponse(run=run_message(await self._runs.create(request)))

    async def StartRun(self, request: run_pb2.StartRunRequest, context: Any) -> run_pb2.StartRunResponse:
        return run_pb2.StartRunResponse(run=run_message(await self._runs.begin(request.run_id, request)))

    async def PauseRun(self, request: run_pb2.PauseRunRequest, context: Any) -> run_pb2.PauseRunResponse:
        return run_pb2.PauseRunResponse(run=run_message(await self._runs.pause(request.run_id)))

    async def ResumeRun(self, request: run_pb2.ResumeRunRequest, context: Any) -> run_pb2.ResumeRunResponse:
        return run_pb2.ResumeRunResponse(run=run_message(await self._runs.resume(request.run_id, request)))

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Any) -> run_pb2.CancelRunResponse:
        return run_pb2.CancelRunResponse(run=run_message(await self._runs.cancel(request.run_id, request.reason)))

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.GetRunResponse:
        return run_pb2.GetRunResponse(run=run_message(await self._store.get_run(request.run_id)))

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Any) -> run_pb2.ListRunsResponse:
        size = page_size(request.page_size)
        # One more than asked for tells whether there is a next page.
        records = await self._store.list_runs(
            request.states, request.recipe, request.labels, size + 1, from_token(request)
        )
        runs: list[run_pb2.Run] = []
        room = _MAX_PAGE_BYTES
        for record in records[:size]:
            run = run_message(record)
            room -= run.ByteSize()
            if runs and room < 0:
                break
            runs.append(run)
        token = ""
        if len(records) > len(runs):
            last = records[len(runs) - 1]
            token = to_token((last.create_time, last.run_id), request)
        return run_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def WaitRun(self, request: run_pb2.WaitRunRequest, context: Any) -> run_pb2.WaitRunResponse:
        given = request.wait.seconds + request.wait.nanos / 1e9
        seconds = given if request.HasField("wait") else DEFAULT_WAIT_SECONDS
        if seconds < 0:
            raise field_error("wait", f"is {seconds:g} s, must not be negative")
        seconds = min(seconds, MAX_WAIT_SECONDS)
        remaining = context.time_remaining()
        if remaining is not None:
            seconds = min(seconds, max(0.0, remaining - _DEADLINE_MARGIN_SECONDS))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            record = await self._store.get_run(request.run_id)
            if record.state in TERMINAL_STATES or record.state == RUN_STATE_PAUSED or loop.time() >= end:
                return run_pb2.WaitRunResponse(run=run_message(record))
            if self._watches.draining:
                raise draining_error()
            await self._store.wait_for_events(request.run_id, record.last_sequence, end - loop.time())

    async def WatchRun(
        self, request: run_pb2.WatchRunRequest, context: Any
    ) -> AsyncGenerator[run_pb2.WatchRunResponse, None]:
        responses = self._watches.watch(request)
        try:
            async for each in responses:
                yield each
        finally:
            # Its slot is free when the call has ended, not when the collector comes by.
            await responses.aclose()

    async def ListRunEvents(self, request: run_pb2.ListRunEventsRequest, context: Any) -> run_pb2.ListRunEventsResponse:
        page = await self._store.event_page(request.run_id, request.after_sequence, limit=page_size(request.page_size))
        return run_pb2.ListRunEventsResponse(events=page.events)
