"""BlobStore on a local disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pydantic import Field

from crucible_adapters.blob.folder import BlobFolder
from crucible_adapters.blob.service import BlobService
from crucible_adapters.staging import StagingArea
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import FailedPreconditionError, ResourceExhaustedError

_THREADS = 4


class LocalBlobOptions(AdapterOptions):
    """Where the blobs are."""

    root: Path | None = Field(default=None, description="Folder of the blobs; default: blobs in the data folder.")


class LocalBlobStore(BlobService):
    """Blobs as files below a folder."""

    description = AdapterDescription(name="local-blobs", port="blob", options=LocalBlobOptions)

    def __init__(self, options: LocalBlobOptions, context: AdapterContext) -> None:
        folder = BlobFolder(options.root or context.data_dir / "blobs")
        threads = Threads("blob", _THREADS)
        super().__init__(folder, StagingArea(folder.staging, threads), threads)

    def _errors(self) -> AbstractContextManager[None]:
        return disk_errors()


@contextmanager
def disk_errors() -> Iterator[None]:
    """A disk that is full or can't be changed as an error of the port."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(
                "the disk of the blob store is full; nothing was stored: free space and send it again",
                reason="DISK_FULL",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise FailedPreconditionError(
                f"the folder of the blob store can't be changed ({error.strerror}); nothing was stored or deleted: "
                "make it writable and try again",
                reason="STORAGE_FAILED",
                metadata={"cause": errno.errorcode[error.errno]},
            ) from error
        raise
