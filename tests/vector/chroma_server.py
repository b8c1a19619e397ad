"""A real Chroma server on loopback, for one test session."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

_ARGUMENTS = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"


class ChromaServer:
    """`chroma run`.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        arguments = ["run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ARGUMENTS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._drain = threading.Thread(target=self._read)
        self._listening = threading.Event()
        self._drain.start()
        if not self._listening.wait(60):
            self.stop()
            raise AssertionError("chroma run does not listen")

    def _read(self) -> None:
        # To its end: a full pipe would stop the server.
        for line in self._process.stdout or ():
            if "listening on address" in line:
                self._listening.set()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._drain.join()
