"""BlobStore on a local disk."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_adapters.blob.folder import BlobFolder, Record, corrupt
from crucible_adapters.blob.write import BlobWrite
from crucible_adapters.staging import StagedFile, StagingArea
from crucible_adapters.threads import Threads
from crucible_kit import paging
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import (
    FailedPreconditionError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)

_THREADS = 4


class LocalBlobOptions(AdapterOptions):
    """Where the blobs are."""

    root: Path | None = Field(default=None, description="Folder of the blobs; default: blobs in the data folder.")


class LocalBlobStore(blob_pb2_grpc.BlobStoreServiceServicer):
    """Blobs as files below a folder."""

    description = AdapterDescription(name="local-blobs", port="blob", options=LocalBlobOptions)

    def __init__(self, options: LocalBlobOptions, context: AdapterContext) -> None:
        self._folder = BlobFolder(options.root or context.data_dir / "blobs")
        self._threads = Threads("blob", _THREADS)
        self._staging = StagingArea(self._folder.staging, self._threads)

    async def close(self) -> None:
        """Ends the threads and removes unfinished writes."""
        await self._threads.close()
        await self._staging.close()

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        record = await self._threads.run(self._folder.stat, request.key)
        return blob_pb2.StatBlobResponse(blob=self._folder.ref(request.key, record))

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        async for response in self._threads.iterate(self._read(request)):
            yield response

    def _read(self, request: blob_pb2.ReadBlobRequest) -> Iterator[blob_pb2.ReadBlobResponse]:
        file, record = self._folder.open(request.key)
        with file:
            if request.offset > record.size_bytes:
                raise OutOfRangeError(
                    f"offset {request.offset} is past the end of blob {request.key!r}, {record.size_bytes} bytes",
                    reason="RANGE",
                    metadata={"key": request.key, "offset": request.offset, "size_bytes": record.size_bytes},
                )
            end = min(request.offset + request.limit, record.size_bytes) if request.limit else record.size_bytes
            whole = request.offset == 0 and end == record.size_bytes
            digest = hashlib.sha256()
            offset = request.offset
            file.seek(offset)
            while True:
                data = file.read(min(CHUNK_BYTES, end - offset))
                if len(data) < min(CHUNK_BYTES, end - offset):
                    raise corrupt(request.key, f"ends at byte {offset + len(data)} of {record.size_bytes}")
                digest.update(data)
                last = offset + len(data) == end
                if last and whole and digest.hexdigest() != record.sha256:
                    raise corrupt(request.key, f"has sha256 {digest.hexdigest()}, {record.sha256} was stored")
                response = blob_pb2.ReadBlobResponse(offset=offset, crc32=crc32(data), data=data)
                if offset == request.offset:
                    response.blob.CopyFrom(self._folder.ref(request.key, record))
                yield response
                if last:
                    return
                offset += len(data)

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any
    ) -> blob_pb2.WriteBlobResponse:
        with _disk_errors():
            async with self._staging.file() as staged:
                write = BlobWrite(staged, partial(self._folder.path, field="header.key"))
                async for request in request_iterator:
                    await self._threads.run(write.take, request)
                key, record = await self._threads.run(self._store, write, staged)
        return blob_pb2.WriteBlobResponse(blob=self._folder.ref(key, record))

    def _store(self, write: BlobWrite, staged: StagedFile) -> tuple[str, Record]:
        key, media_type, create_only = write.finish()
        return key, self._folder.commit(key, staged, media_type, create_only=create_only)

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Any) -> blob_pb2.ListBlobsResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListBlobs\0{request.prefix}"
        position = paging.decode(request.page_token, scope)
        after = str(position[0]) if position else ""
        found = await self._threads.run(self._folder.list, request.prefix, after, size + 1)
        response = blob_pb2.ListBlobsResponse(
            blobs=[blob_pb2.BlobEntry(key=key, blob=self._folder.ref(key, record)) for key, record in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = paging.encode([found[size - 1][0]], scope)
        return response

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Any) -> blob_pb2.DeleteBlobResponse:
        with _disk_errors():
            deleted = await self._threads.run(self._folder.delete, request.key)
        if not deleted and not request.allow_missing:
            raise NotFoundError(
                f"there is no blob {request.key!r} to delete; with allow_missing that is OK",
                reason="BLOB_NOT_FOUND",
                metadata={"key": request.key},
            )
        return blob_pb2.DeleteBlobResponse()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(
                "the disk of the blob store is full; nothing was stored: free space and send it again",
                reason="DISK_FULL",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise FailedPreconditionError(
                f"the folder of the blob store can't be changed ({error.strerror}); nothing was stored or deleted: "
                "make it writable and try again",
                reason="STORAGE_FAILED",
                metadata={"cause": errno.errorcode[error.errno]},
            ) from error
        raise
