"""When checkpoints are to be deleted: one file beside them, so that it outlives the engine's process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from crucible_kit.chunks import atomic_file, canonical_json

logger = logging.getLogger(__name__)


class ExpiryIndex:
    """Times by checkpoint name, Unix nanoseconds. Written whole at every change; not safe for threads."""

    def __init__(self, path: Path, is_name: Callable[[str], object]) -> None:
        """`is_name` says whether a name in the file may be one."""
        self._path = path
        # what a crash left of a write
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()
        self._times = _read(path, is_name)

    def get(self, name: str) -> int | None:
        """When the checkpoint expires; None: never."""
        return self._times.get(name)

    def set(self, name: str, time_ns: int | None) -> None:
        """Remember a time, or forget it."""
        if self._times.get(name) == time_ns:
            return
        times = {key: value for key, value in self._times.items() if key != name}
        if time_ns is not None:
            times[name] = time_ns
        with atomic_file(self._path) as file:
            file.write(canonical_json(times))
        self._times = times

    def due(self, now_ns: int) -> list[str]:
        """Names whose time has come, the earliest first."""
        return sorted(
            (name for name, time in self._times.items() if time <= now_ns), key=lambda name: self._times[name]
        )

    def names(self) -> list[str]:
        """All that expire."""
        return sorted(self._times)


def _read(path: Path, is_name: Callable[[str], object]) -> dict[str, int]:
    try:
        times = json.loads(path.read_bytes())
        if all(isinstance(time, int) and is_name(name) for name, time in times.items()):
            return times
        problem = "it names what is no checkpoint"
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        problem = str(error)
    # keeping too much is the smaller harm
    logger.error("%s cannot be read (%s): the checkpoints in it stay until they are deleted by name", path, problem)
    return {}
