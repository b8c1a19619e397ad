"""Blobs in fsspec's file system in memory, which a process has once: stores of one URL share their blobs."""

from __future__ import annotations

import hashlib
import io
import threading
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.folder import (
    META,
    Record,
    check_key,
    corrupt,
    no_room,
    not_there,
    parse_record,
    record_name,
)
from crucible_adapters.blob.write import DEFAULT_MEDIA_TYPE, already_there, check_wanted
from crucible_adapters.staging import StagedFile
from crucible_kit.chunks import canonical_json

_ROOT = Path("/")
# One for all stores of the process, as their blobs are: content and record change together.
_LOCK = threading.Lock()


class MemoryBlobs:
    """The blobs below one path.

    Args:
        files: fsspec's MemoryFileSystem.
        root: path in it, without a slash at the end.
    """

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root

    def path(self, key: str, *, field: str = "key") -> str:
        """The path of a key. Raises INVALID_ARGUMENT FIELD_INVALID when it is not a key."""
        check_key(key, _ROOT, field=field)
        return f"{self._root}/{key}"

    def ref(self, key: str, record: Record) -> tensor_pb2.BlobRef:
        """The blob as the contract names it."""
        return tensor_pb2.BlobRef(uri=f"memory:/{self._root}/{key}", **record._asdict())

    def stat(self, key: str) -> Record:
        """The record of a blob. Raises NOT_FOUND, DATA_LOSS."""
        path = self.path(key)
        with _LOCK:
            return self._describe(key, path)[1]

    def open(self, key: str, offset: int = 0) -> tuple[BinaryIO, Record]:
        """The content from a byte on and its record."""
        path = self.path(key)
        with _LOCK:
            content, record = self._describe(key, path)
        file = io.BytesIO(content)
        file.seek(min(offset, record.size_bytes))
        return file, record

    def commit(
        self, key: str, staged: StagedFile, media_type: str, *, create_only: bool, abandoned: threading.Event
    ) -> Record:
        """Puts staged content in place and returns its record. Raises as BlobFolder's does."""
        path = self.path(key, field="header.key")
        record = Record(staged.size, staged.sha256(), media_type)
        content = staged.finish().read_bytes()
        with _LOCK:
            check_wanted(key, abandoned)
            if create_only and self._files.isfile(path):
                present = self._describe(key, path)[1]
                if present.sha256 == record.sha256:
                    return present
                raise already_there(key, present.sha256, record.sha256)
            if any(name != path for name in self._files.find(path)):
                raise no_room(key, "other blobs lie below it")
            parts = key.split("/")
            for folder in ("/".join(parts[:count]) for count in range(1, len(parts))):
                if self._files.isfile(f"{self._root}/{folder}"):
                    raise no_room(key, f"{folder} is a blob")
            self._files.pipe_file(path, content)
            self._files.pipe_file(self._record_path(key), canonical_json({"key": key, **record._asdict()}))
        return record

    def delete(self, key: str) -> bool:
        """Removes a blob; whether it was there."""
        path = self.path(key)
        with _LOCK:
            if not self._files.isfile(path):
                return False
            self._files.rm_file(path)
            if self._files.isfile(self._record_path(key)):
                self._files.rm_file(self._record_path(key))
        return True

    def list(self, prefix: str, after: str, count: int) -> list[tuple[str, Record]]:
        """At most `count` blobs with a prefix, after a key, by key. Hashes nothing: a record may lack its hash."""
        with _LOCK:
            found = {
                path[len(self._root) + 1 :]: info["size"]
                for path, info in self._files.find(self._root, detail=True).items()
            }
            keys = sorted(key for key in found if key.startswith(prefix) and key > after)
            own = f"{META}/"
            return [
                (key, self._known(key, found[key])) for key in islice((k for k in keys if not k.startswith(own)), count)
            ]

    def _known(self, key: str, size: int) -> Record:
        record = self._read_record(key)
        return record if record is not None and record.size_bytes == size else Record(size, "", DEFAULT_MEDIA_TYPE)

    def _describe(self, key: str, path: str) -> tuple[bytes, Record]:
        if not self._files.isfile(path):
            raise not_there(key)
        content = self._files.cat_file(path)
        record = self._read_record(key)
        if record is None:  # put there by somebody else
            record = Record(len(content), hashlib.sha256(content).hexdigest(), DEFAULT_MEDIA_TYPE)
        if len(content) != record.size_bytes:
            raise corrupt(key, f"has {len(content)} bytes, {record.size_bytes} were stored")
        return content, record

    def _read_record(self, key: str) -> Record | None:
        path = self._record_path(key)
        return parse_record(self._files.cat_file(path), key) if self._files.isfile(path) else None

    def _record_path(self, key: str) -> str:
        return f"{self._root}/{META}/{record_name(key)}.json"
