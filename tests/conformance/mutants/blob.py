"""Blob stores with a defect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from crucible.port.blob.v1 import blob_pb2 as pb
from crucible_kit import paging
from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.errors import InvalidArgumentError, KitchenError
from tests.conformance.mutants.mutant import Mutant, object_of
from tests.conformance.toy.blob import Blob, ToyBlobs


class NoHashCheck(ToyBlobs):
    def check_hash(self, data: bytes, finish: Any) -> None:
        pass


class NoSizeCheck(ToyBlobs):
    def check_size(self, data: bytes, finish: Any) -> None:
        pass


class NoCrcCheck(ToyBlobs):
    def check_crc(self, chunk: pb.BlobChunk) -> None:
        pass


class StoresWithoutFinish(ToyBlobs):
    def finish(self, header: Any, data: bytes, finish: Any) -> pb.WriteBlobResponse:
        if header is not None and finish is None:
            self.store(header, Blob(data, header.media_type))
        return super().finish(header, data, finish)


class IgnoresOffsets(ToyBlobs):
    def check_offset(self, offset: int, expected: int) -> None:
        pass


class TakesTheLastHeader(ToyBlobs):
    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        async def without_repeats() -> AsyncIterator[Any]:
            seen = False
            async for request in request_iterator:
                header = request.WhichOneof("part") == "header"
                if not (header and seen):
                    yield request
                seen = seen or header

        return await super().WriteBlob(without_repeats(), context)


class PartialWriteVisible(ToyBlobs):
    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        key, before = "", None

        async def watched() -> AsyncIterator[Any]:
            nonlocal key, before
            async for request in request_iterator:
                if request.WhichOneof("part") == "header":
                    key, before = request.header.key, self.blobs.get(request.header.key)
                elif request.WhichOneof("part") == "chunk" and before is None:
                    self.blobs[key] = Blob(request.chunk.data, "application/octet-stream")
                yield request

        stored = False
        try:
            response = await super().WriteBlob(watched(), context)
            stored = True
            return response
        finally:
            if not stored and before is None:
                self.blobs.pop(key, None)


class KeepsMediaType(ToyBlobs):
    def store(self, header: Any, blob: Blob) -> None:
        present = self.blobs.get(header.key)
        super().store(header, Blob(blob.data, present.media_type) if present else blob)


class IgnoresCreateOnly(ToyBlobs):
    def store(self, header: Any, blob: Blob) -> None:
        self.blobs[header.key] = blob


class IgnoresCancel(ToyBlobs):
    """What has come when the caller goes is stored as if it were all."""

    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        header, data = None, bytearray()

        async def watched() -> AsyncIterator[Any]:
            nonlocal header
            async for request in request_iterator:
                header = request.header if request.WhichOneof("part") == "header" else header
                data.extend(request.chunk.data)
                yield request

        try:
            return await super().WriteBlob(watched(), context)
        except asyncio.CancelledError:
            if header is not None:
                self.blobs[header.key] = Blob(bytes(data), "application/octet-stream")
            raise


class MixesWriters(ToyBlobs):
    """Writers of one key at a time share the first half of their blobs."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, bytes] = {}
        self._writing = 0

    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        async def slowly() -> AsyncIterator[Any]:
            async for request in request_iterator:
                yield request
                for _ in range(20):
                    await asyncio.sleep(0)

        self._writing += 1
        try:
            return await super().WriteBlob(slowly(), context)
        finally:
            self._writing -= 1
            if not self._writing:
                self._first.clear()

    def take(self, header: Any, data: bytearray, chunk: pb.BlobChunk) -> None:
        super().take(header, data, chunk)
        if chunk.offset == 0:
            self._first.setdefault(header.key, chunk.data)

    def store(self, header: Any, blob: Blob) -> None:
        shared = self._first.get(header.key, b"")[: len(blob.data) // 2]
        super().store(header, Blob(shared + blob.data[len(shared) :], blob.media_type))


class DropsLastByteOfFullChunks(ToyBlobs):
    def store(self, header: Any, blob: Blob) -> None:
        full = len(blob.data) > 0 and len(blob.data) % CHUNK_BYTES == 0
        super().store(header, Blob(blob.data[:-1], blob.media_type) if full else blob)


class LargeChunks(ToyBlobs):
    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        blob = self.find(request.key)
        data = self.slice(blob.data, request.offset, request.limit)
        yield pb.ReadBlobResponse(offset=request.offset, crc32=crc32(data), data=data, blob=self.ref(request.key, blob))


class ChangedResponses(ToyBlobs):
    """Reads whose chunks are changed on their way out."""

    def change(self, request: Any, response: pb.ReadBlobResponse) -> None:
        """Changes a chunk."""

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        async for response in super().ReadBlob(request, context):
            self.change(request, response)
            yield response


class WrongCrc(ChangedResponses):
    def change(self, request: Any, response: pb.ReadBlobResponse) -> None:
        response.crc32 ^= 1


class NoDescription(ChangedResponses):
    def change(self, request: Any, response: pb.ReadBlobResponse) -> None:
        response.ClearField("blob")


class RelativeOffsets(ChangedResponses):
    def change(self, request: Any, response: pb.ReadBlobResponse) -> None:
        response.offset -= request.offset


class RangeOffByOne(ToyBlobs):
    def slice(self, data: bytes, offset: int, limit: int) -> bytes:
        return super().slice(data, offset, limit + 1 if limit else 0)


class ReadsPastTheEnd(ToyBlobs):
    def slice(self, data: bytes, offset: int, limit: int) -> bytes:
        return data[offset : offset + limit] if limit else data[offset:]


class ListUnsorted(ToyBlobs):
    def keys(self, prefix: str) -> list[str]:
        return sorted(super().keys(prefix), key=str.casefold)


class PrefixIsAFolder(ToyBlobs):
    def keys(self, prefix: str) -> list[str]:
        folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        return [key for key in super().keys(prefix) if key.startswith(folder) or key == prefix]


class PagesOverlap(ToyBlobs):
    def token(self, shown: list[str], scope: str) -> str:
        return paging.encode([shown[max(0, len(shown) - 2)]], scope) if len(shown) > 1 else super().token(shown, scope)


class PagesSkip(ToyBlobs):
    def token(self, shown: list[str], scope: str) -> str:
        following = [key for key in sorted(self.blobs) if key > shown[-1]]
        return paging.encode([following[0]], scope)


class AnyToken(ToyBlobs):
    def position(self, token: str, scope: str) -> list[Any]:
        try:
            return super().position(token, scope)
        except InvalidArgumentError:
            return []


class DeletesNothing(ToyBlobs):
    def delete(self, key: str) -> None:
        pass


class NoKeyCheck(ToyBlobs):
    def check_key(self, key: str, field: str) -> None:
        pass


class FoldsKeys(ToyBlobs):
    def store(self, header: Any, blob: Blob) -> None:
        folded = pb.WriteBlobHeader(key=header.key.lower(), create_only=header.create_only)
        super().store(folded, blob)
        self.blobs.setdefault(header.key, self.blobs[folded.key])

    def find(self, key: str) -> Blob:
        return super().find(key.lower())


class AnotherCodeForMissing(ToyBlobs):
    def find(self, key: str) -> Blob:
        try:
            return super().find(key)
        except KitchenError as error:
            if error.reason == "BLOB_NOT_FOUND":
                raise InvalidArgumentError(error.message, reason="BLOB_NOT_FOUND") from error
            raise


def _mutant(kind: type[ToyBlobs], defect: str, *red: str, others: int = 0) -> Mutant:
    return Mutant(defect=defect, port="blob", open=object_of("blob", kind), red=red, others=others)


BLOB_MUTANTS = (
    _mutant(NoHashCheck, "no hash check", "BLB-WRITE-02"),
    _mutant(NoSizeCheck, "no size check", "BLB-WRITE-03"),
    _mutant(NoCrcCheck, "no CRC check", "BLB-WRITE-04"),
    _mutant(StoresWithoutFinish, "an unfinished write is stored", "BLB-WRITE-05"),
    _mutant(IgnoresOffsets, "offsets of chunks are ignored", "BLB-WRITE-06"),
    _mutant(TakesTheLastHeader, "a second header is ignored", "BLB-WRITE-07"),
    _mutant(PartialWriteVisible, "a partial write is visible", "BLB-WRITE-08"),
    _mutant(KeepsMediaType, "the media type is not replaced", "BLB-WRITE-09"),
    _mutant(IgnoresCreateOnly, "create_only is ignored", "BLB-WRITE-10"),
    _mutant(IgnoresCancel, "a cancelled write is stored", "BLB-WRITE-11"),
    _mutant(MixesWriters, "writers of one key are mixed", "BLB-WRITE-12"),
    _mutant(DropsLastByteOfFullChunks, "full chunks lose a byte", "BLB-WRITE-01", others=1),
    _mutant(LargeChunks, "chunks are too large", "BLB-READ-01", others=5),
    _mutant(WrongCrc, "chunks have a wrong CRC", "BLB-READ-01", others=13),
    _mutant(NoDescription, "the first chunk does not describe the blob", "BLB-READ-01"),
    _mutant(RelativeOffsets, "chunks' offsets count from the range", "BLB-READ-02", others=1),
    _mutant(RangeOffByOne, "ranges are one byte too long", "BLB-READ-02"),
    _mutant(ReadsPastTheEnd, "a read past the end is empty", "BLB-READ-03"),
    _mutant(ListUnsorted, "lists ignore case", "BLB-LIST-01"),
    _mutant(PrefixIsAFolder, "a prefix is taken for a folder", "BLB-LIST-01", others=1),
    _mutant(PagesOverlap, "pages overlap", "BLB-LIST-02"),
    _mutant(PagesSkip, "pages leave entries out", "BLB-LIST-02"),
    _mutant(AnyToken, "any page token is taken", "BLB-LIST-03"),
    _mutant(DeletesNothing, "deleted blobs stay", "BLB-DELETE-01"),
    _mutant(NoKeyCheck, "what is no key is taken", "BLB-KEY-01"),
    _mutant(FoldsKeys, "keys lose their case", "BLB-KEY-02", others=1),
    _mutant(AnotherCodeForMissing, "what is not there is a bad argument", "BLB-MISSING-01", others=9),
)
