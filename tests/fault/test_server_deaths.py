"""A server that dies at every point at which that could hurt: the run ends as one that was left alone.

Training and sampling are fakes in the server's process, so server and engine die together and start in a second.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from tests.fault.conftest import ROOT, Doomed
from tests.fault.survive import Outcome, assert_nothing_left_over, assert_same_outcome, look, survive
from tests.system.harness import serving

POINTS = (
    "store.commit.before:1",
    "store.commit.after:1",
    "server.forward_backward.after:3",
    "server.save.copy:2",
    "server.sweep.mid:1",
    "blob.rename.before:3",
    "blob.rename.after:2",
    "server.restore.mid:1",
    "server.save.before_commit:2",
    "server.save.after_commit:2",
    "server.watch.mid:3",
    "server.keep_last.rows:1",
    "server.keep_last.files:2",
    "store.commit.before:9",
    "store.commit.after:17",
    "server.register.after:1",
)


async def test_a_server_that_dies_at_every_point_loses_nothing(
    tmp_path: Path, doomed: Doomed, fake_manifest: Path, fake_run: dict[str, Any], fake_undisturbed: Outcome
) -> None:
    faults = [f"{point}=kill" for point in POINTS]
    sockets = tmp_path / "tmp"
    sockets.mkdir()
    environment = doomed.environment(*faults) | {"TMPDIR": str(sockets)}
    with serving(tmp_path / "data", "--manifest", str(fake_manifest), environment=environment) as server:
        outcome = await survive(server, config=fake_run)
        assert doomed.fired() == set(faults)
        assert outcome.deaths == len(faults)
    assert not list(sockets.iterdir()), "a killed server's folder of sockets stays"
    assert not list((server.data / "blobs/.meta/staging").iterdir()), "half a blob stays"
    await look(outcome, server.data)
    assert_same_outcome(outcome, fake_undisturbed)
    await assert_nothing_left_over(outcome, server.data)


@pytest.mark.parametrize("seed", [1])
async def test_a_server_that_is_killed_at_any_event_loses_nothing(
    tmp_path: Path, fake_manifest: Path, fake_run: dict[str, Any], fake_undisturbed: Outcome, seed: int
) -> None:
    """Killed from outside, when a watcher has just been told of an event whose number is drawn."""
    last = len(fake_undisturbed.events)
    kills = set(random.Random(seed).sample(range(1, last), 4))
    with serving(tmp_path / "data", "--manifest", str(fake_manifest), environment={"PYTHONPATH": str(ROOT)}) as server:

        def kill(event: event_pb2.RunEvent) -> None:
            if event.sequence in kills:
                kills.discard(event.sequence)
                server.process.kill()

        outcome = await survive(server, config=fake_run, disturb=kill)
    assert (outcome.deaths, kills) == (4, set())
    await look(outcome, server.data)
    assert_same_outcome(outcome, fake_undisturbed)
    await assert_nothing_left_over(outcome, server.data)
