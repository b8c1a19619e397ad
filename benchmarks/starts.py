"""Starting: the server, the engine, and a killed server's run up to its first new step."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.material import make_material
from benchmarks.processes import Server, torch_engine
from benchmarks.report import Table
from benchmarks.scale import Scale
from benchmarks.training_step import rotated, run_config
from crucible.kitchen.v1 import event_pb2
from crucible_client import KitchenClient

_SERVE, _USED = "kitchen serve, new data folder", "kitchen serve, data folder in use before"
_ENGINE, _ENGINE_AGAIN = "torch engine", "torch engine again (A/A)"
_IMPORTS, _TORCH = "python -c 'import grpc, sqlalchemy'", "python -c 'import torch, transformers'"
_RESTART = "kitchen serve after SIGKILL, to its run's first new step"
_SAVE_EVERY = 5


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """Both tables."""
    return [await _starts(scale, folder), await _restarts(scale, folder)]


async def _starts(scale: Scale, folder: Path) -> Table:
    table = Table(
        title="Starting",
        about=(
            "Seconds from the start of the process to the server's line with its address, to the engine's first "
            "answer, and of interpreters that only import what both stand on. Files are in the page cache."
        ),
        unit="s",
    )
    used = folder / "used"
    systems: dict[str, Callable[[int], Awaitable[float]]] = {
        _IMPORTS: lambda _: _import("grpc, sqlalchemy"),
        _SERVE: lambda number: _serve(folder / f"data-{number}"),
        _USED: lambda _: _serve(used),
        _TORCH: lambda _: _import("torch, transformers"),
        _ENGINE: lambda _: _engine(scale, folder),
        _ENGINE_AGAIN: lambda _: _engine(scale, folder),
    }
    for number in range(-1, scale.starts):
        for system, start in rotated(list(systems.items()), number):
            seconds = await start(number)
            if number >= 0:  # the round before the first warms the page cache and makes the folder in use
                table.add(system, [seconds])
    table.level("start of kitchen serve", _SERVE, at_most=2.0)
    table.level("start of kitchen serve on a used folder", _USED, at_most=2.0)
    table.ratio("A/A: engine over itself", _ENGINE_AGAIN, _ENGINE)
    table.ratio("engine over its imports", _ENGINE, _TORCH)
    return table


async def _import(modules: str) -> float:
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import {modules}")
    await process.wait()
    return time.perf_counter() - start


async def _serve(data: Path) -> float:
    start = time.perf_counter()
    server = await Server.start(data)
    seconds = time.perf_counter() - start
    await server.stop()
    return seconds


async def _engine(scale: Scale, folder: Path) -> float:
    start = time.perf_counter()
    async with torch_engine(folder, threads=scale.threads):
        return time.perf_counter() - start


async def _restarts(scale: Scale, folder: Path) -> Table:
    table = Table(
        title="Going on after a kill",
        about=(
            f"A run of the training step's shape, saving every {_SAVE_EVERY} steps. The server is killed (SIGKILL) in "
            "the middle of it and started again on its folder at once. Seconds from the new process's start to the "
            "first step of the new attempt, by events of the run's log: server, engine and model loaded, checkpoint "
            "restored."
        ),
        unit="s",
    )
    material = make_material(folder, scale)
    engine = {"threads": scale.threads}
    server = await Server.start(folder / "killed", engine=engine)
    try:
        async with KitchenClient.connect(server.address) as kitchen:
            config = run_config(material, scale, 0, 100_000) | {"save_every": _SAVE_EVERY}
            run_id = (await kitchen.create_run("sl_basic", config=config)).run_id
            seen = await _new_steps(kitchen, run_id, 0, _SAVE_EVERY + 2)
        for _ in range(scale.restarts):
            await server.kill()
            start = time.time_ns()
            server = await Server.start(server.data, engine=engine)
            async with KitchenClient.connect(server.address) as kitchen:
                first = await _new_steps(kitchen, run_id, seen.sequence, 1)
                table.add(_RESTART, [(first.time.ToNanoseconds() - start) / 1e9])
                # one more checkpoint, and a little further: the next kill must not be the third without a new one
                seen = await _new_steps(kitchen, run_id, first.sequence, _SAVE_EVERY + 2)
    finally:
        if server.process.returncode is None:
            await server.kill()
    table.level("first new step after a kill", _RESTART, at_most=15.0)
    return table


async def _new_steps(kitchen: KitchenClient, run_id: str, after: int, count: int) -> event_pb2.RunEvent:
    """The event of the `count`th step in the log after a sequence number, once it is there."""
    async for event in kitchen.watch(run_id, after):
        if event.HasField("state_changed") and event.state_changed.to_state == event_pb2.RUN_STATE_FAILED:
            raise RuntimeError(f"the run failed: {event.state_changed.reason}")
        count -= event.HasField("step_completed")
        if not count:
            return event
    raise RuntimeError("the run ended")
