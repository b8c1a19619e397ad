"""Finding the rows that a DatasetSource names."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from pathlib import Path

from crucible.port.dataset.v1 import dataset_pb2
from crucible_adapters.dataset.builtin import SPLITS, BuiltinRows
from crucible_adapters.dataset.jsonl import JsonlRows
from crucible_adapters.dataset.parquet import ParquetRows
from crucible_adapters.dataset.rows import RowSource, stamp
from crucible_adapters.dataset.splits import choose_split, dataset_not_found
from crucible_adapters.hub.names import is_hub_name
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import field_error

_BUILTIN = "builtin:"
_READERS = {".jsonl": JsonlRows, ".parquet": ParquetRows}
_KEPT = 8


class Sources:
    """Finds rows, and keeps the index of the files used last. Methods block; any thread may call them."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._kept: OrderedDict[tuple, RowSource] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, source: dataset_pb2.DatasetSource) -> tuple[RowSource, dataset_pb2.DatasetSource]:
        """The rows, and the source with its defaults filled in.

        Raises:
            NotFoundError: DATASET_NOT_FOUND when there is no such file, folder, builtin or split.
            InvalidArgumentError: FIELD_INVALID; PATH_NOT_ALLOWED; DATASET_MALFORMED.
        """
        filled, path = self._locate(source)
        return (self._builtin(filled) if path is None else self._file(path)), filled

    def find(self, source: dataset_pb2.DatasetSource) -> dataset_pb2.DatasetSource:
        """The source with its defaults filled in; no row is read. Raises as `open`, but for DATASET_MALFORMED."""
        return self._locate(source)[0]

    def _locate(self, source: dataset_pb2.DatasetSource) -> tuple[dataset_pb2.DatasetSource, Path | None]:
        """The source with its defaults filled in, and its file; None for a builtin dataset."""
        for field in ("config", "revision"):
            if getattr(source, field):
                raise field_error(
                    f"source.{field}", f"is {getattr(source, field)!r}, but files and builtin datasets have none"
                )
        if source.uri.startswith(_BUILTIN):
            return dataset_pb2.DatasetSource(uri=source.uri, split=_builtin_split(source.uri, source.split)), None
        if is_hub_name(source.uri):
            raise dataset_not_found(
                source.uri,
                "the local adapter has no network: give a file's or folder's absolute path or builtin:NAME, or map the "
                "port dataset to builtin:huggingface (pip install 'crucible-kitchen[hf]')",
            )
        path = self._context.readable(source.uri, field="source.uri")
        split = source.split
        if path.is_dir():
            split, path = _file_of_split(path, split)
        elif not path.is_file():
            raise dataset_not_found(source.uri, "there is no such file or folder on this machine")
        elif split:
            raise field_error("source.split", f"is {split!r}, but a single file has no splits: leave it empty")
        path = self._context.readable(str(path), field="source.uri")
        if path.suffix not in _READERS:
            raise field_error("source.uri", f"{str(path)!r} must end in {' or '.join(_READERS)}")
        return dataset_pb2.DatasetSource(uri=source.uri, split=split), path

    def _builtin(self, source: dataset_pb2.DatasetSource) -> RowSource:
        key = (source.uri, source.split)
        name = source.uri.removeprefix(_BUILTIN)
        return self._cached(key) or self._keep(key, BuiltinRows(name, source.split))  # type: ignore[arg-type]

    def _file(self, path: Path) -> RowSource:
        reader = _READERS[path.suffix]
        opened = stamp(path)
        if opened is None:
            raise dataset_not_found(str(path), "it has just been removed")
        key = (path, opened)
        return self._cached(key) or self._keep(key, reader(path, opened))

    def _cached(self, key: tuple) -> RowSource | None:
        with self._lock:
            rows = self._kept.get(key)
            if rows is not None:
                self._kept.move_to_end(key)
            return rows

    def _keep(self, key: tuple, rows: RowSource) -> RowSource:
        with self._lock:
            self._kept[key] = rows
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return rows


def _builtin_split(uri: str, split: str) -> str:
    name = uri.removeprefix(_BUILTIN)
    splits = SPLITS.get(name)
    if splits is None:
        close = difflib.get_close_matches(name, SPLITS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(SPLITS))}"
        raise dataset_not_found(uri, f"no builtin dataset is named {name!r}: {hint}")
    return choose_split(uri, split, splits)


def _file_of_split(folder: Path, split: str) -> tuple[str, Path]:
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _READERS and path.is_file():
            files.setdefault(path.stem, []).append(path)
    if not files:
        raise dataset_not_found(str(folder), f"the folder holds no <split>{' or <split>'.join(_READERS)} file")
    split = choose_split(str(folder), split, list(files))
    if len(files[split]) > 1:
        names = " and ".join(path.name for path in files[split])
        raise field_error("source.uri", f"{str(folder)!r} holds {names}: give the path of the one you mean")
    return split, files[split][0]
