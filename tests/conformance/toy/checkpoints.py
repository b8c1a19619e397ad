"""Checkpoints in memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.chunks import check_crc
from crucible_kit.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, NotFoundError, field_error

MANIFEST = "manifest.json"
_SCHEME = "toy:"


class Checkpoints:
    """Files of checkpoints by name.

    Attributes:
        in_use: names that sampling sessions are pinned to.
    """

    def __init__(self) -> None:
        self._files: dict[str, dict[str, bytes]] = {}
        self._expire_ns: dict[str, int] = {}
        self.in_use: list[str] = []

    def save(self, name: str, files: dict[str, bytes], ttl_seconds: int | None) -> pb.CheckpointResult:
        """A new checkpoint."""
        whole = with_manifest(files)
        if name in self._files and self._files[name] != whole:
            raise AlreadyExistsError(f"name: {name!r} exists", reason="CHECKPOINT_EXISTS")
        self._files[name] = whole
        if ttl_seconds is not None:
            self._expire_ns[name] = time.time_ns() + ttl_seconds * 10**9
        return self.describe(name)

    def name_of(self, uri: str) -> str:
        """The name behind an address."""
        name = uri.removeprefix(_SCHEME)
        if not uri.startswith(_SCHEME) or name not in self._files:
            raise NotFoundError(f"uri: there is no checkpoint {uri!r}", reason="CHECKPOINT_NOT_FOUND")
        return name

    def files(self, uri: str) -> dict[str, bytes]:
        """The files of a checkpoint, the manifest among them."""
        return self._files[self.name_of(uri)]

    def file(self, uri: str, path: str) -> bytes:
        """One file."""
        files = self.files(uri)
        if path not in files:
            raise NotFoundError(f"path: there is no {path!r}", reason="CHECKPOINT_FILE_NOT_FOUND")
        return files[path]

    def describe(self, name: str) -> pb.CheckpointResult:
        """What is told of a checkpoint."""
        files = self._files[name]
        about = json.loads(files["config.json"])
        result = pb.CheckpointResult(
            uri=f"{_SCHEME}{name}",
            files=[described(path, data) for path, data in sorted(files.items()) if path != MANIFEST],
            manifest_sha256=hashlib.sha256(files[MANIFEST]).hexdigest(),
            manifest_path=MANIFEST,
            optim_steps=about["steps"],
            weights_version=about["version"],
        )
        if name in self._expire_ns:
            result.expire_time.FromNanoseconds(self._expire_ns[name])
        return result

    def delete(self, uri: str) -> None:
        """Forgets a checkpoint; one that is absent is fine."""
        name = uri.removeprefix(_SCHEME)
        if name in self.in_use:
            raise FailedPreconditionError(f"uri: {uri} is sampled from", reason="CHECKPOINT_IN_USE")
        self._files.pop(name, None)
        self._expire_ns.pop(name, None)

    async def receive(self, requests: AsyncIterator[pb.UploadCheckpointRequest]) -> pb.CheckpointResult:
        """A checkpoint that somebody brings."""
        first = await anext(requests, pb.UploadCheckpointRequest())
        if first.WhichOneof("part") != "header":
            raise field_error("header", "must come first")
        header = first.header
        contents = [bytearray() for _ in header.files]
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise field_error("chunk", "is missing: after the header come chunks only")
            self.take(contents, request.chunk)
        files = {file.path: bytes(data) for file, data in zip(header.files, contents, strict=True)}
        self.verify(header, files)
        self._files[header.name] = files
        return self.describe(header.name)

    def take(self, contents: list[bytearray], chunk: pb.UploadCheckpointChunk) -> None:
        """Adds a chunk."""
        if chunk.file_index >= len(contents) or chunk.offset != len(contents[chunk.file_index]):
            raise field_error("chunk.offset", f"is {chunk.offset}, which is not where the file goes on")
        try:
            check_crc(chunk.data, chunk.crc32, "chunk")
        except DataLossError as error:
            raise DataLossError(error.message, reason="CHECKPOINT_CORRUPT") from error
        contents[chunk.file_index] += chunk.data

    def verify(self, header: pb.UploadCheckpointHeader, files: dict[str, bytes]) -> None:
        """Refuses other files than the header and the manifest tell."""
        listed = [described(path, data) for path, data in files.items()]
        content = {path: data for path, data in files.items() if path != MANIFEST}
        if listed != list(header.files) or files.get(MANIFEST) != with_manifest(content)[MANIFEST]:
            raise DataLossError("the files are not those of the header", reason="CHECKPOINT_CORRUPT")


def described(path: str, data: bytes) -> pb.CheckpointFile:
    """One file of a checkpoint."""
    return pb.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with the manifest that lists their hashes."""
    listed: dict[str, Any] = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
    return {**files, MANIFEST: json.dumps(listed).encode()}
