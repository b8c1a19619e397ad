"""A child process of a host: what reaches it, and that nothing of it outlives the host."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys

import pytest

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
    assert "child: SigIgn:\t0000000000000000" in caplog.messages
