"""An engine that dies at every point of its work, sometimes with the server: bytes and metrics are those of a run that
was left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fault.conftest import Doomed
from tests.fault.survive import Outcome, assert_nothing_left_over, assert_same_outcome, look, survive
from tests.system.harness import serving

# No run survives three deaths of the engine in a row without a checkpoint between them, so most of these come at a
# later passing of their point.
DEATHS = {
    "full": (
        "engine.forward_backward.mid:3=kill",
        "engine.upload.mid:1=kill",
        "engine.optim_step.after:3=both",
        "engine.publish.before:4=kill",
    ),
    "lora": (
        "engine.optim_step.before:3=kill",
        "engine.load.mid:1=both",
        "engine.read.mid:40=kill",
        "server.register.after:1=kill",
    ),
}


@pytest.mark.parametrize("kind", ["full", "lora"])
async def test_an_engine_that_dies_at_every_point_changes_nothing(
    tmp_path: Path,
    doomed: Doomed,
    real_runs: dict[str, dict[str, Any]],
    real_undisturbed: dict[str, Outcome],
    kind: str,
) -> None:
    with serving(tmp_path / "data", environment=doomed.environment(*DEATHS[kind])) as server:
        outcome = await survive(server, config=real_runs[kind], preset="tiny")
        assert doomed.fired() == set(DEATHS[kind]), outcome.run.failure
        assert len(outcome.started()) == len(DEATHS[kind]) + 1
        assert outcome.deaths == sum("=both" in each or each.startswith("server.") for each in DEATHS[kind])
    await look(outcome, server.data)
    assert_same_outcome(outcome, real_undisturbed[kind])
    await assert_nothing_left_over(outcome, server.data)
