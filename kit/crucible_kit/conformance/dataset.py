"""Dataset stores: rows by number, the same ones as long as the handle lives, and a fingerprint of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2 as pb
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_ids, check_refused, one_by_one
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEAST_ROWS = 8
Row = dict[str, Any]


class DatasetSettings(SuiteSettings):
    """Settings of the suite of dataset stores."""

    uri: str = Field(default="builtin:word-problems", description="Dataset to read: at least 8 different rows.")
    config: str = Field(default="", description="Its configuration. Empty: its default.")
    split: str = Field(default="test", description="Its split. Empty: its default.")


SUITE = Suite(port="dataset", settings=DatasetSettings)
Datasets = Context[DatasetSettings]


def source(context: Datasets, **fields: Any) -> pb.DatasetSource:
    """The dataset of the settings."""
    given = {"uri": context.settings.uri, "config": context.settings.config, "split": context.settings.split}
    return pb.DatasetSource(**(given | fields))


def open_request(context: Datasets, *transforms: Row, **fields: Any) -> pb.OpenDatasetRequest:
    """A request for a handle."""
    return pb.OpenDatasetRequest(
        source=source(context), transforms=[pb.DatasetTransform(**each) for each in transforms], **fields
    )


async def open_dataset(context: Datasets, *transforms: Row, **fields: Any) -> pb.DatasetInfo:
    """A handle that is closed after the check."""
    dataset = (await context.stub.OpenDataset(open_request(context, *transforms, **fields))).dataset
    close = pb.CloseDatasetRequest(dataset_id=dataset.dataset_id)
    context.defer(lambda: context.stub.CloseDataset(close))
    return dataset


def select(*indices: int) -> Row:
    """These rows."""
    return {"select": pb.RowIndices(indices=indices)}


def span(start: int = 0, limit: int = 0) -> Row:
    """A range of rows."""
    return {"range": pb.RowRange(start=start, limit=limit)}


async def read_json(context: Datasets, dataset_id: str, rows: Row | None = None) -> list[str]:
    """Rows as they came."""
    request = pb.ReadRowsRequest(dataset_id=dataset_id, **(span() if rows is None else rows))
    return [row async for response in context.stub.ReadRows(request) for row in response.rows_json]


async def read(context: Datasets, dataset_id: str, rows: Row | None = None) -> list[Row]:
    """Rows, each a JSON object."""
    found = [json.loads(row) for row in await read_json(context, dataset_id, rows)]
    check(all(isinstance(row, dict) for row in found), "rows that are JSON objects", found[:3])
    return found


async def all_rows(context: Datasets) -> list[Row]:
    """Every row of the settings' dataset. Raises CheckSkipped when there are too few."""
    dataset = await open_dataset(context)
    if dataset.num_rows < _LEAST_ROWS:
        raise CheckSkipped(f"the dataset has {dataset.num_rows} rows; give one of at least {_LEAST_ROWS}")
    return await read(context, dataset.dataset_id)


@SUITE.samples
async def _samples(context: Datasets) -> Samples:
    dataset = await open_dataset(context)
    return {
        "FindDataset": pb.FindDatasetRequest(source=source(context)),
        "OpenDataset": open_request(context, {"skip": 1}, {"take": 2}, select(0)),
        "GetDatasetInfo": pb.GetDatasetInfoRequest(dataset_id=dataset.dataset_id),
        "ReadRows": pb.ReadRowsRequest(dataset_id=dataset.dataset_id, **span(0, 1)),
        "CloseDataset": pb.CloseDatasetRequest(dataset_id=f"no-{dataset.dataset_id}"),
    }


@SUITE.pings
async def _ping(context: Datasets) -> None:
    await context.stub.FindDataset(pb.FindDatasetRequest(source=source(context)))


@SUITE.undoes("OpenDataset")
async def _close_opened(context: Datasets, messages: Sequence[Any], answer: Any) -> None:
    if answer is not None:
        await context.stub.CloseDataset(pb.CloseDatasetRequest(dataset_id=answer.dataset.dataset_id))


@SUITE.requirement(
    "DST-FIND-01",
    "FindDataset MUST fill the source's defaults in, as OpenDataset does, and not know what is not there.",
    quote="The source with its defaults filled in; the revision resolved where there are revisions.",
)
async def _finds(context: Datasets) -> None:
    found = (await context.stub.FindDataset(pb.FindDatasetRequest(source=source(context)))).source
    check_equal(found.uri, context.settings.uri, "the uri of what was found")
    check_equal((await open_dataset(context)).source, found, "the source of the open dataset")
    again = (await context.stub.FindDataset(pb.FindDatasetRequest(source=found))).source
    check_equal(again, found, "the source of a source that is filled in")


@SUITE.requirement(
    "DST-FIND-02",
    "A source, split or handle that is not there MUST be NOT_FOUND DATASET_NOT_FOUND.",
    quote="NOT_FOUND DATASET_NOT_FOUND (no such source, split or handle)",
)
async def _not_there(context: Datasets) -> None:
    name = "builtin:no-such-dataset" if context.settings.uri.startswith("builtin:") else "no-such-owner/no-such-dataset"
    sources = {"an unknown dataset": pb.DatasetSource(uri=name)}
    if context.settings.split:
        sources["an unknown split"] = source(context, split="no-such-split")
    for what, each in sources.items():
        calls = {
            "FindDataset": context.stub.FindDataset(pb.FindDatasetRequest(source=each)),
            "OpenDataset": context.stub.OpenDataset(pb.OpenDatasetRequest(source=each)),
        }
        for method, call in one_by_one(calls):
            await check_refused(call, "NOT_FOUND", "DATASET_NOT_FOUND", what=f"{method} of {what}")
    await _check_closed(context, "no-handle-is-called-so", "an unknown handle")


async def _check_closed(context: Datasets, dataset_id: str, what: str) -> None:
    described = context.stub.GetDatasetInfo(pb.GetDatasetInfoRequest(dataset_id=dataset_id))
    for method, call in one_by_one({"GetDatasetInfo": described, "ReadRows": read_json(context, dataset_id)}):
        await check_refused(call, "NOT_FOUND", "DATASET_NOT_FOUND", what=f"{method} of {what}")


@SUITE.requirement(
    "DST-OPEN-01",
    "The same source opened twice MUST give the same fingerprint, a SHA-256, and the same rows under another handle.",
    quote="The same source opened twice gives the same fingerprint.",
)
async def _same_twice(context: Datasets) -> None:
    one, other = await asyncio.gather(open_dataset(context), open_dataset(context))
    check(_SHA256.fullmatch(one.fingerprint) is not None, "a fingerprint of 64 hex digits", one.fingerprint)
    check(other.dataset_id != one.dataset_id, "another handle for another OpenDataset", other.dataset_id)
    got = (other.fingerprint, other.num_rows, list(other.columns))
    check_equal(got, (one.fingerprint, one.num_rows, list(one.columns)), "(fingerprint, num_rows, columns)")
    check_ids(await read(context, other.dataset_id), await read(context, one.dataset_id), "the rows")


@SUITE.requirement(
    "DST-OPEN-02",
    "An open dataset MUST say its number of rows and the names of the first row's fields, sorted, also when asked "
    "later.",
    quote="Names of the fields of the first row, sorted. Empty: no rows.",
)
async def _described(context: Datasets) -> None:
    dataset = await open_dataset(context)
    rows = await read(context, dataset.dataset_id)
    check_equal(dataset.num_rows, len(rows), "num_rows")
    check_equal(list(dataset.columns), sorted(rows[0]) if rows else [], "the columns")
    request = pb.GetDatasetInfoRequest(dataset_id=dataset.dataset_id)
    check_equal((await context.stub.GetDatasetInfo(request)).dataset, dataset, "the answer of GetDatasetInfo")
    nothing = await open_dataset(context, {"take": 0})
    got = (nothing.num_rows, list(nothing.columns), await read(context, nothing.dataset_id))
    check_equal(got, (0, [], []), "(num_rows, columns, rows) of no rows")


@SUITE.requirement(
    "DST-READ-01",
    "Rows MUST come by range and by number, in the order asked for, repeats included.",
    quote="ReadRows streams rows, by range or by index, in the order asked for.",
)
async def _reads(context: Datasets) -> None:
    rows = await all_rows(context)
    dataset = await open_dataset(context)
    count = len(rows)
    ranges = ((0, 0), (0, 1), (2, 3), (count - 1, 0), (count - 2, 99), (count, 0), (1, count - 2))
    for start, limit in ranges:
        expected = rows[start : start + limit] if limit else rows[start:]
        got = await read(context, dataset.dataset_id, span(start, limit))
        check_ids(got, expected, f"the rows from {start}, at most {limit}")
    numbers = [count - 1, 0, 5, 5, 1, count - 1]
    got = await read(context, dataset.dataset_id, select(*numbers))
    check_ids(got, [rows[number] for number in numbers], f"the rows {numbers}")


@SUITE.requirement(
    "DST-READ-02",
    "A row past the end MUST be OUT_OF_RANGE ROW_OUT_OF_RANGE, before any row is sent; no rows named is refused.",
    quote="OUT_OF_RANGE ROW_OUT_OF_RANGE with the index and the number of rows.",
)
async def _past_the_end(context: Datasets) -> None:
    dataset = await open_dataset(context)
    count = dataset.num_rows
    for what, rows in (("a number past the end", select(0, count)), ("a start past the end", span(count + 1))):
        async with aclosing(context.stub.ReadRows(pb.ReadRowsRequest(dataset_id=dataset.dataset_id, **rows))) as stream:
            await check_refused(anext(stream), "OUT_OF_RANGE", "ROW_OUT_OF_RANGE", what=f"{what}, as the first answer,")
    call = read_json(context, dataset.dataset_id, {})
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="ReadRows of no rows")


@SUITE.requirement(
    "DST-READ-03",
    "Readers of one handle MUST not disturb each other.",
)
async def _readers(context: Datasets) -> None:
    rows = await all_rows(context)
    dataset = await open_dataset(context)
    starts = [number % len(rows) for number in range(16)]
    got = await asyncio.gather(*(read(context, dataset.dataset_id, span(start, 5)) for start in starts))
    for start, part in zip(starts, got, strict=True):
        check_ids(part, rows[start : start + 5], f"the rows from {start} beside other readers")


@SUITE.requirement(
    "DST-TRANSFORM-01",
    "Transforms MUST apply in order: skip, take, select.",
    quote="Applied in order, on top of the source. Empty: the rows as they stand.",
)
async def _in_order(context: Datasets) -> None:
    rows = await all_rows(context)
    cases: dict[str, tuple[list[Row], list[Row]]] = {
        "skip 2, take 3": ([{"skip": 2}, {"take": 3}], rows[2:5]),
        "take 3, skip 2": ([{"take": 3}, {"skip": 2}], rows[2:3]),
        "select 4, 4, 0, take 2": ([select(4, 4, 0), {"take": 2}], [rows[4], rows[4]]),
        "skip 1, select 0, 2": ([{"skip": 1}, select(0, 2)], [rows[1], rows[3]]),
        "skip everything": ([{"skip": len(rows) + 9}], []),
        "take more than there are": ([{"take": len(rows) + 9}], rows),
    }
    for what, (transforms, expected) in cases.items():
        dataset = await open_dataset(context, *transforms)
        check_equal(dataset.num_rows, len(expected), f"num_rows after {what}")
        check_ids(await read(context, dataset.dataset_id), expected, f"the rows after {what}")
    call = context.stub.OpenDataset(open_request(context, {"take": 2}, select(2)))
    await check_refused(call, "OUT_OF_RANGE", "ROW_OUT_OF_RANGE", what="select of a row that take has left out")
    call = context.stub.OpenDataset(open_request(context, {}))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="a transform of nothing")


@SUITE.requirement(
    "DST-TRANSFORM-02",
    "shuffle_seed MUST give the order numpy.random.default_rng(seed).permutation(number of rows).",
    quote="Put the rows in the order numpy.random.default_rng(seed).permutation(number of rows).",
)
async def _shuffles(context: Datasets) -> None:
    rows = await all_rows(context)
    for seed in (0, 7, 2**40):
        dataset = await open_dataset(context, {"skip": 1}, {"shuffle_seed": seed})
        order = np.random.default_rng(seed).permutation(len(rows) - 1)
        expected = [rows[1 + number] for number in order]
        check_ids(await read(context, dataset.dataset_id), expected, f"the rows in the order of seed {seed}")


@SUITE.requirement(
    "DST-TRANSFORM-03",
    "Fingerprints MUST be equal exactly when rows and their order are equal, however they came about.",
    quote="equal exactly when the rows and their order are equal.",
)
async def _fingerprints(context: Datasets) -> None:
    rows = await all_rows(context)
    if len({json.dumps(row, sort_keys=True) for row in rows}) < len(rows):
        raise CheckSkipped("the dataset has a row twice")
    count = len(rows)
    views: list[list[Row]] = [
        *([], [{"skip": 1}], [{"take": count - 1}], [{"shuffle_seed": 1}], [{"shuffle_seed": 2}], [{"take": 0}]),
        *([select(0, 1)], [select(1, 0)], [select(0, 1, 1)]),
    ]
    prints = [(await open_dataset(context, *view)).fingerprint for view in views]
    check_equal(len(set(prints)), len(prints), "the number of different fingerprints of different views")
    same = (await open_dataset(context, select(*range(1, count)))).fingerprint
    check_equal(same, prints[1], "the fingerprint of all rows but the first, by number and by skip")
    undone = (await open_dataset(context, select(1, 0), select(1, 0))).fingerprint
    check_equal(undone, prints[6], "the fingerprint of two rows that changed places twice")


@SUITE.requirement(
    "DST-TRANSFORM-04",
    "`fields` MUST rename fields and drop the rest; a field that a row lacks is INVALID_ARGUMENT DATASET_MALFORMED.",
    quote="Rename fields and drop the rest.",
)
async def _fields(context: Datasets) -> None:
    rows = await all_rows(context)
    first = sorted(rows[0])[0]
    mapping = pb.FieldMapping(source_by_name={"renamed": first})
    dataset = await open_dataset(context, {"fields": mapping})
    check_equal(list(dataset.columns), ["renamed"], "the columns of renamed rows")
    expected = [{"renamed": row[first]} for row in rows]
    check_ids(await read(context, dataset.dataset_id), expected, "renamed rows")
    missing = pb.FieldMapping(source_by_name={"x": "no-field-is-called-so"})

    async def opening() -> None:
        await read(context, (await open_dataset(context, {"fields": missing})).dataset_id)

    await check_refused(opening(), "INVALID_ARGUMENT", "DATASET_MALFORMED", what="a field that no row has")


@SUITE.requirement(
    "DST-CLOSE-01",
    "A closed handle MUST be DATASET_NOT_FOUND; closing it again, or one that never was, is OK.",
    quote="CloseDataset frees a handle. Idempotent.",
)
async def _closes(context: Datasets) -> None:
    dataset, other = await open_dataset(context), await open_dataset(context)
    for dataset_id in (dataset.dataset_id, dataset.dataset_id, "no-handle-is-called-so"):
        await context.stub.CloseDataset(pb.CloseDatasetRequest(dataset_id=dataset_id))
    await _check_closed(context, dataset.dataset_id, "a closed handle")
    await read(context, other.dataset_id, span(0, 1))


@SUITE.requirement(
    "DST-STREAMING-01",
    "Streaming MUST bring the rows that the transforms keep; without `take` it is INVALID_ARGUMENT FIELD_INVALID.",
    quote="with `take: n` the source is read until n rows are there.",
    capability="dataset.streaming",
)
async def _streams(context: Datasets) -> None:
    streamed = await open_dataset(context, {"skip": 1}, {"take": 3}, streaming=True)
    whole = await open_dataset(context, {"skip": 1}, {"take": 3})
    expected = await read(context, whole.dataset_id)
    check_ids(await read(context, streamed.dataset_id), expected, "the streamed rows")
    check_equal(streamed.num_rows, len(expected), "num_rows of streamed rows")
    call = context.stub.OpenDataset(open_request(context, {"skip": 1}, streaming=True))
    await check_refused(call, "INVALID_ARGUMENT", "FIELD_INVALID", what="streaming without take")


@SUITE.requirement(
    "DST-STREAMING-02",
    "Streaming MUST be UNIMPLEMENTED CAPABILITY_MISSING where dataset.streaming is not declared.",
    quote="Needs the capability `dataset.streaming`; refused without `take`.",
    without="dataset.streaming",
)
async def _no_streaming(context: Datasets) -> None:
    call = context.stub.OpenDataset(open_request(context, {"take": 1}, streaming=True))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="streaming")


@SUITE.requirement(
    "DST-RESTART-01",
    "After a restart handles MUST be gone, and the same source have the same fingerprint.",
    quote="Handle for reading; opaque, valid until CloseDataset or the adapter's end.",
    stage=Stage.RESTART,
)
async def _handles_end_with_the_process(context: Datasets) -> None:
    before = await open_dataset(context, {"shuffle_seed": 3})
    await context.restart()
    await _check_closed(context, before.dataset_id, "a handle from before the restart")
    after = await open_dataset(context, {"shuffle_seed": 3})
    check_equal(after.fingerprint, before.fingerprint, "the fingerprint after a restart")
