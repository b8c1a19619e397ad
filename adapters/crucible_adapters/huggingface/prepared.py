"""Splits of datasets that have been made readable by row: Arrow files, each row's digest, and what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crucible_kit.chunks import atomic_file, canonical_json

_INDEX = "rows.json"
_DIGESTS = "digests.npy"


@dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """One split at one commit.

    Attributes:
        files: Arrow streams, in order.
        digests: of each row, shape [num_rows, 16], uint8; None: a column has no form in JSON.
    """

    folder: Path
    revision: str
    config: str
    split: str
    files: tuple[Path, ...]

    @property
    def digests(self) -> np.ndarray | None:
        path = self.folder / _DIGESTS
        return np.load(path) if path.is_file() else None

    @classmethod
    def read(cls, folder: Path) -> PreparedSplit | None:
        """The split in a folder; None when it is not there as a whole."""
        try:
            index = json.loads((folder / _INDEX).read_bytes())
            files = [(folder / name, size) for name, size in index["files"]]
            if any(path.stat().st_size != size for path, size in files):
                return None
        except (OSError, ValueError, KeyError):
            return None
        return cls(
            folder=folder,
            revision=index["revision"],
            config=index["config"],
            split=index["split"],
            files=tuple(path for path, _ in files),
        )

    def write(self, digests: np.ndarray | None) -> None:
        """Makes the folder one that `read` reads: the index comes last."""
        if digests is not None:
            with atomic_file(self.folder / _DIGESTS) as out:
                np.save(out, digests)
        index = {
            "revision": self.revision,
            "config": self.config,
            "split": self.split,
            "files": [[str(path.relative_to(self.folder)), path.stat().st_size] for path in self.files],
        }
        with atomic_file(self.folder / _INDEX) as out:
            out.write(canonical_json(index))


class PreparedSplits:
    """The splits of one dataset at one commit, and what earlier requests for them were answered with."""

    def __init__(self, cache: Path, repo: str, revision: str) -> None:
        self._folder = cache / repo.replace("/", "--") / revision

    def folder(self, config: str, split: str) -> Path:
        """Where a split's files go."""
        return self._folder / _key(config, split)

    def asked(self, config: str, split: str) -> PreparedSplit | None:
        """The split that a request means whose config and split may be empty; None when nobody has asked yet."""
        try:
            name = json.loads(self._request(config, split).read_bytes())
        except (OSError, ValueError):
            return None
        return PreparedSplit.read(self._folder / name) if isinstance(name, str) else None

    def remember(self, config: str, split: str, answer: PreparedSplit) -> None:
        """Keeps what a request is answered with: a commit does not change."""
        for request in {(config, split), (answer.config, answer.split)}:
            with atomic_file(self._request(*request)) as out:
                out.write(json.dumps(answer.folder.name).encode())

    def _request(self, config: str, split: str) -> Path:
        return self._folder / f"asked-{_key(config, split)}.json"


def _key(*parts: Sequence[str]) -> str:
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]
