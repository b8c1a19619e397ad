"""Checkpoints: the weights stay at Tinker, and a small hashed file says where they are.

Saving gives two files, the reference and the manifest, which travel as the files of any checkpoint do. A reference that
comes back, in this process or in a later one, is the checkpoint again, for as long as Tinker has the weights.

Deleting a checkpoint deletes its weights at Tinker, unless its reference was read: then somebody keeps a copy of it,
the weights stay, and only this adapter forgets them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crucible.port.training.v1 import training_pb2 as pb
from crucible_adapters.uploads import UploadInMemory
from crucible_kit.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    field_error,
)

MANIFEST = "crucible_manifest.json"
REFERENCE = "tinker_checkpoint.json"
SCHEME = "tinker://"
_MOST_BYTES = 1024 * 1024
Files = dict[str, bytes]


class Reference(BaseModel):
    """Where a checkpoint's weights are, and what they are.

    Attributes:
        weights: path at Tinker of what training goes on from.
        sampler_weights: path at Tinker of what is sampled from.
        optimizer: path at Tinker of the optimizer's state, the same as weights; None: it starts anew.
        lora: a LoraConfig in its JSON form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(default=1, ge=1, le=1)
    weights: str = Field(pattern="^tinker://[^?#]+$")
    sampler_weights: str = Field(pattern="^tinker://[^?#]+$")
    optimizer: str | None = None
    base_model: str
    base_model_name: str
    lora: dict[str, Any]
    optim_steps: int = Field(ge=0)
    weights_version: int = Field(ge=0)

    def lora_config(self) -> pb.LoraConfig:
        """The adapter in it. Raises ParseError."""
        return ParseDict(self.lora, pb.LoraConfig())

    def files(self) -> Files:
        """The checkpoint's files by path."""
        reference = _json(self.model_dump(exclude_none=True))
        return {REFERENCE: reference, MANIFEST: _manifest({REFERENCE: reference})}


@dataclass(kw_only=True, eq=False)
class Saved:
    """One checkpoint that this adapter knows.

    Attributes:
        expires_at: seconds since 1970; None: never.
        is_copy: it came as a reference; its weights are others' to delete.
        was_read: somebody has a copy of the reference.
    """

    name: str
    uri: str
    reference: Reference
    files: Files
    expires_at: float | None = None
    is_copy: bool = False
    was_read: bool = False

    def describe(self) -> pb.CheckpointResult:
        """The checkpoint as the wire shows it."""
        reference = self.reference
        result = pb.CheckpointResult(
            uri=self.uri,
            files=[
                pb.CheckpointFile(path=path, size_bytes=len(data), sha256=_sha256(data))
                for path, data in sorted(self.files.items())
                if path != MANIFEST
            ],
            manifest_sha256=_sha256(self.files[MANIFEST]),
            manifest_path=MANIFEST,
            optim_steps=reference.optim_steps,
            weights_version=reference.weights_version,
            lora=reference.lora_config(),
            base_model=reference.base_model_name,
        )
        if self.expires_at is not None:
            result.expire_time.FromNanoseconds(int(self.expires_at * 1e9))
        return result


@dataclass
class Checkpoints:
    """Those that this adapter knows, in memory."""

    _by_uri: dict[str, Saved] = field(default_factory=dict)
    _by_name: dict[str, Saved] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)
    _pins: Counter[str] = field(default_factory=Counter)

    def find(self, uri: str, *, field: str = "uri") -> Saved:
        """The checkpoint of an address. Raises NOT_FOUND CHECKPOINT_NOT_FOUND."""
        self._expire()
        if uri not in self._by_uri:
            raise not_there(uri, field)
        return self._by_uri[uri]

    def path_at_tinker(self, uri: str) -> str | None:
        """The address itself where it is one of Tinker's that this adapter knows nothing of; None: it is none."""
        known = uri in self._by_uri or uri in self._gone
        return uri if uri.startswith(SCHEME) and "#" not in uri and not known else None

    def named(self, name: str) -> Saved | None:
        """The checkpoint of a name."""
        self._expire()
        return self._by_name.get(name)

    def add(self, saved: Saved) -> Saved:
        """Stores a checkpoint. Raises ALREADY_EXISTS CHECKPOINT_EXISTS when the name has other content."""
        present = self.named(saved.name)
        if present is not None and present.files == saved.files:
            return present
        if present is not None:
            raise exists(saved.name)
        self._by_uri[saved.uri] = self._by_name[saved.name] = saved
        self._gone.discard(saved.uri)
        return saved

    def pin(self, uri: str) -> None:
        """Keeps a checkpoint from being deleted until `unpin`."""
        self._pins[uri] += 1

    def unpin(self, uri: str) -> None:
        """Undoes one `pin`."""
        self._pins[uri] -= 1

    def to_delete(self, uri: str) -> Saved | None:
        """The checkpoint; None: it is absent. Raises FAILED_PRECONDITION CHECKPOINT_IN_USE while it is pinned."""
        if self._pins[uri] > 0:
            raise FailedPreconditionError(
                f"uri: {uri} is used by {self._pins[uri]} sampling sessions: end them first",
                reason="CHECKPOINT_IN_USE",
                metadata={"uri": uri},
            )
        return self._by_uri.get(uri)

    def forget(self, uri: str) -> None:
        """Removes a checkpoint; absent is OK."""
        saved = self._by_uri.pop(uri, None)
        if saved is not None:
            self._by_name.pop(saved.name, None)
            self._gone.add(uri)

    def _expire(self) -> None:
        now = time.time()
        for uri, saved in list(self._by_uri.items()):
            if saved.expires_at is not None and saved.expires_at <= now and not self._pins[uri]:
                self.forget(uri)


class Upload(UploadInMemory):
    """A checkpoint being received."""

    def __init__(self, header: pb.UploadCheckpointHeader) -> None:
        """Raises INVALID_ARGUMENT FIELD_INVALID for a list of files that can't be one."""
        super().__init__(header)
        paths = [file.path for file in self._files]
        for index, path in enumerate(paths):
            if path in paths[:index]:
                raise field_error(f"header.files[{index}].path", f"{path!r} is there twice")
            if path == MANIFEST and index < len(paths) - 1:
                raise field_error(f"header.files[{index}].path", f"is {MANIFEST}, which must be last")
            if path not in (REFERENCE, MANIFEST):
                raise field_error(
                    f"header.files[{index}].path",
                    f"is {path!r}, but Tinker takes no weights that were made elsewhere: bring a checkpoint that this "
                    f"adapter has saved, which is {REFERENCE} and {MANIFEST}",
                )
        if REFERENCE not in paths:
            raise field_error("header.files", f"holds no {REFERENCE}")
        if sum(file.size_bytes for file in self._files) > _MOST_BYTES:
            raise field_error("header.files", f"are larger than the {_MOST_BYTES} bytes of any reference")

    def finish(self) -> Saved:
        """The checkpoint.

        Raises:
            DataLossError: CHECKPOINT_CORRUPT with file, expected and actual hash.
            InvalidArgumentError: FIELD_INVALID when the reference is none.
        """
        files = self.received(
            lambda path, expected, actual: _corrupt(self.name, path, expected=expected, actual=actual)
        )
        files.setdefault(MANIFEST, _manifest({REFERENCE: files[REFERENCE]}))
        listed = _listed_hash(files[MANIFEST])
        if listed != _sha256(files[REFERENCE]):
            raise _corrupt(self.name, REFERENCE, expected=listed, actual=_sha256(files[REFERENCE]))
        try:
            reference = Reference.model_validate_json(files[REFERENCE])
            reference.lora_config()
        except (ValidationError, ParseError) as error:
            raise field_error("header.files", f"{REFERENCE} is no reference to a checkpoint at Tinker") from error
        uri = f"{reference.weights}#{self.name}"
        return Saved(name=self.name, uri=uri, reference=reference, files=files, is_copy=True)


def existing(checkpoints: Checkpoints, header: pb.UploadCheckpointHeader) -> Saved | None:
    """The checkpoint that is there under a header's name with its content; it stays from now on."""
    present = checkpoints.named(header.name)
    given = {file.path: file.sha256 for file in header.files}
    if present is None or any(given.get(path) != _sha256(data) for path, data in present.files.items()):
        return None
    present.expires_at = None
    return present


def describe_lora(config: pb.LoraConfig) -> dict[str, Any]:
    """An adapter as a reference holds it."""
    return MessageToDict(config, preserving_proto_field_name=True)


def not_there(uri: str, field: str) -> NotFoundError:
    """The error of a checkpoint that is not there."""
    return NotFoundError(
        f"{field}: there is no checkpoint {uri!r}: bring its reference, or give a path of Tinker's",
        reason="CHECKPOINT_NOT_FOUND",
        metadata={"uri": uri},
    )


def exists(name: str) -> AlreadyExistsError:
    """The error of a name that has other content."""
    return AlreadyExistsError(
        f"name: checkpoint {name} exists with other content: save under another name",
        reason="CHECKPOINT_EXISTS",
        metadata={"name": name},
    )


def mismatch(uri: str, problem: str) -> KitchenError:
    """The error of a checkpoint that does not fit."""
    return FailedPreconditionError(
        f"checkpoint {uri} {problem}", reason="CHECKPOINT_MISMATCH", metadata={"checkpoint": uri}
    )


def _corrupt(name: str, path: str, *, expected: str, actual: str) -> DataLossError:
    return DataLossError(
        f"checkpoint {name}: {path} came damaged (expected {expected or 'no hash'}, is {actual})",
        reason="CHECKPOINT_CORRUPT",
        metadata={"file": path, "expected": expected, "actual": actual},
    )


def _listed_hash(manifest: bytes) -> str:
    try:
        return str(json.loads(manifest)["files"][REFERENCE]["sha256"])
    except (ValueError, KeyError, TypeError):
        return ""


def _manifest(files: Files) -> bytes:
    listed = {path: {"sha256": _sha256(data), "size_bytes": len(data)} for path, data in files.items()}
    return _json({"files": listed, "format": 1})


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
