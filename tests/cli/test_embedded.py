"""Commands without --server: a real server and engine inside the command's own process."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.conftest import ROOT, Kitchen

# Short steps on few rows; the rest is the preset's.
SMALL = {
    "batch_size": 2,
    "max_length": 64,
    "max_steps": 24,
    "warmup_steps": 2,
    "eval_at_start": False,
    "eval_max_rows": 2,
    "sample_max_tokens": 4,
}


def start(*words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KITCHEN_")}
    return subprocess.Popen(
        [sys.executable, "-m", "crucible_kitchen.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def test_run_pause_by_ctrl_c_and_resume(offline: Kitchen, tmp_path: Path) -> None:
    data = tmp_path / "data of mine"
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={str(value).lower()}")]
    process = start("run", "sl_basic", "--preset", "tiny", "--run-id", "mine", "--data", str(data), *settings)
    stderr: Any = process.stderr
    second = None
    for line in stderr:
        if line == "run mine\n":
            second = offline("runs", "list", "--data", str(data), "--json")
        if line.startswith("step 1/24"):
            process.send_signal(signal.SIGINT)
    out = process.communicate()[0]
    assert process.returncode == 130, out
    assert "PAUSED" in out

    assert second is not None
    assert (second.code, second.error["reason"]) == (1, "DATA_FOLDER_IN_USE")
    address = second.error["metadata"]["address"]
    assert address.startswith("unix:")
    assert not Path(address.removeprefix("unix:")).parent.exists()

    command = shlex.split(next(line for line in out.splitlines() if line.startswith("go on with")).partition("with")[2])
    assert command == ["kitchen", "runs", "resume", "mine", "--data", str(data)]
    resumed = start(*command[1:])
    out, err = resumed.communicate(timeout=90)
    assert resumed.returncode == 0, err
    shown = {line[:13].strip(): line[13:].strip() for line in out.splitlines()}
    assert (shown["state"], shown["steps"]) == ("COMPLETED", "24 of 24")
    assert (Path(shown["checkpoint"]) / "model.safetensors").is_file()
    assert "attempt 2 starts from step" in err

    listed = offline("runs", "list", "--data", str(data), "--json")
    assert [(each["run_id"], each["state"]) for each in listed.lines] == [("mine", "RUN_STATE_COMPLETED")]


def test_the_catalogue_leaves_nothing_behind(offline: Kitchen, tmp_path: Path) -> None:
    assert [each["name"] for each in offline("recipes", "--json").lines] == ["sl_basic"]
    assert "training" in offline("adapters").out
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_starts_no_engine_and_leaves_no_run(offline: Kitchen, tmp_path: Path) -> None:
    answer = offline("run", "sl_basic", "--preset", "tiny", "--set", "learning_rate=-1", "--json")
    assert (answer.code, answer.error["reason"]) == (1, "CONFIG_INVALID")
    assert answer.error["fields"][0]["field"] == "config.learning_rate"
    assert offline("runs", "list", "--json").lines == []
    assert (tmp_path / "kitchen-data").is_dir()
