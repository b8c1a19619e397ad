"""Lines, durations and options: the pure parts of the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from crucible.kitchen.v1 import event_pb2
from crucible_client import Progress, RunView
from crucible_kit.errors import InvalidArgumentError, UnavailableError, from_status, to_status
from crucible_kitchen.cli.display import BarDisplay, duration_text, progress_text
from crucible_kitchen.cli.event_text import event_text, state_name
from crucible_kitchen.cli.follow import exit_code, resume_command
from crucible_kitchen.cli.options import Target
from crucible_kitchen.cli.output import print_error
from crucible_kitchen.cli.serve import server_options
from crucible_kitchen.cli.summary import local_path
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.manifest import read_manifest

PAYLOADS = [each.name for each in event_pb2.RunEvent.DESCRIPTOR.oneofs_by_name["payload"].fields]


@pytest.mark.parametrize("payload", [name for name in PAYLOADS if name not in ("step_completed", "log_recorded")])
def test_every_payload_has_a_text(payload: str) -> None:
    event = event_pb2.RunEvent(sequence=1, run_id="r")
    getattr(event, payload).SetInParent()
    assert event_text(event)


def test_texts() -> None:
    metrics = {"train/loss": 2.5, "train/tokens": 9.0}
    step = event_pb2.RunEvent(step=3, step_completed=event_pb2.StepCompleted(metrics=metrics))
    assert event_text(step) == "step 3: loss 2.5"
    log = event_pb2.RunEvent(log_recorded=event_pb2.LogRecorded(message="12 rows truncated"))
    assert event_text(log) == "12 rows truncated"
    planned = event_pb2.RunPlanned(total_steps=9, num_rows=8, trained_tokens_per_epoch=7, num_eval_rows=2)
    held_out = "9 steps planned: 8 rows, 7 trained tokens an epoch, 2 rows held out"
    assert event_text(event_pb2.RunEvent(planned=planned)) == held_out
    gone = event_pb2.CheckpointDeleted(checkpoint=event_pb2.Checkpoint(step=4, uri="file:///a"))
    assert event_text(event_pb2.RunEvent(checkpoint_deleted=gone)) == "checkpoint of step 4 deleted: file:///a"
    damaged = event_pb2.CheckpointDamaged(checkpoint=gone.checkpoint)
    damaged.failure.status.message = "checkpoint file:///a is damaged"
    told = "checkpoint file:///a is damaged; an earlier checkpoint takes its place"
    assert event_text(event_pb2.RunEvent(checkpoint_damaged=damaged)) == told
    summary = event_pb2.RunSummary(
        steps=6, seconds=61.4, first_train_loss=8, last_train_loss=0.25, tokens_per_second=1234.5
    )
    came_to = event_pb2.RunEvent(summarized=event_pb2.RunSummarized(summary=summary))
    assert event_text(came_to) == "6 steps in 61 s, loss 8 to 0.25, 1,234 tokens/s"
    waits = event_pb2.RunStateChanged(
        to_state=event_pb2.RUN_STATE_PAUSED, waiting_for_port="blob", reason="nobody answers"
    )
    told = "run r is PAUSED (waits for blob): nobody answers"
    assert event_text(event_pb2.RunEvent(run_id="r", state_changed=waits)) == told
    assert event_text(event_pb2.RunEvent()) == ""
    assert (state_name(event_pb2.RUN_STATE_PAUSED), state_name(99)) == ("PAUSED", "99")


def test_texts_of_anybody_s_do_not_steer_the_terminal() -> None:
    log = event_pb2.LogRecorded(message="a\x1b[31mb \n\n  c\td\u202ee \u00e9\U0001f389\u200d\x85\x00")
    text = event_text(event_pb2.RunEvent(log_recorded=log))
    assert text == "a\\x1b[31mb | c d\\u202ee \u00e9\U0001f389\u200d | \\x00"


def test_a_library_s_text_of_several_lines_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text("ports: {blob: builtin:local\nother: [")
    with pytest.raises(InvalidArgumentError) as caught:
        read_manifest(path)
    assert caught.value.message.count("\n") > 3
    print_error(caught.value, as_json=False)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"error: manifest {path} can't be read: while parsing a flow mapping | in ")
    assert "\\n" not in first


def test_an_error_tells_when_to_try_again(capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, told in ((5.0, "5"), (0.25, "0.2"), (90.0, "90")):
        error = from_status(to_status(UnavailableError("it is away", reason="AWAY", retry_delay=seconds)))
        print_error(error, as_json=False)
        assert capsys.readouterr().err == f"error: it is away\n  UNAVAILABLE AWAY\n  try again in {told} s\n"
        print_error(error, as_json=True)
        assert json.loads(capsys.readouterr().err)["retry_delay_seconds"] == seconds


def test_progress_texts() -> None:
    full = Progress(step=5, total_steps=100, loss=2.3, tokens_per_second=1234.5, seconds_left=95.4)
    assert progress_text(full) == "step 5/100, loss 2.3000, 1,234 tokens/s, 0:01:35 left"
    empty = Progress(step=0, total_steps=0, loss=None, tokens_per_second=None, seconds_left=None)
    assert progress_text(empty) == "step 0"
    assert [duration_text(seconds) for seconds in (0.4, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]


def test_the_bar_shows_step_and_loss_and_lets_texts_pass() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    metrics = {"train/loss": 2.5}
    events: list[dict[str, Any]] = [
        {"planned": event_pb2.RunPlanned(total_steps=4)},
        {"stage_started": event_pb2.StageStarted(stage="begin_epoch")},
        {"step": 1, "step_completed": event_pb2.StepCompleted(metrics=metrics)},
        {"log_recorded": event_pb2.LogRecorded(message="[bold]not markup[/bold]")},
    ]
    with BarDisplay(console) as display:
        for each in events:
            display.apply(event_pb2.RunEvent(**each))
    assert "1/4" in out.getvalue()
    assert "loss 2.5000" in out.getvalue()
    assert "[bold]not markup[/bold]" in out.getvalue()


def test_exit_codes() -> None:
    assert exit_code(event_pb2.RUN_STATE_COMPLETED) == 0
    assert [exit_code(state) for state in (event_pb2.RUN_STATE_FAILED, event_pb2.RUN_STATE_CANCELLED)] == [1, 1]
    assert [exit_code(state) for state in (event_pb2.RUN_STATE_PAUSED, event_pb2.RUN_STATE_RUNNING)] == [130, 130]
    assert exit_code(RunView().state) == 130


def test_the_resume_command_can_be_pasted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume_command(Target(server="host:1"), "r") == "kitchen runs resume r --server host:1"
    there = resume_command(Target(data=Path("my data"), manifest=Path("m.yaml")), "r")
    assert there == f"kitchen runs resume r --data '{tmp_path}/my data' --manifest {tmp_path}/m.yaml"


def test_local_paths() -> None:
    assert local_path("file:///a%20b/c") == "/a b/c"
    assert local_path("blob://bucket/key") == "blob://bucket/key"


def test_serve_takes_every_option_of_the_server() -> None:
    from crucible_kitchen.cli.serve import serve

    names = {each.name for each in serve.params}
    assert names == {*ServerOptions.model_fields, "as_json"}


def test_serve_options_are_checked_by_the_servers_model(tmp_path: Path) -> None:
    options = server_options(
        {"listen": "127.0.0.1:0", "data": str(tmp_path), "max_concurrent_runs": "3", "tokens": None}
    )
    assert (options.data, options.max_concurrent_runs, options.tokens) == (tmp_path, 3, None)
    roots = server_options({"read_roots": (str(tmp_path), "/data")}).read_roots
    assert roots == (tmp_path, Path("/data"))
    assert server_options({"read_roots": ()}).read_roots is None
    assert server_options({}).data == Path("kitchen-data").absolute()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"listen": "nowhere"}, "--listen: must be host:port"),
        ({"max_concurrent_runs": "none"}, "--max-concurrent-runs: "),
        ({"drain_seconds": "-1"}, "--drain-seconds: "),
        ({"listen": "0.0.0.0:1"}, "reachable from other machines"),
    ],
)
def test_serve_options_that_are_wrong(given: dict[str, Any], said: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        server_options(given)
    assert said in caught.value.message
