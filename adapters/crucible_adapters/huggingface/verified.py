"""Downloaded files against their hashes. The library compares sizes only."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from crucible_kit.chunks import atomic_file, canonical_json, sha256_file
from crucible_kit.errors import DataLossError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB = re.compile(r"[0-9a-f]{40}")
_PIECE_BYTES = 1024 * 1024


class VerifiedFiles:
    """Which files of one repository have been read and hashed, by size and time of change, so that it is done once."""

    def __init__(self, record: Path) -> None:
        """`record` is a file of ours that remembers it; it may be missing, and may be deleted."""
        self._record = record

    def check(self, files: Iterable[Path], repo: str) -> None:
        """Hashes what has not been hashed. The library's cache names each content by its hash.

        Raises:
            DataLossError: HUB_FILE_CORRUPT; the file is removed, so that the next call downloads it again.
        """
        known = self._known()
        checked = dict(known)
        for file in files:
            content = _content_of(file)
            expected = content.name
            status = content.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            if known.get(str(content)) == stamp:
                continue
            actual = _hash_like(expected, content)
            if actual is None:
                continue  # a cache without links keeps no hashes
            if actual != expected:
                for path in {file, content, content.resolve()}:
                    path.unlink(missing_ok=True)
                raise DataLossError(
                    f"{repo}: {file.name} has the hash {actual}, the hub told {expected}; it was removed: try again",
                    reason="HUB_FILE_CORRUPT",
                    metadata={"repo": repo, "path": file.name, "expected": expected, "actual": actual},
                )
            checked[str(content)] = stamp
        if checked != known:
            checked = {content: stamp for content, stamp in checked.items() if os.path.exists(content)}
            with atomic_file(self._record) as out:
                out.write(canonical_json(checked))

    def _known(self) -> dict[str, list[int]]:
        try:
            known = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _content_of(file: Path) -> Path:
    """The cache's content that a file of a snapshot links to; the file itself where it is no link."""
    return Path(os.path.normpath(file.parent / os.readlink(file))) if file.is_symlink() else file


def _hash_like(name: str, file: Path) -> str | None:
    """The hash of the kind that a name is: SHA-256, or git's hash of a blob; None for another name."""
    if _SHA256.fullmatch(name):
        return sha256_file(file)
    if _GIT_BLOB.fullmatch(name):
        return git_blob_hash(file)
    return None


def git_blob_hash(file: Path) -> str:
    """Git's name of a file's content: SHA-1 of a header and the bytes, 40 hex digits."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
