"""DatasetStore over the Hugging Face hub: owner/name through its libraries, everything else as the local adapter."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.dataset.arrow import ArrowRows
from crucible_adapters.dataset.local import STREAMING, FoundRows, LocalDatasetOptions, LocalDatasets
from crucible_adapters.dataset.transforms import StreamedPrefix
from crucible_adapters.hub.names import check_revision, is_hub_name
from crucible_adapters.huggingface.options import HuggingFaceOptions
from crucible_adapters.huggingface.prepared import PreparedSplit
from crucible_adapters.huggingface.process import Calls
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import UnavailableError


class HuggingFaceDatasetOptions(LocalDatasetOptions, HuggingFaceOptions):
    """Which hub, as whom, where its files go, and limits."""

    max_download_gib: float = Field(
        default=50.0, gt=0, description="Most GiB that the files of one split may have together."
    )


class HuggingFaceDatasets(LocalDatasets):
    """Splits of the hub's datasets, made into Arrow files once for a commit; everything else as the local adapter."""

    description = AdapterDescription(
        name="huggingface-datasets", port="dataset", capabilities=(STREAMING,), options=HuggingFaceDatasetOptions
    )

    def __init__(self, options: HuggingFaceDatasetOptions, context: AdapterContext) -> None:
        """Raises FAILED_PRECONDITION PACKAGE_MISSING."""
        super().__init__(options, context)
        self._calls = Calls(options, context, kind="dataset", packages=("datasets", "huggingface_hub"))
        self._max_download_gib = options.max_download_gib
        self._folder = context.data_dir / "huggingface"
        shutil.rmtree(self._folder / "streams", ignore_errors=True)  # what a crash left

    async def close(self) -> None:
        """Ends what is under way, forgets all handles and ends the threads."""
        await self._calls.close()
        await super().close()

    async def _find(self, source: dataset_pb2.DatasetSource) -> dataset_pb2.DatasetSource:
        if not is_hub_name(source.uri):
            return await super()._find(source)
        check_revision(source.revision, field="source.revision")
        found = await self._calls.ask(
            "find", source.uri, source.revision, config=source.config, split=source.split, cache=self._cache
        )
        return _filled(source, found)

    async def _rows(
        self, source: dataset_pb2.DatasetSource, prefix: StreamedPrefix | None, mapping: Mapping[str, str] | None
    ) -> FoundRows:
        if not is_hub_name(source.uri):
            return await super()._rows(source, prefix, mapping)
        check_revision(source.revision, field="source.revision")
        if prefix is not None:
            return await self._streamed(source, prefix, mapping)
        found = await self._calls.transfer(
            "prepare",
            source.uri,
            source.revision,
            config=source.config,
            split=source.split,
            cache=self._cache,
            record=str(self._folder / "verified" / f"datasets--{source.uri.replace('/', '--')}.json"),
            max_download_gib=self._max_download_gib,
        )
        return await self._prepared(source, found)

    async def _prepared(self, source: dataset_pb2.DatasetSource, found: Mapping[str, Any]) -> FoundRows:
        rows = await self._threads.run(_open_prepared, source.uri, Path(found["folder"]))
        return FoundRows(rows, _filled(source, found))

    async def _streamed(
        self, source: dataset_pb2.DatasetSource, prefix: StreamedPrefix, mapping: Mapping[str, str] | None
    ) -> FoundRows:
        folder = self._folder / "streams" / uuid.uuid4().hex
        try:
            found = await self._calls.transfer(
                "stream",
                source.uri,
                source.revision,
                config=source.config,
                split=source.split,
                cache=self._cache,
                skip=prefix.skip,
                take=prefix.take,
                fields=None if mapping is None else sorted(set(mapping.values())),
                folder=str(folder),
            )
            if "folder" in found:
                return await self._prepared(source, found)
            # Mapped files may be removed: their bytes stay as long as the rows.
            rows = await self._threads.run(ArrowRows, source.uri, [Path(file) for file in found["files"]])
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return FoundRows(rows, _filled(source, found), done=prefix.transforms)

    @property
    def _cache(self) -> str:
        return str(self._folder / "prepared")


def _filled(source: dataset_pb2.DatasetSource, found: Mapping[str, Any]) -> dataset_pb2.DatasetSource:
    return dataset_pb2.DatasetSource(
        uri=source.uri, config=found["config"], split=found["split"], revision=found["revision"]
    )


def _open_prepared(name: str, folder: Path) -> ArrowRows:
    prepared = PreparedSplit.read(folder)
    if prepared is None:
        raise UnavailableError(
            f"dataset {name!r}: its prepared files in {folder} have just been removed: open it again",
            reason="DATASET_CHANGED",
            metadata={"dataset": name},
        )
    return ArrowRows(name, prepared.files, prepared.digests)
