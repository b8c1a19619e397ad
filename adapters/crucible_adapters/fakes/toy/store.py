"""The toy's checkpoints by name and address, and uploads of them."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from crucible.port.training.v1 import training_pb2 as pb
from crucible_adapters.fakes.fixed import fixed_time
from crucible_adapters.fakes.toy.checkpoints import MANIFEST, Content, Files, corrupt, from_files, with_manifest
from crucible_adapters.fakes.toy.model import TARGET, Lora
from crucible_adapters.uploads import UploadInMemory
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, field_error

_SCHEME = "toy:"


@dataclass(kw_only=True)
class Saved:
    """One checkpoint.

    Attributes:
        ttl_nanos: how long it was to be kept; None: until it is deleted.
        expires_at: by the store's clock.
    """

    name: str
    files: Files
    content: Content
    ttl_nanos: int | None
    expires_at: float | None

    def describe(self) -> pb.CheckpointResult:
        """The checkpoint as the wire shows it."""
        content = self.content
        result = pb.CheckpointResult(
            uri=f"{_SCHEME}{self.name}",
            files=[
                pb.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                for path, data in sorted(self.files.items())
                if path != MANIFEST
            ],
            manifest_sha256=hashlib.sha256(self.files[MANIFEST]).hexdigest(),
            manifest_path=MANIFEST,
            optim_steps=content.optim_steps,
            weights_version=content.weights_version,
            lora=describe_lora(content.lora),
            base_model=content.base_model,
        )
        if self.ttl_nanos is not None:
            result.expire_time.CopyFrom(fixed_time(nanos=self.ttl_nanos))
        return result


class CheckpointStore:
    """Checkpoints in memory. Any thread may use it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._saved: dict[str, Saved] = {}
        self._pins: Counter[str] = Counter()
        self._lock = threading.RLock()

    def find(self, uri: str, *, field: str = "uri") -> Saved:
        """The checkpoint of an address. Raises NOT_FOUND CHECKPOINT_NOT_FOUND."""
        with self._lock:
            self._expire()
            name = uri.removeprefix(_SCHEME)
            if not uri.startswith(_SCHEME) or name not in self._saved:
                raise NotFoundError(
                    f"{field}: there is no checkpoint {uri!r}: upload it first",
                    reason="CHECKPOINT_NOT_FOUND",
                    metadata={"uri": uri},
                )
            return self._saved[name]

    def find_file(self, uri: str, path: str) -> bytes:
        """One file of a checkpoint. Raises NOT_FOUND CHECKPOINT_NOT_FOUND or CHECKPOINT_FILE_NOT_FOUND."""
        files = self.find(uri).files
        if path not in files:
            raise NotFoundError(
                f"path: checkpoint {uri} has no file {path!r}, it has {', '.join(sorted(files))}",
                reason="CHECKPOINT_FILE_NOT_FOUND",
                metadata={"uri": uri, "path": path},
            )
        return files[path]

    def save(self, name: str, files: Files, *, ttl_nanos: int | None = None) -> Saved:
        """Stores a checkpoint. Raises ALREADY_EXISTS CHECKPOINT_EXISTS when the name has other content.

        One that is there with the same content is kept for as long as the longer of both calls asked.
        """
        expires_at = None if ttl_nanos is None else self._clock() + ttl_nanos / 1e9
        with self._lock:
            self._expire()
            present = self._saved.get(name)
            if present is None:
                content = from_files(files, name)
                return self._saved.setdefault(
                    name, Saved(name=name, files=files, content=content, ttl_nanos=ttl_nanos, expires_at=expires_at)
                )
            if dict(present.files) != dict(files):
                raise AlreadyExistsError(
                    f"name: checkpoint {name} exists with other content: save under another name",
                    reason="CHECKPOINT_EXISTS",
                    metadata={"name": name},
                )
            if expires_at is None or (present.expires_at is not None and expires_at > present.expires_at):
                present.ttl_nanos, present.expires_at = ttl_nanos, expires_at
            return present

    def existing(self, header: pb.UploadCheckpointHeader) -> Saved | None:
        """The checkpoint that is there under a header's name with its content; it stays from now on."""
        with self._lock:
            self._expire()
            present = self._saved.get(header.name)
            given = {file.path: file.sha256 for file in header.files}
            if present is None or any(
                hashlib.sha256(data).hexdigest() != given[path] if path in given else path != MANIFEST
                for path, data in present.files.items()
            ):
                return None
            present.ttl_nanos = present.expires_at = None
            return present

    def pin(self, uri: str, *, field: str) -> Saved:
        """The checkpoint, kept from being deleted until `unpin`. Raises NOT_FOUND CHECKPOINT_NOT_FOUND."""
        with self._lock:
            saved = self.find(uri, field=field)
            self._pins[saved.name] += 1
            return saved

    def unpin(self, saved: Saved) -> None:
        """Undoes one `pin`."""
        with self._lock:
            self._pins[saved.name] -= 1

    def delete(self, uri: str) -> None:
        """Removes a checkpoint; absent is OK. Raises FAILED_PRECONDITION CHECKPOINT_IN_USE while it is pinned."""
        with self._lock:
            name = uri.removeprefix(_SCHEME)
            if self._pins[name] > 0:
                raise FailedPreconditionError(
                    f"uri: {uri} is used by {self._pins[name]} sampling sessions: end them first",
                    reason="CHECKPOINT_IN_USE",
                    metadata={"uri": uri},
                )
            if uri.startswith(_SCHEME):
                self._saved.pop(name, None)

    def _expire(self) -> None:
        now = self._clock()
        for name, saved in list(self._saved.items()):
            if saved.expires_at is not None and saved.expires_at <= now and not self._pins[name]:
                del self._saved[name]


class CheckpointUpload(UploadInMemory):
    """A checkpoint being received."""

    def __init__(self, header: pb.UploadCheckpointHeader) -> None:
        """Raises INVALID_ARGUMENT FIELD_INVALID for a list of files that can't be one."""
        super().__init__(header)
        paths = [file.path for file in self._files]
        for index, path in enumerate(paths):
            if path in paths[:index]:
                raise field_error(f"header.files[{index}].path", f"{path!r} is there twice")
        if MANIFEST in paths[:-1]:
            raise field_error(f"header.files[{paths.index(MANIFEST)}].path", f"is {MANIFEST}, which must be last")

    def finish(self) -> Files:
        """The files, with a manifest of ours where none came.

        Raises:
            DataLossError: CHECKPOINT_CORRUPT with file, expected and actual hash.
            InvalidArgumentError: FIELD_INVALID when a folder made elsewhere can't be used.
        """
        files = self.received(
            lambda path, expected, actual: corrupt(self.name, path, "came damaged", expected=expected, actual=actual)
        )
        content = from_files(files, self.name)
        return files if MANIFEST in files else with_manifest(files, base_model=content.base_model)


def describe_lora(lora: Lora | None) -> pb.LoraConfig | None:
    """An adapter as the wire shows it, its defaults filled in."""
    return None if lora is None else pb.LoraConfig(rank=lora.rank, alpha=lora.alpha, target_modules=[TARGET])
