"""Receiving a checkpoint piece by piece, one of ours with its manifest or a folder made elsewhere."""

from __future__ import annotations

import hashlib
import shutil
from typing import BinaryIO

from crucible.port.training.v1 import training_pb2
from crucible_adapters.torch_engine.checkpoint import MANIFEST, Checkpoint, new_partial, publish, read_manifest
from crucible_adapters.torch_engine.checkpoint_store import CheckpointStore, listing
from crucible_adapters.torch_engine.foreign_folder import check_foreign_content, check_foreign_files
from crucible_adapters.torch_engine.tensor_files import corrupt
from crucible_kit.chunks import check_crc
from crucible_kit.errors import field_error
from crucible_kit.faults import fault_point


class CheckpointUpload:
    """A checkpoint being received; `close` removes what `commit` has not published."""

    def __init__(
        self, store: CheckpointStore, header: training_pb2.UploadCheckpointHeader, *, max_lora_rank: int
    ) -> None:
        paths = [file.path for file in header.files]
        for index, path in enumerate(paths):
            if "/" in path or path in paths[:index]:
                raise field_error(f"header.files[{index}].path", f"{path!r}: paths are plain names, each once")
        self._is_foreign = MANIFEST not in paths
        if self._is_foreign:
            check_foreign_files(header.files)
        elif paths[-1] != MANIFEST:
            raise field_error(f"header.files[{len(paths) - 1}].path", f"is {paths[-1]!r}: the last file is {MANIFEST}")
        self._max_lora_rank = max_lora_rank
        self._files = list(header.files)
        self._folder = store.folder_for(header.name)
        self._partial = new_partial(self._folder)
        self._index = 0
        self._size = 0
        self._hash = hashlib.sha256()
        self._file = self._open()

    def write(self, chunk: training_pb2.UploadCheckpointChunk) -> None:
        """Take the next bytes. Refuses wrong checksums, gaps, and bytes past a file's size."""
        if not self._index <= chunk.file_index < len(self._files):
            raise field_error("chunk.file_index", f"is {chunk.file_index} while file {self._index} is being sent")
        while self._index < chunk.file_index:
            self._next_file()
        declared = self._files[self._index]
        check_crc(chunk.data, chunk.crc32, f"{declared.path} at {chunk.offset}")
        if chunk.offset != self._size:
            raise field_error("chunk.offset", f"is {chunk.offset}, the next byte of {declared.path} is {self._size}")
        if self._size + len(chunk.data) > declared.size_bytes:
            raise field_error("chunk.data", f"goes past the {declared.size_bytes} bytes of {declared.path}")
        fault_point("engine.upload.mid")
        self._file.write(chunk.data)
        self._hash.update(chunk.data)
        self._size += len(chunk.data)

    def commit(self) -> Checkpoint:
        """Check the last files and the manifest, and publish.

        Raises DataLossError CHECKPOINT_CORRUPT, and INVALID_ARGUMENT for a foreign folder that cannot be used.
        """
        while self._index < len(self._files):
            self._next_file()
        if self._is_foreign:
            check_foreign_content(self._partial, max_lora_rank=self._max_lora_rank)
        elif listing(read_manifest(self._partial).files) != listing(self._files[:-1]):
            raise corrupt(self._folder, MANIFEST, "lists other files than the upload's header")
        return publish(self._partial, self._folder)

    def close(self) -> None:
        """Remove what is left of the upload."""
        self._file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _open(self) -> BinaryIO:
        self._size = 0
        self._hash = hashlib.sha256()
        return (self._partial / self._files[self._index].path).open("wb")

    def _next_file(self) -> None:
        declared = self._files[self._index]
        self._file.close()
        actual = self._hash.hexdigest()
        if (self._size, actual) != (declared.size_bytes, declared.sha256):
            raise corrupt(
                self._folder,
                declared.path,
                f"came as {self._size} bytes with SHA-256 {actual}, "
                f"expected {declared.size_bytes} with {declared.sha256}",
                expected=declared.sha256,
                actual=actual,
            )
        self._index += 1
        if self._index < len(self._files):
            self._file = self._open()
