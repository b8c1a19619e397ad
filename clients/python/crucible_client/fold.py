"""A run's events folded to where it stands. Pure: the same events give the same view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from crucible.kitchen.v1 import event_pb2
from crucible.type.v1 import failure_pb2

ENDED_STATES = frozenset({event_pb2.RUN_STATE_COMPLETED, event_pb2.RUN_STATE_FAILED, event_pb2.RUN_STATE_CANCELLED})


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, as the newest attempt that made it did.

    Attributes:
        metrics: by name; units stand in the metric catalogue.
    """

    step: int
    attempt: int
    metrics: dict[str, float]


@dataclass(kw_only=True)
class RunView:
    """What a run's events say so far.

    Attributes:
        step: optimizer steps done that the newest attempt has reached.
        total_steps: planned optimizer steps; 0: not planned yet.
        steps: by number, each from the highest attempt that made it.
        checkpoint: the newest; None: none yet.
        checkpoints: all that are there and not damaged, by their address, oldest first.
        summary: what it had come to when it last stopped; None: it has not stopped since its newest attempt began.
        failure: why it failed or waits; None unless the state is FAILED or waiting_for_port is set.
        waiting_for_port: the port whose adapter it waits for, to go on by itself; empty: none.
        reason: what was said about the newest change of state.
        last_sequence: sequence number of the newest event seen.
    """

    run_id: str = ""
    state: event_pb2.RunState = event_pb2.RUN_STATE_UNSPECIFIED
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    steps: dict[int, Step] = field(default_factory=dict)
    checkpoint: event_pb2.Checkpoint | None = None
    checkpoints: dict[str, event_pb2.Checkpoint] = field(default_factory=dict)
    summary: event_pb2.RunSummary | None = None
    failure: failure_pb2.Failure | None = None
    waiting_for_port: str = ""
    reason: str = ""
    model_version_id: str = ""
    last_sequence: int = 0
    _evaluations: dict[tuple[int, str], tuple[int, event_pb2.EvaluationCompleted]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def evaluations(self) -> list[tuple[int, event_pb2.EvaluationCompleted]]:
        """(step, evaluation), each from the highest attempt that made it, in order."""
        return [(step, each) for (step, _), (_, each) in sorted(self._evaluations.items(), key=lambda item: item[0])]

    @property
    def ended(self) -> bool:
        """Whether the run is COMPLETED, FAILED or CANCELLED; ResumeRun may still take up the latter two."""
        return self.state in ENDED_STATES

    def apply(self, event: event_pb2.RunEvent) -> None:
        """Takes in the next event; one that was seen already changes nothing, nor does an unknown payload."""
        if event.sequence <= self.last_sequence:
            return
        self.last_sequence = event.sequence
        self.run_id = event.run_id
        match event.WhichOneof("payload"):
            case "state_changed":
                self._change_state(event.state_changed)
            case "attempt_started":
                self.attempt = event.attempt_started.attempt
                self.step = event.attempt_started.from_checkpoint.step
                self.summary = None
            case "planned":
                self.total_steps = event.planned.total_steps
            case "step_completed":
                self._complete_step(event)
            case "checkpoint_saved":
                self.checkpoint = event.checkpoint_saved.checkpoint
                self.checkpoints[self.checkpoint.uri] = self.checkpoint
            case "checkpoint_deleted":
                self._delete_checkpoint(event.checkpoint_deleted.checkpoint.uri)
            case "checkpoint_damaged":
                self._delete_checkpoint(event.checkpoint_damaged.checkpoint.uri)
            case "evaluation_completed":
                self._complete_evaluation(event)
            case "model_registered":
                self.model_version_id = event.model_registered.version_id
            case "summarized":
                self.summary = event.summarized.summary

    def _change_state(self, change: event_pb2.RunStateChanged) -> None:
        self.state = change.to_state
        self.waiting_for_port = change.waiting_for_port
        self.reason = change.reason
        self.failure = change.failure if change.HasField("failure") else None

    def _delete_checkpoint(self, uri: str) -> None:
        self.checkpoints.pop(uri, None)
        if self.checkpoint is not None and self.checkpoint.uri == uri:
            self.checkpoint = next(reversed(self.checkpoints.values()), None)

    def _complete_step(self, event: event_pb2.RunEvent) -> None:
        self.step = event.step
        known = self.steps.get(event.step)
        if known is None or event.attempt >= known.attempt:
            metrics = dict(event.step_completed.metrics)
            self.steps[event.step] = Step(step=event.step, attempt=event.attempt, metrics=metrics)

    def _complete_evaluation(self, event: event_pb2.RunEvent) -> None:
        place = (event.step, event.stage_path)
        known = self._evaluations.get(place)
        if known is None or event.attempt >= known[0]:
            self._evaluations[place] = (event.attempt, event.evaluation_completed)


def fold(events: Iterable[event_pb2.RunEvent]) -> RunView:
    """The view after these events."""
    view = RunView()
    for event in events:
        view.apply(event)
    return view
