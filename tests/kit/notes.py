"""A blob servicer whose blobs are behaviours: the key says what the call does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit.errors import FieldViolation, InvalidArgumentError, NotFoundError, ResourceExhaustedError

SECRET = "the password is hunter2"
SERVICE = "crucible.port.blob.v1.BlobStoreService"


class ScriptedBlobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """Implements all but ListBlobs and DeleteBlob.

    Attributes:
        entered: set when a hanging call is inside its handler.
        left: set when a hanging call's `finally` ran.
        seen: metadata of the newest call.
        remaining: seconds to the deadline that the newest call saw.
    """

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.seen: dict[str, Any] = {}
        self.remaining: float | None = None

    async def _behave(self, key: str) -> None:
        match key:
            case "missing":
                raise NotFoundError(f"no blob {key!r}", reason="BLOB_NOT_FOUND", metadata={"key": key})
            case "fields":
                raise InvalidArgumentError(
                    "bad key", reason="FIELD_INVALID", fields=[FieldViolation("key", "bad"), FieldViolation("x", "y")]
                )
            case "busy":
                raise ResourceExhaustedError("full", reason="QUEUE_FULL", retry_delay=1.5)
            case "bug":
                raise ValueError(SECRET)
            case "own-timeout":
                raise TimeoutError(SECRET)
            case "cancelled":
                raise asyncio.CancelledError
            case "hang":
                self.entered.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        self.seen = dict(context.invocation_metadata() or ())
        self.remaining = context.time_remaining()
        await self._behave(request.key)
        return blob_pb2.StatBlobResponse(blob=tensor_pb2.BlobRef(uri=request.key))

    async def ReadBlob(self, request: blob_pb2.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        self.seen = dict(context.invocation_metadata() or ())
        self.remaining = context.time_remaining()
        for offset in range(request.limit):
            yield blob_pb2.ReadBlobResponse(offset=offset)
        await self._behave(request.key)

    async def WriteBlob(self, request_iterator: AsyncIterator[Any], context: Any) -> blob_pb2.WriteBlobResponse:
        self.seen = dict(context.invocation_metadata() or ())
        size = 0
        async for each in request_iterator:
            await self._behave(each.header.key)
            size += len(each.chunk.data)
        return blob_pb2.WriteBlobResponse(blob=tensor_pb2.BlobRef(uri="blob:written", size_bytes=size))
