"""A worker: many clients of a kitchen at once. A command's count is how many seconds they go on.

Some watch one run from its newest event on, one of them opens a watch of the whole log and never reads it, and all
others list runs and get one, every two seconds each. Every client has a connection of its own. They run at the lowest
priority: the clients of a real server are other machines' work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.worker import Commands
from crucible.kitchen.v1 import run_pb2, run_pb2_grpc

_EVERY_SECONDS = 2.0
_CATCH_UP_SECONDS = 30.0
# Without it clients of one process share a connection.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Clients:
    """The clients of one window."""

    def __init__(self, stubs: list[Any], run_id: str, watchers: int) -> None:
        self._watching, self._listing = stubs[:watchers], stubs[watchers:]
        self._run_id = run_id
        self._positions = [0] * watchers
        self._milliseconds: list[float] = []
        self._calls = 0

    async def work(self, seconds: float) -> dict[str, Any]:
        """Lets them work for a time; then waits until each watcher has what was in the log at that moment."""
        first = (await self._get(self._listing[0])).last_sequence
        stalled = self._watching[0].WatchRun(run_pb2.WatchRunRequest(run_id=self._run_id))
        tasks = [asyncio.create_task(self._watch(index, first)) for index in range(1, len(self._watching))]
        tasks += [
            asyncio.create_task(self._list(stub, index / len(self._listing)))
            for index, stub in enumerate(self._listing)
        ]
        await asyncio.sleep(seconds)
        last = (await self._get(self._listing[0])).last_sequence
        behind = len(self._watching)
        end = time.monotonic() + _CATCH_UP_SECONDS
        while behind and time.monotonic() < end:
            behind = sum(position < last for position in self._positions[1:])
            await asyncio.sleep(0.05)
        stalled.cancel()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a client ended before its time") from outcome
        quantiles = statistics.quantiles(self._milliseconds, n=100, method="inclusive")
        return {
            "watched_events": last - first,
            "watchers_behind": behind,
            "calls_a_second": self._calls / seconds,
            "call_ms_p50": quantiles[49],
            "call_ms_p99": quantiles[98],
        }

    async def _get(self, stub: Any) -> run_pb2.Run:
        return (await stub.GetRun(run_pb2.GetRunRequest(run_id=self._run_id))).run

    async def _watch(self, index: int, after: int) -> None:
        self._positions[index] = after
        request = run_pb2.WatchRunRequest(run_id=self._run_id, after_sequence=after)
        async for response in self._watching[index].WatchRun(request):
            for event in response.events:
                if event.sequence != self._positions[index] + 1:
                    raise RuntimeError(f"event {event.sequence} came after {self._positions[index]}")
                self._positions[index] = event.sequence

    async def _list(self, stub: Any, phase: float) -> None:
        await asyncio.sleep(phase * _EVERY_SECONDS)
        while True:
            start = time.perf_counter()
            await stub.ListRuns(run_pb2.ListRunsRequest())
            middle = time.perf_counter()
            await self._get(stub)
            end = time.perf_counter()
            self._milliseconds += [(middle - start) * 1e3, (end - middle) * 1e3]
            self._calls += 2
            await asyncio.sleep(max(0.0, _EVERY_SECONDS - (end - start)))


async def serve(args: argparse.Namespace) -> None:
    """Answers commands until there are no more."""
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(args.clients):
            channel = grpc.aio.insecure_channel(args.address, options=_OWN_CONNECTION)
            stubs.append(run_pb2_grpc.RunServiceStub(await stack.enter_async_context(channel)))
        commands = Commands()
        while (seconds := await asyncio.to_thread(next, iter(commands), None)) is not None:
            commands.answer(**await Clients(stubs, args.run, args.watchers).work(seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--watchers", type=int, required=True)
    arguments = parser.parse_args()
    os.nice(19)
    asyncio.run(serve(arguments))
