"""kitchen run and kitchen runs against a fake kitchen that plays scripted runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Kitchen


def test_a_run_that_completes(kitchen: Kitchen) -> None:
    answer = kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "done-1")
    assert answer.code == 0
    shown = dict(line.split("  ", 1) for line in answer.out.splitlines() if line)
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown == {
        "run": "done-1",
        "state": "COMPLETED",
        "steps": "4 of 4",
        "loss": "4.0000 at first, 0.5000 at last (nats/token)",
        "heldout NLL": "6.0000 at step 0, 1.5000 at step 4 (nats/token); a unigram model of the answers has 4.0000",
        "time": "12 s; 2,000 tokens read, 400 trained on",
        "speed": "1,000 tokens/s",
        "checkpoint": "/kept here",
        "model version": "mv-1",
        "prompt": "'How many?'",
        "reference": "'Three.'",
        "at step 0": "'count count'",
        "at step 4": "'Three.'",
    }
    assert "step 4/4, loss 0.5000" in answer.err


def test_get_shows_what_the_run_came_to(kitchen: Kitchen) -> None:
    followed = kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "done-3").out
    shown = kitchen("runs", "get", "done-3").out

    def rows(text: str) -> dict[str, str]:
        return {name: value.strip() for name, value in (line.split("  ", 1) for line in text.splitlines() if line)}

    both = rows(followed).keys() & rows(shown).keys()
    assert {"loss", "heldout NLL", "time", "speed", "checkpoint", "model version", "prompt", "at step 4"} <= both
    assert {name: rows(followed)[name] for name in both} == {name: rows(shown)[name] for name in both}


def test_json_has_every_event_and_then_the_run(kitchen: Kitchen) -> None:
    answer = kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "done-2", "--json")
    *events, run = answer.lines
    assert [int(each["sequence"]) for each in events] == list(range(1, len(events) + 1))
    assert events[-1]["state_changed"]["to_state"] == "RUN_STATE_COMPLETED"
    assert (run["run_id"], run["state"], run["model_version_id"]) == ("done-2", "RUN_STATE_COMPLETED", "mv-1")


def test_what_is_asked_for_reaches_the_server(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    words = ["--set", "learning_rate=1e-3", "--set", "dataset=rows.jsonl", "--set", "names=[a, b]"]
    answer = kitchen(
        "run", "sl_basic", "--preset", "tiny", "--seed", "7", "--label", "who=me", *words, "--detach", "--json"
    )
    assert answer.code == 0
    run = answer.lines[0]
    assert run["config"] == {"learning_rate": 0.001, "dataset": str(tmp_path / "rows.jsonl"), "names": ["a", "b"]}
    assert (run["seed"], run["labels"], run["preset"]) == ("7", {"who": "me"}, "tiny")


def test_a_run_that_fails(kitchen: Kitchen, addresses: dict[str, str]) -> None:
    answer = kitchen("run", "sl_basic", "--preset", "fails", "--run-id", "failed-1")
    assert answer.code == 1
    assert "ROW_INVALID: row 3 has no answer" in answer.out
    assert f"kitchen runs resume failed-1 --server {addresses['open']}" in answer.out


def test_detach_prints_the_run_and_leaves(kitchen: Kitchen) -> None:
    answer = kitchen("run", "sl_basic", "--preset", "waits", "--run-id", "detached", "--detach")
    assert (answer.code, answer.out) == (0, "detached\n")


@pytest.mark.parametrize("command", [("run", "sl_basic"), ("runs", "resume", "r")])
def test_detach_needs_a_server(offline: Kitchen, command: tuple[str, ...], tmp_path: Path) -> None:
    answer = offline(*command, "--detach")
    assert answer.code == 2
    assert "--detach needs --server" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "sl_basic", "--set", "learning_rate"),
        ("run", "sl_basic", "--label", "x"),
        ("run", "sl_basic", "--seed", "-1"),
        ("run", "sl_basic", "--nothing"),
        ("nothing",),
        ("runs", "list", "--state", "GONE"),
        ("call",),
        ("call", "a.B/C", "{}", "-d", "{}"),
        ("call", "a.B/C", "-H", "no colon"),
        ("call", "a.B/C", "-d", "@missing.json"),
        ("serve", "--listen", "nowhere"),
    ],
)
def test_wrong_usage(offline: Kitchen, words: tuple[str, ...]) -> None:
    answer = offline(*words)
    assert answer.code == 2
    assert "Error: " in answer.err


def test_errors_of_the_server(kitchen: Kitchen) -> None:
    answer = kitchen("run", "sl_basic", "--set", "lerning_rate=1")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "error: config.lerning_rate: unknown key\n"
        "  INVALID_ARGUMENT CONFIG_INVALID\n"
        "  config.lerning_rate: unknown key; did you mean learning_rate?\n"
    )
    assert kitchen("run", "sl_basic", "--set", "lerning_rate=1", "--json").error == {
        "code": "INVALID_ARGUMENT",
        "reason": "CONFIG_INVALID",
        "message": "config.lerning_rate: unknown key",
        "fields": [{"field": "config.lerning_rate", "description": "unknown key; did you mean learning_rate?"}],
    }
    missing = kitchen("runs", "get", "nope", "--json")
    assert (missing.code, missing.error["reason"], missing.error["metadata"]) == (
        1,
        "RUN_NOT_FOUND",
        {"run_id": "nope"},
    )


def test_no_server_there(offline: Kitchen) -> None:
    answer = offline("runs", "list", "--server", "unix:/nonexistent/kitchen", "--json")
    assert (answer.code, answer.error["code"]) == (1, "UNAVAILABLE")


def test_a_token(offline: Kitchen, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli.fake_server import TOKEN

    words = ("recipes", "--server", addresses["guarded"], "--json")
    assert offline(*words).error["reason"] == "TOKEN_MISSING"
    assert offline(*words, "--token", TOKEN).code == 0
    monkeypatch.setenv("KITCHEN_TOKEN", TOKEN)
    assert offline(*words).lines[0]["name"] == "sl_basic"
    assert offline("call", "--list", "--server", addresses["guarded"]).code == 0


def test_commands_on_a_data_folder_do_not_make_one(offline: Kitchen, tmp_path: Path) -> None:
    answer = offline("runs", "list", "--json")
    assert (answer.code, answer.error["reason"]) == (1, "DATA_FOLDER_NOT_FOUND")
    assert list(tmp_path.iterdir()) == []


def interrupted(run_id: str, preset: str, server: str, on_line: Callable[[str], bool]) -> tuple[int, str]:
    """Runs the real command, and sends Ctrl-C at each line of its stderr that `on_line` picks."""
    words = ["run", "sl_basic", "--preset", preset, "--run-id", run_id, "--server", server]
    process = subprocess.Popen(
        [sys.executable, "-m", "crucible_kitchen.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KITCHEN_SERVER": ""},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stderr:
        if on_line(line):
            process.send_signal(signal.SIGINT)
    return process.wait(60), process.stdout.read()


def test_ctrl_c_pauses_and_the_printed_command_goes_on(kitchen: Kitchen, addresses: dict[str, str]) -> None:
    code, out = interrupted("pause-1", "waits", addresses["open"], lambda line: line.startswith("step 1/4"))
    assert code == 130
    assert "PAUSED" in out
    command = (
        next(line for line in out.splitlines() if line.startswith("go on with")).removeprefix("go on with").strip()
    )
    words = shlex.split(command)
    assert words == ["kitchen", "runs", "resume", "pause-1", "--server", addresses["open"]]
    answer = kitchen(*words[1:])
    assert answer.code == 0
    assert "COMPLETED" in answer.out
    assert "PAUSED" not in answer.err  # only what is new is shown


def test_a_second_ctrl_c_leaves_at_once(addresses: dict[str, str]) -> None:
    def on_line(line: str) -> bool:
        return line.startswith(("step 1/4", "pausing"))

    code, out = interrupted("pause-2", "never-pauses", addresses["open"], on_line)
    assert code == 130
    assert "RUNNING" in out
    assert "kitchen runs resume pause-2" in out


def test_a_run_is_followed_while_it_waits_for_an_adapter(kitchen: Kitchen) -> None:
    answer = kitchen("run", "sl_basic", "--preset", "adapter-returns", "--run-id", "away-1")
    assert answer.code == 0
    assert "run away-1 is PAUSED (waits for blob): nobody answers" in answer.err
    assert "COMPLETED" in answer.out


def test_a_run_that_waits_for_an_adapter_says_so(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "adapter-away", "--run-id", "away-2", "--detach")
    assert "PAUSED (waits for blob)" in kitchen("runs", "get", "away-2").out
    assert "PAUSED (waits for blob)" in kitchen("runs", "list").out


def test_runs_list(kitchen: Kitchen) -> None:
    for name in ("list-1", "list-2", "list-3"):
        kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", name, "--detach")
    answer = kitchen("runs", "list", "--limit", "3", "--state", "completed", "--json")
    assert [each["run_id"] for each in answer.lines] == ["list-3", "list-2", "list-1"]
    table = kitchen("runs", "list", "--limit", "1").out.splitlines()
    assert table[0].split() == ["RUN", "STATE", "STEP", "RECIPE", "PRESET", "CREATED", "(UTC)"]
    assert table[1].split()[:5] == ["list-3", "COMPLETED", "4/4", "sl_basic", "tiny"]
    assert len(table) == 2


def test_runs_get_pause_and_cancel(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "never-pauses", "--run-id", "steer", "--detach")
    assert kitchen("runs", "get", "steer", "--json").lines[0]["state"] == "RUN_STATE_RUNNING"
    assert "a pause was asked for" in kitchen("runs", "pause", "steer").out
    assert kitchen("runs", "cancel", "steer", "--reason", "enough", "--json").lines[0]["state"] == "RUN_STATE_CANCELLED"
    assert kitchen("runs", "pause", "steer", "--json").error["reason"] == "RUN_STATE"
    watched = kitchen("runs", "watch", "steer")
    assert watched.code == 1
    assert "run steer is CANCELLED: enough" in watched.out


def test_runs_events_and_watch(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "log", "--detach")
    everything = kitchen("runs", "events", "log", "--json").lines
    assert [int(each["sequence"]) for each in everything] == list(range(1, len(everything) + 1))
    some = kitchen("runs", "events", "log", "--after", "3", "--limit", "2", "--json").lines
    assert some == everything[3:5]
    watched = kitchen("runs", "watch", "log", "--after", "3", "--json")
    assert (watched.code, watched.lines) == (0, everything[3:])
    assert "step 4: loss 0.5" in kitchen("runs", "events", "log").out


def test_names_do_not_steer_the_terminal(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "waits", "--run-id", "odd", "--detach")
    reason = "\x1b[2J\x07gone\r\nrun odd is COMPLETED\u202e\x9b1A"
    kitchen("runs", "cancel", "odd", "--reason", reason)
    for words in (("events",), ("watch",), ("get",)):
        answer = kitchen("runs", *words, "odd")
        assert not set(answer.out) & {"\x1b", "\x07", "\r", "\u202e", "\x9b"}
    lines = kitchen("runs", "events", "odd").out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert "run odd is CANCELLED: \\x1b[2J\\x07gone | run odd is COMPLETED\\u202e\\x9b1A" in lines[-1]


def test_catalogue_commands(kitchen: Kitchen) -> None:
    assert kitchen("recipes").out.splitlines()[1].split() == ["sl_basic", "tiny", "Fine-tuning."]
    recipe = kitchen("recipes", "sl_basic").out
    rows = {line.split()[0]: line.split()[1:3] for line in recipe.splitlines()[-3:]}
    assert rows == {
        "batch_size": ["integer", "128"],
        "dataset": ["string", "required"],
        "lr_schedule": ["string", "linear"],
    }
    assert "One of constant, linear." in recipe
    assert "batch_size=16" in recipe
    assert kitchen("stages", "--json").lines[0]["name"] == "evaluate"


def test_help_is_quick_because_it_loads_nothing() -> None:
    code = (
        "import sys\n"
        "from crucible_kitchen.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'grpc', 'google.protobuf', 'pydantic', 'rich', 'sqlalchemy', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "serve" in ended.stdout


def test_client_commands_need_no_server_parts(addresses: dict[str, str], tmp_path: Path) -> None:
    without = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('sqlalchemy', 'alembic', 'yaml', 'grpc_health', 'grpc_channelz')))\n"
        "from crucible_kitchen.cli import main; main(prog_name='kitchen')"
    )

    def kitchen(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", without, *words], capture_output=True, text=True, cwd=ROOT, check=False
        )

    listed = kitchen("runs", "list", "--server", addresses["open"], "--json")
    assert listed.returncode == 0, listed.stderr
    for words in (("run", "sl_basic", "--data", str(tmp_path), "--json"), ("serve", "--data", str(tmp_path), "--json")):
        refused = kitchen(*words)
        assert refused.returncode == 1
        assert json.loads(refused.stderr.splitlines()[-1])["reason"] == "SERVER_NOT_INSTALLED"
