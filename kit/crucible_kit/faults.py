"""Named fault points: where tests make a process die, freeze, or find its disk full.

    CRUCIBLE_FAULTS         spec[,spec ...], spec = point[:passing][=action]; absent: nothing ever happens
    CRUCIBLE_FAULTS_FIRED   folder of markers: each spec fires once, however often processes start again;
                            absent: it fires in every process

    point     a name of POINTS
    passing   at which passing of the point, counted in each process from its start; 1 unless given
    action    kill     SIGKILL to this process (the default)
              both     SIGKILL to its parent too; for the points of child processes
              stop     SIGSTOP
              enospc   OSError ENOSPC; at the points that DISK_POINTS names

Example: CRUCIBLE_FAULTS=engine.forward_backward.mid:3=kill,blob.rename.before=enospc

A spec that names no point, no action or no passing ends the process when this module is loaded: a typo must not test
nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from crucible_kit.errors import InvalidArgumentError
from crucible_kit.settings import unknown_key

VARIABLE = "CRUCIBLE_FAULTS"
FIRED_VARIABLE = "CRUCIBLE_FAULTS_FIRED"

POINTS: dict[str, str] = {
    "engine.forward_backward.mid": "the loss is known, its gradients are not",
    "engine.optim_step.before": "all gradients are there, no weight has changed",
    "engine.optim_step.after": "the weights have changed, nobody has been told",
    "engine.save.mid": "a checkpoint's weights are written, its other files are not",
    "engine.publish.before": "a checkpoint is complete under its temporary name",
    "engine.publish.after": "a checkpoint has its name, nobody has been told",
    "engine.read.mid": "a chunk of a checkpoint's file is about to be sent",
    "engine.upload.mid": "a chunk of an uploaded checkpoint is about to be written",
    "engine.load.mid": "an uploaded checkpoint is verified, the session still has its old weights",
    "engine.park.mid": "an idle session's file is written, its tensors are still in memory",
    "engine.unpark.mid": "a parked session's file is read, its tensors are not back",
    "server.forward_backward.after": "the gradients are asked for, the optimizer step is not",
    "server.save.copy": "one file of a checkpoint is about to be copied to the blob store",
    "blob.rename.before": "a blob is complete under its temporary name",
    "blob.rename.after": "a blob has its name, its record has not",
    "server.save.before_commit": "all files of a checkpoint are blobs, no row names them",
    "server.save.after_commit": "a checkpoint counts, the adapter's copy is still there",
    "server.keep_last.rows": "a checkpoint is about to count as deleted",
    "server.keep_last.files": "a checkpoint counts as deleted, one of its files is about to go",
    "server.sweep.mid": "a blob that no checkpoint names is about to go",
    "server.restore.mid": "a file of a checkpoint is about to be sent to the adapter",
    "server.register.after": "the model is registered, the log does not say so",
    "server.watch.mid": "events are read for a watcher and not sent",
    "store.commit.before": "a transaction of the run store is about to be committed",
    "store.commit.after": "a transaction of the run store is committed, nobody has been told",
}
"""Every fault point, and what is so when it is passed."""

DISK_POINTS = frozenset(
    {"blob.rename.before", "engine.park.mid", "engine.publish.before", "engine.save.mid", "engine.upload.mid"}
)
"""The points at which a disk may be full."""

_CHILD_PREFIX = "engine."
_ACTIONS = ("kill", "both", "stop", "enospc")


@dataclass(frozen=True)
class Fault:
    """One thing that is to happen."""

    point: str
    passing: int
    action: str

    def __str__(self) -> str:
        return f"{self.point}:{self.passing}={self.action}"


def parse_faults(text: str) -> list[Fault]:
    """The faults of a variable's value. Raises INVALID_ARGUMENT FAULT_INVALID naming the part that is wrong."""
    return [_parse(spec.strip()) for spec in text.split(",") if spec.strip()]


def _parse(spec: str) -> Fault:
    rest, _, action = spec.partition("=")
    point, _, passing = rest.partition(":")
    if point not in POINTS:
        raise _invalid(spec, unknown_key(point, POINTS).replace("key", "point"))
    if passing and not (passing.isascii() and passing.isdigit() and int(passing) > 0):
        raise _invalid(spec, f"the passing is a number from 1, not {passing!r}")
    action = action or "kill"
    if action not in _ACTIONS:
        raise _invalid(spec, f"the actions are {', '.join(_ACTIONS)}, not {action!r}")
    if action == "enospc" and point not in DISK_POINTS:
        raise _invalid(spec, f"enospc is for {', '.join(sorted(DISK_POINTS))}")
    if action == "both" and not point.startswith(_CHILD_PREFIX):
        raise _invalid(spec, f"both is for the points of {_CHILD_PREFIX}*, whose process has a parent of ours")
    return Fault(point, int(passing or 1), action)


def _invalid(spec: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{VARIABLE}: {spec!r}: {problem}", reason="FAULT_INVALID", metadata={"field": VARIABLE, "fault": spec}
    )


class Faults:
    """Counts passings and lets happen what is due."""

    def __init__(self, faults: Iterable[Fault], fired: Path | None) -> None:
        self._faults = tuple(faults)
        self._fired = fired
        if fired is not None:
            fired.mkdir(parents=True, exist_ok=True)
        self._passings: Counter[str] = Counter()
        self._lock = threading.Lock()

    def pass_point(self, name: str) -> None:
        """Passes a point. Raises OSError ENOSPC when that is what is due."""
        if name not in POINTS:
            raise ValueError(f"no fault point is named {name!r}: add it to POINTS")
        with self._lock:
            self._passings[name] += 1
            passing = self._passings[name]
        for fault in self._faults:
            if (fault.point, fault.passing) == (name, passing) and self._claim(fault):
                _happen(fault)

    def _claim(self, fault: Fault) -> bool:
        """Whether it is this process that lets it happen."""
        if self._fired is None:
            return True
        try:
            (self._fired / str(fault)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _happen(fault: Fault) -> None:
    match fault.action:
        case "enospc":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (fault {fault})")
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "both":
            os.kill(os.getppid(), signal.SIGKILL)
            _die()
        case _:
            _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived its SIGKILL")


def _armed() -> Faults | None:
    faults = parse_faults(os.environ.get(VARIABLE, ""))
    fired = os.environ.get(FIRED_VARIABLE)
    return Faults(faults, Path(fired) if fired else None) if faults else None


_faults = _armed()


def fault_point(name: str) -> None:
    """Marks a place at which a fault may happen; costs one look at a flag when none is asked for."""
    if _faults is not None:
        _faults.pass_point(name)
