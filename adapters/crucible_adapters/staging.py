"""Files that are written aside and take their place as a whole."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from crucible_adapters.threads import Threads
from crucible_kit.chunks import fsync_folder


class StagedFile:
    """A temporary file, hashed as it grows, on the disk of the place it will take. Methods block.

    It is locked while somebody needs it: one without a lock is what a killed process has left.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` holds the temporary file; both are made when first needed."""
        self._folder = folder
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        self._path: Path | None = None
        self.size = 0

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self._open().write(data)
        self._digest.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        """Hash of what was written so far, 64 hex digits."""
        return self._digest.hexdigest()

    def place(self, target: Path) -> None:
        """Takes the target's place, durable. Its folder must be there."""
        self.sync()
        assert self._path is not None
        os.replace(self._path, target)
        self._unlock()
        fsync_folder(target.parent)

    def finish(self) -> Path:
        """Makes the bytes durable and tells where they are until they take their place or are discarded."""
        self.sync()
        assert self._path is not None
        return self._path

    def sync(self) -> None:
        """Makes the bytes durable and ends the writing. Does nothing a second time."""
        file = self._open()
        if file.closed:
            return
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
        file.close()

    def discard(self) -> None:
        """Removes what has not taken its place."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._unlock()

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor, name = tempfile.mkstemp(dir=self._folder)
                # Whoever tidies up may come between the making and the locking.
                if _locked(descriptor) is not False and os.fstat(descriptor).st_nlink:
                    break
                os.close(descriptor)
            self._path = Path(name)
            self._file = os.fdopen(descriptor, "wb")
            # The lock belongs to both, and stays when the first is closed.
            self._lock = os.fdopen(os.dup(descriptor), "wb")
        return self._file

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class StagingArea:
    """The staged files of one adapter: none outlives its writer, nor the adapter."""

    def __init__(self, folder: Path, threads: Threads) -> None:
        """`folder` is the adapters' own; what killed processes have left there is removed."""
        self._folder = folder
        self._threads = threads
        self._files: set[StagedFile] = set()
        _sweep(folder)

    @asynccontextmanager
    async def file(self) -> AsyncIterator[StagedFile]:
        """A staged file that is gone after the block unless it has taken its place."""
        staged = StagedFile(self._folder)
        self._files.add(staged)
        try:
            yield staged
        finally:
            # A cancelled call may get here after the adapter is closed, which has then cleared up for it.
            if not self._threads.closed:
                await self._threads.run(staged.discard)
                self._files.discard(staged)

    async def close(self) -> None:
        """Removes what is left. The threads are closed before."""
        for staged in list(self._files):
            await asyncio.to_thread(staged.discard)
        self._files.clear()


def make_folders(folder: Path) -> None:
    """Makes a folder and its parents, durable. Raises NotADirectoryError with the parent that is a file."""
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(folder)
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def _locked(descriptor: int) -> bool | None:
    """Takes a file's lock; False: somebody has it, None: this disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            with path.open("rb") as file:
                if _locked(file.fileno()) is True:
                    path.unlink()
        except FileNotFoundError:
            continue  # its owner is done with it
