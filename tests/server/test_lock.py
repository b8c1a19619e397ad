from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.lock import DataFolderLock

HOLD = """
import sys
from pathlib import Path
from crucible_kitchen.lock import DataFolderLock
lock = DataFolderLock(Path(sys.argv[1]))
lock.acquire()
lock.announce("127.0.0.1:5001")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_server_learns_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        lock = DataFolderLock(folder)
        with pytest.raises(FailedPreconditionError) as caught:
            lock.acquire()
        assert caught.value.reason == "DATA_FOLDER_IN_USE"
        assert caught.value.metadata == {"data": str(folder), "pid": str(child.pid), "address": "127.0.0.1:5001"}
        assert "--server 127.0.0.1:5001" in caught.value.message and "--data" in caught.value.message
    finally:
        child.kill()
        child.wait()
    lock.acquire()  # a holder that was killed holds nothing
    lock.release()
    assert folder.stat().st_mode & 0o077 == 0


def test_the_lock_holds_within_a_process_and_until_release(tmp_path: Path) -> None:
    first, second = DataFolderLock(tmp_path), DataFolderLock(tmp_path)
    first.acquire()
    with pytest.raises(FailedPreconditionError, match=f"process id {os.getpid()}: wait"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="--data") as caught:
        DataFolderLock(tmp_path / "file" / "data").acquire()
    assert caught.value.reason == "DATA_FOLDER_UNUSABLE"
