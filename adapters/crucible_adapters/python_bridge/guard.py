"""What a worker may not do whatever it is asked for: limits that the system keeps, and actions that Python refuses."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

_REPLY_ROOM_BYTES = 64 * 1024 * 1024
"""Memory above the limit that lets a worker still say that it has reached it."""
_OPEN_FILES = 64
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# What libraries for mathematics never do; prefixes of audit events.
_REFUSED = (
    *("subprocess.", "socket.", "ctypes.", "ftplib.", "http.", "smtplib.", "urllib.", "webbrowser."),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.putenv", "pty.", "signal."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *("shutil.", "tempfile.", "sqlite3.", "syslog.", "mmap.", "resource."),
)


class Limits:
    """The process's limits. Takes memory as it is now for the libraries': the limit counts from here.

    Args:
        memory_limit_bytes: what the process may use beside that.
    """

    def __init__(self, memory_limit_bytes: int) -> None:
        self._memory_limit = 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
        used = _address_space_bytes()
        if used:
            self._memory_limit = used + memory_limit_bytes
            self._hard = self._memory_limit + _REPLY_ROOM_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (self._memory_limit, self._hard))
        # Bound before the guard refuses the event.
        self._set = resource.setrlimit

    def start_call(self, cpu_seconds: int) -> None:
        """Gives the process so much more time of the processor; after it the system ends it (SIGXCPU)."""
        _allowed[0] = True
        used = round(time.process_time())  # the system counts whole seconds
        self._set(resource.RLIMIT_CPU, (used + cpu_seconds, resource.RLIM_INFINITY))
        _allowed[0] = False

    def make_room(self) -> None:
        """Lets a process that has reached its memory limit say so."""
        if self._memory_limit:
            _allowed[0] = True
            self._set(resource.RLIMIT_AS, (self._hard, self._hard))
            _allowed[0] = False


_allowed = [False]


def refuse_actions() -> None:
    """From now on files can't be written, processes not started and nobody connected to: a RuntimeError. For good."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITING):
            raise RuntimeError("a worker of the Python bridge writes no files")
    elif event.startswith(_REFUSED) and not _allowed[0]:
        raise RuntimeError(f"a worker of the Python bridge does no {event}")


def _address_space_bytes() -> int:
    """Of this process; 0: the system does not tell, so that memory can't be limited."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
