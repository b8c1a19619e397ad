"""Fault points: each is where its name says, costs nothing when nobody asks, and no typo goes unnoticed."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_kit import faults
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.faults import Fault, Faults, parse_faults
from tests.fault.conftest import ROOT


def test_every_point_stands_in_the_code_once() -> None:
    sources = [path for part in ("kit", "adapters", "server") for path in (ROOT / part).rglob("*.py")]
    placed = [name for path in sources for name in re.findall(r"fault_point\(\"([^\"]+)\"\)", path.read_text())]
    assert sorted(placed) == sorted(faults.POINTS)
    assert faults.POINTS.keys() >= faults.DISK_POINTS


def test_specs_say_where_when_and_what() -> None:
    assert parse_faults("engine.save.mid, blob.rename.before:3=enospc,engine.load.mid:2=both,") == [
        Fault("engine.save.mid", 1, "kill"),
        Fault("blob.rename.before", 3, "enospc"),
        Fault("engine.load.mid", 2, "both"),
    ]
    assert parse_faults("") == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("engine.forward_backwards.mid", "did you mean engine.forward_backward.mid"),
        ("engine", "unknown point"),
        ("engine.save.mid:0", "number from 1"),
        ("engine.save.mid:two", "number from 1"),
        ("engine.save.mid=explode", "the actions are kill, both, stop, enospc"),
        ("store.commit.before=enospc", "enospc is for blob.rename.before"),
        ("store.commit.before=both", "both is for the points of engine"),
    ],
)
def test_what_can_t_happen_is_refused(spec: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        parse_faults(f"engine.save.mid,{spec}")
    assert caught.value.reason == "FAULT_INVALID"


def test_a_fault_happens_at_its_passing_and_once_for_all_processes(tmp_path: Path) -> None:
    specs = parse_faults("engine.save.mid:2=enospc")
    first = Faults(specs, tmp_path / "fired")
    first.pass_point("engine.save.mid")
    first.pass_point("engine.upload.mid")
    with pytest.raises(OSError, match=r"fault engine\.save\.mid:2=enospc") as caught:
        first.pass_point("engine.save.mid")
    assert caught.value.errno == errno.ENOSPC
    again, elsewhere = Faults(specs, tmp_path / "fired"), Faults(specs, None)
    for _ in range(3):
        again.pass_point("engine.save.mid")
    elsewhere.pass_point("engine.save.mid")
    with pytest.raises(OSError):
        elsewhere.pass_point("engine.save.mid")


def test_a_point_that_is_not_listed_is_a_defect() -> None:
    with pytest.raises(ValueError, match="add it to POINTS"):
        Faults([], None).pass_point("engine.sav.mid")


def test_a_typo_ends_server_and_engine_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, faults.VARIABLE: "engine.save.mid:0"}
    commands = (
        ("crucible_kitchen.cli", "serve", "--data", str(tmp_path / "data")),
        ("crucible_adapters.torch_engine", "--listen", "unix:/nowhere", "--work-dir", str(tmp_path)),
    )
    children = [
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for child in children:
        _, complaint = child.communicate(timeout=60)
        assert child.returncode > 0
        assert "the passing is a number from 1" in complaint
