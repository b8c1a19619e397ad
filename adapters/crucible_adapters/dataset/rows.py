"""What rows are to every kind of source: JSON objects that can be read by number."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from crucible_kit.chunks import canonical_json
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError

# One message holds a row whole, and takes 32 MiB.
MAX_ROW_BYTES = 16 * 1024 * 1024
_DIGEST_BYTES = 16


class RowSource(Protocol):
    """Indexed rows whose content is fixed.

    Attributes:
        num_rows: how many there are.
    """

    num_rows: int

    @property
    def digests(self) -> np.ndarray:
        """Of each row, shape [num_rows, 16], uint8: equal exactly when the rows are equal as JSON."""
        ...

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """The rows of these numbers, shape [n], as JSON.

        Args:
            fields: those that are needed; a source may leave others out. None: all.

        Raises:
            FailedPreconditionError: DATASET_CHANGED.
            InvalidArgumentError: DATASET_MALFORMED when there is no such field, or a value has no form in JSON.
        """
        ...


class Stamp(NamedTuple):
    """By what a changed file is told."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def stamp(path: Path) -> Stamp | None:
    """The file's stamp; None when it is gone."""
    try:
        return Stamp.of(path.stat())
    except FileNotFoundError:
        return None


def check_unchanged(path: Path, expected: Stamp) -> None:
    """Raises FAILED_PRECONDITION DATASET_CHANGED when the file is not the one that was opened."""
    found = stamp(path)
    if found != expected:
        raise FailedPreconditionError(
            f"{path} was {'removed' if found is None else 'changed'} after it was opened: open it again",
            reason="DATASET_CHANGED",
            metadata={"file": path},
        )


def malformed(path: Path, line: int, problem: str, *, unit: str = "line") -> InvalidArgumentError:
    """The error of a file that does not hold rows. Lines count from 1."""
    return InvalidArgumentError(
        f"{path}, {unit} {line}: {problem}", reason="DATASET_MALFORMED", metadata={"file": path, unit: line}
    )


def field_missing(name: str, number: int, field: str, there: Iterable[str]) -> InvalidArgumentError:
    """The error of a row, counted from 0, that lacks a field of the field mapping."""
    return InvalidArgumentError(
        f"{name}, row {number + 1}: has no field {field!r} for the field mapping, only {', '.join(sorted(there))}",
        reason="DATASET_MALFORMED",
        metadata={"dataset": name, "row": number + 1, "field": field},
    )


def parse_row(text: str) -> dict[str, Any]:
    """The row in a JSON text. Raises ValueError, saying what is wrong with it."""
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f'is {_kind(row)}, not an object such as {{"prompt": ..., "completion": ...}}')
    return row


def row_digest(row: dict[str, Any]) -> bytes:
    """16 bytes that tell different rows apart, whatever the order of their fields.

    Raises ValueError for a row that is too large, or not text.
    """
    try:
        text = canonical_json(row)
    except UnicodeEncodeError as error:
        raise ValueError("holds an unpaired surrogate escape, which is not text") from error
    if len(text) > MAX_ROW_BYTES:
        raise ValueError(f"has more than {MAX_ROW_BYTES} bytes: split it")
    return hashlib.sha256(text).digest()[:_DIGEST_BYTES]


def stack_digests(digests: list[bytes]) -> np.ndarray:
    """Digests as an array of shape [n, 16], uint8."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


def fingerprint(digests: np.ndarray, order: np.ndarray) -> str:
    """SHA-256 over the digests of the rows in order: equal exactly when the rows and their order are equal."""
    return hashlib.sha256(np.ascontiguousarray(digests[order]).tobytes()).hexdigest()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which JSON does not have: use null")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
