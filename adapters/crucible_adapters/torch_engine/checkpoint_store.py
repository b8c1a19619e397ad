"""The engine's checkpoints by name and address, in one folder; and receiving one piece by piece."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from crucible.port.training.v1 import training_pb2
from crucible_adapters.torch_engine.checkpoint import (
    MANIFEST,
    Checkpoint,
    corrupt,
    new_partial,
    publish,
    read_manifest,
    sweep_partial,
)
from crucible_kit.chunks import check_crc
from crucible_kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    field_error,
)

_SCHEME = "torch-engine:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class CheckpointStore:
    """Checkpoints under `root`; a name's slashes are folders. Not safe for threads that write the same name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pins: Counter[Path] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        sweep_partial(root)

    def folder_for(self, name: str) -> Path:
        """Where a checkpoint of this name is written. A checkpoint cannot lie inside another one."""
        folder = self._root / name
        inside = next((p for p in folder.parents if p.is_relative_to(self._root) and (p / MANIFEST).exists()), None)
        if inside is not None:
            raise AlreadyExistsError(
                f"name: {name!r} lies inside the checkpoint {inside.relative_to(self._root)}: use another name",
                reason="CHECKPOINT_EXISTS",
                metadata={"name": name},
            )
        if folder.exists() and not (folder / MANIFEST).exists():
            raise AlreadyExistsError(
                f"name: {name!r} is a folder of other checkpoints: use another name",
                reason="CHECKPOINT_EXISTS",
                metadata={"name": name},
            )
        return folder

    def uri(self, folder: Path) -> str:
        """The address of a checkpoint's folder."""
        return f"{_SCHEME}{folder.relative_to(self._root)}"

    def find(self, uri: str, *, field: str = "uri") -> Path:
        """The folder of an address. Raises NotFoundError CHECKPOINT_NOT_FOUND."""
        name = uri.removeprefix(_SCHEME)
        if not uri.startswith(_SCHEME) or not _NAME.fullmatch(name) or not (self._root / name / MANIFEST).is_file():
            raise NotFoundError(
                f"{field}: this engine has no checkpoint {uri!r}: upload it first",
                reason="CHECKPOINT_NOT_FOUND",
                metadata={"uri": uri},
            )
        return self._root / name

    def find_file(self, uri: str, path: str) -> Path:
        """One file of a checkpoint. Raises NotFoundError CHECKPOINT_FILE_NOT_FOUND."""
        folder = self.find(uri)
        files = [file.path for file in read_manifest(folder).files] + [MANIFEST]
        if path not in files:
            raise NotFoundError(
                f"path: checkpoint {uri} has no file {path!r}, it has {', '.join(files)}",
                reason="CHECKPOINT_FILE_NOT_FOUND",
                metadata={"uri": uri, "path": path},
            )
        return folder / path

    def describe(self, checkpoint: Checkpoint) -> training_pb2.CheckpointResult:
        """A checkpoint as the wire shows it."""
        return training_pb2.CheckpointResult(
            uri=self.uri(checkpoint.folder),
            files=[
                training_pb2.CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
                for file in checkpoint.files
            ],
            manifest_sha256=checkpoint.manifest_sha256,
            manifest_path=MANIFEST,
            optim_steps=checkpoint.optim_steps,
            weights_version=checkpoint.weights_version,
        )

    def pin(self, folder: Path) -> None:
        """Keep a checkpoint from being deleted until `unpin`."""
        self._pins[folder] += 1

    def unpin(self, folder: Path) -> None:
        """Undo one `pin`."""
        self._pins[folder] -= 1

    def delete(self, uri: str) -> None:
        """Remove a checkpoint; absent is OK. Raises FailedPreconditionError CHECKPOINT_IN_USE while it is pinned."""
        try:
            folder = self.find(uri)
        except NotFoundError:
            return
        if self._pins[folder] > 0:
            raise FailedPreconditionError(
                f"uri: {uri} is sampled from by {self._pins[folder]} sessions: close them first",
                reason="CHECKPOINT_IN_USE",
                metadata={"uri": uri},
            )
        # renamed first, so that a crash leaves no half of a checkpoint under its name
        trash = new_partial(folder)
        folder.rename(trash / folder.name)
        shutil.rmtree(trash)

    def existing(self, header: training_pb2.UploadCheckpointHeader) -> Checkpoint | None:
        """The checkpoint that is already there under the header's name and hash."""
        folder = self.folder_for(header.name)
        if not folder.exists():
            return None
        checkpoint = read_manifest(folder)
        return checkpoint if checkpoint.manifest_sha256 == header.files[-1].sha256 else None


class CheckpointUpload:
    """A checkpoint being received; `close` removes what `commit` has not published."""

    def __init__(self, store: CheckpointStore, header: training_pb2.UploadCheckpointHeader) -> None:
        paths = [file.path for file in header.files]
        for index, path in enumerate(paths):
            if "/" in path or path in paths[:index]:
                raise field_error(f"header.files[{index}].path", f"{path!r}: paths are plain names, each once")
        if paths[-1] != MANIFEST:
            raise field_error(f"header.files[{len(paths) - 1}].path", f"is {paths[-1]!r}: the last file is {MANIFEST}")
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
        self._file.write(chunk.data)
        self._hash.update(chunk.data)
        self._size += len(chunk.data)

    def commit(self) -> Checkpoint:
        """Check the last files and the manifest, and publish. Raises DataLossError CHECKPOINT_CORRUPT."""
        while self._index < len(self._files):
            self._next_file()
        listed = [(file.path, file.size_bytes, file.sha256) for file in read_manifest(self._partial).files]
        if listed != sorted((file.path, file.size_bytes, file.sha256) for file in self._files[:-1]):
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
