"""One upload into a local repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crucible.port.hub.v1 import hub_pb2
from crucible_adapters.staging import StagedFile, make_folders
from crucible_kit.errors import DataLossError, field_error


class Upload:
    """Checks the messages of an upload and stores the file at the end.

    Args:
        staged: where the content goes until it is whole.
        target: the place of a header's file; refuses headers that may not be written.
    """

    def __init__(self, staged: StagedFile, target: Callable[[hub_pb2.UploadFileHeader], Path]) -> None:
        self._staged = staged
        self._find_target = target
        self._header: hub_pb2.UploadFileHeader | None = None
        self._target = Path()

    def take(self, request: hub_pb2.UploadFileRequest) -> None:
        """Takes the next message."""
        part = request.WhichOneof("part")
        if part is None:
            raise field_error("part", "is missing: send a header or a chunk")
        if (part == "header") != (self._header is None):
            raise field_error("header", "must be the first message of an upload, once")
        if part == "header":
            self._target = self._find_target(request.header)
            self._header = request.header
        else:
            self._staged.write(request.chunk)

    def commit(self) -> str:
        """Stores the file, durable; returns the repository. Raises DATA_LOSS HUB_FILE_CORRUPT for another hash."""
        header = self._header
        if header is None:
            raise field_error("header", "is missing: an upload is a header and chunks")
        repo, actual = header.ref.repo, self._staged.sha256()
        if actual != header.sha256:
            raise DataLossError(
                f"{repo}: the content of {header.path} has sha256 {actual}, the sender said {header.sha256}; "
                "nothing was stored: send it again",
                reason="HUB_FILE_CORRUPT",
                metadata={"repo": repo, "expected": header.sha256, "actual": actual},
            )
        if self._target.is_dir():
            raise field_error("header.path", f"{header.path!r} is a folder of the repository: choose another name")
        try:
            make_folders(self._target.parent)
        except NotADirectoryError as error:
            raise field_error("header.path", f"{error} is a file, not a folder: choose another name") from error
        self._staged.place(self._target)
        return repo
