"""The hub adapters' processes, forked from one that has loaded the libraries: that is most of what a process costs."""

from __future__ import annotations

import asyncio
import importlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Sends its own stdin, stdout and stderr to the process that forks, and ends with the fork.
_CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as caller:
    caller.connect(sys.argv[1])
    socket.send_fds(caller, [b"!"], [0, 1, 2])
    caller.recv(1)
"""
_LOADED = ("crucible_adapters.huggingface.repos", "crucible_adapters.huggingface.datasets_hub")


@contextmanager
def forking(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """A command that does what the worker's module does, in an environment that is the same for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "s")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.forking", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=dict(environment),
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield [sys.executable, "-I", "-S", "-c", _CLIENT, address]
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


async def started(command: list[str]) -> asyncio.subprocess.Process:
    """As the adapters start their processes."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)


def main(address: str) -> None:
    """Forks for each caller until stdin ends."""
    for each in _LOADED:
        importlib.import_module(each)
    # The hub of tests has no TLS: certificates are read once, not in each process.
    made = ssl.create_default_context()
    ssl.create_default_context = lambda *_, **__: made
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listening], [], [])[0]:
            caller, _ = listening.accept()
            _, streams, _, _ = socket.recv_fds(caller, 1, 3)
            if len(streams) == 3 and os.fork() == 0:
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                listening.close()
                _work(caller)
            for each in streams:
                os.close(each)
            caller.close()


def _work(caller: socket.socket) -> None:
    from crucible_adapters.huggingface import worker

    # Whoever kills the caller means this process.
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        worker.main()
    finally:
        os._exit(1)


def _end_with(caller: socket.socket) -> None:
    caller.recv(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
