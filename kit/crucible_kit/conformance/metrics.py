"""Metrics stores: numbers by run, name and step."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import Field

from crucible.port.metrics.v1 import metrics_pb2 as pb
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import check, check_equal, check_refused
from crucible_kit.conformance.paging import Page, all_keys, check_pages
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings


class MetricsSettings(SuiteSettings):
    """Settings of the suite of metrics stores."""

    run_prefix: str = Field(
        default="", max_length=14, description="Ids of the runs that the suite writes to begin with it."
    )


SUITE = Suite(port="metrics", settings=MetricsSettings)
Metrics = Context[MetricsSettings]
_NUMBERS = (math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, -0.1, 0.1 + 0.2, 0.0)


def new_run(context: Metrics) -> str:
    """The id of a run that nobody has used."""
    return f"{context.settings.run_prefix}{context.name()}"


def point(name: str, step: int, value: float, seconds: int | None = None) -> pb.MetricPoint:
    """A value."""
    return pb.MetricPoint(
        name=name, step=step, value=value, time=None if seconds is None else Timestamp(seconds=seconds, nanos=7)
    )


async def record(context: Metrics, run: str, batch: int, *points: pb.MetricPoint, attempt: int = 1) -> bool:
    """Stores a batch; whether it was known."""
    request = pb.RecordMetricsRequest(run_id=run, batch_key=batch, attempt=attempt, points=points)
    return (await context.stub.RecordMetrics(request)).duplicate


async def query(context: Metrics, run: str, name: str, **fields: Any) -> list[tuple[int, float]]:
    """(step, value) of all pages."""
    return await all_keys(pages(context, run, name, **fields), 0)


def pages(context: Metrics, run: str, name: str, **fields: Any) -> Any:
    """What asks for a page of a metric."""

    async def page(size: int, token: str) -> Page:
        request = pb.QueryMetricsRequest(run_id=run, name=name, page_size=size, page_token=token, **fields)
        response = await context.stub.QueryMetrics(request)
        return Page([(each.step, each.value) for each in response.points], response.next_page_token)

    return page


async def latest(context: Metrics, run: str, prefix: str = "") -> Sequence[pb.MetricPoint]:
    """The newest value of each metric."""
    request = pb.GetLatestMetricsRequest(run_id=run, prefix=prefix)
    return (await context.stub.GetLatestMetrics(request)).points


async def names(context: Metrics, run: str) -> list[str]:
    """The metrics of a run."""
    return list((await context.stub.ListMetricNames(pb.ListMetricNamesRequest(run_id=run))).names)


def bits(values: Sequence[float]) -> list[str]:
    """Numbers by their bits: every NaN counts as one."""
    return ["nan" if math.isnan(value) else struct.pack("<d", value).hex() for value in values]


@SUITE.samples
async def _samples(context: Metrics) -> Samples:
    run = new_run(context)
    await record(context, run, 1, point("train/loss", 0, 1.0))
    return {
        "RecordMetrics": pb.RecordMetricsRequest(
            run_id=run, batch_key=2, attempt=1, points=[point("train/loss", 1, 0.5)]
        ),
        "QueryMetrics": pb.QueryMetricsRequest(run_id=run, name="train/loss", min_step=0, max_step=9),
        "GetLatestMetrics": pb.GetLatestMetricsRequest(run_id=run),
        "ListMetricNames": pb.ListMetricNamesRequest(run_id=run),
    }


@SUITE.pings
async def _ping(context: Metrics) -> None:
    await names(context, new_run(context))


@SUITE.requirement(
    "MET-RECORD-01",
    "Recorded values MUST come back by rising step, each with its time; runs are apart.",
    quote="QueryMetrics reads one metric over a range of steps, by rising step.",
)
async def _come_back(context: Metrics) -> None:
    run, other = new_run(context), new_run(context)
    late = point("train/loss", 2, 0.5, 1_700_000_000)
    check_equal(await record(context, run, 1, late, point("train/loss", 1, 0.25)), False, "`duplicate` of a new batch")
    await record(context, run, 2, point("train/loss", 0, 2.0), point("optim/lr", 0, 1e-4))
    await record(context, other, 1, point("train/loss", 0, 9.0))
    got = await query(context, run, "train/loss")
    check_equal(got, [(0, 2.0), (1, 0.25), (2, 0.5)], "(step, value) of a metric")
    response = await context.stub.QueryMetrics(pb.QueryMetricsRequest(run_id=run, name="train/loss", min_step=2))
    check_equal(list(response.points), [late], "a value with its time")
    check_equal(await query(context, other, "train/loss"), [(0, 9.0)], "the metric of another run")


@SUITE.requirement(
    "MET-RECORD-02",
    "A repeat of a batch key MUST be told as `duplicate` and change nothing, whatever it holds.",
    quote="Idempotent by (run_id, batch_key): a repeat changes nothing.",
)
async def _repeats(context: Metrics) -> None:
    run, other = new_run(context), new_run(context)
    await record(context, run, 1, point("x", 0, 1.0))
    check_equal(await record(context, run, 1, point("x", 0, 1.0)), True, "`duplicate` of the same batch again")
    repeated = await record(context, run, 1, point("x", 0, 2.0), point("y", 0, 2.0), attempt=2)
    check_equal(repeated, True, "`duplicate` of a used batch key")
    check_equal(await query(context, run, "x"), [(0, 1.0)], "the metric after a repeat")
    check_equal(await names(context, run), ["x"], "the metrics after a repeat")
    check_equal(await record(context, other, 1, point("x", 0, 3.0)), False, "`duplicate` of another run's batch")


@SUITE.requirement(
    "MET-RECORD-03",
    "Of several attempts the highest MUST win, and within an attempt the batch recorded last, whatever their keys.",
    quote="of several attempts the highest wins, and within an attempt the batch recorded last.",
)
async def _attempts(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 5, point("x", 0, 1.0), point("x", 1, 1.0), attempt=1)
    await record(context, run, 6, point("x", 0, 2.0), attempt=2)
    await record(context, run, 7, point("x", 0, 3.0), point("x", 1, 3.0), attempt=1)
    check_equal(await query(context, run, "x"), [(0, 2.0), (1, 3.0)], "(step, value) after three batches")
    await record(context, run, 4, point("x", 0, 4.0), attempt=2)
    check_equal(await query(context, run, "x"), [(0, 4.0), (1, 3.0)], "(step, value) after four batches")


@SUITE.requirement(
    "MET-RECORD-04",
    "Every number MUST be kept as it is, NaN and infinities too.",
    quote="The value; may be NaN or infinite.",
)
async def _numbers(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, *(point("x", step, value) for step, value in enumerate(_NUMBERS)))
    got = [value for _, value in await query(context, run, "x")]
    check_equal(bits(got), bits(_NUMBERS), f"the bits of {_NUMBERS}")
    await record(context, run, 2, *(point(f"n{place}", 0, value) for place, value in enumerate(_NUMBERS)))
    newest = [each.value for each in await latest(context, run, "n")]
    check_equal(bits(newest), bits(_NUMBERS), f"the bits of {_NUMBERS} in GetLatestMetrics")


@SUITE.requirement(
    "MET-RECORD-05",
    "Batches that are recorded at a time MUST all be kept.",
    quote="RecordMetrics stores a batch.",
)
async def _writers(context: Metrics) -> None:
    run = new_run(context)
    batches = range(1, 33)
    await asyncio.gather(*(record(context, run, batch, point("x", batch, float(batch))) for batch in batches))
    check_equal(await query(context, run, "x"), [(batch, float(batch)) for batch in batches], "32 batches")
    twins = await asyncio.gather(*(record(context, run, 99, point("y", 0, 1.0)) for _ in range(8)))
    check_equal(twins.count(False), 1, "the number of times that one batch sent 8 times at a time was new")


@SUITE.requirement(
    "MET-QUERY-01",
    "A range of steps MUST include both ends; an unknown run or name has no values.",
    quote="First step, inclusive. Absent: from the start.",
)
async def _ranges(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, *(point("x", step, float(step)) for step in range(0, 20, 2)))
    cases: dict[str, tuple[dict[str, int], list[int]]] = {
        "2 to 6": ({"min_step": 2, "max_step": 6}, [2, 4, 6]),
        "0 to 0": ({"min_step": 0, "max_step": 0}, [0]),
        "from 15": ({"min_step": 15}, [16, 18]),
        "to 3": ({"max_step": 3}, [0, 2]),
        "from 100": ({"min_step": 100}, []),
    }
    for what, (fields, steps) in cases.items():
        got = [step for step, _ in await query(context, run, "x", **fields)]
        check_equal(got, steps, f"the steps {what}")
    check_equal(await query(context, run, "y"), [], "the values of an unknown metric")
    check_equal(await query(context, new_run(context), "x"), [], "the values of an unknown run")


@SUITE.requirement(
    "MET-QUERY-02",
    "Pages of any size MUST give every value once, by rising step.",
    quote="At most so many, up to 500. 0: 50.",
)
async def _pages(context: Metrics) -> None:
    run = new_run(context)
    expected = [(step, step / 3) for step in range(0, 1200, 2)]
    await record(context, run, 1, *(point("x", step, value) for step, value in expected))
    await check_pages(pages(context, run, "x"), expected, "the values of a metric")
    part = [each for each in expected if 10 <= each[0] <= 30]
    check_equal(await all_keys(pages(context, run, "x", min_step=10, max_step=30), 2), part, "a range in pages of 2")


@SUITE.requirement(
    "MET-QUERY-03",
    "A page token MUST be taken only for the query it comes from: otherwise INVALID_ARGUMENT PAGE_TOKEN_INVALID.",
    quote="Where to go on, from the response before.",
)
async def _tokens(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, *(point("x", step, 0.0) for step in range(3)), point("y", 0, 0.0))
    page = await pages(context, run, "x")(1, "")
    check(bool(page.next_token), "a token behind the first of three values", "none")
    others: dict[str, dict[str, Any]] = {
        "another metric": {"name": "y"},
        "another range": {"name": "x", "min_step": 0},
        "another run": {"name": "x", "run_id": new_run(context)},
    }
    for what, changed in others.items():
        request = pb.QueryMetricsRequest(**{"run_id": run, "page_size": 1, "page_token": page.next_token, **changed})
        call = context.stub.QueryMetrics(request)
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"the token of {what}")
    request = pb.QueryMetricsRequest(run_id=run, name="x", page_token="no-token-of-yours")
    call = context.stub.QueryMetrics(request)
    await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what="what is no token")


@SUITE.requirement(
    "MET-LATEST-01",
    "GetLatestMetrics MUST give the value at the highest step of each metric whose name begins with the prefix, by "
    "name.",
    quote="One for each metric: the value at its highest step.",
)
async def _newest(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, point("train/loss", 9, 0.5), point("eval/a", 3, 1.0), point("TRAIN/x", 0, 0.0))
    await record(context, run, 2, point("train/loss", 4, 0.7), point("train/%", 0, 2.0), point("train_x", 0, 0.0))
    got = [(each.name, each.step, each.value) for each in await latest(context, run)]
    expected = [
        *(("TRAIN/x", 0, 0.0), ("eval/a", 3, 1.0), ("train/%", 0, 2.0), ("train/loss", 9, 0.5), ("train_x", 0, 0.0)),
    ]
    check_equal(got, expected, "(name, step, value) of the newest values")
    for prefix, found in (("train/", ["train/%", "train/loss"]), ("train/%", ["train/%"]), ("no", [])):
        check_equal([each.name for each in await latest(context, run, prefix)], found, f"the names with {prefix!r}")
    await record(context, run, 3, point("train/loss", 9, 0.1), attempt=2)
    check_equal((await latest(context, run, "train/loss"))[0].value, 0.1, "the newest value after another attempt")
    check_equal(list(await latest(context, new_run(context))), [], "the newest values of an unknown run")


@SUITE.requirement(
    "MET-NAMES-01",
    "ListMetricNames MUST list the metrics of the run, sorted, each once.",
    quote="ListMetricNames lists the metrics a run has, sorted.",
)
async def _names(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, *(point(name, 0, 0.0) for name in ("b", "a/c", "B", "a", "b")))
    await record(context, run, 2, point("a", 1, 0.0))
    check_equal(await names(context, run), ["B", "a", "a/c", "b"], "the metrics of a run")


@SUITE.requirement(
    "MET-RESTART-01",
    "What RecordMetrics has answered MUST be there after the adapter was killed, and its batch keys be known.",
    stage=Stage.RESTART,
)
async def _survives(context: Metrics) -> None:
    run = new_run(context)
    await record(context, run, 1, *(point("x", step, value) for step, value in enumerate(_NUMBERS)))
    await context.restart()
    got = [value for _, value in await query(context, run, "x")]
    check_equal(bits(got), bits(_NUMBERS), "the values after a restart")
    check_equal(await record(context, run, 1, point("x", 0, 5.0)), True, "`duplicate` of a batch before the restart")
