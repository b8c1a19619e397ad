"""Relative paths as requests name them: checked before they touch a disk."""

from __future__ import annotations

import os
from pathlib import Path

from crucible_kit.errors import field_error

_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 4095


def check_relative(value: str, root: Path, *, field: str) -> Path:
    """The path under a root. Raises INVALID_ARGUMENT FIELD_INVALID for anything but a plain relative path with '/'."""
    parts = value.split("/")
    if value.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise field_error(field, f"{value!r} must be a relative path with '/', without '.', '..' or empty parts")
    if any(ord(character) < 32 or character == "\x7f" for character in value):
        raise field_error(field, f"{value!r} holds a control character: leave it out")
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        raise field_error(field, f"has a part of more than {_MAX_PART_BYTES} bytes: shorten it")
    path = root / value
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise field_error(field, f"is too long for this machine's disks below {root}: shorten it")
    return path
