"""`builtin:tensorboard`: what TensorBoard's own reader finds in the event files."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crucible_adapters.metrics.tensorboard import TensorboardMetricsStore, TensorboardOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, UnavailableError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.test_metrics import point, query, record


def shown(context: AdapterContext, run: str = "r") -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(context.data_dir / "tensorboard" / run))
    read.Reload()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def files(context: AdapterContext, run: str = "r") -> list[Path]:
    return sorted((context.data_dir / "tensorboard" / run).iterdir())


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.fixture
async def stub(context: AdapterContext, local: Binding) -> Any:
    return await local.stub(TensorboardMetricsStore(TensorboardOptions(), context))


async def test_tensorboard_shows_what_was_recorded(context: AdapterContext, stub: Any) -> None:
    await record(stub, 1, point("train/loss", 1, 0.1, 1700000000), point("train/rate", 1, 1e300))
    await record(stub, 2, point("train/loss", 2, math.nan), point("train/loss", 2, 1e-3), point("train/loss", 7, -2.0))
    await record(stub, 1, point("x", 1, 0.0), run="other")
    assert shown(context) == {
        "train/loss": [(1, float32(0.1)), (2, float32(1e-3)), (7, -2.0)],
        "train/rate": [(1, math.inf)],
    }
    assert shown(context, "other") == {"x": [(1, 0.0)]}
    # The port answers with all of a double.
    assert await query(stub, "train/rate") == [(1, 1e300)]
    assert await query(stub, "train/loss") == [(1, 0.1), (2, 1e-3), (7, -2.0)]


async def test_times_are_those_of_the_values(context: AdapterContext, stub: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    await record(stub, 1, point("a", 1, 0.5, 1700000000))
    read = EventAccumulator(str(context.data_dir / "tensorboard/r"))
    read.Reload()
    assert read.Scalars("a")[0].wall_time == pytest.approx(1700000000, abs=1e-3)


async def test_a_repeat_changes_nothing(context: AdapterContext, stub: Any) -> None:
    assert not await record(stub, 1, point("a", 1, 1.0))
    before = [path.read_bytes() for path in files(context)]
    assert await record(stub, 1, point("a", 1, 2.0))
    assert [path.read_bytes() for path in files(context)] == before


async def test_a_later_attempt_takes_the_place_of_an_earlier_one(context: AdapterContext, local: Binding) -> None:
    stub = await local.stub(TensorboardMetricsStore(TensorboardOptions(), context))
    for step in range(1, 6):
        await record(stub, step, point("a", step, 1.0), point("b", step, 1.0))
    await local.stop()
    # Another process, which has to find out for itself that there was an attempt before.
    stub = await local.stub(TensorboardMetricsStore(TensorboardOptions(), context))
    await record(stub, 6, point("a", 4, 2.0), attempt=2)
    await record(stub, 7, point("b", 4, 2.0), attempt=2)
    await record(stub, 8, point("a", 4, 1.5), point("a", 6, 1.5), attempt=1)  # late: what is better stays
    assert shown(context) == {
        "a": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (6, 1.5)],
        "b": [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)],
    }
    assert len(files(context)) == 2


async def test_what_a_death_cut_off_hides_nothing_that_comes_later(context: AdapterContext, local: Binding) -> None:
    stub = await local.stub(TensorboardMetricsStore(TensorboardOptions(), context))
    await record(stub, 1, point("a", 1, 1.0))
    await local.stop()
    [path] = files(context)
    path.write_bytes(path.read_bytes()[:-3])
    stub = await local.stub(TensorboardMetricsStore(TensorboardOptions(), context))
    await record(stub, 2, point("a", 2, 2.0))
    assert shown(context) == {"a": [(2, 2.0)]}
    assert await query(stub, "a") == [(1, 1.0), (2, 2.0)]


async def test_a_full_disk_stores_nothing_anywhere(
    context: AdapterContext, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(stub, 1, point("a", 1, 1.0))

    class Full(io.FileIO):
        def write(self, data: Any, /) -> int:
            super().write(data[:9])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, buffering: Full(self, mode))
        with refused(UnavailableError, "STORE_UNAVAILABLE", says="No space left"):
            await record(stub, 2, point("a", 2, 2.0))
    assert await query(stub, "a") == [(1, 1.0)]
    assert not await record(stub, 2, point("a", 2, 2.0))
    assert shown(context) == {"a": [(1, 1.0), (2, 2.0)]}


@pytest.mark.parametrize("run", ["..", ".", "a/../b", "a b", "\u00e9\n", "%2E"])
async def test_a_run_s_folder_is_one_below_the_logdir(
    tmp_path: Path, context: AdapterContext, local: Binding, run: str
) -> None:
    logdir = tmp_path / "a" / "logs"
    stub = await local.stub(TensorboardMetricsStore(TensorboardOptions(logdir=logdir), context))
    await record(stub, 1, point("x", 1, 1.0), run=run)
    [folder] = logdir.iterdir()
    assert [path.parent for path in logdir.rglob("events.out.tfevents.*")] == [folder]
    assert os.listdir(tmp_path / "a") == ["logs"]


def test_the_library_is_named_with_its_extra(context: AdapterContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "crucible_adapters.metrics.tensorboard.find_spec",
        lambda name: None if name == "tensorboard" else find_spec(name),
    )
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[tensorboard]'"):
        TensorboardMetricsStore(TensorboardOptions(), context)


_LOADS = """
import asyncio, sys
from importlib.metadata import entry_points
from pathlib import Path
from crucible.port.metrics.v1 import metrics_pb2
from crucible_kit.adapter import AdapterContext
[entry] = entry_points(group="crucible_kitchen.adapters", name="metrics.tensorboard")
kind = entry.load()
store = kind(kind.description.options(), AdapterContext(data_dir=Path(sys.argv[1])))
before = "tensorboard" in sys.modules
point = metrics_pb2.MetricPoint(name="a", step=1, value=1.0)
request = metrics_pb2.RecordMetricsRequest(run_id="r", batch_key=1, attempt=1, points=[point])
asyncio.run(store.RecordMetrics(request, None))
print(before, [name for name in ("tensorflow", "torch", "tensorboard") if name in sys.modules])
"""


def test_neither_tensorflow_nor_torch_is_loaded(tmp_path: Path) -> None:
    """A module of TensorFlow's name is there, as where it is installed: it is not looked at."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was loaded')")
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == ["False", "['tensorboard']\n"]
