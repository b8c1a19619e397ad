"""How a running run is told to stop: flags that the interpreter reads at its boundaries."""

from __future__ import annotations

from dataclasses import dataclass


class StopRequested(Exception):
    """Ends the walk at a boundary; not an error."""


class PauseRequested(StopRequested):
    """Somebody asked for a pause."""


class CancelRequested(StopRequested):
    """Somebody asked for the end."""


class DrainRequested(StopRequested):
    """The server shuts down; the run stays RUNNING and goes on when a server starts on this data again."""


@dataclass
class RunControl:
    """What was asked of a run."""

    pause: bool = False
    cancel: bool = False
    cancel_reason: str = ""
    drain: bool = False

    def stop_reason(self) -> StopRequested | None:
        """The strongest wish, or None."""
        if self.cancel:
            return CancelRequested(self.cancel_reason)
        if self.pause:
            return PauseRequested()
        return DrainRequested() if self.drain else None
