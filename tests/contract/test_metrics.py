"""MetricsStore: numbers by run, name and step; the highest attempt wins, and a repeat changes nothing."""

from __future__ import annotations

import asyncio
import itertools
import math
import sqlite3
import struct
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.port.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from crucible_adapters.fakes.metrics import FakeMetricsOptions, FakeMetricsStore
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused

SERVICE = "crucible.port.metrics.v1.MetricsStoreService"


def sqlite_metrics(context: AdapterContext) -> SqliteMetricsStore:
    return SqliteMetricsStore(AdapterOptions(), context)


def fake_metrics(context: AdapterContext) -> FakeMetricsStore:
    return FakeMetricsStore(FakeMetricsOptions(), context)


MakeMetrics = Callable[[AdapterContext], Any]


@pytest.fixture(params=[sqlite_metrics, fake_metrics])
def make(request: pytest.FixtureRequest) -> MakeMetrics:
    """Every adapter."""
    return request.param


@pytest.fixture
async def stub(binding: Binding, make: MakeMetrics, context: AdapterContext) -> Any:
    return await binding.stub(make(context))


def point(name: str, step: int, value: float, seconds: int | None = None) -> metrics_pb2.MetricPoint:
    time = None if seconds is None else Timestamp(seconds=seconds, nanos=7)
    return metrics_pb2.MetricPoint(name=name, step=step, value=value, time=time)


async def record(stub: Any, batch: int, *points: metrics_pb2.MetricPoint, run: str = "r", attempt: int = 1) -> bool:
    request = metrics_pb2.RecordMetricsRequest(run_id=run, batch_key=batch, attempt=attempt, points=points)
    return (await stub.RecordMetrics(request)).duplicate


async def query(stub: Any, name: str, run: str = "r", **fields: Any) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    token = ""
    while True:
        request = metrics_pb2.QueryMetricsRequest(run_id=run, name=name, page_token=token, **fields)
        response = await stub.QueryMetrics(request)
        found.extend((each.step, each.value) for each in response.points)
        token = response.next_page_token
        if not token:
            return found


async def latest(stub: Any, prefix: str = "", run: str = "r") -> list[metrics_pb2.MetricPoint]:
    request = metrics_pb2.GetLatestMetricsRequest(run_id=run, prefix=prefix)
    return list((await stub.GetLatestMetrics(request)).points)


async def test_values_come_back_by_rising_step(stub: Any) -> None:
    assert not await record(stub, 1, point("train/loss", 2, 0.5, 1_700_000_000), point("train/loss", 1, 0.1 + 0.2))
    assert not await record(stub, 2, point("train/loss", 0, 2.0), point("optim/lr", 0, 1e-4))
    await record(stub, 1, point("train/loss", 0, 9.0), run="other")
    assert await query(stub, "train/loss") == [(0, 2.0), (1, 0.1 + 0.2), (2, 0.5)]
    request = metrics_pb2.QueryMetricsRequest(run_id="r", name="train/loss", min_step=1)
    points = (await stub.QueryMetrics(request)).points
    assert list(points) == [point("train/loss", 1, 0.1 + 0.2), point("train/loss", 2, 0.5, 1_700_000_000)]
    assert await query(stub, "train/loss", run="none") == []


VALUES = [math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, -0.1, 3.0]


async def test_every_number_is_kept_as_it_is(stub: Any) -> None:
    await record_values(stub)
    await check_values(stub)


async def test_every_number_is_there_after_a_restart(binding: Binding, context: AdapterContext) -> None:
    await record_values(await binding.stub(sqlite_metrics(context)))
    await check_values(await binding.stub(sqlite_metrics(context)))


async def record_values(stub: Any) -> None:
    await record(stub, 1, *(point(f"x{number}", 0, value) for number, value in enumerate(VALUES)))


async def check_values(stub: Any) -> None:
    found = [each.value for each in await latest(stub)]
    assert struct.pack("<7d", *found) == struct.pack("<7d", *VALUES)
    assert struct.pack("<d", (await query(stub, "x2"))[0][1]) == struct.pack("<d", math.nan)


async def test_a_repeated_batch_changes_nothing(stub: Any) -> None:
    assert not await record(stub, 1, point("x", 0, 1.0))
    assert await record(stub, 1, point("x", 0, 2.0), point("y", 0, 2.0), attempt=2)
    assert await query(stub, "x") == [(0, 1.0)]
    assert await query(stub, "y") == []
    assert not await record(stub, 1, point("x", 0, 3.0), run="other")


async def test_the_highest_attempt_wins_and_in_it_the_last_batch(stub: Any) -> None:
    await record(stub, 5, point("x", 0, 1.0), point("x", 1, 1.0), attempt=1)
    await record(stub, 6, point("x", 0, 2.0), attempt=2)
    await record(stub, 7, point("x", 0, 3.0), point("x", 1, 3.0), attempt=1)
    await record(stub, 4, point("x", 0, 4.0), point("x", 0, 5.0), attempt=2)
    assert await query(stub, "x") == [(0, 5.0), (1, 3.0)]


async def test_latest_is_the_value_at_the_highest_step(stub: Any) -> None:
    await record(stub, 1, point("train/loss", 9, 0.5), point("eval/a", 3, 1.0), point("TRAIN/x", 0, 0.0))
    await record(stub, 2, point("train/loss", 4, 0.7), point("train/%", 0, 2.0))
    assert [(each.name, each.step, each.value) for each in await latest(stub)] == [
        ("TRAIN/x", 0, 0.0),
        ("eval/a", 3, 1.0),
        ("train/%", 0, 2.0),
        ("train/loss", 9, 0.5),
    ]
    assert [each.name for each in await latest(stub, "train/")] == ["train/%", "train/loss"]
    assert [each.name for each in await latest(stub, "train/%")] == ["train/%"]
    await record(stub, 3, point("train/loss", 9, 0.1), attempt=2)
    assert (await latest(stub, "train/loss"))[0].value == 0.1
    names = await stub.ListMetricNames(metrics_pb2.ListMetricNamesRequest(run_id="r"))
    assert list(names.names) == ["TRAIN/x", "eval/a", "train/%", "train/loss"]


async def test_pages_cover_a_range_once(stub: Any) -> None:
    points = [point("x", step, step / 3) for step in range(0, 240, 2)]
    await record(stub, 1, *points)
    expected = [(each.step, each.value) for each in points]
    for size in (0, 7, 119, 120, 121):
        assert await query(stub, "x", page_size=size) == expected
    assert await query(stub, "x", min_step=10, max_step=20, page_size=2) == expected[5:11]
    assert await query(stub, "x", min_step=0, max_step=0) == expected[:1]


async def test_page_tokens_belong_to_their_query(stub: Any) -> None:
    await record(stub, 1, *(point("x", step, 0.0) for step in range(3)), point("y", 0, 0.0))
    first = await stub.QueryMetrics(metrics_pb2.QueryMetricsRequest(run_id="r", name="x", page_size=1))
    others: list[dict[str, Any]] = [{"name": "y"}, {"name": "x", "min_step": 0}, {"name": "x", "max_step": 9}]
    for changed in others:
        request = metrics_pb2.QueryMetricsRequest(run_id="r", page_token=first.next_page_token, **changed)
        with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
            await stub.QueryMetrics(request)


async def test_bad_requests_are_refused(stub: Any) -> None:
    for fields, field in (
        ({"run_id": "", "batch_key": 1, "attempt": 1, "points": [point("x", 0, 0)]}, "run_id"),
        ({"run_id": "r", "batch_key": 0, "attempt": 1, "points": [point("x", 0, 0)]}, "batch_key"),
        ({"run_id": "r", "batch_key": 1, "attempt": 0, "points": [point("x", 0, 0)]}, "attempt"),
        ({"run_id": "r", "batch_key": 1, "attempt": 1}, "points"),
        ({"run_id": "r", "batch_key": 1, "attempt": 1, "points": [point("x", -1, 0)]}, "points[0].step"),
        ({"run_id": "r", "batch_key": 1, "attempt": 1, "points": [point("", 0, 0)]}, "points[0].name"),
    ):
        with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
            await stub.RecordMetrics(metrics_pb2.RecordMetricsRequest(**fields))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="max_step"):
        await query(stub, "x", min_step=2, max_step=1)
    assert await query(stub, "x") == []


async def test_writers_beside_each_other_lose_nothing(stub: Any) -> None:
    await asyncio.gather(*(record(stub, batch, point("x", batch, float(batch))) for batch in range(1, 41)))
    assert await query(stub, "x") == [(batch, float(batch)) for batch in range(1, 41)]


async def test_the_file_is_durable_and_of_a_known_schema(context: AdapterContext) -> None:
    store = SqliteMetricsStore(AdapterOptions(), context)
    await store.close()
    path = context.data_dir / "metrics.db"
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.execute("PRAGMA user_version = 2")
    raw.close()
    with refused(FailedPreconditionError, "SCHEMA_NEWER", says=str(path)):
        SqliteMetricsStore(AdapterOptions(), context)
    path.write_bytes(b"this is no database" * 100)
    with refused(DataLossError, "STORE_CORRUPT", says=str(path)):
        SqliteMetricsStore(AdapterOptions(), context)


batches = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.integers(1, 3),
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.floats(allow_nan=False)), min_size=1),
    ),
    max_size=12,
)


def test_the_store_equals_a_dictionary(make: MakeMetrics, context: AdapterContext) -> None:
    store = make(context)
    stub = metrics_pb2_grpc.MetricsStoreServiceStub(ObjectChannel({SERVICE: store}))
    numbers = itertools.count()

    @settings(max_examples=25, deadline=None, database=None)
    @given(batches=batches)
    def check(batches: list[Any]) -> None:
        asyncio.run(compare(f"r{next(numbers)}", batches))

    async def compare(run: str, batches: list[Any]) -> None:
        seen: set[int] = set()
        model: dict[tuple[str, int], tuple[int, float]] = {}
        for key, attempt, points in batches:
            given_points = [point(*each) for each in points]
            assert await record(stub, key, *given_points, run=run, attempt=attempt) == (key in seen)
            if key not in seen:
                seen.add(key)
                for name, step, value in points:
                    if attempt >= model.get((name, step), (0, 0.0))[0]:
                        model[name, step] = (attempt, value)
        for name in "ab":
            expected = sorted((step, value) for (other, step), (_, value) in model.items() if other == name)
            assert await query(stub, name, run) == expected
        assert [(each.name, each.step) for each in await latest(stub, run=run)] == sorted(dict(sorted(model)).items())

    check()
    asyncio.run(store.close())
