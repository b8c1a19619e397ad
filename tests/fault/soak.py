"""Random deaths, a disk that fills, an engine that freezes, and a mixed load with deaths in it: `make soak`.

    python -m tests.fault.soak [--seed 0] [--kills 20] [--minutes 20] [--phases kills,trouble,load]

Every draw comes from the seed; what the machine is busy with still decides where a process stands when it is killed.
Ends with status 1 at the first thing that is not as it should be, and says what; the server's log is named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible_kit import faults
from tests.fault.load import run_load
from tests.fault.small_model import make_small_model
from tests.fault.survive import Outcome, assert_nothing_left_over, assert_same_outcome, look, survive
from tests.system.harness import SMALL, Server, children, serving, write_rows

ROOT = Path(__file__).resolve().parents[2]
# Passed once a step or more often, so that any passing up to the number is reached.
STEP_POINTS = {
    "engine.forward_backward.mid": 20,
    "engine.optim_step.before": 20,
    "engine.optim_step.after": 20,
    "engine.save.mid": 10,
    "engine.publish.before": 10,
    "engine.publish.after": 10,
    "engine.read.mid": 90,
    "engine.upload.mid": 10,
    "engine.load.mid": 1,
    "server.forward_backward.after": 20,
    "server.save.copy": 60,
    "server.save.before_commit": 10,
    "server.save.after_commit": 10,
    "server.restore.mid": 6,
    "server.sweep.mid": 3,
    "server.keep_last.rows": 8,
    "server.keep_last.files": 50,
    "server.watch.mid": 30,
    "blob.rename.before": 60,
    "blob.rename.after": 60,
    "store.commit.before": 60,
    "store.commit.after": 60,
}
CRASH_LOOP = ("ENGINE_CRASH_LOOP",)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs of 40 small steps."""
    full = SMALL | {
        "model": str(make_small_model(folder / "model")),
        "dataset": str(write_rows(folder / "rows.jsonl", rows=40)),
        "eval_fraction": 0.1,
        "eval_every": 10,
        "max_steps": 40,
        "save_every": 2,
        "keep_last": 3,
    }
    return {"full": full, "lora": full | {"lora_rank": 4, "learning_rate": 1e-3}}


async def undisturbed(folder: Path, runs: dict[str, dict[str, Any]]) -> dict[str, Outcome]:
    data = folder / "undisturbed"
    with serving(data) as server:
        outcomes = {kind: await survive(server, config=config, preset="tiny") for kind, config in runs.items()}
    return {kind: await look(outcome, data) for kind, outcome in outcomes.items()}


def recovery_seconds(events: list[event_pb2.RunEvent]) -> list[float]:
    """From the last event before each new attempt to its first finished step."""
    found = []
    for index, event in enumerate(events):
        if event.HasField("attempt_started") and event.attempt > 1:
            step = next((each for each in events[index:] if each.HasField("step_completed")), None)
            if step is not None and step.attempt == event.attempt:
                before = next(each for each in reversed(events[:index]) if each.attempt < event.attempt)
                found.append((step.time.ToNanoseconds() - before.time.ToNanoseconds()) / 1e9)
    return found


class Killer:
    """Kills server, engine or both when a watcher is told of an event whose number was drawn."""

    def __init__(self, server: Server, draw: random.Random, count: int, events: int) -> None:
        self._server = server
        numbers = sorted(draw.sample(range(5, events + 10 * count), count))
        self._due = [(number, draw.choice(("server", "engine", "both"))) for number in numbers]
        self.killed: Counter[str] = Counter()

    def __call__(self, event: event_pb2.RunEvent) -> None:
        if not self._due or event.sequence < self._due[0][0]:
            return
        who = self._due.pop(0)[1]
        engines = children(self._server.process.pid)
        if who == "engine" and not engines:
            return
        if who != "engine":
            self._server.process.kill()
        if who != "server":
            for pid in engines:
                os.kill(pid, signal.SIGKILL)
        self.killed[who] += 1


async def random_kills(folder: Path, kind: str, config: dict[str, Any], same: Outcome, kills: int, seed: int) -> None:
    """Runs with about half of the deaths at drawn passings of fault points and half at drawn events."""
    draw, done, loops, runs = random.Random(f"{seed} {kind}"), 0, 0, 0
    whom: Counter[str] = Counter()
    waited: list[float] = []
    while done < kills:
        runs += 1
        points = draw.sample(sorted(STEP_POINTS), 3)
        specs = [f"{point}:{draw.randint(1, STEP_POINTS[point])}" for point in points]
        specs = [f"{s}={draw.choice(('kill', 'both')) if s.startswith('engine.') else 'kill'}" for s in specs]
        data, fired = folder / f"{kind}-{runs}", folder / f"{kind}-{runs}-fired"
        environment = {faults.VARIABLE: ",".join(specs), faults.FIRED_VARIABLE: str(fired)}
        with serving(data, environment=environment) as server:
            killer = Killer(server, draw, 3, len(same.events))
            outcome = await survive(
                server, config=config, preset="tiny", disturb=killer, resumed=CRASH_LOOP, timeout=1200
            )
        say(f"{kind} run {runs}: {specs}, told {dict(killer.killed)}, attempts {outcome.run.attempt}")
        await look(outcome, data)
        assert_same_outcome(outcome, same)
        await assert_nothing_left_over(outcome, data)
        happened = [path.name for path in fired.iterdir()] if fired.exists() else []
        whom += killer.killed + Counter("point " + name.partition(":")[0] for name in happened)
        done += sum(killer.killed.values()) + len(happened)
        waited += recovery_seconds(outcome.events)
        loops += sum(event.state_changed.failure.reason in CRASH_LOOP for event in outcome.events)
        shutil.rmtree(data)
    say(f"{kind}: {done} deaths in {runs} runs, all equal to the undisturbed one; {loops} crash loops resumed")
    say(f"{kind}: death to next finished step: median {statistics.median(waited):.1f} s, longest {max(waited):.1f} s")
    for name, count in sorted(whom.items()):
        say(f"    {count:3d} {name}")


async def frozen_engine(folder: Path, config: dict[str, Any], same: Outcome) -> None:
    """SIGSTOP for more than a minute, with the deadlines of a real server: in a step, and while a file is copied."""
    for spec in ("engine.forward_backward.mid:5=stop", "engine.read.mid:12=stop"):
        data, fired = folder / "frozen", folder / f"frozen-fired-{spec[:11]}"
        environment = {faults.VARIABLE: spec, faults.FIRED_VARIABLE: str(fired)}
        begun = time.monotonic()
        with serving(data, environment=environment) as server:
            outcome = await survive(server, config=config, preset="tiny", timeout=600)
        await look(outcome, data)
        assert_same_outcome(outcome, same)
        assert fired.exists() and outcome.run.attempt == 2, outcome.run.attempt
        say(
            f"engine stopped for good at {spec}: the run went on after {recovery_seconds(outcome.events)[0]:.0f} s "
            f"and took {time.monotonic() - begun:.0f} s"
        )
        shutil.rmtree(data)


async def full_disk(folder: Path, config: dict[str, Any], same: Outcome) -> None:
    """A data folder on a small file system that is full for a while."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        say("full disk: skipped, mounting needs root")
        return
    ballast = disk / "ballast"
    freed: list[float] = []

    def fill(event: event_pb2.RunEvent) -> None:
        if event.HasField("step_completed") and event.step == 11 and event.attempt == 1:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(64 * 1024))
            asyncio.get_running_loop().call_later(8, free)

    def free() -> None:
        ballast.unlink()
        freed.append(time.monotonic())

    try:
        with serving(disk / "data") as server:
            outcome = await survive(
                server, config=config, preset="tiny", disturb=fill, resumed=("DISK_FULL", "STORAGE_FAILED")
            )
        await look(outcome, disk / "data")
        assert_same_outcome(outcome, same)
        assert freed
        failures = [e.state_changed.failure.reason for e in outcome.events if e.HasField("state_changed")]
        say(f"disk full for 8 s: attempts {outcome.run.attempt}, failures {[each for each in failures if each]}")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="deaths of each kind of run")
    parser.add_argument("--minutes", type=float, default=20, help="length of the mixed load")
    parser.add_argument("--phases", default="kills,trouble,load")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    say(f"seed {arguments.seed}, folder {folder}")
    runs = configurations(folder)
    same = await undisturbed(folder, runs)
    if "kills" in arguments.phases:
        for kind, config in runs.items():
            await random_kills(folder, kind, config, same[kind], arguments.kills, arguments.seed)
    if "trouble" in arguments.phases:
        await full_disk(folder, runs["full"], same["full"])
        await frozen_engine(folder, runs["lora"], same["lora"])
    if "load" in arguments.phases:
        await run_load(folder / "load", runs, same, minutes=arguments.minutes, seed=arguments.seed, say=say)
    shutil.rmtree(folder)
    say("all as it should be")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
