"""The engine's checkpoints by name and address, in one folder."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from crucible.port.training.v1 import training_pb2
from crucible_adapters.torch_engine.checkpoint import (
    MANIFEST,
    Checkpoint,
    new_partial,
    read_manifest,
    sweep_partial,
)
from crucible_adapters.torch_engine.checkpoint_expiry import ExpiryIndex
from crucible_adapters.torch_engine.lora_config import describe_lora
from crucible_kit.chunks import read_chunks
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError

_SCHEME = "torch-engine:"
# no checkpoint's name begins with a dot
_EXPIRY_FILE = ".expiry.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class File(Protocol):
    """A checkpoint's file, in a manifest or on the wire."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class CheckpointStore:
    """Checkpoints under `root`; a name's slashes are folders. Threads may use it, but not write the same name."""

    def __init__(self, root: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` tells Unix nanoseconds."""
        self.clock = clock
        self._root = root
        self._pins: Counter[Path] = Counter()
        # pins, the expiry index, and the moment a folder loses its name
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        sweep_partial(root)
        self._expiry = ExpiryIndex(root / _EXPIRY_FILE, _NAME.fullmatch)
        for name in self._expiry.names():
            if not (root / name / MANIFEST).is_file():
                self._expiry.set(name, None)
        self.delete_expired()

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

    def read_file(self, uri: str, path: str) -> Iterator[tuple[int, bytes]]:
        """One file of a checkpoint as `read_chunks` gives it.

        Raises NotFoundError CHECKPOINT_NOT_FOUND, CHECKPOINT_FILE_NOT_FOUND.
        """
        with self.pinned(uri) as folder:
            files = [file.path for file in read_manifest(folder).files] + [MANIFEST]
            if path not in files:
                raise NotFoundError(
                    f"path: checkpoint {uri} has no file {path!r}, it has {', '.join(files)}",
                    reason="CHECKPOINT_FILE_NOT_FOUND",
                    metadata={"uri": uri, "path": path},
                )
            chunks = read_chunks(folder / path)
            # Opens the file: from here on it is read to its end, whoever deletes the checkpoint.
            first = next(chunks)
        yield first
        yield from chunks

    def save(self, name: str, write: Callable[[Path], Checkpoint], ttl_ns: int | None) -> Checkpoint:
        """Let `write` make the checkpoint's folder, to be deleted `ttl_ns` after that; None: never by itself.

        A checkpoint that is there already with the same content is kept for as long as the longer of both calls asked.
        """
        folder = self.folder_for(name)
        with self._held(folder):
            if not folder.exists():
                # before it is there: a crash must not leave one that stays for ever, or one that expires unasked
                self._set_expiry(name, ttl_ns)
            try:
                checkpoint = write(folder)
            except BaseException:
                if not folder.exists():
                    self._set_expiry(name, None)
                raise
            self._keep(name, ttl_ns)
        return checkpoint

    def describe(self, checkpoint: Checkpoint) -> training_pb2.CheckpointResult:
        """A checkpoint as the wire shows it."""
        result = training_pb2.CheckpointResult(
            uri=self.uri(checkpoint.folder),
            files=[
                training_pb2.CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
                for file in checkpoint.files
            ],
            manifest_sha256=checkpoint.manifest_sha256,
            manifest_path=MANIFEST,
            optim_steps=checkpoint.optim_steps,
            weights_version=checkpoint.weights_version,
            lora=None if checkpoint.lora is None else describe_lora(checkpoint.lora, checkpoint.lora.target_modules),
            base_model=checkpoint.base_model,
        )
        expires = self._expiry.get(str(checkpoint.folder.relative_to(self._root)))
        if expires is not None:
            result.expire_time.FromNanoseconds(expires)
        return result

    def pin(self, folder: Path) -> None:
        """Keep a checkpoint from being deleted until `unpin`. Raises NotFoundError when it has just been."""
        with self._lock:
            self.find(self.uri(folder))
            self._pins[folder] += 1

    def unpin(self, folder: Path) -> None:
        """Undo one `pin`."""
        with self._lock:
            self._pins[folder] -= 1
            if not self._pins[folder]:
                del self._pins[folder]

    @contextmanager
    def pinned(self, uri: str) -> Iterator[Path]:
        """The folder of an address, pinned while the block runs. Raises NotFoundError CHECKPOINT_NOT_FOUND."""
        folder = self.find(uri)
        self.pin(folder)
        try:
            yield folder
        finally:
            self.unpin(folder)

    def delete(self, uri: str) -> None:
        """Remove a checkpoint; absent is OK. Raises FailedPreconditionError CHECKPOINT_IN_USE while it is pinned."""
        try:
            folder = self.find(uri)
        except NotFoundError:
            return
        with self._trash() as trash, self._lock:
            if self._pins[folder] > 0:
                raise FailedPreconditionError(
                    f"uri: {uri} is used by {self._pins[folder]} sampling sessions or calls: end them first",
                    reason="CHECKPOINT_IN_USE",
                    metadata={"uri": uri},
                )
            self._remove(folder, trash)

    def delete_expired(self) -> None:
        """Remove the checkpoints whose time has come and that are not pinned."""
        for name in self._expiry.due(self.clock()):
            folder = self._root / name
            with self._trash() as trash, self._lock:
                # it may have been kept longer or deleted since
                expires = self._expiry.get(name)
                if not self._pins[folder] and expires is not None and expires <= self.clock():
                    self._remove(folder, trash)

    def existing(self, header: training_pb2.UploadCheckpointHeader) -> Checkpoint | None:
        """The checkpoint that is already there under the header's name with the header's content; it stays from now on.

        Without a manifest in the header, the content is the files' hashes.
        """
        folder = self.folder_for(header.name)
        with self._held(folder):
            if not folder.exists():
                return None
            checkpoint = read_manifest(folder)
            manifest = next((file.sha256 for file in header.files if file.path == MANIFEST), None)
            if manifest is None:
                same = listing(checkpoint.files) == listing(header.files)
            else:
                same = manifest == checkpoint.manifest_sha256
            if not same:
                return None
            self._keep(header.name, None)
            return checkpoint

    @contextmanager
    def _trash(self) -> Iterator[Path]:
        """A folder that vanishes with what is moved into it, at the latest at the next start."""
        trash = new_partial(self._root / "trash")
        try:
            yield trash
        finally:
            shutil.rmtree(trash, ignore_errors=True)

    def _remove(self, folder: Path, trash: Path) -> None:
        # renamed first, so that a crash leaves no half of a checkpoint under its name
        if folder.exists():
            folder.rename(trash / folder.name)
        self._expiry.set(str(folder.relative_to(self._root)), None)

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """A pin of a checkpoint that may not be there yet."""
        with self._lock:
            self._pins[folder] += 1
        try:
            yield
        finally:
            self.unpin(folder)

    def _set_expiry(self, name: str, ttl_ns: int | None) -> None:
        with self._lock:
            self._expiry.set(name, None if ttl_ns is None else self.clock() + ttl_ns)

    def _keep(self, name: str, ttl_ns: int | None) -> None:
        with self._lock:
            known = self._expiry.get(name)
            if known is not None:
                self._expiry.set(name, None if ttl_ns is None else max(known, self.clock() + ttl_ns))


def listing(files: Iterable[File]) -> list[tuple[str, int, str]]:
    """What makes two folders the same: paths, sizes and hashes, sorted."""
    return sorted((file.path, file.size_bytes, file.sha256) for file in files)
