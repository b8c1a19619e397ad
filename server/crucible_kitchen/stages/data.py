"""Opening datasets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2
from crucible_kit.channel import repeated
from crucible_kit.determinism import derive_seed
from crucible_kit.errors import FailedPreconditionError, KitchenError, field_error
from crucible_kitchen.workflows.context import Ports, StageContext, SubmitContext
from crucible_kitchen.workflows.stage import MAX_COUNT, Kind, Output, PortUse, Stage, StageOptions

_OPEN_SECONDS = 600.0
_FIND_SECONDS = 120.0
_CLOSE_SECONDS = 10.0
_CONFIG_REASONS = ("DATASET_NOT_FOUND", "DATASET_MALFORMED", "PATH_NOT_ALLOWED", "FIELD_INVALID", "REPO_ACCESS_DENIED")
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,63}")


class LoadDatasetOptions(StageOptions):
    """Which rows to train and evaluate on."""

    dataset: str = Field(
        min_length=1,
        max_length=4096,
        description="Training rows: a .jsonl or .parquet file, a folder of <split> files, owner/name on the hub, or "
        "builtin:word-problems; #SPLIT behind it picks a split, otherwise train.",
    )
    dataset_config: str = Field(
        default="", max_length=255, description="Configuration of a dataset that has several; empty: its default."
    )
    dataset_revision: str = Field(
        default="", max_length=255, description="Branch, tag or commit of a dataset on the hub; empty: the newest."
    )
    max_rows: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Only the first so many rows of dataset are used; 0: all."
    )
    fields: dict[str, Annotated[str, Field(max_length=255)]] = Field(
        default={},
        max_length=32,
        description="Field of the accepted row shapes -> the rows' own field, such as {question: problem, answer: "
        "solution}, in dataset and eval_dataset; other fields are not read. Empty: the rows as they stand.",
    )
    eval_dataset: str = Field(
        default="",
        max_length=4096,
        description="Held-out rows, named like dataset, with its configuration and revision when it is the same one; "
        "empty: see eval_fraction.",
    )
    eval_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Without eval_dataset: this part of dataset's rows, picked by the run's seed, is held out and "
        "never trained on; 0: nothing is evaluated.",
    )
    eval_max_rows: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Only so many held-out rows are used; 0: all."
    )

    @property
    def has_held_out(self) -> bool:
        """Whether there is something to evaluate on."""
        return bool(self.eval_dataset or self.eval_fraction)


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """Rows of an open dataset: a handle of the dataset port.

    Attributes:
        key: the configuration key that asked for them.
        numbers: which of the handle's rows these are, ascending, shape [n]; None: all.
    """

    stub: Any
    info: dataset_pb2.DatasetInfo
    key: str
    numbers: np.ndarray | None = None

    async def rows(self) -> list[tuple[int, str]]:
        """Number and JSON text of each row, in order."""
        kept = np.ones(self.info.num_rows, dtype=bool)
        if self.numbers is not None:
            kept[:] = False
            kept[self.numbers] = True
        everything = dataset_pb2.ReadRowsRequest(dataset_id=self.info.dataset_id, range=dataset_pb2.RowRange())

        async def read() -> list[tuple[int, str]]:
            rows, number = [], 0
            async for response in self.stub.ReadRows(everything):
                for row in response.rows_json:
                    if kept[number]:
                        rows.append((number, row))
                    number += 1
            return rows

        return await repeated(read)

    async def close(self) -> None:
        """Frees the handle."""
        request = dataset_pb2.CloseDatasetRequest(dataset_id=self.info.dataset_id)
        await self.stub.CloseDataset(request, timeout=_CLOSE_SECONDS)


class LoadDataset(Stage):
    """Opens the datasets and fixes their content for the run."""

    name = "load_dataset"
    description = "Open the training and held-out rows, count and fingerprint them."
    options = LoadDatasetOptions
    outputs = (
        Output(key="dataset", kind=Kind.HANDLE),
        Output(key="eval_dataset", kind=Kind.HANDLE),
        Output(key="dataset_fingerprint", kind=Kind.VALUE),
        Output(key="eval_dataset_fingerprint", kind=Kind.VALUE),
    )
    ports = (PortUse(port="dataset"),)
    setup = True

    async def validate(self, context: SubmitContext) -> None:
        options = context.options(LoadDatasetOptions)
        if options.eval_dataset and options.eval_fraction:
            raise context.conflict(
                ("eval_fraction", "eval_dataset"),
                "eval_fraction and eval_dataset are both set: leave one of them out, eval_dataset by setting it empty",
            )
        stub = await context.ports.stub("dataset")
        for source, key in _sources(options):
            with _config_errors(key):
                await stub.FindDataset(dataset_pb2.FindDatasetRequest(source=source), timeout=_FIND_SECONDS)

    async def run(self, context: StageContext) -> None:
        options = context.options(LoadDatasetOptions)
        train, held_out = await _open_all(context.run.ports, options)
        # Written at once, so that they are closed whatever comes.
        context["dataset"], context["eval_dataset"] = train, held_out
        for dataset in (train, held_out):
            if dataset is not None and dataset.info.num_rows == 0:
                raise FailedPreconditionError(
                    f"{dataset.key} {dataset.info.source.uri} has no rows: give one with at least one row",
                    reason="DATASET_EMPTY",
                    metadata={"field": f"config.{dataset.key}", "dataset": dataset.info.source.uri},
                )
        context["dataset_fingerprint"] = train.info.fingerprint
        context["eval_dataset_fingerprint"] = held_out.info.fingerprint if held_out is not None else ""
        if options.eval_fraction:
            kept, held = split_rows(context.run.seed, train.info.num_rows, options.eval_fraction)
            used = held[: options.eval_max_rows] if options.eval_max_rows else held
            context["dataset"] = replace(train, numbers=kept)
            context["eval_dataset"] = replace(train, key="eval_fraction", numbers=np.sort(used))


def split_rows(seed: int, num_rows: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Which rows to train on, ascending, and which to hold out, in random order: a function of the run's seed.

    Held out are fraction x num_rows rows, rounded up.

    Raises:
        FailedPreconditionError: DATASET_TOO_SMALL when none would be left to train on.
    """
    # In decimal, as it was written: 0.07 x 100 rows are 7, not the 8 that rounding up 7.000000000000001 gives.
    count = math.ceil(Decimal(repr(fraction)) * num_rows)
    if count >= num_rows:
        raise FailedPreconditionError(
            f"eval_fraction {fraction:g} holds out {count} of {num_rows} rows and leaves none to train on: lower it, "
            "give more rows, or set eval_dataset",
            reason="DATASET_TOO_SMALL",
            metadata={"field": "config.eval_fraction", "rows": num_rows, "held_out": count},
        )
    # Not the generator of an epoch's order: what is held out must not depend on it.
    order = np.random.default_rng(derive_seed(seed, "eval_fraction")).permutation(num_rows)
    return np.sort(order[count:]), order[:count]


async def _open_all(ports: Ports, options: LoadDatasetOptions) -> tuple[OpenDataset, OpenDataset | None]:
    (source, key), *held_out = _sources(options)
    train = await _open(ports, source, options.max_rows, options.fields, key=key)
    if not held_out:
        return train, None
    source, key = held_out[0]
    try:
        return train, await _open(ports, source, options.eval_max_rows, options.fields, key=key)
    except KitchenError:
        await train.close()
        raise


def _sources(options: LoadDatasetOptions) -> list[tuple[dataset_pb2.DatasetSource, str]]:
    """What dataset and, if it is set, eval_dataset name, each with its configuration key."""
    uri, split = split_name(options.dataset)
    revised = {"config": options.dataset_config, "revision": options.dataset_revision}
    sources = [(dataset_pb2.DatasetSource(uri=uri, split=split, **revised), "dataset")]
    if options.eval_dataset:
        eval_uri, eval_split = split_name(options.eval_dataset)
        same = revised if eval_uri == uri else {}
        sources.append((dataset_pb2.DatasetSource(uri=eval_uri, split=eval_split, **same), "eval_dataset"))
    return sources


def split_name(dataset: str) -> tuple[str, str]:
    """(uri, split) of `uri#split`; without a suffix that can be a split's name the split is empty."""
    uri, mark, split = dataset.rpartition("#")
    return (uri, split) if mark and _SPLIT.fullmatch(split) else (dataset, "")


async def _open(
    ports: Ports, source: dataset_pb2.DatasetSource, max_rows: int, fields: dict[str, str], *, key: str
) -> OpenDataset:
    transforms = []
    if max_rows:
        transforms.append(dataset_pb2.DatasetTransform(take=max_rows))
    if fields:
        mapping = dataset_pb2.FieldMapping(source_by_name=fields)
        transforms.append(dataset_pb2.DatasetTransform(fields=mapping))
    request = dataset_pb2.OpenDatasetRequest(source=source, transforms=transforms)
    # A few rows of a large dataset need not wait for all of it.
    request.streaming = bool(max_rows) and "dataset.streaming" in await ports.capabilities("dataset")
    stub = await ports.stub("dataset")
    with _config_errors(key):
        response = await stub.OpenDataset(request, timeout=_OPEN_SECONDS)
    return OpenDataset(stub=stub, info=response.dataset, key=key)


@contextmanager
def _config_errors(key: str) -> Iterator[None]:
    """Errors about a request that was made for `key` name the configuration key that is to be changed."""
    try:
        yield
    except KitchenError as error:
        if error.reason not in _CONFIG_REASONS:
            raise
        raise field_error(f"config.{_blamed(error, key)}", error.message, reason=error.reason) from error


def _blamed(error: KitchenError, key: str) -> str:
    """The configuration key behind an error about a request that was made for `key`."""
    match error.metadata.get("field", ""):
        case "source.config":
            return "dataset_config"
        case "source.revision":
            return "dataset_revision"
        case field if field.startswith("transforms"):
            return "fields"
        case _:
            return key
