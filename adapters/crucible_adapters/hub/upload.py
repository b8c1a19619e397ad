"""One upload: its messages, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from crucible.port.hub.v1 import hub_pb2
from crucible_adapters.paths import check_relative
from crucible_adapters.staging import StagedFile, make_folders
from crucible_kit.errors import DataLossError, field_error


class Content(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes) -> None: ...
    def sha256(self) -> str: ...


class Upload:
    """Checks the messages of an upload and keeps the content.

    Args:
        content: where the bytes go.
        check: refuses headers that may not be written.
    """

    def __init__(self, content: Content, check: Callable[[hub_pb2.UploadFileHeader], object]) -> None:
        self._content = content
        self._check = check
        self._header: hub_pb2.UploadFileHeader | None = None

    def take(self, request: hub_pb2.UploadFileRequest) -> None:
        """Takes the next message."""
        part = request.WhichOneof("part")
        if part is None:
            raise field_error("part", "is missing: send a header or a chunk")
        if (part == "header") != (self._header is None):
            raise field_error("header", "must be the first message of an upload, once")
        if part == "header":
            self._check(request.header)
            self._header = request.header
        else:
            self._content.write(request.chunk)

    def finish(self) -> hub_pb2.UploadFileHeader:
        """The header, when the content is whole. Raises DATA_LOSS HUB_FILE_CORRUPT for another hash."""
        header = self._header
        if header is None:
            raise field_error("header", "is missing: an upload is a header and chunks")
        repo, actual = header.ref.repo, self._content.sha256()
        if actual != header.sha256:
            raise DataLossError(
                f"{repo}: the content of {header.path} has sha256 {actual}, the sender said {header.sha256}; "
                "nothing was stored: send it again",
                reason="HUB_FILE_CORRUPT",
                metadata={"repo": repo, "expected": header.sha256, "actual": actual},
            )
        return header


def check_path(header: hub_pb2.UploadFileHeader, folder: Path) -> Path:
    """Where an upload goes below a folder. Raises INVALID_ARGUMENT FIELD_INVALID for a path that no file may have."""
    target = check_relative(header.path, folder, field="header.path")
    if any(part.startswith(".") for part in header.path.split("/")[:-1]):
        raise field_error("header.path", f"{header.path!r} lies in a hidden folder: choose another name")
    return target


def place(staged: StagedFile, target: Path, path: str) -> None:
    """Puts an upload's content into its place in a local repository, durable. Raises INVALID_ARGUMENT FIELD_INVALID."""
    if target.is_dir():
        raise field_error("header.path", f"{path!r} is a folder of the repository: choose another name")
    try:
        make_folders(target.parent)
    except NotADirectoryError as error:
        raise field_error("header.path", f"{error} is a file, not a folder: choose another name") from error
    staged.place(target)
