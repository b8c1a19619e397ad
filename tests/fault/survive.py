"""A run on a server that dies and is started again, and what must be so afterwards."""

from __future__ import annotations

import asyncio
import re
import subprocess
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_client import KitchenClient, fold
from crucible_client.watch import may_heal
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import KitchenError
from tests.system.harness import Server, checkpoint_folder, tensor_files

COMPLETED = event_pb2.RUN_STATE_COMPLETED
# What the clock decides.
_TIMED = re.compile(r"time/.*|train/tokens_per_second")
_MOMENT_SECONDS = 2.0


@dataclass(kw_only=True)
class Outcome:
    """What a run has left. All but the log is filled in by `look`.

    Attributes:
        events: its whole log.
        told: what one watcher was sent, over all its connections, in order.
        metrics: by step, newest attempt, without those that the clock decides.
        stored: points of the metrics store by name, likewise.
        evaluations: (step, metrics) in order.
        tensors: bytes of every checkpoint's tensor files, by the checkpoint's name and the file's.
        deaths: how often the server died.
    """

    run: run_pb2.Run
    events: list[event_pb2.RunEvent]
    told: list[event_pb2.RunEvent]
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    stored: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tensors: dict[str, dict[str, bytes]] = field(default_factory=dict)
    deaths: int = 0

    def started(self) -> list[event_pb2.AttemptStarted]:
        """The attempts."""
        return [event.attempt_started for event in self.events if event.HasField("attempt_started")]


async def survive(
    server: Server,
    *,
    config: Mapping[str, Any],
    preset: str = "",
    seed: int = 1,
    disturb: Callable[[event_pb2.RunEvent], None] = lambda event: None,
    resumed: Collection[str] = (),
    timeout: float = 300.0,
) -> Outcome:
    """Runs sl_basic to its end, starting the server again whenever it has died, while one watcher looks on.

    Args:
        disturb: called with every event that the watcher is sent.
        resumed: reasons of failures after which the run is resumed.
    """
    request_id, run_id = str(uuid.uuid4()), ""
    told: list[event_pb2.RunEvent] = []
    deaths = 0
    async with asyncio.timeout(timeout):
        while True:
            try:
                async with KitchenClient.connect(server.address) as kitchen:
                    if not run_id:
                        run = await kitchen.create_run(
                            "sl_basic", preset=preset, config=config, seed=seed, request_id=request_id
                        )
                        run_id = run.run_id
                    await _watch(kitchen, run_id, told, disturb)
                    if (await kitchen.get_run(run_id)).failure.reason not in resumed:
                        break
                    await kitchen.resume_run(run_id)
            except KitchenError as error:
                if not may_heal(error):
                    raise
                # Not at once: a server that lives has its reasons, such as a disk that is full.
                if await asyncio.to_thread(_ends, server):
                    deaths += await _started_again(server)
        async with KitchenClient.connect(server.address) as kitchen:
            ended = await kitchen.get_run(run_id)
            events: list[event_pb2.RunEvent] = []
            while page := await kitchen.list_run_events(run_id, after_sequence=len(events), page_size=500):
                events += page
    return Outcome(run=ended, events=events, told=told, deaths=deaths)


async def _watch(
    kitchen: KitchenClient,
    run_id: str,
    told: list[event_pb2.RunEvent],
    disturb: Callable[[event_pb2.RunEvent], None],
) -> None:
    """One connection's worth of watching; returns when the run has ended."""
    request = run_pb2.WatchRunRequest(run_id=run_id, after_sequence=len(told))
    async for response in kitchen._runs.WatchRun(request):
        for event in response.events:
            told.append(event)
            disturb(event)


def _ends(server: Server) -> bool:
    """Whether the server dies within a moment; a connection ends a little before its process."""
    try:
        server.process.wait(_MOMENT_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


async def _started_again(server: Server) -> int:
    """Starts a dead server again. Returns how often it died: it may do so while it starts."""
    deaths = 1
    while True:
        server.kill()
        try:
            server.start()
        except RuntimeError:
            deaths += 1
        else:
            return deaths


async def look(outcome: Outcome, data: Path) -> Outcome:
    """Reads what a run has left, past its server, which has stopped: metrics come after the log."""
    view = fold(outcome.events)
    outcome.metrics = {number: _timeless(step.metrics) for number, step in view.steps.items()}
    outcome.evaluations = [(step, dict(each.metrics)) for step, each in view.evaluations]
    for uri in view.checkpoints:
        folder = checkpoint_folder(uri)
        outcome.tensors[folder.name] = tensor_files(folder)
    run_id, context = outcome.run.run_id, AdapterContext(data_dir=data)
    store = SqliteMetricsStore(SqliteMetricsStore.description.options(), context)
    try:
        for name in sorted({name for metrics in outcome.metrics.values() for name in metrics}):
            points = (await store.QueryMetrics(metrics_pb2.QueryMetricsRequest(run_id=run_id, name=name), None)).points
            outcome.stored[name] = [(point.step, point.value) for point in points]
    finally:
        await store.close()
    return outcome


def _timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not _TIMED.fullmatch(name)}


def differences(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[int, list[tuple[str, Any, Any]]]:
    """By step, the metrics that are not the same: name, ours and theirs."""
    found = {}
    for step in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(step, {}), theirs.get(step, {})
        names = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
        if names:
            found[step] = [(name, one.get(name), other.get(name)) for name in names]
    return found


def assert_same_outcome(outcome: Outcome, undisturbed: Outcome) -> None:
    """Asserts that nothing shows of all that has happened but attempts and the time they took."""
    assert outcome.run.state == COMPLETED, outcome.run.failure
    assert_whole_log(outcome.events)
    assert outcome.told == outcome.events, "a watcher was told something else than the log says"
    unequal = differences(outcome.metrics, undisturbed.metrics)
    assert not unequal, unequal
    assert outcome.stored == undisturbed.stored
    assert outcome.evaluations == undisturbed.evaluations
    assert outcome.tensors.keys() == undisturbed.tensors.keys()
    for name, tensors in undisturbed.tensors.items():
        assert tensors and outcome.tensors[name] == tensors, name
    assert outcome.run.step == undisturbed.run.step
    steps = ("steps", "trained_tokens", "input_tokens", "first_train_loss", "last_train_loss")
    assert [getattr(outcome.run.summary, name) for name in steps] == [
        getattr(undisturbed.run.summary, name) for name in steps
    ]


def assert_whole_log(events: list[event_pb2.RunEvent]) -> None:
    """Asserts what holds of every log: no gap, time and attempts that never go back, redone steps under a new attempt
    that says which events it supersedes.
    """
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(earlier.time.ToNanoseconds() <= later.time.ToNanoseconds() for earlier, later in pairwise(events))
    attempt, expected = 0, 1
    done: dict[int, int] = {}
    for event in events:
        if event.HasField("attempt_started"):
            started = event.attempt_started
            attempt += 1
            assert started.attempt == attempt
            expected = started.from_checkpoint.step + 1
            first, last = started.superseded_first_sequence, started.superseded_last_sequence
            undone = {step for step in done if step >= expected}
            assert all(first <= done[step] <= last for step in undone), "superseded steps are not said to be so"
            done = {step: sequence for step, sequence in done.items() if step < expected}
            assert not any(first <= sequence <= last for sequence in done.values())
        elif event.HasField("step_completed"):
            assert (event.step, event.attempt) == (expected, attempt)
            done[event.step] = event.sequence
            expected += 1
        # The change to RUNNING comes with the attempt that it announces.
        assert event.attempt == attempt or event.HasField("state_changed")


async def assert_nothing_left_over(outcome: Outcome, data: Path) -> None:
    """Asserts that the blob store has the run's checkpoints and nothing else of it, and the registry one version."""
    view = fold(outcome.events)
    folders = {checkpoint_folder(uri) for uri in view.checkpoints}
    files = [path for path in (data / "blobs" / "runs" / outcome.run.run_id).rglob("*") if path.is_file()]
    assert {path.parent for path in files} == folders
    registry = SqliteModelRegistry(SqliteModelRegistry.description.options(), AdapterContext(data_dir=data))
    try:
        versions = (await registry.ListVersions(registry_pb2.ListVersionsRequest(), None)).versions
    finally:
        await registry.close()
    assert [each.version_id for each in versions if each.run_id == outcome.run.run_id] == [outcome.run.model_version_id]
