"""Small checkpoints that are received into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from crucible.port.training.v1 import training_pb2 as pb
from crucible_kit.chunks import check_crc
from crucible_kit.errors import KitchenError, field_error


class UploadInMemory:
    """The files of a header, as their chunks come."""

    def __init__(self, header: pb.UploadCheckpointHeader) -> None:
        self.name = header.name
        self._files = list(header.files)
        self._contents = [bytearray() for _ in self._files]
        self._index = 0

    def write(self, chunk: pb.UploadCheckpointChunk) -> None:
        """Takes the next bytes. Refuses wrong checksums, gaps, and bytes past a file's size."""
        if not self._index <= chunk.file_index < len(self._files):
            raise field_error("chunk.file_index", f"is {chunk.file_index} while file {self._index} is being sent")
        self._index = chunk.file_index
        declared, content = self._files[self._index], self._contents[self._index]
        check_crc(chunk.data, chunk.crc32, f"{declared.path} at {chunk.offset}")
        if chunk.offset != len(content):
            raise field_error("chunk.offset", f"is {chunk.offset}, the next byte of {declared.path} is {len(content)}")
        if len(content) + len(chunk.data) > declared.size_bytes:
            raise field_error("chunk.data", f"goes past the {declared.size_bytes} bytes of {declared.path}")
        content += chunk.data

    def received(self, corrupt: Callable[[str, str, str], KitchenError]) -> dict[str, bytes]:
        """The files by path. Raises what `corrupt` makes of a path and the hashes that were declared and have come."""
        files = {file.path: bytes(content) for file, content in zip(self._files, self._contents, strict=True)}
        for file in self._files:
            actual = hashlib.sha256(files[file.path]).hexdigest()
            if (actual, len(files[file.path])) != (file.sha256, file.size_bytes):
                raise corrupt(file.path, file.sha256, actual)
        return files
