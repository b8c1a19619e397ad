"""Folders of processes that were killed go; those of others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from crucible_kit.temporary import TemporaryFolder

HOLD = """
import sys
from crucible_kit.temporary import TemporaryFolder

folder = TemporaryFolder(sys.argv[1])
(folder.path / "file").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    held = Path(process.stdout.readline().strip())
    others = [tmp_path / "crucible-held-notes", tmp_path / "crucible-stubs"]
    for each in others:
        each.mkdir()
    (tmp_path / "crucible-held-linked00").symlink_to(others[0], target_is_directory=True)
    try:
        with TemporaryFolder(str(tmp_path)) as first, TemporaryFolder(str(tmp_path)) as second:
            assert first.stat().st_mode & 0o777 == 0o700
            assert first.exists() and second.exists() and (held / "file").exists()
        assert not first.exists() and not second.exists()
    finally:
        process.kill()
        process.communicate()
    assert held.exists()
    TemporaryFolder(str(tmp_path)).remove()
    assert not held.exists() and all(each.exists() for each in others)
