"""One data folder, one server: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from crucible_kit.errors import FailedPreconditionError

_FILE_NAME = "server.lock"


class DataFolderLock:
    """The lock of a data folder. Its file tells who holds it and outlives the lock; only the lock counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Makes the folder when it is missing and takes its lock.

        Raises:
            FailedPreconditionError: DATA_FOLDER_IN_USE with pid and address of the holder; DATA_FOLDER_UNUSABLE.
        """
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPreconditionError(
                f"data: cannot use {folder} as the data folder ({error.strerror}): choose another with --data",
                reason="DATA_FOLDER_UNUSABLE",
                metadata={"data": folder},
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise self._in_use(holder) from error
        self._descriptor = descriptor
        self.announce("")

    def announce(self, address: str) -> None:
        """Writes down for others who holds the lock and where that server listens; empty: nowhere yet."""
        if self._descriptor is None:
            raise RuntimeError("the lock is not held")
        # The lock hangs on this very file: another one can't be renamed over it.
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "address": address}).encode(), 0)

    def release(self) -> None:
        """Gives the lock back. Without effect when it is not held."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _in_use(self, holder: dict[str, Any]) -> FailedPreconditionError:
        pid, address = holder.get("pid", "unknown"), holder.get("address", "")
        where = f", listening on {address}" if address else ""
        use = f"talk to that server with --server {address}" if address else "wait until that server listens"
        return FailedPreconditionError(
            f"data: the folder {self._path.parent} is in use by a server with process id {pid}{where}: {use}, "
            "or choose another folder with --data",
            reason="DATA_FOLDER_IN_USE",
            metadata={"data": self._path.parent, "pid": pid, "address": address},
        )


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # between two writes
        return {}
    return holder if isinstance(holder, dict) else {}
