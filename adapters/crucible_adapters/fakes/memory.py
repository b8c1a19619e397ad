"""Bytes that grow in memory, as a staged file does on a disk."""

from __future__ import annotations

import hashlib


class MemoryFile:
    """Content that is being received."""

    def __init__(self) -> None:
        self._content = bytearray()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._content)

    @property
    def content(self) -> bytes:
        """What was written so far."""
        return bytes(self._content)

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self._content += data

    def sha256(self) -> str:
        """Hash of what was written so far, 64 hex digits."""
        return hashlib.sha256(self._content).hexdigest()
