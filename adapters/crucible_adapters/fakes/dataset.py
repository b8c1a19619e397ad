"""The fake of the dataset port: generated rows, and those that its options hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.builtin import word_problems
from crucible_adapters.dataset.builtin import ListRows
from crucible_adapters.dataset.local import STREAMING, FoundRows, LocalDatasetOptions, LocalDatasets
from crucible_adapters.dataset.splits import choose_split, dataset_not_found
from crucible_adapters.dataset.transforms import StreamedPrefix
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import field_error

GENERATED = ("builtin:word-problems", "fake/rows")
_SPLITS = get_args(word_problems.Split)


class FakeDatasetOptions(LocalDatasetOptions):
    """Which rows there are."""

    seed: int = Field(default=0, ge=0, description="Seed of the generated rows.")
    rows: int = Field(
        default=64,
        ge=0,
        le=word_problems.MAX_ROWS,
        description=f"Rows of each split, {' and '.join(_SPLITS)}, of each generated dataset: {', '.join(GENERATED)}.",
    )
    datasets: dict[str, dict[str, list[dict[str, Any]]]] = Field(
        default_factory=dict, description="Further datasets: rows by name and split."
    )


class FakeDatasets(LocalDatasets):
    """Rows in memory, served as the local adapter serves those of files. A handle's id is its number.

    Attributes:
        datasets: rows by name and split, beside the generated ones.
    """

    description = AdapterDescription(
        name="fake-datasets", port="dataset", capabilities=(STREAMING,), options=FakeDatasetOptions
    )

    def __init__(self, options: FakeDatasetOptions, context: AdapterContext) -> None:
        super().__init__(options, context)
        self._options = options
        self.datasets = dict(options.datasets)
        self._ids = 0

    def _new_id(self) -> str:
        self._ids += 1
        return f"dataset-{self._ids}"

    async def _find(self, source: dataset_pb2.DatasetSource) -> dataset_pb2.DatasetSource:
        for field in ("config", "revision"):
            if getattr(source, field):
                raise field_error(f"source.{field}", f"is {getattr(source, field)!r}, but these datasets have none")
        if source.uri in self.datasets:
            splits = tuple(self.datasets[source.uri])
        elif source.uri in GENERATED:
            splits = _SPLITS
        else:
            known = ", ".join((*GENERATED, *self.datasets))
            raise dataset_not_found(source.uri, f"there are only {known}")
        return dataset_pb2.DatasetSource(uri=source.uri, split=choose_split(source.uri, source.split, splits))

    async def _rows(
        self, source: dataset_pb2.DatasetSource, prefix: StreamedPrefix | None, mapping: Mapping[str, str] | None
    ) -> FoundRows:
        filled = await self._find(source)
        given = self.datasets.get(filled.uri)
        rows = self._generate(filled.split) if given is None else given[filled.split]
        return FoundRows(await self._threads.run(ListRows, rows), filled)

    def _generate(self, split: str) -> list[dict[str, Any]]:
        return word_problems.generate(self._options.rows, self._options.seed, split)  # type: ignore[arg-type]
