"""builtin:huggingface of the port dataset against a hub on this machine, through the real libraries."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.dataset.local import LocalDatasetOptions, LocalDatasets
from crucible_kit.errors import (
    DataLossError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.hub.conftest import Adapters, Row, jsonl, parquet
from tests.hub.fake_hub import FakeHub, Fault

ROWS: list[Row] = [
    {"prompt": f"p {i}", "messages": [{"role": "user", "content": "\u00e9\U0001f389" * (i % 5)}], "n": i, "x": i / 4}
    for i in range(300)
]
CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.parquet
  - split: test
    path: main/test.parquet
- config_name: extra
  data_files:
  - split: validation
    path: extra.parquet
---
# Rows
"""
REPO = "team/rows"
FILES = {
    "README.md": CARD,
    "main/train-0.parquet": parquet(ROWS[:120]),
    "main/train-1.parquet": parquet(ROWS[120:200], row_group_size=16),
    "main/test.parquet": parquet(ROWS[200:250]),
    "extra.parquet": parquet(ROWS[250:]),
}


def source(uri: object = REPO, **source: str) -> dataset_pb2.DatasetSource:
    return dataset_pb2.DatasetSource(uri=str(uri), **source)


async def find(stub: Any, uri: object = REPO, **named: str) -> dataset_pb2.DatasetSource:
    return (await stub.FindDataset(dataset_pb2.FindDatasetRequest(source=source(uri, **named)))).source


async def open_dataset(
    stub: Any, uri: object = REPO, *transforms: Row, streaming: bool = False, **named: str
) -> dataset_pb2.DatasetInfo:
    request = dataset_pb2.OpenDatasetRequest(
        source=source(uri, **named),
        transforms=[dataset_pb2.DatasetTransform(**each) for each in transforms],
        streaming=streaming,
    )
    return (await stub.OpenDataset(request)).dataset


async def read(stub: Any, info: dataset_pb2.DatasetInfo, *indices: int) -> list[Row]:
    request = dataset_pb2.ReadRowsRequest(dataset_id=info.dataset_id)
    if indices:
        request.select.indices.extend(indices)
    else:
        request.range.SetInParent()
    return [json.loads(row) async for response in stub.ReadRows(request) for row in response.rows_json]


def fields(**source_by_name: str) -> Row:
    return {"fields": dataset_pb2.FieldMapping(source_by_name=source_by_name)}


async def local_fingerprint(adapters: Adapters, folder: Path, rows: Sequence[Row], *transforms: Row) -> str:
    """The fingerprint that the local adapter gives these rows in a .jsonl file."""
    path = folder / "same.jsonl"
    path.write_bytes(jsonl(rows))
    stub = adapters.stub(LocalDatasets(LocalDatasetOptions(), adapters.context))  # type: ignore[arg-type]
    return (await open_dataset(stub, path, *transforms)).fingerprint


def data_requests(hub: FakeHub) -> list[str]:
    """Paths of files of rows that were sent."""
    return [each.path for each in hub.asked(r"GET .*(storage|resolve/[^ ]*\.(parquet|jsonl))") if each.sent]


async def test_configs_and_splits_are_found_opened_and_read(
    binding: Binding, adapters: Adapters, tmp_path: Path
) -> None:
    hub = adapters.hub
    commit = hub.add("datasets", REPO, FILES).branches["main"]
    stub = await binding.stub(adapters.dataset_adapter())

    full = source(config="main", split="train", revision=commit)
    assert await find(stub, config="main") == full
    assert data_requests(hub) == []
    train = await open_dataset(stub, config="main")
    assert (train.source, train.num_rows) == (full, 200)
    assert list(train.columns) == ["messages", "n", "prompt", "x"]
    assert len(data_requests(hub)) == 2  # the two files of this split, each once
    assert await read(stub, train) == ROWS[:200]
    assert await read(stub, train, 199, 0, 120, 120, 119) == [ROWS[i] for i in (199, 0, 120, 120, 119)]
    assert train.fingerprint == await local_fingerprint(adapters, tmp_path, ROWS[:200])
    # The only split of a config is its default.
    other = await open_dataset(stub, REPO, {"skip": 10}, {"shuffle_seed": 4}, config="extra")
    order = np.random.default_rng(4).permutation(40)
    assert await read(stub, other) == [ROWS[260 + i] for i in order]


async def test_files_tell_their_splits_and_the_same_rows_have_one_fingerprint(
    adapters: Adapters, tmp_path: Path
) -> None:
    files = {"train.jsonl": jsonl(ROWS[:40]), "data/test.jsonl": jsonl(ROWS[40:60])}
    adapters.hub.add("datasets", "team/jsonl", files)
    stub = adapters.stub(adapters.dataset_adapter())
    train, test = await asyncio.gather(open_dataset(stub, "team/jsonl"), open_dataset(stub, "team/jsonl", split="test"))
    assert (train.source.config, train.source.split) == ("default", "train")
    assert await read(stub, train) == ROWS[:40]
    assert await read(stub, test) == ROWS[40:60]
    assert train.fingerprint == await local_fingerprint(adapters, tmp_path, ROWS[:40])


async def test_what_is_not_there_is_not_found(adapters: Adapters) -> None:
    adapters.hub.add("datasets", REPO, FILES)
    adapters.hub.add("datasets", "team/empty", {"README.md": b"# Nothing\n"})
    stub = adapters.stub(adapters.dataset_adapter())

    async def told(call: Any) -> tuple[type, str, list[str], str]:
        with pytest.raises(KitchenError) as caught:
            await call
        error = caught.value
        return type(error), error.reason, [each.field for each in error.fields], error.message

    answers = await asyncio.gather(
        told(find(stub, "team/nothing")),
        told(find(stub, config="other")),
        told(find(stub, config="main", split="dev")),
        told(find(stub, config="main", revision="v9")),
        told(find(stub)),
        told(find(stub, "team/empty")),
        told(open_dataset(stub, "data/rows.jsonl")),
    )
    missing = (NotFoundError, "DATASET_NOT_FOUND", [])
    for answer, says in zip(
        answers,
        (
            "HF_TOKEN",
            "no config 'other', only extra, main",
            "no split 'dev', only test, train",
            "no branch, tag or commit 'v9'",
            "has the configs extra, main: name one",
            "holds no .parquet",
            "need an absolute path",
        ),
        strict=True,
    ):
        expected = (InvalidArgumentError, "FIELD_INVALID", ["source.config"]) if "configs extra" in says else missing
        assert answer[:3] == expected, answer
        assert says in answer[3]
    with refused(InvalidArgumentError, "FIELD_INVALID", field="source.revision"):
        await find(stub, config="main", revision="../../../../etc/passwd")


async def test_a_commit_is_prepared_once_and_stays_there_without_the_hub(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = adapters.hub
    repo = hub.add("datasets", REPO, FILES)
    first = repo.branches["main"]
    stub = adapters.stub(adapters.dataset_adapter())
    before = await open_dataset(stub, config="main", split="test")
    hub.requests.clear()
    # Another adapter, as after a restart; a commit needs no hub at all.
    stub = adapters.stub(adapters.dataset_adapter())
    again = await open_dataset(stub, config="main", split="test", revision=first)
    assert (again.fingerprint, again.source) == (before.fingerprint, before.source)
    assert hub.requests == []
    # A branch that has moved is something else.
    second = repo.commit({**FILES, "main/test.parquet": parquet(ROWS[:5])})
    moved = await open_dataset(stub, config="main", split="test")
    assert (moved.source.revision, await read(stub, moved)) == (second, ROWS[:5])
    assert await read(stub, again) == ROWS[200:250]

    hub.faults.append(Fault("", status=503))
    assert (await open_dataset(stub, config="main", split="test")).source == moved.source
    assert await find(stub, config="main", split="test") == moved.source
    with refused(UnavailableError, "HUB_UNREACHABLE"):
        await find(stub, config="main", split="train")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    stub = adapters.stub(adapters.dataset_adapter())
    assert (await open_dataset(stub, config="main", split="test")).fingerprint == moved.fingerprint
    with refused(UnavailableError, "HUB_UNREACHABLE", says="HF_HUB_OFFLINE"):
        await open_dataset(stub, config="extra")
    assert hub.requests == []


async def test_streaming_reads_only_the_files_that_it_needs(adapters: Adapters, tmp_path: Path) -> None:
    hub = adapters.hub
    rows = [{"text": f"{i} " + "x" * 2000, "n": i} for i in range(2000)]
    shards = {f"data/train-{i:05}-of-00005.jsonl": jsonl(rows[i * 400 : (i + 1) * 400]) for i in range(5)}
    hub.add("datasets", "team/large", shards)
    stub = adapters.stub(adapters.dataset_adapter())
    transforms = ({"skip": 390}, {"take": 30}, {"shuffle_seed": 2}, {"take": 20})
    few, across = await asyncio.gather(
        open_dataset(stub, "team/large", {"take": 20}, streaming=True),
        open_dataset(stub, "team/large", *transforms, streaming=True),
    )
    assert (few.num_rows, few.source.split) == (20, "train")
    assert await read(stub, few) == rows[:20]
    assert few.fingerprint == await local_fingerprint(adapters, tmp_path, rows, {"take": 20})
    assert await read(stub, across) == [rows[390 + i] for i in np.random.default_rng(2).permutation(30)[:20]]
    assert across.fingerprint == await local_fingerprint(adapters, tmp_path, rows, *transforms)
    read_shards = {each.rpartition("/")[2] for each in data_requests(hub)}
    assert read_shards == {"train-00000-of-00005.jsonl", "train-00001-of-00005.jsonl"}
    assert not list((adapters.context.data_dir / "huggingface" / "streams").iterdir())
    with refused(InvalidArgumentError, "FIELD_INVALID", field="streaming", says="take"):
        await open_dataset(stub, "team/large", {"skip": 1}, streaming=True)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="transforms[0]"):
        await open_dataset(stub, "team/large", {"shuffle_seed": 1}, {"take": 1}, streaming=True)


async def test_streaming_parquet_reads_a_part_of_the_file(adapters: Adapters) -> None:
    hub = adapters.hub
    noise = np.random.default_rng(0).integers(0, 2**62, size=(40, 100_000))
    rows = [{"n": i, "noise": row.tolist()} for i, row in enumerate(noise)]
    data = parquet(rows, row_group_size=2, compression="none", use_dictionary=False)
    hub.add("datasets", "team/wide", {"train.parquet": data})
    stub = adapters.stub(adapters.dataset_adapter())
    info = await open_dataset(stub, "team/wide", {"skip": 1}, {"take": 1}, streaming=True)
    assert await read(stub, info) == [rows[1]]
    sent = sum(each.sent for each in hub.asked("storage"))
    # Pieces of 5 MiB of a file of 32 MB.
    assert 0 < sent < len(data) / 4, (sent, len(data))


IMAGES = pa.table(
    {
        "text": ["a", "b"],
        "image": pa.array([{"bytes": b"\x89PNG", "path": None}] * 2),
        "raw": pa.array([b"\0", b"\1"]),
    }
)


async def test_columns_without_a_form_in_json_are_refused_unless_they_are_left_out(adapters: Adapters) -> None:
    adapters.hub.add("datasets", "team/images", {"train.parquet": parquet(IMAGES)})
    stub = adapters.stub(adapters.dataset_adapter())
    streamed = await open_dataset(stub, "team/images", {"take": 1}, fields(prompt="text"), streaming=True)
    assert await read(stub, streamed) == [{"prompt": "a"}]
    with refused(InvalidArgumentError, "DATASET_MALFORMED", says="the column 'image' holds"):
        await open_dataset(stub, "team/images")
    mapped = await open_dataset(stub, "team/images", fields(prompt="text"))
    assert await read(stub, mapped) == [{"prompt": "a"}, {"prompt": "b"}]
    with refused(InvalidArgumentError, "DATASET_MALFORMED", says="'raw'"):
        await open_dataset(stub, "team/images", fields(raw="raw"))
    with refused(
        InvalidArgumentError, "DATASET_MALFORMED", says="has no field 'label' for the field mapping, only image"
    ):
        await open_dataset(stub, "team/images", fields(prompt="text", label="label"))


async def test_values_have_the_form_that_local_files_give_them(adapters: Adapters, tmp_path: Path) -> None:
    row = {
        "none": None,
        "nan": float("nan"),
        "day": datetime.date(2024, 2, 29),
        "time": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "lasted": datetime.timedelta(milliseconds=1500),
        "price": decimal.Decimal("1.10"),
        "nested": [{"a": [1, 2], "b": {"c": True}}, {"a": [], "b": None}],
    }
    data = parquet([row])
    adapters.hub.add("datasets", "team/values", {"train.parquet": data})
    adapters.hub.add("datasets", "team/mixed", {"train.jsonl": b'{"v": 1}\n{"v": "x"}\n{"v": [1, {"a": null}]}\n'})
    stub = adapters.stub(adapters.dataset_adapter())
    values, other = await asyncio.gather(open_dataset(stub, "team/values"), open_dataset(stub, "team/mixed"))
    (tmp_path / "same.parquet").write_bytes(data)
    local = await open_dataset(stub, tmp_path / "same.parquet")
    assert await read(stub, values) == await read(stub, local)
    assert (await read(stub, values))[0]["time"] == "2024-02-29T12:30:00+00:00"
    assert values.fingerprint == local.fingerprint
    # The library keeps what has several types in one column as JSON.
    assert await read(stub, other) == [{"v": 1}, {"v": "x"}, {"v": [1, {"a": None}]}]


MALFORMED: dict[str, tuple[dict[str, bytes], str]] = {
    "half a line": ({"train.jsonl": b'{"a": 1}\n{"a": '}, "can't read it"),
    "no parquet": ({"train.parquet": b"PAR1 nothing PAR1"}, "can't read it"),
    "a script": ({"broken.py": b"import os", "train.jsonl": b"{}"}, "scripts are no longer supported"),
    "pictures": ({"train/a.png": b"\x89PNG", "train/b.png": b"\x89PNG"}, "of the kind imagefolder"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_repository_that_is_no_dataset_is_refused(adapters: Adapters, name: str) -> None:
    files, says = MALFORMED[name]
    adapters.hub.add("datasets", "team/broken", files)
    stub = adapters.stub(adapters.dataset_adapter())
    with pytest.raises(KitchenError) as caught:
        await open_dataset(stub, "team/broken")
    assert caught.value.reason == "DATASET_MALFORMED", caught.value.message
    assert says in caught.value.message


async def test_a_repository_names_only_its_own_files(adapters: Adapters, tmp_path: Path) -> None:
    hub = adapters.hub
    (tmp_path / "secret.jsonl").write_text('{"password": "x"}')
    others = {
        "team/disk": (tmp_path / "secret.jsonl", "don't belong to team/disk"),
        "team/server": (f"{hub.storage_url}/elsewhere.jsonl", "names an address outside of the repository"),
        "team/other": ("hf://datasets/team/disk/README.md", "don't belong to team/other"),
    }
    for name, (address, _) in others.items():
        card = f"---\nconfigs:\n- config_name: default\n  data_files: {address}\n---\n"
        hub.add("datasets", name, {"README.md": card.encode(), "train.jsonl": b"{}"})
    stub = adapters.stub(adapters.dataset_adapter())
    for name, (_, says) in others.items():
        with refused(InvalidArgumentError, "DATASET_MALFORMED", says=says):
            await find(stub, name)
    assert hub.asked("elsewhere") == []


async def test_a_download_with_another_hash_is_removed(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("datasets", REPO, FILES)
    stub = adapters.stub(adapters.dataset_adapter())
    hub.faults.append(Fault("/storage/", change=lambda data: data[:-8] + b"!" * 8))
    with refused(DataLossError, "HUB_FILE_CORRUPT", says="main/test.parquet".rpartition("/")[2]):
        await open_dataset(stub, config="main", split="test")
    hub.faults.clear()
    assert await read(stub, await open_dataset(stub, config="main", split="test")) == ROWS[200:250]


async def test_the_hub_s_refusals_are_told(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("datasets", "team/gated", FILES, gated=True)
    stub = adapters.stub(adapters.dataset_adapter())
    with refused(PermissionDeniedError, "REPO_ACCESS_DENIED", says="set HF_TOKEN in the server's environment"):
        await find(stub, "team/gated", config="main")
    small = adapters.stub(adapters.dataset_adapter(max_download_gib=1e-6))
    hub.add("datasets", REPO, FILES)
    with refused(ResourceExhaustedError, "DATASET_TOO_LARGE", says="streaming"):
        await open_dataset(small, config="main", split="train")
    hub.faults.append(Fault("/api/datasets", status=429, headers={"Retry-After": "60"}))
    with pytest.raises(ResourceExhaustedError) as caught:
        await find(stub, config="main")
    assert (caught.value.reason, caught.value.retry_delay) == ("HUB_RATE_LIMITED", 60)


async def test_a_cancelled_opening_ends_its_process(adapters: Adapters) -> None:
    hub = adapters.hub
    hub.add("datasets", REPO, FILES)
    adapter = adapters.dataset_adapter()
    stub = adapters.stub(adapter)
    hanging = Fault("/storage/", hang=threading.Event())
    hub.faults.append(hanging)
    call = asyncio.ensure_future(open_dataset(stub, REPO, {"take": 1}, streaming=True, config="main"))
    assert await asyncio.to_thread(hanging.reached.wait, 60)
    workers = list(adapter._calls._running)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [each.status is not None for each in workers] == [True]
    assert not list((adapters.context.data_dir / "huggingface" / "streams").iterdir())
