"""A child process of a host: what reaches it, and that nothing of it outlives the host."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from crucible_kit import child_process
from crucible_kit.child_log import ChildLog
from crucible_kit.child_process import ChildProcess

HOST = """
import asyncio, sys
from crucible_kit.child_process import ChildProcess

async def main():
    child = ChildProcess("child", first_line=True)
    await child.start(["sh", "-c", "echo up; exec sleep 1000"], {"PATH": "/usr/bin:/bin"})
    if sys.argv[1] == "stopped":
        assert await child.first_line() == "up"
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of its stdin has to do")
@pytest.mark.parametrize("when", ["starting", "stopped"])
def test_a_child_that_sees_no_end_of_its_stdin_dies_with_its_host(when: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    host = subprocess.Popen([sys.executable, "-c", HOST, when], env=environment, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    child = os.pidfd_open(pid)
    if when == "stopped":
        os.kill(pid, signal.SIGSTOP)
    host.kill()
    host.communicate()
    ended, _, _ = select.select([child], [], [], 30)
    if not ended:
        signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)
    assert ended, "it lives on"


async def test_a_child_gets_its_environment_and_signals_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    child = ChildProcess("child", first_line=True)
    await child.start(["cat", "/proc/self/environ", "/proc/self/status"], {"PATH": "/usr/bin:/bin", "ODD": "a=b c"})
    assert await child.first_line() == "PATH=/usr/bin:/bin\0ODD=a=b c\0Name:\tcat"
    await child.wait()
    await child.stop(10)
    [ignored] = [each for each in caplog.messages if each.startswith("child: SigIgn:")]
    [own] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn:")]
    # Python ignores these for itself; what else is ignored was so when the tests were started.
    of_python = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert int(ignored.split()[2], 16) == int(own.split()[1], 16) & ~of_python


async def test_a_flood_fills_no_log_and_no_memory(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(child_process, "ChildLog", partial(ChildLog, clock=lambda: 0.0))
    monkeypatch.setattr(child_process, "_PIPE_SECONDS", 60.0)
    child = ChildProcess("child", first_line=True)
    flood = "echo first; yes flood | head -n 200000; yes flood | head -n 100000 >&2; head -c 9000000 /dev/zero >&2"
    tracemalloc.start()
    await child.start(["sh", "-c", flood], dict(os.environ))
    assert await child.first_line() == "first"
    await child.wait()
    await child.stop(10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    flooded = sum("flood" in each for each in caplog.messages)
    left_out = 300001 - flooded
    assert flooded < 3000
    assert caplog.messages.count(f"child: {left_out} lines were left out") == 1
    assert len([each for each in caplog.messages if "is left out" in each]) == 1
    assert peak < 8_000_000
    assert [len(each) for each in child.last_lines][-2:] == [5, 8193]


def test_a_child_is_heard_again_after_its_flood(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    log = ChildLog("child", clock=lambda: now)
    for _ in range(40):
        log.write(b"x" * 10_000)
    heard = len(caplog.messages) - 1
    assert heard < 40 and caplog.messages[-1].startswith("child has written 256 KiB in less than 60 s")
    now = 60.0
    log.write(b"again")
    assert caplog.messages[-2:] == [f"child: {40 - heard} lines were left out", "child: again"]
