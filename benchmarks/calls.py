"""Calls and streams: a kitchen's beside those of a bare grpc.aio server with the same answers in memory.

The client is the same for both: generated stubs on a channel of grpc.aio. So a ratio is what the server's own work
(checks, the store, threads) adds to a call that gRPC for Python makes anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from benchmarks.bare_server import write_messages
from benchmarks.prefilled import fill
from benchmarks.processes import serving
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.training_step import rotated
from benchmarks.worker import Worker
from crucible.kitchen.v1 import catalog_pb2, catalog_pb2_grpc, event_pb2, run_pb2, run_pb2_grpc

_RUN = "run-watched"
_WORKFLOW = "supervised"
Call = Callable[[], Awaitable[Any]]


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """Unary calls, then watching."""
    data = folder / "data"
    await fill(data, _RUN, scale.events, state=event_pb2.RUN_STATE_COMPLETED)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(data))
        kitchen = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        await _record(kitchen, folder)
        worker = await Worker.start("bare_server", folder)
        stack.push_async_callback(worker.close)
        address = (await worker.run())["address"]
        bare = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        return [await _unary(scale, kitchen, bare), await _fan_out(scale, kitchen, bare)]


async def _record(kitchen: grpc.aio.Channel, folder: Path) -> None:
    """The kitchen's answers, for the bare server."""
    runs, catalog = run_pb2_grpc.RunServiceStub(kitchen), catalog_pb2_grpc.CatalogServiceStub(kitchen)
    write_messages(folder / "run", [await runs.GetRun(run_pb2.GetRunRequest(run_id=_RUN))])
    request = catalog_pb2.GetWorkflowRequest(name=_WORKFLOW)
    write_messages(folder / "workflow", [await catalog.GetWorkflow(request)])
    watch = runs.WatchRun(run_pb2.WatchRunRequest(run_id=_RUN))
    write_messages(folder / "batches", [each async for each in watch])


async def _unary(scale: Scale, kitchen: grpc.aio.Channel, bare: grpc.aio.Channel) -> Table:
    table = Table(
        title="A unary call",
        about=(
            f"Milliseconds of a call over loopback TCP, {scale.calls} calls one after another in each turn. The bare "
            "server answers both calls with messages that lie ready; the kitchen makes them for each call."
        ),
        unit="ms",
    )

    def workflow(channel: grpc.aio.Channel) -> Call:
        stub = catalog_pb2_grpc.CatalogServiceStub(channel)
        return lambda: stub.GetWorkflow(catalog_pb2.GetWorkflowRequest(name=_WORKFLOW))

    def run(channel: grpc.aio.Channel) -> Call:
        stub = run_pb2_grpc.RunServiceStub(channel)
        return lambda: stub.GetRun(run_pb2.GetRunRequest(run_id=_RUN))

    calls = {
        "bare grpc.aio: GetWorkflow": workflow(bare),
        "kitchen: GetWorkflow": workflow(kitchen),
        "bare grpc.aio: GetRun": run(bare),
        "kitchen: GetRun": run(kitchen),
        "bare grpc.aio: GetRun again (A/A)": run(bare),
    }
    for number in range(-1, scale.rounds):
        for system, call in rotated(list(calls.items()), number):
            milliseconds = []
            for _ in range(scale.calls):
                start = time.perf_counter()
                await call()
                milliseconds.append((time.perf_counter() - start) * 1e3)
            if number >= 0:  # the round before the first warms up
                table.add(system, milliseconds)
    table.ratio("A/A: bare GetRun over itself", "bare grpc.aio: GetRun again (A/A)", "bare grpc.aio: GetRun")
    table.ratio("GetWorkflow over bare grpc.aio", "kitchen: GetWorkflow", "bare grpc.aio: GetWorkflow", at_most=1.5)
    table.ratio("GetRun over bare grpc.aio", "kitchen: GetRun", "bare grpc.aio: GetRun", at_most=1.5)
    return table


async def _fan_out(scale: Scale, kitchen: grpc.aio.Channel, bare: grpc.aio.Channel) -> Table:
    table = Table(
        title=f"A log to {scale.watchers} watchers",
        about=(
            f"Events per second that arrive at {scale.watchers} watchers together, each reading a log of "
            f"{scale.events} steps' events from its start. The bare server streams the same batches from memory; the "
            "kitchen reads its store, once for all watchers that are at the same place."
        ),
        unit="events/s",
    )
    systems = {"bare batched stream": bare, "kitchen: WatchRun": kitchen, "bare batched stream again (A/A)": bare}
    for number in range(-1, scale.rounds):
        for system, channel in rotated(list(systems.items()), number):
            start = time.perf_counter()
            counts = await asyncio.gather(*(_watch(channel) for _ in range(scale.watchers)))
            seconds = time.perf_counter() - start
            if set(counts) != {scale.events}:
                raise RuntimeError(f"{system}: a watcher got {counts} events of {scale.events}")
            if number >= 0:
                table.add(system, [sum(counts) / seconds])
    table.ratio("A/A: bare stream over itself", "bare batched stream again (A/A)", "bare batched stream")
    table.ratio("WatchRun over bare stream", "kitchen: WatchRun", "bare batched stream", at_least=0.8)
    return table


async def _watch(channel: grpc.aio.Channel) -> int:
    """The number of events, which come without gaps."""
    last = 0
    async for response in run_pb2_grpc.RunServiceStub(channel).WatchRun(run_pb2.WatchRunRequest(run_id=_RUN)):
        for event in response.events:
            if event.sequence != last + 1:
                raise RuntimeError(f"event {event.sequence} came after {last}")
            last = event.sequence
    return last
