"""Progress on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from crucible.kitchen.v1 import event_pb2
from crucible_client import Progress, ProgressTracker
from crucible_kitchen.cli.event_text import event_text
from crucible_kitchen.cli.output import note

# Events that people want to see beside the bar.
_TOLD = {"state_changed", "attempt_started", "planned", "stage_failed", "checkpoint_saved", "log_recorded"}
# Lines that a whole run's steps make where there is no terminal.
_LINES = 20


class Display(Protocol):
    """Shows a run's events as they come; a context manager."""

    def apply(self, event: event_pb2.RunEvent) -> None: ...
    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...


def new_display() -> Display:
    """The display that fits where stderr goes."""
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()


class LineDisplay:
    """A line for what matters, and one for every twentieth of the steps."""

    def __init__(self) -> None:
        self._tracker = ProgressTracker()

    def apply(self, event: event_pb2.RunEvent) -> None:
        """Takes in the next event."""
        self._tracker.apply(event)
        payload = event.WhichOneof("payload")
        if payload in _TOLD or payload == "evaluation_completed":
            note(event_text(event))
        elif payload == "step_completed":
            progress = self._tracker.progress
            every = max(1, progress.total_steps // _LINES)
            if progress.step % every == 0 or progress.step in (1, progress.total_steps):
                note(progress_text(progress))

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class BarDisplay:
    """A bar with step, loss, tokens/s and time left; what matters scrolls above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._tracker = ProgressTracker()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, facts="")

    def apply(self, event: event_pb2.RunEvent) -> None:
        """Takes in the next event."""
        self._tracker.apply(event)
        payload = event.WhichOneof("payload")
        if payload in _TOLD or payload == "evaluation_completed":
            self._bar.console.print(event_text(event), markup=False, highlight=False)
        progress = self._tracker.progress
        stage = event.stage_started.stage if payload == "stage_started" else None
        self._bar.update(
            self._task,
            description="training" if payload == "step_completed" else stage,
            completed=progress.step,
            total=progress.total_steps or None,
            facts=facts_text(progress),
        )

    def __enter__(self) -> BarDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def progress_text(progress: Progress) -> str:
    """Such as step 5/100, loss 2.31, 812 tokens/s, 0:01:35 left."""
    total = f"/{progress.total_steps}" if progress.total_steps else ""
    return ", ".join(part for part in (f"step {progress.step}{total}", facts_text(progress)) if part)


def facts_text(progress: Progress) -> str:
    """The same without the step."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration_text(progress.seconds_left)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Such as 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
