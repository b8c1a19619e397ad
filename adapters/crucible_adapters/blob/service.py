"""The port's calls, the same for every place that keeps blobs."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_adapters.blob.folder import Record, corrupt
from crucible_adapters.blob.write import BlobWrite
from crucible_adapters.staging import StagedFile, StagingArea
from crucible_adapters.threads import Threads, retrieve
from crucible_kit import paging
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import NotFoundError, OutOfRangeError

P = ParamSpec("P")
T = TypeVar("T")


class Reader(Protocol):
    """Content open for reading, always that of the record it was opened with."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Place(Protocol):
    """Where blobs are. Methods block; any thread may call them. Errors and arguments are those of BlobFolder."""

    def path(self, key: str, *, field: str = "key") -> object: ...
    def ref(self, key: str, record: Record) -> tensor_pb2.BlobRef: ...
    def stat(self, key: str) -> Record: ...
    def open(self, key: str, offset: int = 0) -> tuple[Reader, Record]: ...
    def commit(
        self, key: str, staged: StagedFile, media_type: str, *, create_only: bool, abandoned: threading.Event
    ) -> Record: ...
    def delete(self, key: str) -> bool: ...
    def list(self, prefix: str, after: str, count: int) -> list[tuple[str, Record]]: ...


class BlobService(blob_pb2_grpc.BlobStoreServiceServicer):
    """Blobs in a place.

    Args:
        place: keeps them.
        staging: where contents grow until they are whole.
        threads: runs the place's methods.
    """

    def __init__(self, place: Place, staging: StagingArea, threads: Threads) -> None:
        self._place = place
        self._staging = staging
        self._threads = threads

    def _errors(self) -> AbstractContextManager[None]:
        """Around everything that touches the place: its library's exceptions as errors of the port."""
        raise NotImplementedError

    async def _run(self, context: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of one of the place's methods. `context` is the call's."""
        with self._errors():
            return await self._threads.run(function, *args, **kwargs)

    async def close(self) -> None:
        """Ends the threads and removes unfinished writes."""
        await self._threads.close()
        await self._staging.close()

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        record = await self._run(context, self._place.stat, request.key)
        return blob_pb2.StatBlobResponse(blob=self._place.ref(request.key, record))

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        file, record = await self._run(context, self._place.open, request.key, request.offset)
        with self._errors():
            async for response in self._threads.iterate(self._read(request, file, record)):
                yield response

    def _read(
        self, request: blob_pb2.ReadBlobRequest, file: Reader, record: Record
    ) -> Iterator[blob_pb2.ReadBlobResponse]:
        with closing(file):
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
                    response.blob.CopyFrom(self._place.ref(request.key, record))
                yield response
                if last:
                    return
                offset += len(data)

    async def WriteBlob(
        self, request_iterator: AsyncIterator[blob_pb2.WriteBlobRequest], context: Any
    ) -> blob_pb2.WriteBlobResponse:
        with self._errors():
            async with self._staging.file() as staged:
                write = BlobWrite(staged, partial(self._place.path, field="header.key"))
                async for request in request_iterator:
                    await self._threads.run(write.take, request)
                key, record = await self._stored(context, write, staged)
        return blob_pb2.WriteBlobResponse(blob=self._place.ref(key, record))

    async def _stored(self, context: Any, write: BlobWrite, staged: StagedFile) -> tuple[str, Record]:
        abandoned = threading.Event()
        storing = asyncio.ensure_future(self._run(context, self._store, write, staged, abandoned))
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            # A wait for another try ends at once; a thread sees it between two pieces, and takes back what it has sent.
            abandoned.set()
            storing.cancel()
            await asyncio.wait([storing])
            retrieve(storing)
            raise

    def _store(self, write: BlobWrite, staged: StagedFile, abandoned: threading.Event) -> tuple[str, Record]:
        key, media_type, create_only = write.finish()
        return key, self._place.commit(key, staged, media_type, create_only=create_only, abandoned=abandoned)

    async def ListBlobs(self, request: blob_pb2.ListBlobsRequest, context: Any) -> blob_pb2.ListBlobsResponse:
        size = paging.page_size(request.page_size)
        scope = f"ListBlobs\0{request.prefix}"
        position = paging.decode(request.page_token, scope)
        after = str(position[0]) if position else ""
        found = await self._run(context, self._place.list, request.prefix, after, size + 1)
        response = blob_pb2.ListBlobsResponse(
            blobs=[blob_pb2.BlobEntry(key=key, blob=self._place.ref(key, record)) for key, record in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = paging.encode([found[size - 1][0]], scope)
        return response

    async def DeleteBlob(self, request: blob_pb2.DeleteBlobRequest, context: Any) -> blob_pb2.DeleteBlobResponse:
        deleted = await self._run(context, self._place.delete, request.key)
        if not deleted and not request.allow_missing:
            raise NotFoundError(
                f"there is no blob {request.key!r} to delete; with allow_missing that is OK",
                reason="BLOB_NOT_FOUND",
                metadata={"key": request.key},
            )
        return blob_pb2.DeleteBlobResponse()
