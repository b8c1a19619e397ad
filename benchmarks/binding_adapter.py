"""An adapter for the measurements of bindings: answers StatBlob and ReadBlob from memory. Runs as any adapter does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.type.v1 import tensor_pb2
from crucible_kit.author import run_adapter
from crucible_kit.chunks import CHUNK_BYTES, crc32

_CHUNK = bytes(range(256)) * (CHUNK_BYTES // 256)
_CRC = crc32(_CHUNK)


class MemoryBlobs(blob_pb2_grpc.BlobStoreServiceServicer):
    """Every key is a blob of as many bytes as a request's limit says."""

    async def StatBlob(self, request: blob_pb2.StatBlobRequest, context: Any) -> blob_pb2.StatBlobResponse:
        return blob_pb2.StatBlobResponse(blob=tensor_pb2.BlobRef(uri=request.key, size_bytes=1))

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        for offset in range(0, request.limit, CHUNK_BYTES):
            yield blob_pb2.ReadBlobResponse(offset=offset, crc32=_CRC, data=_CHUNK)


if __name__ == "__main__":
    run_adapter(name="benchmark-blobs", ports={"blob": MemoryBlobs()})
