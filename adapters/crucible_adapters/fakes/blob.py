"""The fake of the blob port: bytes in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic import Field

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.write import BlobWrite, already_there
from crucible_adapters.fakes.memory import MemoryFile
from crucible_adapters.paths import check_relative
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import NotFoundError, OutOfRangeError, ResourceExhaustedError

_ROOT = Path("/")


class FakeBlobOptions(AdapterOptions):
    """Limits."""

    seed: int = Field(default=0, ge=0, description="Changes nothing: a store invents nothing.")
    max_bytes: int = Field(default=2**31, ge=0, description="Most bytes of all blobs: past it DISK_FULL.")


class _Blob(NamedTuple):
    content: bytes
    media_type: str


class FakeBlobStore(blob_pb2_grpc.BlobStoreServiceServicer):
    """Blobs in a dictionary. A key may also be the folder of others, as in an object store."""

    description = AdapterDescription(name="fake-blob", port="blob", options=FakeBlobOptions)

    def __init__(self, options: FakeBlobOptions, context: AdapterContext) -> None:
        self._max_bytes = options.max_bytes
        self._blobs: dict[str, _Blob] = {}

    async def close(self) -> None:
        """Forgets the blobs."""
        self._blobs.clear()

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        return blob_pb2.StatBlobResponse(blob=_ref(request.key, self._find(request.key)))

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        blob = self._find(request.key)
        size = len(blob.content)
        if request.offset > size:
            raise OutOfRangeError(
                f"offset {request.offset} is past the end of blob {request.key!r}, {size} bytes",
                reason="RANGE",
                metadata={"key": request.key, "offset": request.offset, "size_bytes": size},
            )
        end = min(request.offset + request.limit, size) if request.limit else size
        for offset in range(request.offset, max(end, request.offset + 1), CHUNK_BYTES):
            data = blob.content[offset : min(offset + CHUNK_BYTES, end)]
            first = offset == request.offset
            yield blob_pb2.ReadBlobResponse(
                offset=offset, crc32=crc32(data), data=data, blob=_ref(request.key, blob) if first else None
            )

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any
    ) -> blob_pb2.WriteBlobResponse:
        received = MemoryFile()
        write = BlobWrite(received, partial(check_relative, root=_ROOT, field="header.key"))
        async for request in request_iterator:
            write.take(request)
        key, media_type, create_only = write.finish()
        blob, present = _Blob(received.content, media_type), self._blobs.get(key)
        if present is not None and create_only:
            if present.content != blob.content:
                raise already_there(key, _sha256(present), _sha256(blob))
            blob = present
        used = sum(len(each.content) for name, each in self._blobs.items() if name != key)
        if used + received.size > self._max_bytes:
            raise ResourceExhaustedError(
                f"the blobs have {used} of at most {self._max_bytes} bytes; nothing was stored: delete some",
                reason="DISK_FULL",
            )
        self._blobs[key] = blob
        return blob_pb2.WriteBlobResponse(blob=_ref(key, blob))

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Any) -> blob_pb2.ListBlobsResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListBlobs\0{request.prefix}"
        position = paging.decode(request.page_token, scope)
        after = str(position[0]) if position else ""
        keys = sorted(key for key in self._blobs if key.startswith(request.prefix) and key > after)
        entries = [blob_pb2.BlobEntry(key=key, blob=_ref(key, self._blobs[key])) for key in keys[:size]]
        token = paging.encode([keys[size - 1]], scope) if len(keys) > size else ""
        return blob_pb2.ListBlobsResponse(blobs=entries, next_page_token=token)

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Any) -> blob_pb2.DeleteBlobResponse:
        if not request.allow_missing:
            self._find(request.key)
        check_relative(request.key, _ROOT, field="key")
        self._blobs.pop(request.key, None)
        return blob_pb2.DeleteBlobResponse()

    def _find(self, key: str) -> _Blob:
        check_relative(key, _ROOT, field="key")
        if key not in self._blobs:
            raise NotFoundError(
                f"there is no blob {key!r}: list the keys with ListBlobs",
                reason="BLOB_NOT_FOUND",
                metadata={"key": key},
            )
        return self._blobs[key]


def _ref(key: str, blob: _Blob) -> tensor_pb2.BlobRef:
    return tensor_pb2.BlobRef(
        uri=f"fake-blob:///{quote(key)}",
        size_bytes=len(blob.content),
        sha256=_sha256(blob),
        media_type=blob.media_type,
    )


def _sha256(blob: _Blob) -> str:
    return hashlib.sha256(blob.content).hexdigest()
