"""Blobs as plain files below a folder, each with a record of its size, hash and media type.

The file of a key lies at root/key, so that a checkpoint's folder can be read by any tool. The record lies in root/.meta
under the hash of the key: two keys never meet there, however they are named. A write goes: content aside and synced,
record as `.next`, content in place, record in place. Whatever moment a crash picks, the next look at the blob settles
which of the two contents is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.write import DEFAULT_MEDIA_TYPE, already_there, check_wanted
from crucible_adapters.paths import check_relative
from crucible_adapters.staging import StagedFile, make_folders
from crucible_kit.chunks import atomic_file, canonical_json, fsync_folder, sha256_file
from crucible_kit.errors import DataLossError, InvalidArgumentError, NotFoundError, field_error
from crucible_kit.faults import fault_point

META = ".meta"


class Record(NamedTuple):
    """What is known of a blob. An empty hash: not known without reading it."""

    size_bytes: int
    sha256: str
    media_type: str


class BlobFolder:
    """The blobs below one folder. Methods block; any thread may call them.

    Attributes:
        staging: folder for contents to be, on the same disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)
        self.staging = self._root / META / "staging"
        # Looks and changes take turns, so that nobody sees content and record of different blobs.
        self._lock = threading.Lock()

    def path(self, key: str, *, field: str = "key") -> Path:
        """The file of a key. Raises INVALID_ARGUMENT FIELD_INVALID when it is not a key."""
        return check_key(key, self._root, field=field)

    def ref(self, key: str, record: Record) -> tensor_pb2.BlobRef:
        """The blob as the contract names it."""
        return tensor_pb2.BlobRef(
            uri=(self._root / key).as_uri(),
            size_bytes=record.size_bytes,
            sha256=record.sha256,
            media_type=record.media_type,
        )

    def stat(self, key: str) -> Record:
        """The record of a blob; hashes a file that another tool put there. Raises NOT_FOUND, DATA_LOSS."""
        path = self.path(key)
        with self._lock:
            return self._describe(key, path)

    def open(self, key: str, offset: int = 0) -> tuple[BinaryIO, Record]:
        """The content for reading from a byte on, and the record that belongs to it whatever is written afterwards."""
        path = self.path(key)
        with self._lock:
            record = self._describe(key, path)
            file = path.open("rb")
        # Who reads is told of an offset past the end; the system itself takes only some of those.
        file.seek(min(offset, record.size_bytes))
        return file, record

    def commit(
        self,
        key: str,
        staged: StagedFile,
        media_type: str,
        *,
        create_only: bool,
        abandoned: threading.Event | None = None,
    ) -> Record:
        """Puts staged content in place, durable, and returns its record.

        Args:
            abandoned: set when nobody waits for it any more; what has not been stored by then is not.

        Raises:
            OperationCancelledError: WRITE_ABANDONED.
            AlreadyExistsError: BLOB_EXISTS when create_only and other content is there.
            InvalidArgumentError: FIELD_INVALID when the key is a folder of other blobs, or lies below a blob.
        """
        path = self.path(key, field="header.key")
        record = Record(staged.size, staged.sha256(), media_type)
        staged.sync()
        with self._lock:
            check_wanted(key, abandoned)
            if create_only and path.is_file():
                present = self._describe(key, path)
                if present.sha256 == record.sha256:
                    return present
                raise already_there(key, present.sha256, record.sha256)
            if path.is_dir():
                raise no_room(key, "other blobs lie below it")
            try:
                make_folders(path.parent)
            except NotADirectoryError as error:
                raise no_room(key, f"{Path(str(error)).relative_to(self._root)} is a blob") from error
            upcoming, record_path = self._next_path(key), self._record_path(key)
            with atomic_file(upcoming) as file:
                file.write(canonical_json({"key": key, **record._asdict()}))
            fault_point("blob.rename.before")
            staged.place(path)
            fault_point("blob.rename.after")
            os.replace(upcoming, record_path)
            fsync_folder(record_path.parent)
        return record

    def delete(self, key: str) -> bool:
        """Removes a blob; whether it was there."""
        path = self.path(key)
        with self._lock:
            if not path.is_file():
                return False
            # The record first: content without one is still a blob, a record without content would condemn the next.
            self._next_path(key).unlink(missing_ok=True)
            self._record_path(key).unlink(missing_ok=True)
            path.unlink()
            folder = path.parent
            while folder != self._root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
            fsync_folder(folder)
        return True

    def list(self, prefix: str, after: str, count: int) -> list[tuple[str, Record]]:
        """At most `count` blobs with a prefix, after a key, by key. Hashes nothing: a record may lack its hash."""
        found = []
        for key in islice(self._keys(self._root, "", prefix, after), count):
            path = self._root / key
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # deleted since
            record = self._read_record(key)
            known = record is not None and record.size_bytes == size and not self._next_path(key).exists()
            found.append((key, record if record is not None and known else Record(size, "", DEFAULT_MEDIA_TYPE)))
        return found

    def _keys(self, folder: Path, base: str, prefix: str, after: str) -> Iterator[str]:
        # A folder sorts as its name with '/', as its keys do.
        entries = sorted(
            (f"{base}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}", Path(entry.path))
            for entry in os.scandir(folder)
            if not (base == "" and entry.name == META) and _is_text(entry.name)
        )
        for name, path in entries:
            if not name.endswith("/"):
                if name.startswith(prefix) and name > after and path.is_file():
                    yield name
            elif (name.startswith(prefix) or prefix.startswith(name)) and (name > after or after.startswith(name)):
                try:
                    yield from self._keys(path, name, prefix, after)
                except FileNotFoundError:
                    continue  # its last blob was deleted since

    def _describe(self, key: str, path: Path) -> Record:
        if not path.is_file():
            raise not_there(key)
        self._settle(key, path)
        record = self._read_record(key)
        if record is None:
            record = Record(path.stat().st_size, sha256_file(path), DEFAULT_MEDIA_TYPE)
            with atomic_file(self._record_path(key)) as file:
                file.write(canonical_json({"key": key, **record._asdict()}))
        size = path.stat().st_size
        if size != record.size_bytes:
            raise corrupt(key, f"has {size} bytes, {record.size_bytes} were stored")
        return record

    def _settle(self, key: str, path: Path) -> None:
        """Ends a write that a crash interrupted: its record counts exactly when its content is in place."""
        upcoming = self._next_path(key)
        if not upcoming.exists():
            return
        record = parse_record(upcoming.read_bytes(), key)
        if record is not None and record.size_bytes == path.stat().st_size and record.sha256 == sha256_file(path):
            os.replace(upcoming, self._record_path(key))
        else:
            upcoming.unlink()
        fsync_folder(upcoming.parent)

    def _read_record(self, key: str) -> Record | None:
        path = self._record_path(key)
        if not path.exists():
            return None
        record = parse_record(path.read_bytes(), key)
        if record is None:
            raise corrupt(key, f"has a damaged record {path}; if the content is right, delete that file")
        return record

    def _record_path(self, key: str) -> Path:
        return self._root / META / f"{record_name(key)}.json"

    def _next_path(self, key: str) -> Path:
        return self._record_path(key).with_suffix(".next")


def check_key(key: str, root: Path, *, field: str) -> Path:
    """The path of a key below a root. Raises INVALID_ARGUMENT FIELD_INVALID for what is no key of a store."""
    path = check_relative(key, root, field=field)
    if key.split("/", 1)[0] == META:
        raise field_error(field, f"{key!r} begins with {META!r}, which is the store's own: choose another name")
    return path


def no_room(key: str, why: str) -> InvalidArgumentError:
    """The error of a key whose name is taken by a folder, or that lies below a blob."""
    return field_error("header.key", f"{key!r} can't be a blob: {why}; a name is a blob or a folder, not both")


def not_there(key: str) -> NotFoundError:
    """The error of a key without a blob."""
    return NotFoundError(
        f"there is no blob {key!r}: list the keys with ListBlobs", reason="BLOB_NOT_FOUND", metadata={"key": key}
    )


def record_name(key: str) -> str:
    """Where the record of a key lies below META, without a suffix."""
    name = hashlib.sha256(key.encode()).hexdigest()
    return f"{name[:2]}/{name}"


def corrupt(key: str, problem: str) -> DataLossError:
    """The error of a blob whose bytes are not those that were stored."""
    return DataLossError(f"blob {key!r} {problem}", reason="BLOB_CORRUPT", metadata={"key": key})


def parse_record(data: bytes, key: str) -> Record | None:
    """The record in a file's bytes; None when it is damaged or another key's."""
    try:
        value = json.loads(data)
        record = Record(int(value["size_bytes"]), str(value["sha256"]), str(value["media_type"]))
    except (ValueError, KeyError, TypeError):
        return None
    return record if value["key"] == key else None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 can't be a key
        return False
    return True
