"""What a run came to, for people."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import click

from crucible.kitchen.v1 import event_pb2
from crucible_client import RunView
from crucible_kitchen.cli.event_text import state_name

_NLL = "/mean_nll"
_SHOWN_CHARACTERS = 300


def print_summary(view: RunView, resume: str) -> None:
    """Writes the summary to stdout. `resume`: the command that goes on with a run that is not completed."""
    rows = [*_facts(view), *_samples(view)]
    if view.state != event_pb2.RUN_STATE_COMPLETED:
        rows.append(("go on with", resume))
    width = max(len(name) for name, _ in rows)
    click.echo()
    for name, value in rows:
        click.echo(f"{name.ljust(width)}  {value}")


def _facts(view: RunView) -> list[tuple[str, str]]:
    total = f" of {view.total_steps}" if view.total_steps else ""
    rows = [("run", view.run_id), ("state", state_name(view.state)), ("steps", f"{view.step}{total}")]
    if view.failure is not None:
        rows.append(("failure", f"{view.failure.reason}: {view.failure.status.message}"))
    elif view.ended and view.reason:
        rows.append(("reason", view.reason))
    losses = [view.steps[number].metrics.get("train/loss") for number in sorted(view.steps)]
    known = [loss for loss in losses if loss is not None]
    if known:
        rows.append(("loss", f"{known[0]:.4f} at first, {known[-1]:.4f} at last (nats/token)"))
    rows += _held_out(view)
    speed = tokens_per_second(view)
    if speed is not None:
        rows.append(("speed", f"{speed:,.0f} tokens/s"))
    if view.checkpoint is not None:
        rows.append(("checkpoint", local_path(view.checkpoint.uri)))
    if view.model_version_id:
        rows.append(("model version", view.model_version_id))
    return rows


def _held_out(view: RunView) -> list[tuple[str, str]]:
    if not view.evaluations:
        return []
    metrics = view.evaluations[-1][1].metrics
    rows = []
    for name in sorted(metrics):
        if name.endswith(_NLL):
            measured = [(step, each.metrics[name]) for step, each in view.evaluations if name in each.metrics]
            shown = [measured[0], measured[-1]] if len(measured) > 1 else measured
            values = ", ".join(f"{value:.4f} at step {step}" for step, value in shown)
            unigram = metrics.get(name.removesuffix(_NLL) + "/unigram_nll")
            against = f"; a unigram model of the answers has {unigram:.4f}" if unigram is not None else ""
            task = name.removeprefix("eval/").removesuffix(_NLL)
            rows.append((f"{task} NLL", f"{values} (nats/token){against}"))
    return rows


def _samples(view: RunView) -> list[tuple[str, str]]:
    """The first prompt's completions, before and after."""
    sampled = [(step, each.samples[0]) for step, each in view.evaluations if each.samples]
    if not sampled:
        return []
    last_step, last = sampled[-1]
    rows = [("prompt", _quoted(last.prompt))]
    if last.target:
        rows.append(("reference", _quoted(last.target)))
    first_step, first = sampled[0]
    if first_step < last_step and first.prompt == last.prompt:
        rows.append((f"at step {first_step}", _quoted(first.output)))
    return [*rows, (f"at step {last_step}", _quoted(last.output))]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def tokens_per_second(view: RunView) -> float | None:
    """Tokens that the model read in all steps over their wall-clock time."""
    tokens = sum(step.metrics.get("train/input_tokens", 0.0) for step in view.steps.values())
    seconds = sum(step.metrics.get("time/step", 0.0) for step in view.steps.values())
    return tokens / seconds if tokens and seconds else None


def local_path(uri: str) -> str:
    """The path of a file:// address; other addresses as they are."""
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else uri
