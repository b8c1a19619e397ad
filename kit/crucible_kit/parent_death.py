"""Programs that the system kills with the process that has started them, whatever they are doing: also while they
start, or are stopped, and don't see the end of their stdin.

    python -I -S parent_death.py PARENT PROGRAM ARGUMENT...

makes itself such a process and then becomes the program. It imports nothing else of this package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command of a program that is killed when this process ends, where the system can do that (Linux).

    To be started by a thread that lives as long as the program may, such as the event loop's: the system takes the end
    of that thread for the parent's. What the program itself starts is not killed.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def die_with_parent(parent: int) -> None:
    """Lets the system kill this process with its parent; ends it when it is no longer `parent`'s child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> None:
    """Entry point of the process."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent))
    for name in ("SIGPIPE", "SIGXFSZ"):  # ignored by Python, which would be inherited
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    # As it was given: Python adds a locale to its own.
    with open("/proc/self/environ", "rb") as file:
        pairs = [pair.partition(b"=") for pair in file.read().split(b"\0") if b"=" in pair]
    try:
        os.execvpe(command[0], command, {name: value for name, _, value in pairs})
    except OSError as error:
        sys.exit(f"{command[0]} can't be executed: {error.strerror}")


if __name__ == "__main__":
    main()
