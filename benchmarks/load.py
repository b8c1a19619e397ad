"""A server under load: a long log, a full queue, many clients, and a run that must not notice.

    python -m benchmarks.load > load.json          # about 3 minutes; --quick for a look

One run trains all the time, on one thread of the engine. Its log holds 100,000 events before it starts (written through
the store: real steps would take an hour), 1,000 runs wait behind it, and in turns 200 clients work or nobody does: 63
watch the run, one opens a watch of its whole log and never reads, 136 list runs and get one, every two seconds each.
Then 16 watchers read the whole log at once. Prints one JSON object. Ends with an error when an event is lost, a client
is refused that must not be, or one is let in that must not be.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc

from benchmarks.machine import facts
from benchmarks.material import make_material
from benchmarks.prefilled import extend
from benchmarks.processes import memory_mib, serving
from benchmarks.report import Table
from benchmarks.scale import FULL, QUICK, Load, Scale
from benchmarks.training_step import milliseconds_between, run_config
from benchmarks.worker import Worker
from crucible.kitchen.v1 import event_pb2, run_pb2, run_pb2_grpc
from crucible_client import KitchenClient
from crucible_kit.errors import KitchenError

_AT_ONCE = 16
_PAGE = 500
_ENGINE = {"threads": 1}
_QUIET, _LOADED = "step, alone", "step, beside the clients"


async def measure(scale: Scale, folder: Path) -> list[Table]:
    """The figures that matter as a table."""
    figures = await bear(scale, folder)
    clients, queue, memory = figures["clients"], figures["queue"], figures["memory_mib"]
    load = scale.load
    table = Table(
        title="A server under load",
        about=(
            f"A run trains on one thread of the engine, behind it {load.queued} runs wait, its log begins with "
            f"{load.events} events. In turns of {load.seconds} s there is nobody else, or there are {load.clients} "
            f"clients, at the lowest priority: {load.watchers} watch the run, one of them without ever reading, the "
            "others list runs and get one every two seconds. Step times are medians of a turn. Every watcher got "
            "every event; one waiting run more and one watcher more were refused."
        ),
        unit="ms",
    )
    for system, medians in ((_QUIET, clients["step_ms_without"]), (_LOADED, clients["step_ms_with"])):
        for median in medians:
            table.add(system, [median])
    table.ratio("step beside the clients over step alone", _LOADED, _QUIET, at_most=1.05)
    table.find("A/A: turns alone over the turns alone before", clients["ratios_of_quiet_windows"], "x")
    table.find("calls of the listing clients, p50", [each["call_ms_p50"] for each in clients["windows"]], "ms")
    table.find("calls of the listing clients, p99", [each["call_ms_p99"] for each in clients["windows"]], "ms")
    replay = figures["replay"]
    table.find(f"the whole log to {load.replays} watchers at once", [replay["events_a_second"]], "events/s")
    table.find(f"creating {load.queued} runs, {_AT_ONCE} at a time", [queue["create"]["seconds"]], "s")
    table.find(f"cancelling {load.queued} runs, {_AT_ONCE} at a time", [queue["cancel"]["seconds"]], "s")
    table.find("server's memory before all this, the run training", [memory["training"]], "MiB")
    table.find("server's memory at the most", [memory["highest"]], "MiB")
    return [table]


async def bear(scale: Scale, folder: Path) -> dict[str, Any]:
    """All figures."""
    load, scale = scale.load, dataclasses.replace(scale, length=scale.load.length)
    material = make_material(folder, scale)
    config = run_config(material, scale, 0, 10_000_000)
    data = folder / "data"
    limits = ("--max-queued-runs", str(load.queued), "--max-watchers-per-run", str(load.watchers))
    async with serving(data, *limits, engine=_ENGINE) as server, KitchenClient.connect(server.address) as kitchen:
        run_id = (await kitchen.create_run("sl_basic", config=config, hold=True)).run_id
    filling = time.perf_counter()
    await extend(data, run_id, load.events)
    filling = time.perf_counter() - filling
    async with serving(data, *limits, engine=_ENGINE) as server, KitchenClient.connect(server.address) as kitchen:
        pid = server.process.pid
        figures: dict[str, Any] = {"log": {"events": load.events, "seconds_to_write": filling}}
        memory = {"started": memory_mib(pid)}
        await kitchen.start_run(run_id)
        await _first_steps(kitchen, run_id, load.events)
        memory["training"] = memory_mib(pid)
        queued = await _create(kitchen, config, load.queued)
        figures["queue"] = queued.figures
        memory["queue full"] = memory_mib(pid)
        figures["clients"] = await _clients(load, server.address, kitchen, run_id)
        memory["after clients"] = memory_mib(pid)
        figures["replay"] = await _replay(server.address, run_id, load.replays)
        memory["after replay"] = memory_mib(pid)
        figures["queue"]["cancel"] = await _timed([lambda each=each: kitchen.cancel_run(each) for each in queued.runs])
        await kitchen.cancel_run(run_id)
        ended = await kitchen.wait(run_id)
        figures["log"]["events_at_the_end"] = await _check_log(kitchen, ended)
        memory["end"], memory["highest"] = memory_mib(pid), memory_mib(pid, "VmHWM")
        figures["memory_mib"] = memory
    return figures


async def _first_steps(kitchen: KitchenClient, run_id: str, after: int) -> None:
    steps = 0
    async for event in kitchen.watch(run_id, after):
        steps += event.HasField("step_completed")
        if steps == 3:
            return
    raise RuntimeError("the run ended before its third step")


@dataclasses.dataclass
class _Queued:
    runs: list[str]
    figures: dict[str, Any]


async def _create(kitchen: KitchenClient, config: dict[str, Any], count: int) -> _Queued:
    """Fills the queue and asks for one run more."""
    runs: list[str] = []

    async def create() -> None:
        runs.append((await kitchen.create_run("sl_basic", config=config)).run_id)

    figures: dict[str, Any] = {"runs": count, "create": await _timed([create] * count)}
    try:
        await create()
    except KitchenError as error:
        figures["one_more"] = error.reason
    else:
        raise RuntimeError(f"run {count + 1} of a queue of {count} was not refused")
    listed, token = 0, ""
    while True:
        page = await kitchen.list_runs(page_size=_PAGE, page_token=token, states=[event_pb2.RUN_STATE_QUEUED])
        listed, token = listed + len(page.runs), page.next_page_token
        if not token:
            break
    if listed != count:
        raise RuntimeError(f"{listed} queued runs are listed, not {count}")
    return _Queued(runs, figures)


async def _timed(calls: Sequence[Callable[[], Awaitable[Any]]]) -> dict[str, float]:
    """Makes the calls, some at a time."""
    milliseconds: list[float] = []
    todo = iter(calls)

    async def work() -> None:
        for call in todo:
            start = time.perf_counter()
            await call()
            milliseconds.append((time.perf_counter() - start) * 1e3)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work())
    quantiles = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {
        "seconds": time.perf_counter() - start,
        "at_once": _AT_ONCE,
        "ms_p50": quantiles[49],
        "ms_p99": quantiles[98],
    }


async def _clients(load: Load, address: str, kitchen: KitchenClient, run_id: str) -> dict[str, Any]:
    """Windows without and with the clients, in turns."""
    options = ("--clients", load.clients, "--watchers", load.watchers)
    worker = await Worker.start("load_clients", address, run_id, *options)
    quiet: list[tuple[float, float]] = []
    loaded: list[tuple[float, float]] = []
    answers: list[dict[str, Any]] = []
    first = (await kitchen.get_run(run_id)).last_sequence
    try:
        for _ in range(load.windows):
            begun = time.time()
            await asyncio.sleep(load.seconds)
            quiet.append((begun + load.settle, time.time()))
            begun = time.time()
            answers.append(await worker.run(load.seconds))
            loaded.append((begun + load.settle, begun + load.seconds))
    finally:
        await worker.close()
    if any(answer["watchers_behind"] for answer in answers):
        raise RuntimeError(f"watchers did not get every event: {answers}")
    steps = [event for event in await _events(kitchen, run_id, first) if event.HasField("step_completed")]
    without, with_clients = ([_step_ms(steps, *window) for window in windows] for windows in (quiet, loaded))
    return {
        "clients": load.clients,
        "watchers": load.watchers,
        "step_ms_without": without,
        "step_ms_with": with_clients,
        "step_time_ratio": statistics.median(b / a for a, b in zip(without, with_clients, strict=True)),
        "ratios_of_quiet_windows": [b / a for a, b in pairwise(without)],
        "windows": answers,
        "one_watcher_more": await _one_watcher_more(load, address, run_id),
    }


def _step_ms(steps: list[event_pb2.RunEvent], begin: float, end: float) -> float:
    """Median time of a step that lies in a window."""
    inside = [step for step in steps if begin <= step.time.ToNanoseconds() / 1e9 <= end]
    return statistics.median(milliseconds_between(*pair) for pair in pairwise(inside))


async def _one_watcher_more(load: Load, address: str, run_id: str) -> str:
    """What the first watcher too many is told."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        watches = [stub.WatchRun(run_pb2.WatchRunRequest(run_id=run_id)) for _ in range(load.watchers)]
        for watch in watches:
            await watch.read()
        try:
            await stub.WatchRun(run_pb2.WatchRunRequest(run_id=run_id)).read()
        except grpc.aio.AioRpcError as error:
            return str(dict(error.trailing_metadata() or ()).get("crucible-reason", error.code()))
        finally:
            for watch in watches:
                watch.cancel()
    raise RuntimeError(f"watcher {load.watchers + 1} was not refused")


async def _replay(address: str, run_id: str, watchers: int) -> dict[str, float]:
    """Watchers that read the log from its start to where it stands now, all at once."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        last = (await stub.GetRun(run_pb2.GetRunRequest(run_id=run_id))).run.last_sequence

        async def watch() -> None:
            position = 0
            call = stub.WatchRun(run_pb2.WatchRunRequest(run_id=run_id, max_batch=128))
            async for response in call:
                for event in response.events:
                    if event.sequence != position + 1:
                        raise RuntimeError(f"event {event.sequence} came after {position}")
                    position = event.sequence
                if position >= last:
                    break
            call.cancel()

        start = time.perf_counter()
        await asyncio.gather(*(watch() for _ in range(watchers)))
        seconds = time.perf_counter() - start
    return {"watchers": watchers, "events": last, "seconds": seconds, "events_a_second": watchers * last / seconds}


async def _events(kitchen: KitchenClient, run_id: str, after: int) -> list[event_pb2.RunEvent]:
    found: list[event_pb2.RunEvent] = []
    while page := await kitchen.list_run_events(run_id, after_sequence=after, page_size=_PAGE):
        found += page
        after = page[-1].sequence
    return found


async def _check_log(kitchen: KitchenClient, run: run_pb2.Run) -> int:
    """The length of a log without gaps."""
    sequences = [event.sequence for event in await _events(kitchen, run.run_id, 0)]
    if sequences != list(range(1, run.last_sequence + 1)):
        raise RuntimeError(f"the log has {len(sequences)} events, its run says {run.last_sequence}")
    return len(sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, measures nothing")
    quick = parser.parse_args().quick
    about = facts()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kb-") as folder:
        figures = asyncio.run(bear(QUICK if quick else FULL, Path(folder)))
    print(json.dumps({"about": about, "duration_seconds": time.monotonic() - start, **figures}, indent=2))


if __name__ == "__main__":
    main()
