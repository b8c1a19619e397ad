"""Operations on datasets. Each takes the arguments of one call and answers with plain values."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crucible_adapters.dataset.arrow import ArrowRows, select_columns, unreadable_columns
from crucible_adapters.huggingface.library import Library
from crucible_adapters.huggingface.prepared import PreparedSplit, PreparedSplits
from crucible_adapters.huggingface.verified import VerifiedFiles
from crucible_kit.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from crucible_adapters.huggingface.builders import SplitBuilder

_DOWNLOADS_AT_A_TIME = 4
_PATHS_A_REQUEST = 500
_GIB = 1024**3


def find(library: Library, *, config: str, split: str, cache: str) -> dict[str, str]:
    """Commit, configuration and split that a request means. Of the files only names and the README.md are read."""
    commit = library.commit()
    known = PreparedSplits(Path(cache), library.subject.repo, commit).asked(config, split)
    if known is not None:
        return _described(known)
    _check_access(library, commit)
    builder = _builder(library, commit, config, split, cache)
    return {"revision": commit, "config": builder.config, "split": builder.split}


def prepare(
    library: Library, *, config: str, split: str, cache: str, record: str, max_download_gib: float
) -> dict[str, str]:
    """Brings one split and makes Arrow files of it, once for a commit; answers with the split's folder."""
    commit = library.commit()
    splits = PreparedSplits(Path(cache), library.subject.repo, commit)
    prepared = splits.asked(config, split)
    if prepared is None:
        _check_access(library, commit)
        builder = _builder(library, commit, config, split, cache)
        folder = splits.folder(builder.config, builder.split)
        prepared = PreparedSplit.read(folder)
        if prepared is None:
            _download(library, commit, builder.paths, Path(record), max_download_gib)
            prepared = _build(library, commit, builder, folder)
        splits.remember(config, split, prepared)
    return {"folder": str(prepared.folder), **_described(prepared)}


def stream(
    library: Library,
    *,
    config: str,
    split: str,
    cache: str,
    skip: int,
    take: int,
    fields: list[str] | None,
    folder: str,
) -> dict[str, Any]:
    """Reads a split until the wanted rows are there, and writes them into Arrow files in `folder`; answers with the
    split's own folder when all its rows are here anyway.
    """
    commit = library.commit()
    known = PreparedSplits(Path(cache), library.subject.repo, commit).asked(config, split)
    if known is not None:
        return {"folder": str(known.folder), **_described(known)}
    _check_access(library, commit)
    builder = _builder(library, commit, config, split, cache)
    files = _write(builder.tables(skip + take, fields), library.subject.repo, skip, fields, Path(folder))
    return {
        "files": [str(path) for path in files],
        "revision": commit,
        "config": builder.config,
        "split": builder.split,
    }


def _described(split: PreparedSplit) -> dict[str, str]:
    return {"revision": split.revision, "config": split.config, "split": split.split}


def _check_access(library: Library, commit: str) -> None:
    """Raises what the hub says of a repository, or a commit, that is not there or closed to the caller."""
    info = library.api.dataset_info(library.subject.repo, revision=commit)
    if info.gated:
        # What is in it everybody may see; only this tells who may download it.
        library.api.auth_check(library.subject.repo, repo_type="dataset")


def _builder(library: Library, commit: str, config: str, split: str, cache: str) -> SplitBuilder:
    # Loading the library takes half a second, and rows that have been prepared do without.
    from crucible_adapters.huggingface.builders import SplitBuilder

    return SplitBuilder(library.subject, commit, config, split, Path(cache) / "builders")


def _download(library: Library, commit: str, paths: list[str], record: Path, max_download_gib: float) -> None:
    """Brings files into the library's cache and checks their hashes."""
    repo, api = library.subject.repo, library.api
    size = 0
    for start in range(0, len(paths), _PATHS_A_REQUEST):
        some = paths[start : start + _PATHS_A_REQUEST]
        for each in api.get_paths_info(repo, some, revision=commit, repo_type="dataset"):
            size += getattr(each, "size", 0)
    if size > max_download_gib * _GIB:
        raise ResourceExhaustedError(
            f"dataset {repo!r}: the split's files have {size / _GIB:.3g} GiB together, the limit is "
            f"{max_download_gib:g} GiB: open it with streaming and take, or raise the option max_download_gib",
            reason="DATASET_TOO_LARGE",
            metadata={"dataset": repo, "bytes": size, "max_download_gib": max_download_gib},
        )
    with ThreadPoolExecutor(_DOWNLOADS_AT_A_TIME) as threads:
        calls = [
            threads.submit(api.hf_hub_download, repo, path, repo_type="dataset", revision=commit) for path in paths
        ]
        try:
            files = [Path(call.result()) for call in calls]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    VerifiedFiles(record).check(files, repo)


def _build(library: Library, commit: str, builder: SplitBuilder, folder: Path) -> PreparedSplit:
    files = builder.build(folder / "arrow")
    rows = ArrowRows(library.subject.repo, files)
    prepared = PreparedSplit(
        folder=folder, revision=commit, config=builder.config, split=builder.split, files=tuple(files)
    )
    prepared.write(None if any(unreadable_columns(schema) for schema in rows.schemas) else rows.digests)
    return prepared


def _write(tables: Iterable[pa.Table], repo: str, skip: int, fields: list[str] | None, folder: Path) -> list[Path]:
    """Rows after the first `skip`, in Arrow files: one for each schema that comes along."""
    files: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writer: pa.RecordBatchStreamWriter | None = None
        schema: pa.Schema | None = None
        for table in tables:
            table, skip = table.slice(skip), max(0, skip - table.num_rows)
            table = select_columns(table, fields, repo, 0)
            if not table.num_rows:
                continue
            if writer is None or table.schema != schema:
                schema = table.schema
                files.append(folder / f"{len(files)}.arrow")
                writer = stack.enter_context(pa.ipc.new_stream(str(files[-1]), schema))
            writer.write_table(table)
    return files
