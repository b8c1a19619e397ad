"""What was mapped at run time, in the data folder: it counts before the manifest, and a restart keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from crucible_kit.chunks import atomic_file
from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.ports.manifest import PortMapping, read_mappings

FILE = "adapters.yaml"
_GENERATION_FILE = "adapters.generation"
_MODE = 0o600
_HEAD = "# Mappings added at run time (kitchen adapters add, remove). They count before those of the manifest.\n"


def read_added(data: Path) -> dict[str, PortMapping]:
    """The added mappings of a data folder. Raises MANIFEST_INVALID naming the file and the bad keys."""
    path = data / FILE
    return read_mappings(path) if path.exists() else {}


def write_added(data: Path, mappings: Mapping[str, PortMapping]) -> None:
    """Puts these mappings in the place of the earlier ones, durable. Secrets stand in the file by variable only.

    Raises:
        FailedPreconditionError: DATA_FOLDER_UNUSABLE when the file can't be written.
    """
    ports = {port: mappings[port].written() for port in sorted(mappings)}
    _write(data / FILE, _HEAD + yaml.safe_dump({"ports": ports}, sort_keys=True))


def next_generation(data: Path) -> int:
    """A number higher than all that this data folder has given before, from 1: it counts the changes of settings.

    Raises:
        FailedPreconditionError: DATA_FOLDER_UNUSABLE when it can't be written.
    """
    path = data / _GENERATION_FILE
    try:
        last = int(path.read_text("ascii")) if path.exists() else 0
    except (OSError, ValueError) as error:
        raise _unusable(path, "can't be read: delete it, and start the remote adapters anew") from error
    _write(path, f"{last + 1}\n")
    return last + 1


def _write(path: Path, text: str) -> None:
    try:
        with atomic_file(path, mode=_MODE) as file:
            file.write(text.encode())
    except OSError as error:
        raise _unusable(path, f"can't be written ({error.strerror})") from error


def _unusable(path: Path, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{path} {problem}", reason="DATA_FOLDER_UNUSABLE", metadata={"path": path})
