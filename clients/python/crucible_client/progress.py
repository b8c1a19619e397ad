"""How far a run is and how long it will take, computed from its events and the server's clock alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from crucible.kitchen.v1 import event_pb2

# Steps that speed and time left are measured over: enough to even out checkpoints, few enough to follow a change.
WINDOW_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run's progress; None: not known yet.

    Attributes:
        step: optimizer steps done.
        total_steps: planned ones; 0: not planned yet.
        loss: train/loss of the newest step, in nats/token.
        tokens_per_second: tokens that the model read over the newest steps, over their wall-clock time.
        seconds_left: planned steps to do, at the pace of the newest steps.
    """

    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None


class ProgressTracker:
    """Takes events in order and knows the progress after each."""

    def __init__(self) -> None:
        self._step = 0
        self._total_steps = 0
        self._loss: float | None = None
        # (server time in seconds, tokens read) of the newest events: the first gives the time the steps began.
        self._marks: deque[tuple[float, float]] = deque(maxlen=WINDOW_STEPS + 1)

    def apply(self, event: event_pb2.RunEvent) -> None:
        """Takes in the next event."""
        match event.WhichOneof("payload"):
            case "attempt_started":
                self._step = event.attempt_started.from_checkpoint.step
                self._marks.clear()
            case "planned":
                self._total_steps = event.planned.total_steps
            case "stage_started" if len(self._marks) < 2:
                # The stages before the first step, such as loading the model, say nothing about the pace.
                self._marks.clear()
                self._marks.append((_seconds(event), 0.0))
            case "step_completed":
                metrics = event.step_completed.metrics
                self._step = event.step
                self._loss = metrics.get("train/loss", self._loss)
                self._marks.append((_seconds(event), metrics.get("train/input_tokens", 0.0)))

    @property
    def progress(self) -> Progress:
        """The progress after the events so far."""
        steps = len(self._marks) - 1
        elapsed = self._marks[-1][0] - self._marks[0][0] if steps > 0 else 0.0
        left = max(0, self._total_steps - self._step)
        speed = None
        if elapsed > 0:
            speed = sum(tokens for _, tokens in list(self._marks)[1:]) / elapsed
        return Progress(
            step=self._step,
            total_steps=self._total_steps,
            loss=self._loss,
            tokens_per_second=speed or None,
            seconds_left=left * elapsed / steps if elapsed > 0 and self._total_steps else None,
        )


def _seconds(event: event_pb2.RunEvent) -> float:
    return event.time.seconds + event.time.nanos / 1e9
