"""What an adapter's process has to do with whoever has started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading

LISTEN_VARIABLE = "CRUCIBLE_ADAPTER_LISTEN"
"""Environment variable in which a host says where the process is to listen."""


class Announcement:
    """The line on stdout that a host waits for: where the adapter is reached."""

    def __init__(self) -> None:
        self._made = False

    def print(self, address: str) -> None:
        """Prints it, the first time."""
        if not self._made:
            self._made = True
            print(json.dumps({"crucible": 1, "address": address}), flush=True)


def ended_by_host(*, watch_stdin: bool) -> asyncio.Event:
    """An event that is set by SIGTERM, SIGINT and, with `watch_stdin`, the end of stdin, which a host holds open for
    as long as it lives.
    """
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if watch_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, ended), name="stdin", daemon=True).start()
    return ended


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        # Not sys.stdin: a thread that waits in it holds a lock that the interpreter's end asks for.
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(ended.set)
