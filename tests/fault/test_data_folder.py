"""A data folder that can't be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIND = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_server_refuses_a_read_only_data_folder(tmp_path: Path, used: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if used:
        (data / "server.lock").touch()
    command = [sys.executable, "-m", "crucible_kitchen.cli", "serve", "--listen", "127.0.0.1:0", "--data", str(data)]
    if os.geteuid() == 0:
        # No permission keeps root out: it takes a file system that is read-only.
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
            pytest.skip("root without the right to mount can't have a read-only folder")
        command = [unshare, "-m", "sh", "-c", BIND, "sh", str(data), *command]
    else:
        for path in (*data.iterdir(), data):
            path.chmod(0o555 if path == data else 0o444)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    data.chmod(0o755)
    assert ended.returncode == 1
    assert f"cannot use {data} as the data folder" in ended.stderr
    assert "choose another with --data" in ended.stderr
    assert sorted(path.name for path in data.iterdir()) == (["server.lock"] if used else [])
