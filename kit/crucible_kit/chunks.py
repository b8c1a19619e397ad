"""Bytes in chunks of 256 KiB with CRC-32, and files that appear as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from crucible_kit.errors import DataLossError

CHUNK_BYTES = 256 * 1024


def crc32(data: bytes) -> int:
    """zlib's CRC-32: it is in every language's standard library."""
    return zlib.crc32(data)


def check_crc(data: bytes, expected: int, what: str) -> None:
    """Raises DATA_LOSS CHUNK_CORRUPT when the bytes differ from their checksum."""
    actual = crc32(data)
    if actual != expected:
        raise DataLossError(
            f"{what}: CRC-32 is {actual:08x}, the sender said {expected:08x}: send it again",
            reason="CHUNK_CORRUPT",
            metadata={"expected": f"{expected:08x}", "actual": f"{actual:08x}"},
        )


def read_chunks(path: Path, offset: int = 0, limit: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file's range in order; limit 0 is to the end. An empty range is one empty chunk."""
    with path.open("rb") as file:
        file.seek(offset)
        left = limit or None
        sent = False
        while True:
            size = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
            data = file.read(size) if size else b""
            if not data:
                if not sent:
                    yield offset, b""
                return
            yield offset, data
            sent = True
            offset += len(data)
            left = None if left is None else left - len(data)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fsync_folder(folder: Path) -> None:
    """Makes the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file that takes `path`'s place, durable, when the block ends well, and vanishes otherwise.

    `mode`: its permissions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
