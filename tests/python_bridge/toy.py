"""A library whose functions do what calls do wrong, and one of each kind that does not. Only workers import it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_KEPT: list[Any] = []


class Counter:
    """An object that stays where it is."""

    def __init__(self, value: int = 0, label: str = "") -> None:
        self.value = value
        self.label = label

    def increment(self, by: int = 1) -> int:
        """Counts on."""
        self.value += by
        return self.value

    def wait_and_increment(self, path: str) -> int:
        """Counts on when a pipe is closed at its other end."""
        wait_for(path)
        return self.increment()

    def fork(self) -> Counter:
        """Another counter that goes on from here."""
        return Counter(self.value, self.label)

    def forget(self) -> None:
        """Not in the manifest."""
        self.value = 0

    @property
    def broken(self) -> int:
        """Can't be read."""
        raise RuntimeError("nobody knows")


def echo(value: Any) -> Any:
    return value


def order(items: list[str]) -> list[str]:
    """As a set has them."""
    return list(set(items))


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def scale(array: np.ndarray, factor: float) -> np.ndarray:
    return array * np.asarray(factor, array.dtype)


def fail(message: str) -> None:
    raise ValueError(message)


def count_to(n: int, fail_after: int | None = None) -> Iterator[int]:
    for number in range(1, n + 1):
        yield number
        if number == fail_after:
            raise ValueError(f"told to fail after {number}")


def repeat(text: str, times: int) -> str:
    return text * times


def endless() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(10**6)


def wait_for(path: str) -> str:
    """Until a pipe is closed at its other end."""
    return Path(path).read_text(encoding="utf-8")


def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


def allocate(num_bytes: int) -> int:
    return len(np.ones(num_bytes, np.uint8))


def grow() -> None:
    while True:
        _KEPT.append(bytes(1024 * 1024))


def crash() -> None:
    os.abort()


def leave() -> None:
    os._exit(3)


def system_exit() -> None:
    sys.exit(3)


def swallow() -> None:
    """Does not let itself be interrupted."""
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue


def write_file(path: str) -> None:
    Path(path).write_text("x", encoding="utf-8")


def run_command() -> int:
    return subprocess.call(["true"])


def fork() -> int:
    return os.fork()


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()


def surroundings() -> dict[str, Any]:
    """What a worker sees of the world."""
    folder = os.getcwd()
    return {"environment": dict(os.environ), "folder": folder, "files": os.listdir(folder), "hash": hash("x")}


def load_c() -> int:
    return ctypes.CDLL(None).getpid()


def forge(answer: bytes) -> None:
    """Answers in place of the worker."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, answer)
    time.sleep(10**6)


class Hidden:
    """Whose text can't be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail_without_text() -> None:
    raise ValueError(Hidden())
