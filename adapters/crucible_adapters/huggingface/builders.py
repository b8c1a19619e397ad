"""The library `datasets`: which configurations and splits a repository has, and its rows as Arrow files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pyarrow as pa
from datasets import Dataset, IterableDataset, config, get_dataset_config_names, load_dataset_builder
from datasets.data_files import DataFilesDict, DataFilesList, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from fsspec import AbstractFileSystem
from fsspec.registry import known_implementations, register_implementation
from pyarrow.dataset import ParquetFragmentScanOptions

from crucible_adapters.dataset.splits import choose_split, dataset_not_found
from crucible_adapters.huggingface.errors import Subject, translated
from crucible_kit.errors import InvalidArgumentError, KitchenError, field_error

# Formats of rows. The others hold images, sound, or need packages of their own.
_FORMATS = ("arrow", "csv", "json", "parquet", "text")
_STREAM_BATCH_ROWS = 256
# The library's own numbers keep a thread busy for minutes after a connection is lost.
_STREAM_RETRIES = 2
# Where files may lie: the repository, the cache, archives.
_FILE_SYSTEMS = frozenset({"hf", "file", "local", "zip", "tar"})


class _OtherFileSystem(AbstractFileSystem):
    """Stands for the addresses that a repository's README.md could send us to."""

    def __init__(self, *args: object, **options: object) -> None:
        raise ValueError("its README.md names an address outside of the repository")


def _confine() -> None:
    """Makes the library refuse files of other servers before it asks them."""
    for protocol in set(known_implementations) - _FILE_SYSTEMS:
        register_implementation(protocol, _OtherFileSystem, clobber=True)


class SplitBuilder:
    """One split of a dataset at one commit.

    Attributes:
        config: name of its configuration.
        split: its name.
    """

    def __init__(self, subject: Subject, commit: str, config_name: str, split: str, cache: Path) -> None:
        """Empty names stand for the default. `cache` is a folder for the library's files.

        Raises:
            NotFoundError: DATASET_NOT_FOUND: no such configuration or split, or no files of rows.
            InvalidArgumentError: FIELD_INVALID when several are there and none is named; DATASET_MALFORMED.
        """
        self._subject = subject
        self._commit = commit
        _confine()
        config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = _STREAM_RETRIES
        # Without the scheme a folder of this name would stand in for the repository.
        name = f"hf://datasets/{subject.repo}"
        try:
            self._builder = load_dataset_builder(name, name=config_name or None, revision=commit, cache_dir=str(cache))
        except (DatasetNotFoundError, DataFilesNotFoundError, EmptyDatasetError) as error:
            raise translated(error, subject) or dataset_not_found(
                subject.repo, "it holds no .parquet, .jsonl, .json, .csv or .txt files"
            ) from error
        except Exception as error:
            known = translated(error, subject) or _wrong_config(name, commit, config_name, subject)
            raise known or _malformed(subject, error) from error
        if self._builder.name not in _FORMATS:
            raise _malformed(subject, f"its files are of the kind {self._builder.name}, not {', '.join(_FORMATS)}")
        files = self._builder.config.data_files or {}
        self.config = str(self._builder.config.name)
        self.split = choose_split(subject.repo, split, [str(each) for each in files])
        self._files = cast(DataFilesList, files[self.split])

    @property
    def paths(self) -> list[str]:
        """Paths of the split's files in the repository."""
        prefix = f"hf://datasets/{self._subject.repo}@{self._commit}/"
        foreign = [each for each in self._files if not each.startswith(prefix)]
        if foreign:
            raise _malformed(self._subject, f"its README.md names {foreign[0]!r}, which is no file of the repository")
        return [each.removeprefix(prefix) for each in self._files]

    def build(self, folder: Path) -> list[Path]:
        """Arrow files of the split's rows in `folder`, in order. What is in the cache already is not downloaded."""
        # The library would bring the other splits too.
        self._builder.config.data_files = DataFilesDict({self.split: self._files})
        try:
            # Its checks compare with all splits.
            self._builder.download_and_prepare(str(folder), verification_mode="no_checks")
            rows = cast(Dataset, self._builder.as_dataset(split=self.split))
        except Exception as error:
            raise translated(error, self._subject) or _malformed(self._subject, error) from error
        return [Path(each["filename"]) for each in rows.cache_files]  # type: ignore[call-overload]

    def tables(self, rows: int, fields: list[str] | None) -> Iterator[pa.Table]:
        """The first rows, read from the hub as they are taken: at most 256 more than `rows`.

        Args:
            fields: the columns that are needed; others may come too. None: all.
        """
        if self._builder.name == "parquet":
            settings = cast(ParquetConfig, self._builder.config)
            settings.columns = fields
            # With it the reader asks for all row groups at once.
            settings.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        try:
            stream = cast(IterableDataset, self._builder.as_streaming_dataset(split=self.split)).with_format("arrow")
            left = rows
            # Its own take looks into the next file before it ends.
            batches = stream.iter(batch_size=min(rows, _STREAM_BATCH_ROWS)) if rows else ()
            for table in cast(Iterable[pa.Table], batches):
                yield table.slice(0, left)
                left -= table.num_rows
                if left <= 0:
                    return
        except Exception as error:
            raise translated(error, self._subject) or _malformed(self._subject, error) from error


def _wrong_config(name: str, commit: str, given: str, subject: Subject) -> KitchenError | None:
    """The error of a configuration that is missing or unknown; None when it is neither."""
    try:
        names = get_dataset_config_names(name, revision=commit)
    except Exception:
        return None
    if given and given not in names:
        return dataset_not_found(subject.repo, f"it has no config {given!r}, only {', '.join(sorted(names))}")
    if not given and len(names) > 1:
        return field_error(
            "source.config", f"is empty, but {subject.repo!r} has the configs {', '.join(sorted(names))}: name one"
        )
    return None


def _malformed(subject: Subject, problem: BaseException | str) -> InvalidArgumentError:
    """The error of a repository whose files the library can't read."""
    if isinstance(problem, BaseException):
        deepest = problem
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        problem = f"the library datasets can't read it: {type(deepest).__name__}: {str(deepest)[:500]}"
    return InvalidArgumentError(
        f"dataset {subject.repo!r}: {problem}", reason="DATASET_MALFORMED", metadata={"dataset": subject.repo}
    )
