"""Folders that are gone with the process that has made them, at the latest when the next one makes one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

# No other folders are called so: those that nobody holds are deleted.
_PREFIX = "crucible-held-"


class TemporaryFolder:
    """A new private folder in the system's folder for temporary files, with a short path. The process holds a lock on
    it; what nobody holds any more, because its process was killed, is removed when a new one is made.

    Args:
        parent: where to make it, in place of the system's folder for temporary files.

    Attributes:
        path: of the folder.
    """

    def __init__(self, parent: str | None = None) -> None:
        parent = parent or tempfile.gettempdir()
        _remove_left(Path(parent))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
            with suppress(FileNotFoundError):
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                with suppress(OSError):  # a file system without locks: then nobody else gets one either
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                # Another process may have taken it for one that was left, before the lock.
                if self.path.exists():
                    return
                os.close(self._descriptor)

    def remove(self) -> None:
        """Removes it with all that is in it. Without effect the second time."""
        if self._descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _remove_left(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}????????"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
