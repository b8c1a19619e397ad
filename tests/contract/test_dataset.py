"""DatasetStore: rows by number, the same ones as long as the handle lives, and a fingerprint that tells them apart."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.builtin import word_problems
from crucible_adapters.dataset.huggingface import HuggingFaceDatasetOptions, HuggingFaceDatasets
from crucible_adapters.dataset.local import LocalDatasetOptions, LocalDatasets
from crucible_adapters.fakes.dataset import FakeDatasetOptions, FakeDatasets
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnimplementedError,
)
from tests.contract.conftest import Binding
from tests.contract.refusals import refused

Row = dict[str, Any]
ROWS: list[Row] = [{"prompt": f"p {i}", "completion": "\u00e9\U0001f389\u2028" * (i % 7), "n": i} for i in range(700)]


def local_datasets(context: AdapterContext, **options: Any) -> LocalDatasets:
    return LocalDatasets(LocalDatasetOptions(**options), context)


def huggingface_datasets(context: AdapterContext, **options: Any) -> LocalDatasets:
    """With a hub that is not there: nothing here may ask it."""
    return HuggingFaceDatasets(HuggingFaceDatasetOptions(endpoint="http://127.0.0.1:9", **options), context)


def fake_datasets(context: AdapterContext, **options: Any) -> FakeDatasets:
    return FakeDatasets(FakeDatasetOptions(**options), context)


MakeDatasets = Callable[..., LocalDatasets]


@pytest.fixture(params=[local_datasets, huggingface_datasets])
def make(request: pytest.FixtureRequest) -> MakeDatasets:
    """Every adapter that has files and builtin datasets."""
    return request.param


@pytest.fixture
async def stub(binding: Binding, make: MakeDatasets, context: AdapterContext) -> Any:
    return await binding.stub(make(context))


class Held:
    """An adapter, and a way to give it rows.

    Args:
        datasets: where the fake looks rows up; None: they go into files.
    """

    def __init__(self, stub: Any, folder: Path, datasets: dict[str, Any] | None) -> None:
        self.stub = stub
        self._folder = folder
        self._datasets = datasets
        self._given = 0

    def give(self, rows: Sequence[Row]) -> str:
        """The name by which these rows are opened."""
        self._given += 1
        if self._datasets is None:
            return str(write_jsonl(self._folder / f"rows-{self._given}.jsonl", rows))
        self._datasets[f"rows-{self._given}"] = {"train": list(rows)}
        return f"rows-{self._given}"


@pytest.fixture(params=[local_datasets, huggingface_datasets, fake_datasets])
def any_make(request: pytest.FixtureRequest) -> MakeDatasets:
    """Every adapter."""
    return request.param


@pytest.fixture
async def held(binding: Binding, any_make: MakeDatasets, context: AdapterContext, tmp_path: Path) -> Held:
    adapter = any_make(context)
    datasets = adapter.datasets if isinstance(adapter, FakeDatasets) else None
    return Held(await binding.stub(adapter), tmp_path, datasets)


@pytest.fixture
async def local_stub(local: Binding, context: AdapterContext) -> Any:
    return await local.stub(LocalDatasets(LocalDatasetOptions(), context))


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=100)
    return path


WRITERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {".jsonl": write_jsonl, ".parquet": write_parquet}


async def open_dataset(stub: Any, uri: object, *transforms: Row, **source: Any) -> dataset_pb2.DatasetInfo:
    request = dataset_pb2.OpenDatasetRequest(
        source=dataset_pb2.DatasetSource(uri=str(uri), **source),
        transforms=[dataset_pb2.DatasetTransform(**each) for each in transforms],
    )
    return (await stub.OpenDataset(request)).dataset


def select(*indices: int) -> Row:
    return {"select": dataset_pb2.RowIndices(indices=indices)}


def span(start: int = 0, limit: int = 0) -> Row:
    return {"range": dataset_pb2.RowRange(start=start, limit=limit)}


async def responses(stub: Any, info: dataset_pb2.DatasetInfo, rows: Row) -> list[dataset_pb2.ReadRowsResponse]:
    request = dataset_pb2.ReadRowsRequest(dataset_id=info.dataset_id, **rows)
    return [response async for response in stub.ReadRows(request)]


async def read(stub: Any, info: dataset_pb2.DatasetInfo, rows: Row | None = None) -> list[Row]:
    return [json.loads(row) for each in await responses(stub, info, rows or span()) for row in each.rows_json]


async def test_rows_come_by_range_and_by_number(held: Held) -> None:
    await check_rows(held.stub, held.give(ROWS))


async def test_parquet_rows_come_by_range_and_by_number(stub: Any, tmp_path: Path) -> None:
    await check_rows(stub, write_parquet(tmp_path / "rows.parquet", ROWS))


async def check_rows(stub: Any, uri: object) -> None:
    info = await open_dataset(stub, uri)
    assert info.num_rows == len(ROWS)
    assert list(info.columns) == ["completion", "n", "prompt"]
    assert await read(stub, info) == ROWS
    assert await read(stub, info, span(690, 100)) == ROWS[690:]
    assert await read(stub, info, span(700)) == []
    numbers = [699, 0, 350, 350, 99, 100, 1]
    assert await read(stub, info, select(*numbers)) == [ROWS[i] for i in numbers]
    described = await stub.GetDatasetInfo(dataset_pb2.GetDatasetInfoRequest(dataset_id=info.dataset_id))
    assert described.dataset == info


async def test_the_same_rows_have_one_fingerprint_whatever_holds_them(local_stub: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_text("\n\n".join(json.dumps(dict(reversed(row.items())), indent=None) + " " for row in ROWS))
    uris = [
        write_jsonl(tmp_path / "a.jsonl", ROWS),
        write_parquet(tmp_path / "b.parquet", ROWS),
        write_jsonl(tmp_path / "folder" / "train.jsonl", ROWS).parent,
        spaced,
    ]
    fingerprints = {(await open_dataset(local_stub, uri)).fingerprint for uri in (*uris, *uris)}
    assert len(fingerprints) == 1


async def test_other_rows_or_another_order_have_another_fingerprint(held: Held) -> None:
    stub, uri = held.stub, held.give(ROWS[:5])
    other = held.give([*ROWS[:4], {**ROWS[4], "n": 5}])
    views = [(), ({"skip": 1},), ({"take": 4},), ({"shuffle_seed": 1},), ({"shuffle_seed": 2},), ({"take": 0},)]
    fingerprints = [(await open_dataset(stub, uri, *view)).fingerprint for view in views]
    fingerprints.append((await open_dataset(stub, other)).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    # The same rows by another way are the same.
    assert (await open_dataset(stub, uri, select(1, 2, 3, 4))).fingerprint == fingerprints[1]
    assert (await open_dataset(stub, held.give(ROWS[1:5]))).fingerprint == fingerprints[1]


async def test_transforms_apply_in_order(held: Held) -> None:
    stub, path = held.stub, held.give(ROWS)
    order = np.random.default_rng(7).permutation(600)[10:30]
    expected = [ROWS[100 + i] for i in order][::-1]
    reverse = select(*range(19, -1, -1))
    info = await open_dataset(stub, path, {"skip": 100}, {"shuffle_seed": 7}, {"skip": 10}, {"take": 20}, reverse)
    assert info.num_rows == 20
    assert await read(stub, info) == expected
    with refused(OutOfRangeError, "ROW_OUT_OF_RANGE", field="transforms[1].select.indices[1]", says="2 rows"):
        await open_dataset(stub, path, {"take": 2}, select(1, 2))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="transforms[0].transform"):
        await open_dataset(stub, path, {})


async def test_rows_out_of_range_are_refused_before_any_row_is_sent(held: Held) -> None:
    stub = held.stub
    info = await open_dataset(stub, held.give(ROWS))
    with refused(OutOfRangeError, "ROW_OUT_OF_RANGE", field="select.indices[2]", says="is 700"):
        async for _ in stub.ReadRows(dataset_pb2.ReadRowsRequest(dataset_id=info.dataset_id, **select(0, 1, 700))):
            pytest.fail("a row came before the refusal")
    with refused(OutOfRangeError, "ROW_OUT_OF_RANGE", field="range.start"):
        await read(stub, info, span(701))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="rows"):
        await responses(stub, info, {})


async def test_responses_are_small(held: Held) -> None:
    large = [{"text": "\u00e9" * 150_000, "n": i} for i in range(12)]  # 300 kB each in UTF-8
    info = await open_dataset(held.stub, held.give([*ROWS, *large]))
    messages = await responses(held.stub, info, span())
    assert max(len(each.rows_json) for each in messages) <= 256
    assert max(each.ByteSize() for each in messages) <= 1024 * 1024 + 4096
    assert sum(len(each.rows_json) for each in messages) == 712


async def test_a_row_larger_than_a_batch_comes_alone(held: Held) -> None:
    rows = [{"text": "a"}, {"text": "x" * 3_000_000}, {"text": "b"}]
    info = await open_dataset(held.stub, held.give(rows))
    assert [len(each.rows_json) for each in await responses(held.stub, info, span())] == [1, 1, 1]
    assert await read(held.stub, info) == rows


@pytest.mark.parametrize("suffix", WRITERS)
async def test_an_empty_file_has_no_rows(local_stub: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"") if suffix == ".jsonl" else pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    info = await open_dataset(local_stub, path)
    assert (info.num_rows, list(info.columns)) == (0, [])
    assert await read(local_stub, info) == []
    with refused(OutOfRangeError, "ROW_OUT_OF_RANGE"):
        await read(local_stub, info, select(0))


MALFORMED = {
    "no JSON": (b'{"a": 1}\n\n{"a": \n', 3, "is not JSON"),
    "a list": (b'{"a": 1}\n[1]\n', 2, "is a list, not an object"),
    "a number": (b"7\n", 1, "is a number, not an object"),
    "null": (b'{"a": 1}\nnull', 2, "is null, not an object"),
    "two objects": (b'{"a": 1} {"b": 2}\n', 1, "is not JSON"),
    "NaN": (b'{"a": NaN}\n', 1, "holds NaN"),
    "not UTF-8": (b'{"a": "ok"}\n{"a": "\xff"}\n', 2, "is not UTF-8"),
    "half a surrogate pair": (b'{"a": "\\ud83c"}\n', 1, "holds an unpaired surrogate"),
    "too deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 1, "is nested too deeply"),
    "an end in mid-line": (b'{"a": 1}\n{"a": 1', 2, "is not JSON"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_line_is_named(local_stub: Any, tmp_path: Path, name: str) -> None:
    content, line, problem = MALFORMED[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with refused(InvalidArgumentError, "DATASET_MALFORMED", says=f"{path}, line {line}: {problem}"):
        await open_dataset(local_stub, path)


async def test_a_malformed_line_is_named_over_every_binding(stub: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \xff}\n')
    with pytest.raises(InvalidArgumentError) as caught:
        await open_dataset(stub, path)
    assert caught.value.reason == "DATASET_MALFORMED"
    assert caught.value.metadata == {"file": str(path), "line": "2"}


async def test_a_byte_order_mark_and_other_line_ends_are_no_content(local_stub: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n  \r\n{"a": 2}\r\n{"a": 3}')
    info = await open_dataset(local_stub, path)
    assert await read(local_stub, info) == [{"a": 1}, {"a": 2}, {"a": 3}]


async def test_what_is_no_parquet_file_is_malformed(local_stub: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 this is not parquet PAR1")
    with refused(InvalidArgumentError, "DATASET_MALFORMED", says=str(path)):
        await open_dataset(local_stub, path)


async def test_parquet_values_have_a_form_in_json(local_stub: Any, tmp_path: Path) -> None:
    row = {
        "list": [{"role": "user", "content": "x"}],
        "none": None,
        "nan": math.nan,
        "bytes": b"\xff\x00",
        "day": datetime.date(2024, 2, 29),
        "time": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "lasted": datetime.timedelta(milliseconds=1500),
        "price": decimal.Decimal("1.10"),
        "flag": True,
    }
    info = await open_dataset(local_stub, write_parquet(tmp_path / "rows.parquet", [row]))
    assert await read(local_stub, info) == [
        {
            "list": [{"role": "user", "content": "x"}],
            "none": None,
            "nan": None,
            "bytes": "/wA=",
            "day": "2024-02-29",
            "time": "2024-02-29T12:30:00+00:00",
            "lasted": 1.5,
            "price": "1.10",
            "flag": True,
        }
    ]


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"prompt": "new"}\n')


def rewrite(path: Path) -> None:
    status, content = path.stat(), path.read_text().replace("p 0", "q 0")
    path.write_text(content)  # of the same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    status, other = path.stat(), path.with_suffix(".new")
    other.write_text(path.read_text().replace("p 0", "q 0"))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [append, rewrite, replace, Path.unlink])
async def test_a_changed_file_is_not_read_and_opens_anew(
    stub: Any, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    before = await open_dataset(stub, path)
    change(path)
    with refused(FailedPreconditionError, "DATASET_CHANGED", says=str(path)):
        await read(stub, before)
    if path.exists():
        after = await open_dataset(stub, path)
        assert after.fingerprint != before.fingerprint
        assert await read(stub, after, span(0, 5)) != ROWS[:1]


async def test_folders_hold_splits(stub: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:3])
    write_parquet(tmp_path / "test.parquet", ROWS[3:5])
    (tmp_path / "README.md").write_text("no rows")
    for split, filled, rows in (("", "train", ROWS[:3]), ("train", "train", ROWS[:3]), ("test", "test", ROWS[3:5])):
        info = await open_dataset(stub, tmp_path, split=split)
        assert (info.source.uri, info.source.split) == (str(tmp_path), filled)
        assert await read(stub, info) == rows
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="no split 'dev', only test, train"):
        await open_dataset(stub, tmp_path, split="dev")
    write_jsonl(tmp_path / "test.jsonl", ROWS)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="source.uri", says="test.jsonl and test.parquet"):
        await open_dataset(stub, tmp_path, split="test")


async def test_a_folder_without_train_needs_a_split_unless_it_has_one(local_stub: Any, tmp_path: Path) -> None:
    with refused(NotFoundError, "DATASET_NOT_FOUND", says=".jsonl"):
        await open_dataset(local_stub, tmp_path)
    write_jsonl(tmp_path / "validation.jsonl", ROWS[:1])
    assert (await open_dataset(local_stub, tmp_path)).source.split == "validation"
    write_jsonl(tmp_path / "test.jsonl", ROWS[:1])
    with refused(InvalidArgumentError, "FIELD_INVALID", field="source.split", says="test, validation"):
        await open_dataset(local_stub, tmp_path)


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"split": "train"}, "source.split"),
        ({"config": "main"}, "source.config"),
        ({"revision": "v1"}, "source.revision"),
    ],
)
async def test_a_file_has_no_splits_configurations_or_revisions(
    local_stub: Any, tmp_path: Path, source: Row, field: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    with refused(InvalidArgumentError, "FIELD_INVALID", field=field):
        await open_dataset(local_stub, path, **source)


async def test_what_is_not_there_or_no_dataset_is_refused(stub: Any, tmp_path: Path) -> None:
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="no such file"):
        await open_dataset(stub, tmp_path / "rows.jsonl")
    (tmp_path / "rows.csv").write_text("a,b")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="source.uri", says=".parquet"):
        await open_dataset(stub, tmp_path / "rows.csv")
    with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="source.uri"):
        await open_dataset(stub, "rows.jsonl")
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="did you mean word-problems?"):
        await open_dataset(stub, "builtin:word-problem")
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="only test, train"):
        await open_dataset(stub, "builtin:word-problems", split="dev")


async def test_paths_stay_within_the_allowed_folders(binding: Binding, make: MakeDatasets, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    context = AdapterContext(data_dir=tmp_path, read_roots=(allowed,))
    stub = await binding.stub(make(context))
    outside = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    (allowed / "train.jsonl").symlink_to(outside)
    for uri in (outside, allowed / ".." / "rows.jsonl", allowed / "train.jsonl", allowed):
        with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="source.uri"):
            await open_dataset(stub, uri)
    inside = write_jsonl(allowed / "rows.jsonl", ROWS[:1])
    assert await read(stub, await open_dataset(stub, inside)) == ROWS[:1]


async def test_the_fake_generates_rows_from_its_seed(binding: Binding, context: AdapterContext) -> None:
    stub = await binding.stub(fake_datasets(context, seed=3, rows=5))
    for uri in ("builtin:word-problems", "fake/rows"):
        for split in ("train", "test"):
            info = await open_dataset(stub, uri, split=split)
            assert await read(stub, info) == word_problems.generate(5, 3, split)  # type: ignore[arg-type]
    assert (await open_dataset(stub, "fake/rows")).dataset_id == "dataset-5"
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="only builtin:word-problems, fake/rows"):
        await open_dataset(stub, "fake/others")


async def test_builtin_rows_are_those_of_their_generator(stub: Any) -> None:
    seen: dict[str, str] = {}
    for split, count in word_problems.DEFAULT_ROWS.items():
        info = await open_dataset(stub, "builtin:word-problems", split=split)
        assert (info.num_rows, info.source.split) == (count, split)
        assert await read(stub, info) == word_problems.generate(count, split=split)
        seen[split] = info.fingerprint
    assert len(set(seen.values())) == len(seen)
    default = await open_dataset(stub, "builtin:word-problems")
    assert (default.source.split, default.fingerprint) == ("train", seen["train"])


async def test_a_closed_handle_is_gone(held: Held) -> None:
    stub = held.stub
    info = await open_dataset(stub, held.give(ROWS[:1]))
    for _ in range(2):
        await stub.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=info.dataset_id))
    with refused(NotFoundError, "DATASET_NOT_FOUND", says=info.dataset_id):
        await read(stub, info)
    with refused(NotFoundError, "DATASET_NOT_FOUND"):
        await stub.GetDatasetInfo(dataset_pb2.GetDatasetInfoRequest(dataset_id=info.dataset_id))


async def test_open_datasets_are_limited(binding: Binding, any_make: MakeDatasets, context: AdapterContext) -> None:
    stub = await binding.stub(any_make(context, max_open=2))
    opened = [await open_dataset(stub, "builtin:word-problems", split="test") for _ in range(2)]
    with refused(ResourceExhaustedError, "TOO_MANY_DATASETS", says="max_open"):
        await open_dataset(stub, "builtin:word-problems")
    await stub.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=opened[0].dataset_id))
    await open_dataset(stub, "builtin:word-problems", split="test")


async def find(stub: Any, uri: object, **source: Any) -> dataset_pb2.DatasetSource:
    request = dataset_pb2.FindDatasetRequest(source=dataset_pb2.DatasetSource(uri=str(uri), **source))
    return (await stub.FindDataset(request)).source


async def test_finding_fills_the_defaults_in_and_reads_no_row(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("no JSON")
    write_jsonl(tmp_path / "test.jsonl", ROWS[:1])
    assert await find(stub, tmp_path) == dataset_pb2.DatasetSource(uri=str(tmp_path), split="train")
    file = tmp_path / "train.jsonl"
    assert await find(stub, file) == dataset_pb2.DatasetSource(uri=str(file))
    builtin = await find(stub, "builtin:word-problems", split="test")
    assert builtin == dataset_pb2.DatasetSource(uri="builtin:word-problems", split="test")
    with refused(InvalidArgumentError, "DATASET_MALFORMED"):
        await open_dataset(stub, file)


async def test_a_path_that_is_not_there_is_not_found(stub: Any, tmp_path: Path) -> None:
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="no such file"):
        await find(stub, tmp_path / "rows.jsonl")
    with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="source.uri"):
        await find(stub, "rows.jsonl")


async def test_what_is_not_there_is_not_found(held: Held, tmp_path: Path) -> None:
    stub = held.stub
    with refused(NotFoundError, "DATASET_NOT_FOUND"):
        await find(stub, tmp_path / "rows.jsonl")
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="only test, train"):
        await find(stub, "builtin:word-problems", split="dev")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="source.revision"):
        await find(stub, "builtin:word-problems", revision="main")
    found = await find(stub, "builtin:word-problems")
    assert found == dataset_pb2.DatasetSource(uri="builtin:word-problems", split="train")


async def test_the_local_adapter_says_where_the_hub_is(local_stub: Any) -> None:
    with refused(NotFoundError, "DATASET_NOT_FOUND", says="pip install 'crucible-kitchen[hf]'"):
        await open_dataset(local_stub, "HuggingFaceH4/no_robots")


def fields(**source_by_name: str) -> Row:
    return {"fields": dataset_pb2.FieldMapping(source_by_name=source_by_name)}


async def test_a_field_mapping_renames_and_drops(held: Held) -> None:
    await check_mapping(held, held.give(ROWS))


async def test_a_field_mapping_of_parquet_rows_renames_and_drops(
    binding: Binding, make: MakeDatasets, context: AdapterContext, tmp_path: Path
) -> None:
    held = Held(await binding.stub(make(context)), tmp_path, None)
    await check_mapping(held, write_parquet(tmp_path / "rows.parquet", ROWS))


async def check_mapping(held: Held, path: object) -> None:
    stub = held.stub
    expected = [{"question": row["prompt"], "number": row["n"]} for row in ROWS]
    info = await open_dataset(stub, path, fields(question="prompt", number="n"))
    assert list(info.columns) == ["number", "question"]
    assert await read(stub, info) == expected
    assert await read(stub, info, select(699, 0, 0)) == [expected[i] for i in (699, 0, 0)]
    # The fingerprint is that of rows which have these fields to begin with, wherever the mapping stands.
    order = np.random.default_rng(3).permutation(50)
    same = held.give([expected[i] for i in order])
    mapped = await open_dataset(stub, path, {"take": 50}, fields(question="prompt", number="n"), {"shuffle_seed": 3})
    assert mapped.fingerprint == (await open_dataset(stub, same)).fingerprint
    twice = await open_dataset(stub, path, fields(a="prompt", b="n"), {"take": 50}, fields(question="a", number="b"))
    assert await read(stub, twice) == expected[:50]


async def test_a_field_mapping_names_fields_that_every_row_has(held: Held) -> None:
    stub, path = held.stub, held.give([{"a": 1, "b": 1}, {"a": 2}])
    with refused(
        InvalidArgumentError, "DATASET_MALFORMED", says=f"{path}, row 2: has no field 'b' for the field mapping, only a"
    ):
        await open_dataset(stub, path, fields(x="b"))
    # Rows that are left out need none.
    assert await read(stub, await open_dataset(stub, path, fields(x="b"), {"take": 1})) == [{"x": 1}]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="transforms[1].fields.source_by_name", says="'a'"):
        await open_dataset(stub, path, fields(x="a"), fields(y="a"))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="transforms[0].fields.source_by_name"):
        await open_dataset(stub, path, fields())


async def open_streaming(stub: Any, uri: object, *transforms: Row, **source: Any) -> dataset_pb2.DatasetInfo:
    request = dataset_pb2.OpenDatasetRequest(
        source=dataset_pb2.DatasetSource(uri=str(uri), **source),
        transforms=[dataset_pb2.DatasetTransform(**each) for each in transforms],
        streaming=True,
    )
    return (await stub.OpenDataset(request)).dataset


async def test_streaming_is_a_capability(local_stub: Any) -> None:
    with refused(UnimplementedError, "CAPABILITY_MISSING", says="dataset.streaming"):
        await open_streaming(local_stub, "builtin:word-problems", {"take": 1})


@pytest.mark.parametrize("any_make", [huggingface_datasets, fake_datasets])
async def test_streaming_gives_the_rows_that_are_kept(held: Held) -> None:
    stub, path = held.stub, held.give(ROWS)
    transforms = ({"skip": 5}, fields(n="n"), {"take": 20}, {"shuffle_seed": 1}, {"take": 10})
    streamed, opened = await open_streaming(stub, path, *transforms), await open_dataset(stub, path, *transforms)
    assert streamed.fingerprint == opened.fingerprint
    assert await read(stub, streamed) == [{"n": 5 + int(i)} for i in np.random.default_rng(1).permutation(20)[:10]]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="streaming", says="take"):
        await open_streaming(stub, path, {"skip": 5})
    for early in ({"shuffle_seed": 1}, select(0)):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="transforms[1]", says="before take"):
            await open_streaming(stub, path, {"skip": 1}, early, {"take": 5})
