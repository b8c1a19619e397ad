"""What a folder of files holds: each file's hash, and one hash over all as its revision."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from crucible_kit.chunks import sha256_file
from crucible_kit.errors import field_error

MAX_FILES = 10_000


class FileEntry(NamedTuple):
    """A file: path within the folder with '/', size in bytes, hash."""

    path: str
    size_bytes: int
    sha256: str


class Contents(NamedTuple):
    """A folder's files by path, the revision, and the newest file's time in nanoseconds since 1970 (0: no files)."""

    files: list[FileEntry]
    revision: str
    mtime_ns: int


class ContentReader:
    """Reads folders, and hashes a file again only when its size or time has changed."""

    def __init__(self) -> None:
        self._hashes: dict[Path, tuple[int, int, str]] = {}
        self._lock = threading.Lock()  # two readers of one model would hash it twice

    def read(self, folder: Path) -> Contents:
        """The folder's contents. The revision is the SHA-256 over the lines `<sha256>  <path>\\n`, sorted by path.

        Raises:
            InvalidArgumentError: FIELD_INVALID for a folder with so many files that it is no repository.
            OSError: a file can't be read.
        """
        files, newest = [], 0
        with self._lock:
            # Counted before anything is hashed: somebody may name the root of the disk.
            paths = list(islice(visible_files(folder), MAX_FILES + 1))
            if len(paths) > MAX_FILES:
                raise field_error("ref.repo", f"{folder} has more than {MAX_FILES} files: name the model's own folder")
            for path in sorted(paths):
                status = path.stat()
                newest = max(newest, status.st_mtime_ns)
                name = path.relative_to(folder).as_posix()
                files.append(FileEntry(name, status.st_size, self._hash(path, status)))
        files.sort()
        lines = "".join(f"{file.sha256}  {file.path}\n" for file in files)
        return Contents(files, hashlib.sha256(lines.encode()).hexdigest(), newest)

    def _hash(self, path: Path, status: os.stat_result) -> str:
        known = self._hashes.get(path)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = (status.st_size, status.st_mtime_ns, sha256_file(path))
            self._hashes[path] = known
        return known[2]


def visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, except those in hidden folders (.git, .cache)."""
    for entry in os.scandir(folder):
        # Files may be links, as in a hub's cache; folders that are links could go round in circles.
        if entry.is_file():
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from visible_files(Path(entry.path))
