"""A mixed load on one server: runs that are left alone, paused or cancelled, clients' own sessions, and deaths."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crucible.kitchen.v1 import event_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2
from crucible_client import KitchenClient
from crucible_kit.errors import FailedPreconditionError, InternalError, KitchenError
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kit.training import TrainingSession
from crucible_kitchen.ports.sampling import SamplingSession
from tests.fault.survive import Outcome, assert_whole_log
from tests.system.harness import Server, checkpoint_folder, children, tensor_files

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
ADAM = training_pb2.AdamParams(learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-8)
_DEATH_SECONDS = (20.0, 60.0)
_LAST_RUNS_SECONDS = 600.0


class Load:
    """What is going on, and what has come of it."""

    def __init__(
        self, server: Server, runs: dict[str, dict[str, Any]], same: dict[str, Outcome], *, end: float, seed: int
    ) -> None:
        self._server = server
        self._runs = runs
        self._same = same
        self._end = end
        self._draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.megabytes: list[tuple[float, float]] = []
        """Memory of the server and of the engine."""

    @property
    def going(self) -> bool:
        return time.monotonic() < self._end

    def _tell(self, error: KitchenError) -> None:
        if isinstance(error, InternalError):
            raise error
        self.errors[f"{type(error).__name__} {error.reason}"] += 1

    async def run_runs(self) -> None:
        """One run after another, each steered in a drawn way."""
        while self.going:
            kind, way = self._draw.choice(sorted(self._runs)), self._draw.choice(("leave", "leave", "pause", "cancel"))
            moment = self._draw.randint(2, 35)
            async with KitchenClient.connect(self._server.address) as kitchen:
                create = partial(
                    kitchen.create_run,
                    "sl_basic",
                    preset="tiny",
                    config=self._runs[kind],
                    seed=1,
                    request_id=str(uuid.uuid4()),
                )
                await self._steer(kitchen, (await _again(create)).run_id, kind, way, moment)
            self.counts[f"runs {kind} {way}"] += 1

    async def _steer(self, kitchen: KitchenClient, run_id: str, kind: str, way: str, moment: int) -> None:
        events: list[event_pb2.RunEvent] = []
        while True:
            async for event in kitchen.watch(run_id, after_sequence=len(events)):
                events.append(event)
                if event.HasField("step_completed"):
                    self.counts["steps"] += 1
                    if event.step == moment and way != "leave":
                        asked, way = way, "leave"
                        await self._ask(kitchen, run_id, asked)
                if event.state_changed.to_state == event_pb2.RUN_STATE_PAUSED:
                    self.counts["paused"] += 1
                    await _again(lambda: kitchen.resume_run(run_id), unless="RUN_STATE")
            run = await _again(lambda: kitchen.get_run(run_id))
            if run.failure.reason != "ENGINE_CRASH_LOOP":
                break
            self.counts["crash loops"] += 1
            await _again(lambda: kitchen.resume_run(run_id), unless="RUN_STATE")
        assert_whole_log(events)
        if run.state == event_pb2.RUN_STATE_CANCELLED:
            return
        assert run.state == event_pb2.RUN_STATE_COMPLETED, run.failure
        tensors = tensor_files(checkpoint_folder(run.latest_checkpoint.uri))
        assert tensors == self._same[kind].tensors["final"], f"{run_id} has other weights than an undisturbed run"
        self.counts["attempts"] += run.attempt

    async def _ask(self, kitchen: KitchenClient, run_id: str, way: str) -> None:
        if way == "cancel":
            await _again(lambda: kitchen.cancel_run(run_id), unless="RUN_STATE")
        else:
            await _again(lambda: kitchen.pause_run(run_id), unless="RUN_STATE")

    async def train_as_client(self, number: int) -> None:
        """A session of a client's own after another: steps and samples, until it ends or the engine dies."""
        rng = np.random.default_rng(number)
        model = self._runs["lora"]["model"]
        async with KitchenClient.connect(self._server.address) as kitchen:
            while self.going:
                try:
                    session = await TrainingSession.create(
                        kitchen.port("training"), base_model=model, lora=training_pb2.LoraConfig(rank=4), seed=number
                    )
                    sampler = await SamplingSession.follow(kitchen.port("sampling"), session.session_id)
                    for _ in range(20):
                        ids = rng.integers(0, 2000, 33)
                        passes = await session.enqueue_forward_backward([_datum(ids)], CROSS_ENTROPY)
                        update = await session.enqueue_optim_step(ADAM)
                        for operation in (*passes, update):
                            await session.result(operation)
                        self.counts["client steps"] += 1
                    params = sampling_pb2.SamplingParams(max_tokens=8, seed=number)
                    await sampler.sample(ids[:8].astype(np.int32), params)
                    self.counts["client samples"] += 1
                    await sampler.close()
                    await session.close()
                except KitchenError as error:
                    self._tell(error)
                    await asyncio.sleep(1)

    async def look_around(self) -> None:
        """What dashboards do."""
        async with KitchenClient.connect(self._server.address) as kitchen:
            while self.going:
                try:
                    listed = await kitchen.list_runs(page_size=20)
                    for run in listed.runs[:3]:
                        await kitchen.get_run(run.run_id)
                        await kitchen.list_run_events(run.run_id, page_size=200)
                    await kitchen.list_adapters()
                    self.counts["listings"] += 1
                except KitchenError as error:
                    self._tell(error)
                await asyncio.sleep(0.2)

    async def kill(self) -> None:
        """Deaths of the server and the engine in turns that are drawn."""
        while self.going:
            await asyncio.sleep(self._draw.uniform(*_DEATH_SECONDS))
            who = self._draw.choice(("server", "engine"))
            engines = children(self._server.process.pid)
            if who == "engine":
                for pid in engines:
                    os.kill(pid, signal.SIGKILL)
            else:
                self._server.kill()
                self._server.start()
            self.counts[f"deaths of the {who}"] += 1

    async def weigh(self) -> None:
        """Notes how much memory is used."""
        while self.going:
            server, engines = self._server.process.pid, children(self._server.process.pid)
            self.megabytes.append((_megabytes(server), sum(map(_megabytes, engines))))
            await asyncio.sleep(5)


async def run_load(
    folder: Path,
    runs: dict[str, dict[str, Any]],
    same: dict[str, Outcome],
    *,
    minutes: float,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Runs the load for so long, and tells figures."""
    folder.mkdir()
    # The address outlives the server.
    server = Server(folder / "data", "--listen", f"unix:{folder / 's'}", "--max-concurrent-runs", "2")
    load = Load(server, runs, same, end=time.monotonic() + minutes * 60, seed=seed)
    try:
        async with asyncio.timeout(minutes * 60 + _LAST_RUNS_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(load.run_runs())
            for number in range(2):
                tasks.create_task(load.train_as_client(number))
            for task in (load.look_around(), load.kill(), load.weigh()):
                tasks.create_task(task)
    finally:
        server.terminate()
    say(f"mixed load of {minutes:g} minutes:")
    for name, count in sorted(load.counts.items()):
        say(f"    {count:6d} {name}")
    for name, count in sorted(load.errors.items()):
        say(f"    {count:6d} clients were told {name}")
    for index, what in enumerate(("server", "engine")):
        values = [pair[index] for pair in load.megabytes if pair[index]]
        say(f"    {what}: {values[0]:.0f} MiB at first, {values[-1]:.0f} at last, at most {max(values):.0f}")


async def _again(call: Callable[[], Any], *, unless: str = "") -> Any:
    """A call that is repeated while its server is away; one that is refused for `unless` has lost its purpose."""
    while True:
        try:
            return await call()
        except FailedPreconditionError as error:
            if error.reason != unless:
                raise
            return None
        except KitchenError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.5)


def _datum(ids: np.ndarray) -> datum_pb2.Datum:
    count = len(ids) - 1
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(ids[:-1].astype(np.int32)))
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]),
        loss_fn_inputs={
            "target_tokens": to_tensor(ids[1:].astype(np.int64)),
            "weights": to_tensor(np.full(count, 1 / count, dtype=np.float32)),
        },
    )


def _megabytes(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
