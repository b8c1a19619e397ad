"""The port blob, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from crucible.port.blob.v1 import blob_pb2 as pb
from crucible.port.blob.v1 import blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit import paging
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import AlreadyExistsError, DataLossError, NotFoundError, OutOfRangeError, field_error


@dataclass(frozen=True)
class Blob:
    """Bytes and what they are."""

    data: bytes
    media_type: str


class ToyBlobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """Blobs in a dictionary."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}

    def ref(self, key: str, blob: Blob) -> tensor_pb2.BlobRef:
        """A blob as the port tells it."""
        return tensor_pb2.BlobRef(
            uri=f"toy:{key}",
            size_bytes=len(blob.data),
            sha256=hashlib.sha256(blob.data).hexdigest(),
            media_type=blob.media_type,
        )

    def find(self, key: str) -> Blob:
        """A blob that is there."""
        self.check_key(key, "key")
        if key not in self.blobs:
            raise NotFoundError(f"there is no blob {key!r}", reason="BLOB_NOT_FOUND")
        return self.blobs[key]

    def check_key(self, key: str, field: str) -> None:
        """Refuses what is no key."""
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise field_error(field, f"{key!r} is no key")

    async def StatBlob(self, request: Any, context: Any) -> pb.StatBlobResponse:
        return pb.StatBlobResponse(blob=self.ref(request.key, self.find(request.key)))

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        blob = self.find(request.key)
        data = self.slice(blob.data, request.offset, request.limit)
        for place in range(0, max(len(data), 1), CHUNK_BYTES):
            part = data[place : place + CHUNK_BYTES]
            response = pb.ReadBlobResponse(offset=request.offset + place, crc32=crc32(part), data=part)
            if place == 0:
                response.blob.CopyFrom(self.ref(request.key, blob))
            yield response

    def slice(self, data: bytes, offset: int, limit: int) -> bytes:
        """A range of a blob."""
        if offset > len(data):
            raise OutOfRangeError(f"offset: {offset} is past the end", reason="RANGE")
        return data[offset : offset + limit] if limit else data[offset:]

    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        header, finish, data = None, None, bytearray()
        async for request in request_iterator:
            part = request.WhichOneof("part")
            if part is None:
                raise field_error("part", "is missing")
            if finish is not None:
                raise field_error(part, "comes after the finish")
            if (part == "header") != (header is None):
                raise field_error("header", "must come first, and once")
            if part == "header":
                header = request.header
                self.check_key(header.key, "header.key")
            elif part == "chunk":
                self.take(header, data, request.chunk)
            else:
                finish = request.finish
        return self.finish(header, bytes(data), finish)

    def take(self, header: Any, data: bytearray, chunk: pb.BlobChunk) -> None:
        """Adds a chunk."""
        self.check_offset(chunk.offset, len(data))
        self.check_crc(chunk)
        data += chunk.data

    def check_offset(self, offset: int, expected: int) -> None:
        """Chunks are contiguous."""
        if offset != expected:
            raise field_error("chunk.offset", f"is {offset}, {expected} is next")

    def check_crc(self, chunk: pb.BlobChunk) -> None:
        """Chunks are whole."""
        if crc32(chunk.data) != chunk.crc32:
            raise corrupt("CRC-32")

    def finish(self, header: Any, data: bytes, finish: Any) -> pb.WriteBlobResponse:
        """Stores what was sent."""
        if header is None or finish is None:
            raise field_error("finish", "is missing")
        self.check_size(data, finish)
        self.check_hash(data, finish)
        blob = Blob(data, header.media_type or "application/octet-stream")
        self.store(header, blob)
        return pb.WriteBlobResponse(blob=self.ref(header.key, self.blobs[header.key]))

    def check_size(self, data: bytes, finish: Any) -> None:
        """The content has the size that was told."""
        if len(data) != finish.size_bytes:
            raise corrupt("size")

    def check_hash(self, data: bytes, finish: Any) -> None:
        """The content has the hash that was told."""
        if hashlib.sha256(data).hexdigest() != finish.sha256:
            raise corrupt("hash")

    def store(self, header: Any, blob: Blob) -> None:
        """Puts a blob in its place."""
        present = self.blobs.get(header.key)
        if header.create_only and present is not None:
            if present.data != blob.data:
                raise AlreadyExistsError(f"blob {header.key!r} is there", reason="BLOB_EXISTS")
            return
        self.blobs[header.key] = blob

    async def ListBlobs(self, request: Any, context: Any) -> pb.ListBlobsResponse:
        size, scope = paging.page_size(request.page_size), f"ListBlobs\0{request.prefix}"
        position = self.position(request.page_token, scope)
        keys = [key for key in self.keys(request.prefix) if not position or key > position[0]]
        response = pb.ListBlobsResponse(
            blobs=[pb.BlobEntry(key=key, blob=self.ref(key, self.blobs[key])) for key in keys[:size]]
        )
        if len(keys) > size:
            response.next_page_token = self.token(keys[:size], scope)
        return response

    def keys(self, prefix: str) -> list[str]:
        """The keys with a prefix, in order."""
        return sorted(key for key in self.blobs if key.startswith(prefix))

    def position(self, token: str, scope: str) -> list[Any]:
        """Where a page begins."""
        return paging.decode(token, scope)

    def token(self, shown: list[str], scope: str) -> str:
        """Where the next page begins."""
        return paging.encode([shown[-1]], scope)

    async def DeleteBlob(self, request: Any, context: Any) -> pb.DeleteBlobResponse:
        self.check_key(request.key, "key")
        if request.key not in self.blobs and not request.allow_missing:
            self.find(request.key)
        self.delete(request.key)
        return pb.DeleteBlobResponse()

    def delete(self, key: str) -> None:
        """Removes a blob, if it is there."""
        self.blobs.pop(key, None)


def corrupt(what: str) -> DataLossError:
    """The error of a damaged write."""
    return DataLossError(f"the {what} differs: nothing was stored", reason="BLOB_CORRUPT")
