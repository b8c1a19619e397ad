"""One write of a blob: its messages, checked, whatever keeps the bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from crucible.port.blob.v1 import blob_pb2
from crucible_kit.chunks import crc32
from crucible_kit.errors import AlreadyExistsError, DataLossError, OperationCancelledError, field_error

DEFAULT_MEDIA_TYPE = "application/octet-stream"


class Content(Protocol):
    """Where the bytes go."""

    @property
    def size(self) -> int: ...
    def write(self, data: bytes) -> None: ...
    def sha256(self) -> str: ...


class Written(NamedTuple):
    """A write that is whole: what is to be stored, and how."""

    key: str
    media_type: str
    create_only: bool


class BlobWrite:
    """Checks the messages of a write and keeps its content.

    Args:
        content: where the bytes go.
        check_key: raises INVALID_ARGUMENT FIELD_INVALID about `header.key` for what is no key of the store.
    """

    def __init__(self, content: Content, check_key: Callable[[str], object]) -> None:
        self._content = content
        self._check_key = check_key
        self._header: blob_pb2.WriteBlobHeader | None = None
        self._finish: blob_pb2.WriteBlobFinish | None = None

    def take(self, request: blob_pb2.WriteBlobRequest) -> None:
        """Takes the next message."""
        part = request.WhichOneof("part")
        if part is None:
            raise field_error("part", "is missing: send a header, a chunk or a finish")
        if (part == "header") != (self._header is None):
            raise field_error("header", "must be the first message of a write, once")
        if self._finish is not None:
            raise field_error(part, "comes after the finish, which must be last")
        match part:
            case "header":
                self._check_key(request.header.key)
                self._header = request.header
            case "chunk":
                self._add(request.chunk)
            case "finish":
                self._finish = request.finish

    def _add(self, chunk: blob_pb2.BlobChunk) -> None:
        if chunk.offset != self._content.size:
            raise field_error("chunk.offset", f"is {chunk.offset}, must be {self._content.size}: chunks are contiguous")
        data = chunk.data
        if crc32(data) != chunk.crc32:
            raise self._damaged("CRC-32 of a chunk", f"{chunk.crc32:08x}", f"{crc32(data):08x}")
        self._content.write(data)

    def finish(self) -> Written:
        """What to store. Raises INVALID_ARGUMENT for a stream that is not whole, DATA_LOSS BLOB_CORRUPT."""
        header, finish = self._header, self._finish
        if header is None:
            raise field_error("header", "is missing: a write is a header, chunks and a finish")
        if finish is None:
            raise field_error("finish", "is missing: the stream ended without it and nothing was stored")
        if finish.size_bytes != self._content.size:
            raise self._damaged("size in bytes", finish.size_bytes, self._content.size)
        if finish.sha256 != self._content.sha256():
            raise self._damaged("sha256", finish.sha256, self._content.sha256())
        return Written(header.key, header.media_type or DEFAULT_MEDIA_TYPE, header.create_only)

    def _damaged(self, what: str, sent: object, arrived: object) -> DataLossError:
        key = self._header.key if self._header is not None else ""
        return DataLossError(
            f"blob {key!r}: the {what} is {arrived}, the sender said {sent}; nothing was stored: send it again",
            reason="BLOB_CORRUPT",
            metadata={"key": key, "expected": sent, "actual": arrived},
        )


def check_wanted(key: str, abandoned: threading.Event | None) -> None:
    """Raises CANCELLED WRITE_ABANDONED when nobody waits for the write any more."""
    if abandoned is not None and abandoned.is_set():
        raise OperationCancelledError(
            f"the write of blob {key!r} was cancelled; nothing was stored", reason="WRITE_ABANDONED"
        )


def already_there(key: str, present: str, sent: str) -> AlreadyExistsError:
    """The error of a create_only write where other content is; hashes in hex."""
    return AlreadyExistsError(
        f"blob {key!r} is there with other content (sha256 {present[:12]}, not {sent[:12]}): use another key, or leave "
        "create_only out",
        reason="BLOB_EXISTS",
        metadata={"key": key, "present": present, "sent": sent},
    )
