"""Opening datasets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2
from crucible_kit.errors import FailedPreconditionError, KitchenError, field_error
from crucible_kitchen.workflows.context import StageContext, SubmitContext
from crucible_kitchen.workflows.stage import Kind, Output, PortUse, Stage, StageOptions

_OPEN_SECONDS = 600.0
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,63}")


class LoadDatasetOptions(StageOptions):
    """Which rows to train and evaluate on."""

    dataset: str = Field(
        min_length=1,
        max_length=4096,
        description="Training rows: a .jsonl or .parquet file, a folder of <split> files, or builtin:word-problems; "
        "#SPLIT behind it picks a split, otherwise train.",
    )
    eval_dataset: str = Field(
        default="", max_length=4096, description="Held-out rows, named like dataset; empty: nothing is evaluated."
    )


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """An open dataset: a handle of the dataset port."""

    stub: Any
    info: dataset_pb2.DatasetInfo
    key: str

    async def rows(self, limit: int = 0) -> list[str]:
        """Rows as JSON text, in order; at most `limit`, 0 is all."""
        request = dataset_pb2.ReadRowsRequest(
            dataset_id=self.info.dataset_id, range=dataset_pb2.RowRange(start=0, limit=limit)
        )
        return [row async for response in self.stub.ReadRows(request) for row in response.rows_json]

    async def close(self) -> None:
        """Frees the handle."""
        await self.stub.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=self.info.dataset_id))


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
        stub = await context.ports.stub("dataset")
        for dataset in await _open_all(stub, context.options(LoadDatasetOptions)):
            if dataset is not None:
                await dataset.close()

    async def run(self, context: StageContext) -> None:
        train, held_out = await _open_all(await context.stub("dataset"), context.options(LoadDatasetOptions))
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


async def _open_all(stub: Any, options: LoadDatasetOptions) -> tuple[OpenDataset, OpenDataset | None]:
    train = await _open(stub, options.dataset, key="dataset")
    if not options.eval_dataset:
        return train, None
    return train, await _open(stub, options.eval_dataset, key="eval_dataset")


def split_name(dataset: str) -> tuple[str, str]:
    """(uri, split) of `uri#split`; without a suffix that can be a split's name the split is empty."""
    uri, mark, split = dataset.rpartition("#")
    return (uri, split) if mark and _SPLIT.fullmatch(split) else (dataset, "")


async def _open(stub: Any, dataset: str, *, key: str) -> OpenDataset:
    uri, split = split_name(dataset)
    source = dataset_pb2.DatasetSource(uri=uri, split=split)
    try:
        response = await stub.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source), timeout=_OPEN_SECONDS)
    except KitchenError as error:
        if error.reason in ("DATASET_NOT_FOUND", "DATASET_MALFORMED", "PATH_NOT_ALLOWED", "FIELD_INVALID"):
            raise field_error(f"config.{key}", error.message, reason=error.reason) from error
        raise
    return OpenDataset(stub=stub, info=response.dataset, key=key)
