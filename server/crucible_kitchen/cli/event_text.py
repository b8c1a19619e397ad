"""Events as lines for people."""

from __future__ import annotations

from crucible.kitchen.v1 import event_pb2
from crucible_kitchen.cli.output import one_line


def state_name(state: int) -> str:
    """A run's state without its prefix, such as RUNNING; a number that this client does not know as it is."""
    try:
        return event_pb2.RunState.Name(state).removeprefix("RUN_STATE_")
    except ValueError:
        return str(state)


def state_text(state: int, waiting_for_port: str) -> str:
    """The same with what the run waits for, such as PAUSED (waits for blob)."""
    return f"{state_name(state)} (waits for {waiting_for_port})" if waiting_for_port else state_name(state)


def event_text(event: event_pb2.RunEvent) -> str:
    """What an event says, in one line; empty for a payload that this client does not know."""
    return one_line(_text(event))


def _text(event: event_pb2.RunEvent) -> str:
    match event.WhichOneof("payload"):
        case "state_changed":
            change = event.state_changed
            text = f"run {event.run_id} is {state_text(change.to_state, change.waiting_for_port)}"
            return f"{text}: {change.reason}" if change.reason else text
        case "attempt_started":
            started = event.attempt_started
            origin = f"from step {started.from_checkpoint.step}" if started.HasField("from_checkpoint") else "anew"
            return f"attempt {started.attempt} starts {origin}"
        case "planned":
            planned = event.planned
            return (
                f"{planned.total_steps} steps planned: {planned.num_rows} rows, "
                f"{planned.trained_tokens_per_epoch} trained tokens an epoch"
                + (f", {planned.num_eval_rows} rows held out" if planned.num_eval_rows else "")
            )
        case "stage_started":
            return f"stage {event.stage_started.stage} starts"
        case "stage_completed":
            return f"stage {event.stage_completed.stage} took {event.stage_completed.seconds:.2f} s"
        case "stage_failed":
            failed = event.stage_failed
            return f"stage {failed.stage} failed: {failed.failure.reason}: {failed.failure.status.message}"
        case "stage_rolled_back":
            return f"stage {event.stage_rolled_back.stage} rolled back"
        case "stage_skipped":
            return f"stage {event.stage_skipped.stage} skipped: {event.stage_skipped.reason}"
        case "step_completed":
            return f"step {event.step}: {metrics_text(event.step_completed.metrics)}"
        case "checkpoint_saved":
            saved = event.checkpoint_saved.checkpoint
            kind = "final checkpoint" if saved.final else "checkpoint"
            return f"{kind} at step {saved.step}: {saved.uri}"
        case "evaluation_completed":
            return f"evaluation at step {event.step}: {metrics_text(event.evaluation_completed.metrics)}"
        case "model_registered":
            registered = event.model_registered
            return f"registered as {registered.model_name}, version {registered.version_id}"
        case "checkpoint_damaged":
            damaged = event.checkpoint_damaged
            return f"{damaged.failure.status.message}; an earlier checkpoint takes its place"
        case "checkpoint_deleted":
            deleted = event.checkpoint_deleted.checkpoint
            return f"checkpoint of step {deleted.step} deleted: {deleted.uri}"
        case "summarized":
            return summary_text(event.summarized.summary)
        case "log_recorded":
            return event.log_recorded.message
        case _:
            return ""


def summary_text(summary: event_pb2.RunSummary) -> str:
    """What a run came to, in one line."""
    parts = [f"{summary.steps} steps in {summary.seconds:.0f} s"]
    if summary.HasField("last_train_loss"):
        parts.append(f"loss {summary.first_train_loss:.5g} to {summary.last_train_loss:.5g}")
    if summary.tokens_per_second:
        parts.append(f"{summary.tokens_per_second:,.0f} tokens/s")
    return ", ".join(parts)


# Of a step's many metrics these tell how it goes.
_SHOWN = ("train/loss", "train/tokens_per_second", "optim/lr", "optim/grad_norm")


def metrics_text(metrics: dict[str, float] | object) -> str:
    """The metrics that matter to people, such as loss 2.31."""
    values: dict[str, float] = dict(metrics)  # type: ignore[call-overload]
    names = [name for name in _SHOWN if name in values] or sorted(values)
    return ", ".join(f"{name.partition('/')[2] or name} {values[name]:.5g}" for name in names)
