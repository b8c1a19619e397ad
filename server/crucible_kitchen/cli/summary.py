"""What a run came to, for people. The server has computed it: it is in the run, and in the event before its end."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import click

from crucible.kitchen.v1 import event_pb2
from crucible_client import RunView
from crucible_kitchen.cli.event_text import state_name
from crucible_kitchen.cli.output import one_line

_NLL = "/mean_nll"
_SHOWN_CHARACTERS = 300
Rows = list[tuple[str, str]]


def print_summary(view: RunView, resume: str) -> None:
    """Writes what a followed run came to. `resume`: the command that goes on with a run that is not completed."""
    total = f" of {view.total_steps}" if view.total_steps else ""
    rows = [("run", view.run_id), ("state", state_name(view.state)), ("steps", f"{view.step}{total}")]
    if view.failure is not None:
        rows.append(("failure", f"{view.failure.reason}: {view.failure.status.message}"))
    elif view.ended and view.reason:
        rows.append(("reason", view.reason))
    if view.summary is not None:
        rows += summary_rows(view.summary)
    if view.checkpoint is not None:
        rows.append(("checkpoint", local_path(view.checkpoint.uri)))
    if view.model_version_id:
        rows.append(("model version", view.model_version_id))
    if view.summary is not None:
        rows += sample_rows(view.summary)
    if view.state != event_pb2.RUN_STATE_COMPLETED:
        rows.append(("go on with", resume))
    click.echo()
    print_rows(rows)


def print_rows(rows: Rows) -> None:
    """Writes names and values to stdout, a line each."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name.ljust(width)}  {one_line(value)}")


def summary_rows(summary: event_pb2.RunSummary) -> Rows:
    """Losses, evaluations, time and speed."""
    rows: Rows = []
    if summary.HasField("last_train_loss"):
        losses = f"{summary.first_train_loss:.4f} at first, {summary.last_train_loss:.4f} at last"
        rows.append(("loss", f"{losses} (nats/token)"))
    rows += _held_out(summary)
    if summary.steps:
        tokens = f"{summary.input_tokens:,} tokens read, {summary.trained_tokens:,} trained on"
        rows.append(("time", f"{summary.seconds:,.0f} s; {tokens}"))
    if summary.tokens_per_second:
        rows.append(("speed", f"{summary.tokens_per_second:,.0f} tokens/s"))
    return rows


def _held_out(summary: event_pb2.RunSummary) -> Rows:
    first, last = summary.first_evaluation, summary.last_evaluation
    rows = []
    for name in sorted(name for name in last.metrics if name.endswith(_NLL)):
        measured = [each for each in (first, last) if name in each.metrics]
        by_step = {each.step: f"{each.metrics[name]:.4f} at step {each.step}" for each in measured}
        task = name.removeprefix("eval/").removesuffix(_NLL)
        unigram = name.removesuffix(_NLL) + "/unigram_nll"
        against = f"; a unigram model of the answers has {last.metrics[unigram]:.4f}" if unigram in last.metrics else ""
        rows.append((f"{task} NLL", f"{', '.join(by_step.values())} (nats/token){against}"))
    return rows


def sample_rows(summary: event_pb2.RunSummary) -> Rows:
    """The first prompt's completions, before and after."""
    first, last = summary.first_evaluation, summary.last_evaluation
    if not last.HasField("sample"):
        return []
    rows = [("prompt", _quoted(last.sample.prompt))]
    if last.sample.target:
        rows.append(("reference", _quoted(last.sample.target)))
    if first.step < last.step and first.sample.prompt == last.sample.prompt:
        rows.append((f"at step {first.step}", _quoted(first.sample.output)))
    return [*rows, (f"at step {last.step}", _quoted(last.sample.output))]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def local_path(uri: str) -> str:
    """The path of a file:// address; other addresses as they are."""
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri
