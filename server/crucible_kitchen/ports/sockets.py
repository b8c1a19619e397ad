"""The folder of the sockets to adapters' processes: short enough for a socket's path, and gone after a crash too."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "kitchen-"
# Links from the data folder to the folder in use: a killed server's successor finds what it left.
_LINK = "sockets"


def open_socket_folder(data: Path) -> Path:
    """A new private folder outside the data folder, whose own path may be too long. Removes the one that a server
    which was killed on this data folder has left.
    """
    link = data / _LINK
    if link.is_symlink():
        _remove(Path(os.readlink(link)))
        link.unlink()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700
    try:
        link.symlink_to(folder)
    except BaseException:
        folder.rmdir()
        raise
    return folder


def close_socket_folder(data: Path, folder: Path) -> None:
    """Removes the folder that `open_socket_folder` has made."""
    shutil.rmtree(folder, ignore_errors=True)
    (data / _LINK).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Removes a folder of ours. The link may have been changed: nothing else is touched."""
    if not folder.name.startswith(_PREFIX) or folder.parent != Path(tempfile.gettempdir()):
        return
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        shutil.rmtree(folder, ignore_errors=True)
