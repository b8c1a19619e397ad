"""What a run has come to: a fold over its log, right whatever crashed in between."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from crucible.kitchen.v1 import event_pb2
from crucible_kitchen.store.records import TERMINAL_STATES, RunRecord
from crucible_kitchen.store.store import Store

_PAGE = 512
_MAX_CHARACTERS = 1000


async def stopped(
    store: Store, run_id: str, changed: event_pb2.RunStateChanged
) -> tuple[list[event_pb2.RunEvent], dict[str, Any]]:
    """Events and changes of a run that stops: what it came to, if it ever ran, and then the change of its state."""
    run = await store.get_run(run_id)
    events: list[event_pb2.RunEvent] = []
    changes: dict[str, Any] = {"state": changed.to_state, "pause_requested": False}
    changes["waiting_for_port"] = changed.waiting_for_port
    if run.attempt:
        changes["summary"] = summary = await summarize(store, run)
        events.append(event_pb2.RunEvent(summarized=event_pb2.RunSummarized(summary=summary)))
    if changed.to_state in TERMINAL_STATES:
        changes["end_time"] = datetime.now(UTC)
    return [*events, event_pb2.RunEvent(state_changed=changed)], changes


async def summarize(store: Store, run: RunRecord) -> event_pb2.RunSummary:
    """The summary of a run's whole log as it is now."""
    fold = SummaryFold()
    after = 0
    while events := await store.read_events(run.run_id, after, limit=_PAGE):
        for event in events:
            fold.apply(event)
        after = events[-1].sequence
    summary = fold.summary()
    summary.model_version_id = run.model_version_id
    if run.latest_checkpoint is not None:
        summary.checkpoint_uri = run.latest_checkpoint.uri
    return summary


class _Step(NamedTuple):
    """What counts of one step's event. Seconds are wall-clock."""

    sequence: int
    loss: float | None
    trained_tokens: float
    input_tokens: float
    seconds: float


class SummaryFold:
    """Takes a run's events in order. What an attempt supersedes is forgotten, all but the time that it took."""

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}
        self._evaluations: list[tuple[int, event_pb2.EvaluationSummary]] = []
        self._seconds = 0.0
        # Server time at which the attempt at work began; None between attempts.
        self._began: float | None = None
        self._last = 0.0

    def apply(self, event: event_pb2.RunEvent) -> None:
        """Takes in the next event."""
        match event.WhichOneof("payload"):
            case "attempt_started":
                self._end_attempt()
                self._began = _time(event)
                self._supersede(event.attempt_started.superseded_first_sequence)
            # CANCELLING only announces the end; after any other change no attempt is at work.
            case "state_changed" if event.state_changed.to_state != event_pb2.RUN_STATE_CANCELLING:
                self._end_attempt()
            case "step_completed":
                self._steps[event.step] = _step(event)
            case "evaluation_completed":
                self._evaluations.append((event.sequence, _evaluation(event)))
        self._last = _time(event)

    def _end_attempt(self) -> None:
        if self._began is not None:
            self._seconds += self._last - self._began
            self._began = None

    def _supersede(self, first_sequence: int) -> None:
        if first_sequence:
            self._steps = {at: each for at, each in self._steps.items() if each.sequence < first_sequence}
            self._evaluations = [each for each in self._evaluations if each[0] < first_sequence]

    def summary(self) -> event_pb2.RunSummary:
        """The summary so far, without checkpoint and model version."""
        steps = [self._steps[number] for number in sorted(self._steps)]
        running = self._last - self._began if self._began is not None else 0.0
        summary = event_pb2.RunSummary(
            steps=len(steps),
            trained_tokens=int(sum(each.trained_tokens for each in steps)),
            input_tokens=int(sum(each.input_tokens for each in steps)),
            seconds=self._seconds + running,
        )
        step_seconds = sum(each.seconds for each in steps)
        if step_seconds > 0:
            summary.tokens_per_second = summary.input_tokens / step_seconds
        losses = [each.loss for each in steps if each.loss is not None]
        if losses:
            summary.first_train_loss, summary.last_train_loss = losses[0], losses[-1]
        if self._evaluations:
            summary.first_evaluation.CopyFrom(self._evaluations[0][1])
            summary.last_evaluation.CopyFrom(self._evaluations[-1][1])
        return summary


def _step(event: event_pb2.RunEvent) -> _Step:
    metrics = event.step_completed.metrics
    return _Step(
        sequence=event.sequence,
        loss=metrics.get("train/loss"),
        trained_tokens=metrics.get("train/tokens", 0.0),
        input_tokens=metrics.get("train/input_tokens", 0.0),
        seconds=metrics.get("time/step", 0.0),
    )


def _evaluation(event: event_pb2.RunEvent) -> event_pb2.EvaluationSummary:
    done = event.evaluation_completed
    summary = event_pb2.EvaluationSummary(step=event.step, metrics=done.metrics)
    for sample in done.samples[:1]:
        cut = {name: getattr(sample, name)[:_MAX_CHARACTERS] for name in ("prompt", "target", "output")}
        summary.sample.CopyFrom(event_pb2.EvaluationSample(**cut))
    return summary


def _time(event: event_pb2.RunEvent) -> float:
    return event.time.seconds + event.time.nanos / 1e9
