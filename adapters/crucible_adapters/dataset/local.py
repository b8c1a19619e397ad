"""DatasetStore over files of this machine and the datasets that ship with the project."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from crucible_adapters.dataset.fields import MappedRows, composed_mapping
from crucible_adapters.dataset.rows import RowSource, fingerprint
from crucible_adapters.dataset.sources import Sources
from crucible_adapters.dataset.transforms import (
    StreamedPrefix,
    checked_indices,
    row_out_of_range,
    streamed_prefix,
    transformed_order,
)
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import NotFoundError, ResourceExhaustedError, capability_missing, field_error

STREAMING = "dataset.streaming"
_THREADS = 4
_BATCH_ROWS = 256
_BATCH_BYTES = 1024 * 1024


class LocalDatasetOptions(AdapterOptions):
    """Limits."""

    max_open: int = Field(default=1024, ge=1, description="Most datasets open at a time.")


class FoundRows(NamedTuple):
    """The rows of a source.

    Attributes:
        source: what was asked for, its defaults filled in.
        done: how many of the request's transforms they have already gone through.
    """

    rows: RowSource
    source: dataset_pb2.DatasetSource
    done: int = 0


@dataclass(frozen=True)
class _Open:
    """An open dataset: rows, the order in which the handle has them, and its description."""

    rows: RowSource
    order: np.ndarray
    info: dataset_pb2.DatasetInfo


class LocalDatasets(dataset_pb2_grpc.DatasetServiceServicer):
    """Datasets in .jsonl and .parquet files, folders of them, and builtin ones."""

    description = AdapterDescription(name="local-datasets", port="dataset", options=LocalDatasetOptions)

    def __init__(self, options: LocalDatasetOptions, context: AdapterContext) -> None:
        self._max_open = options.max_open
        self._sources = Sources(context)
        self._open: dict[str, _Open] = {}
        self._threads = Threads("dataset", _THREADS)

    async def close(self) -> None:
        """Forgets all handles and ends the threads."""
        self._open.clear()
        await self._threads.close()

    async def FindDataset(
        self, request: dataset_pb2.FindDatasetRequest, context: Any
    ) -> dataset_pb2.FindDatasetResponse:
        return dataset_pb2.FindDatasetResponse(source=await self._find(request.source))

    async def OpenDataset(
        self, request: dataset_pb2.OpenDatasetRequest, context: Any
    ) -> dataset_pb2.OpenDatasetResponse:
        if len(self._open) >= self._max_open:
            raise ResourceExhaustedError(
                f"{len(self._open)} datasets are open, the limit: close some, or raise the adapter's option max_open",
                reason="TOO_MANY_DATASETS",
                metadata={"max_open": self._max_open},
            )
        mapping = composed_mapping(request.transforms)
        prefix = None
        if request.streaming:
            if STREAMING not in self.description.capabilities:
                raise capability_missing("dataset", STREAMING, "open the dataset without streaming")
            prefix = streamed_prefix(request.transforms)
        found = await self._rows(request.source, prefix, mapping)
        opened = await self._threads.run(_opened, found, request.transforms, mapping, self._new_id())
        self._open[opened.info.dataset_id] = opened
        return dataset_pb2.OpenDatasetResponse(dataset=opened.info)

    def _new_id(self) -> str:
        """A handle that was never given before."""
        return f"dataset-{uuid.uuid4().hex}"

    async def _find(self, source: dataset_pb2.DatasetSource) -> dataset_pb2.DatasetSource:
        """The source with its defaults filled in."""
        return await self._threads.run(self._sources.find, source)

    async def _rows(
        self, source: dataset_pb2.DatasetSource, prefix: StreamedPrefix | None, mapping: Mapping[str, str] | None
    ) -> FoundRows:
        """The rows of a source.

        Args:
            prefix: all that is needed of them; None: everything.
            mapping: name of a field in the source by its name in the handle; None: all fields are needed.
        """
        rows, filled = await self._threads.run(self._sources.open, source)
        return FoundRows(rows, filled)

    async def GetDatasetInfo(
        self, request: dataset_pb2.GetDatasetInfoRequest, context: Any
    ) -> dataset_pb2.GetDatasetInfoResponse:
        return dataset_pb2.GetDatasetInfoResponse(dataset=self._handle(request.dataset_id).info)

    async def ReadRows(
        self, request: dataset_pb2.ReadRowsRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.ReadRowsResponse]:
        opened = self._handle(request.dataset_id)
        async for response in self._threads.iterate(_batches(opened.rows, _wanted(request, opened.order))):
            yield response

    async def CloseDataset(
        self, request: dataset_pb2.CloseDatasetRequest, context: Any
    ) -> dataset_pb2.CloseDatasetResponse:
        self._open.pop(request.dataset_id, None)
        return dataset_pb2.CloseDatasetResponse()

    def _handle(self, dataset_id: str) -> _Open:
        opened = self._open.get(dataset_id)
        if opened is None:
            raise NotFoundError(
                f"no dataset is open as {dataset_id!r}: it was closed, or the adapter was started anew; open it again",
                reason="DATASET_NOT_FOUND",
                metadata={"dataset_id": dataset_id},
            )
        return opened


def _opened(
    found: FoundRows,
    transforms: Sequence[dataset_pb2.DatasetTransform],
    mapping: Mapping[str, str] | None,
    dataset_id: str,
) -> _Open:
    rows, order = found.rows, transformed_order(found.rows.num_rows, transforms, done=found.done)
    if mapping is not None:
        rows = MappedRows(found.source.uri, rows, order, mapping)
        order = np.arange(rows.num_rows, dtype=np.int64)
    info = dataset_pb2.DatasetInfo(
        dataset_id=dataset_id,
        source=found.source,
        num_rows=len(order),
        fingerprint=fingerprint(rows.digests, order),
        columns=sorted(json.loads(rows.read(order[:1])[0])) if len(order) else [],
    )
    return _Open(rows, order, info)


def _wanted(request: dataset_pb2.ReadRowsRequest, order: np.ndarray) -> np.ndarray:
    """Numbers of the source's rows that a request asks for, in its order."""
    match request.WhichOneof("rows"):
        case "range":
            start, limit = request.range.start, request.range.limit
            if start > len(order):
                raise row_out_of_range(start, len(order), field="range.start")
            return order[start : start + limit] if limit else order[start:]
        case "select":
            return order[checked_indices(request.select.indices, len(order), field="select.indices")]
        case _:
            raise field_error("rows", "is missing: set range or select")


def _batches(rows: RowSource, wanted: np.ndarray) -> Iterator[dataset_pb2.ReadRowsResponse]:
    """The rows in messages of at most 256 rows and about 1 MiB."""
    for start in range(0, len(wanted), _BATCH_ROWS):
        batch: list[str] = []
        size = 0
        for row in rows.read(wanted[start : start + _BATCH_ROWS]):
            length = len(row.encode())
            if batch and size + length > _BATCH_BYTES:
                yield dataset_pb2.ReadRowsResponse(rows_json=batch)
                batch, size = [], 0
            batch.append(row)
            size += length
        yield dataset_pb2.ReadRowsResponse(rows_json=batch)
