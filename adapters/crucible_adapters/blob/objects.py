"""Blobs as objects of a bucket: the object of a key is the blob, and its own metadata hold the hash.

An object appears as a whole and with its metadata, so a write is one put, or a multipart upload that is completed or
taken back. A read of many requests asks for one version of the object: a write beside it ends it, never mixes into it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.folder import Record, check_key, not_there
from crucible_adapters.blob.write import already_there, check_wanted
from crucible_adapters.staging import StagedFile
from crucible_kit.errors import InvalidArgumentError, UnavailableError

BLOCK_BYTES = 8 * 1024 * 1024
"""Most bytes of one read from the bucket; a stream of chunks holds one block."""
_ROOT = Path("/")
_TRIES = 5


class Object(NamedTuple):
    """What a bucket tells of an object. `version` changes with every write."""

    record: Record
    version: str


class Changed(Exception):
    """The object is not there any more in the version that was asked for."""


class Taken(Exception):
    """An object is there already, and the put was to make a new one."""


class Bucket(Protocol):
    """Objects by name, in a library's words. Methods block; any thread may call them."""

    def head(self, name: str) -> Object | None: ...

    def get(self, name: str, offset: int, size: int, version: str) -> bytes:
        """A range of one version. Raises Changed."""
        ...

    def put(self, name: str, path: Path, record: Record, *, create_only: bool, wanted: Wanted) -> None:
        """Stores a file, whole or not at all. Raises Taken, and what `wanted` raises when nobody waits any more."""
        ...

    def delete(self, name: str) -> None: ...

    def list(self, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        """Names with a prefix, after a name, with their sizes in bytes, in the order of their UTF-8."""
        ...

    def uri(self, name: str) -> str: ...


class Wanted(Protocol):
    """Raises when nobody waits for a write any more."""

    def __call__(self) -> None: ...


class ObjectBlobs:
    """The blobs whose names begin with a prefix.

    Args:
        bucket: where they are.
        prefix: empty, or with a slash at the end.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        # Hashes of objects that other tools have put there, by name and version: an object can't be told its hash.
        self._hashes: dict[tuple[str, str], str] = {}

    def path(self, key: str, *, field: str = "key") -> str:
        """The name of a key. Raises INVALID_ARGUMENT FIELD_INVALID when it is not a key."""
        check_key(key, _ROOT, field=field)
        return self._prefix + key

    def ref(self, key: str, record: Record) -> tensor_pb2.BlobRef:
        """The blob as the contract names it."""
        return tensor_pb2.BlobRef(uri=self._bucket.uri(self._prefix + key), **record._asdict())

    def stat(self, key: str) -> Record:
        """The record of a blob; hashes an object that another tool put there. Raises NOT_FOUND."""
        return self._describe(key).record

    def open(self, key: str, offset: int = 0) -> tuple[ObjectReader, Record]:
        """The content from a byte on, and the record that belongs to it whatever is written afterwards."""
        for _ in range(_TRIES):
            described = self._describe(key)
            reader = ObjectReader(self._bucket, key, self._prefix + key, described, offset)
            try:
                reader.prepare()
            except Changed:
                continue  # written since
            return reader, described.record
        raise _replaced(key)

    def commit(
        self, key: str, staged: StagedFile, media_type: str, *, create_only: bool, abandoned: threading.Event
    ) -> Record:
        """Stores staged content and returns its record.

        Raises:
            AlreadyExistsError: BLOB_EXISTS when create_only and other content is there.
            OperationCancelledError: WRITE_ABANDONED.
        """
        name = self.path(key, field="header.key")
        record = Record(staged.size, staged.sha256(), media_type)
        path = staged.finish()
        for _ in range(_TRIES):
            if create_only and (present := self._bucket.head(name)) is not None:
                found = self._describe(key) if not present.record.sha256 else present
                if found.record.sha256 == record.sha256:
                    return found.record
                raise already_there(key, found.record.sha256, record.sha256)
            try:
                self._bucket.put(
                    name, path, record, create_only=create_only, wanted=lambda: check_wanted(key, abandoned)
                )
            except Taken:
                continue  # by a write beside this one
            return record
        raise _replaced(key)

    def delete(self, key: str) -> bool:
        """Removes a blob; whether it was there."""
        name = self.path(key)
        if self._bucket.head(name) is None:
            return False
        self._bucket.delete(name)
        return True

    def list(self, prefix: str, after: str, count: int) -> list[tuple[str, Record]]:
        """At most `count` blobs with a prefix, after a key, by key; without hash and media type."""
        found: list[tuple[str, Record]] = []
        for name, size in self._bucket.list(self._prefix + prefix, self._prefix + after if after else ""):
            key = name[len(self._prefix) :]
            if len(found) == count:
                break
            if _is_key(key):  # others' names, such as those of folders, can be none
                found.append((key, Record(size, "", "")))
        return found

    def _describe(self, key: str) -> Object:
        name = self.path(key)
        for _ in range(_TRIES):
            present = self._bucket.head(name)
            if present is None:
                raise not_there(key)
            if present.record.sha256:
                return present
            try:
                sha256 = self._hash(name, present)
            except Changed:
                continue
            return present._replace(record=present.record._replace(sha256=sha256))
        raise _replaced(key)

    def _hash(self, name: str, present: Object) -> str:
        known = self._hashes.get((name, present.version))
        if known is None:
            digest = hashlib.sha256()
            for offset in range(0, present.record.size_bytes, BLOCK_BYTES):
                size = min(BLOCK_BYTES, present.record.size_bytes - offset)
                digest.update(self._bucket.get(name, offset, size, present.version))
            known = digest.hexdigest()
            if len(self._hashes) >= 10_000:
                self._hashes.clear()
            self._hashes[name, present.version] = known
        return known


class ObjectReader:
    """One version of an object, read forward in blocks."""

    def __init__(self, bucket: Bucket, key: str, name: str, described: Object, offset: int) -> None:
        self._bucket = bucket
        self._key = key
        self._name = name
        self._object = described
        self._offset = offset  # of the next block
        self._block = memoryview(b"")

    def prepare(self) -> None:
        """Gets the first block. Raises Changed."""
        self._next()

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end. Raises UNAVAILABLE BLOB_REPLACED when the blob was written since."""
        data = bytearray()
        while len(data) < size:
            if not self._block:
                try:
                    self._next()
                except Changed:
                    raise _replaced(self._key) from None
                if not self._block:
                    break
            taken = self._block[: size - len(data)]
            self._block = self._block[len(taken) :]
            data += taken
        return bytes(data)

    def close(self) -> None:
        """Lets go of the block."""
        self._block = memoryview(b"")

    def _next(self) -> None:
        size = min(BLOCK_BYTES, self._object.record.size_bytes - self._offset)
        if size > 0:
            self._block = memoryview(self._bucket.get(self._name, self._offset, size, self._object.version))
            self._offset += len(self._block)


def _is_key(key: str) -> bool:
    try:
        check_key(key, _ROOT, field="key")
    except InvalidArgumentError:
        return False
    return True


def _replaced(key: str) -> UnavailableError:
    return UnavailableError(
        f"blob {key!r} was written or deleted while it was used: try again",
        reason="BLOB_REPLACED",
        metadata={"key": key},
    )
