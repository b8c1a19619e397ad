"""my-adapter: an adapter of the port blob. It keeps blobs in memory, so they go with the process."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import quote

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit import paging
from crucible_kit.author import run_adapter
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import AlreadyExistsError, DataLossError, NotFoundError, OutOfRangeError, field_error


class Blob(NamedTuple):
    """What is kept of a blob."""

    content: bytes
    media_type: str

    @property
    def sha256(self) -> str:
        """Hash of the content, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()


class Blobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """BlobStoreService over a dictionary. Your store goes in its place."""

    def __init__(self) -> None:
        self._blobs: dict[str, Blob] = {}

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        return blob_pb2.StatBlobResponse(blob=ref(request.key, self._find(request.key)))

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        blob, first = self._find(request.key), request.offset
        size = len(blob.content)
        if first > size:
            raise OutOfRangeError(
                f"offset {first} is past the end of blob {request.key!r}, {size} bytes",
                reason="RANGE",
                metadata={"key": request.key, "offset": first, "size_bytes": size},
            )
        end = min(first + request.limit, size) if request.limit else size
        # An empty range is one empty chunk.
        for offset in range(first, max(end, first + 1), CHUNK_BYTES):
            data = blob.content[offset : min(offset + CHUNK_BYTES, end)]
            yield blob_pb2.ReadBlobResponse(
                offset=offset, crc32=crc32(data), data=data, blob=ref(request.key, blob) if offset == first else None
            )

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any
    ) -> blob_pb2.WriteBlobResponse:
        header, content = await received(request_iterator)
        blob = Blob(content, header.media_type or "application/octet-stream")
        present = self._blobs.get(header.key) if header.create_only else None
        if present is not None and present.content != content:
            raise AlreadyExistsError(
                f"blob {header.key!r} is there with other content: use another key, or leave create_only out",
                reason="BLOB_EXISTS",
                metadata={"key": header.key, "present": present.sha256, "sent": blob.sha256},
            )
        self._blobs[header.key] = present or blob
        return blob_pb2.WriteBlobResponse(blob=ref(header.key, present or blob))

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Any) -> blob_pb2.ListBlobsResponse:
        size, scope = paging.page_size(request.page_size), f"ListBlobs\0{request.prefix}"
        position = paging.decode(request.page_token, scope)
        after = str(position[0]) if position else ""
        keys = sorted(key for key in self._blobs if key.startswith(request.prefix) and key > after)
        return blob_pb2.ListBlobsResponse(
            blobs=[blob_pb2.BlobEntry(key=key, blob=ref(key, self._blobs[key])) for key in keys[:size]],
            next_page_token=paging.encode([keys[size - 1]], scope) if len(keys) > size else "",
        )

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Any) -> blob_pb2.DeleteBlobResponse:
        check_key(request.key, "key")
        if self._blobs.pop(request.key, None) is None and not request.allow_missing:
            raise missing(request.key)
        return blob_pb2.DeleteBlobResponse()

    def _find(self, key: str) -> Blob:
        check_key(key, "key")
        if key not in self._blobs:
            raise missing(key)
        return self._blobs[key]


async def received(messages: AsyncIterator[blob_pb2.WriteBlobRequest]) -> tuple[blob_pb2.WriteBlobHeader, bytes]:
    """A whole write: a header, chunks, and a finish that says what should have arrived."""
    header: blob_pb2.WriteBlobHeader | None = None
    finish: blob_pb2.WriteBlobFinish | None = None
    content = bytearray()
    async for message in messages:
        part = message.WhichOneof("part")
        if part is None:
            raise field_error("part", "is missing: send a header, a chunk or a finish")
        if (part == "header") != (header is None):
            raise field_error("header", "must be the first message of a write, once")
        if finish is not None:
            raise field_error(part, "comes after the finish, which must be last")
        if part == "header":
            check_key(message.header.key, "header.key")
            header = message.header
        elif part == "finish":
            finish = message.finish
        else:
            chunk = message.chunk
            if chunk.offset != len(content):
                raise field_error("chunk.offset", f"is {chunk.offset}, must be {len(content)}: chunks are contiguous")
            agree("CRC-32 of a chunk", chunk.crc32, crc32(chunk.data))
            content += chunk.data
    if header is None or finish is None:
        raise field_error("finish", "is missing: the stream ended without it, and nothing was stored")
    agree("size in bytes", finish.size_bytes, len(content))
    agree("sha256", finish.sha256, hashlib.sha256(content).hexdigest())
    return header, bytes(content)


def agree(what: str, sent: object, arrived: object) -> None:
    """Raises DATA_LOSS where the bytes are not those that were sent."""
    if sent != arrived:
        raise DataLossError(
            f"the {what} is {arrived}, the sender said {sent}; nothing was stored: send it again",
            reason="BLOB_CORRUPT",
            metadata={"expected": sent, "actual": arrived},
        )


def check_key(key: str, field: str) -> None:
    """Raises INVALID_ARGUMENT for anything but a plain relative path with '/'."""
    if any(part in ("", ".", "..") for part in key.split("/")) or not key.isprintable():
        raise field_error(field, f"{key!r} must be a relative path with '/', without '.', '..' or empty parts")


def missing(key: str) -> NotFoundError:
    """The error of a blob that does not exist."""
    return NotFoundError(f"there is no blob {key!r}", reason="BLOB_NOT_FOUND", metadata={"key": key})


def ref(key: str, blob: Blob) -> tensor_pb2.BlobRef:
    """What the port says of a blob."""
    return tensor_pb2.BlobRef(
        uri=f"memory:///{quote(key)}",
        size_bytes=len(blob.content),
        sha256=blob.sha256,
        media_type=blob.media_type,
    )


if __name__ == "__main__":
    run_adapter(name="my-adapter", ports={"blob": Blobs()})
