"""Process from which the workers are forked: loads the libraries once, then forks a worker for each session.

    python -m crucible_adapters.python_bridge.worker DESCRIPTOR

It has one thread, so that forking is safe, which it is not in a server. It reads lines of JSON from the socket of that
descriptor and answers each with one:

    {"libraries": [MANIFEST, ...]}                 -> {"ready": true, "problems": {LIBRARY: WHY}}
    {"fork": MEMORY_LIMIT_BYTES} and a descriptor  -> {"pid": N}
    {"reap": PID}, of a worker that is ending      -> {"status": N}, negative: ended by that signal

The end of the socket ends it and all workers.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from crucible_adapters.python_bridge.calls import Calls, serve
from crucible_adapters.python_bridge.guard import Limits, refuse_actions
from crucible_adapters.python_bridge.manifest import Library
from crucible_adapters.python_bridge.targets import Targets
from crucible_kit.parent_death import die_with_parent

MAX_LINE_BYTES = 4 * 1024 * 1024


def main() -> None:
    """Entry point of the process."""
    control = socket.socket(fileno=int(sys.argv[1]))
    targets = Targets()
    libraries: dict[str, Library] = {}
    while True:
        request, descriptors = _receive(control)
        if request is None:
            # The workers are of this process's group, and so is this process.
            os.killpg(os.getpgid(0), signal.SIGKILL)
            return
        if "libraries" in request:
            loaded = [Library.model_validate(each) for each in request["libraries"]]
            problems = {each.name: problem for each in loaded if (problem := _load(each, targets))}
            libraries = {each.name: each for each in loaded if each.name not in problems}
            # What is loaded is shared with the workers as long as nobody writes to it; the collector would.
            gc.collect()
            gc.freeze()
            answer: dict[str, Any] = {"ready": True, "problems": problems, "threads": _count_threads()}
        elif "fork" in request:
            answer = _fork(control, descriptors, request["fork"], libraries, targets)
        else:
            answer = {"status": _reap(request["reap"])}
        control.sendall(json.dumps(answer).encode() + b"\n")


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        data, received, _, _ = socket.recv_fds(control, 64 * 1024, 1)
        if not data or len(line) > MAX_LINE_BYTES:
            return None, []
        line += data
        descriptors += received
    return json.loads(line), descriptors


def _load(library: Library, targets: Targets) -> str:
    """Imports all that a manifest names; why that failed, or nothing."""
    problem = library.problem()
    if problem:
        return problem
    try:
        targets.load_library(library)
        if library.warm_up:
            targets[library.warm_up]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _fork(
    control: socket.socket, descriptors: list[int], memory_limit: int, libraries: dict[str, Library], targets: Targets
) -> dict[str, Any]:
    connection = socket.socket(fileno=descriptors[0])
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        connection.close()
        return {"problem": str(error)}
    if pid:
        connection.close()
        return {"pid": pid}
    try:
        die_with_parent(parent)
        control.close()
        os.dup2(1, 2)  # nowhere: what a library says is not what the server logs
        limits = Limits(memory_limit)
        refuse_actions()
        serve(connection, Calls(libraries, targets, limits))
    finally:
        # Never back into the loop above, and no clean-up that belongs to the parent.
        os._exit(1)


def _reap(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


if __name__ == "__main__":
    importlib.invalidate_caches()
    main()
