"""Idle sessions' tensors on disk, to be brought back with the same bytes.

A parked session keeps its counters in memory; weights, optimizer and accumulated gradients go to one file. The files
live as long as the engine's process: sessions do not outlive it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from crucible_adapters.torch_engine.session import TrainingSession
from crucible_adapters.torch_engine.tensor_files import read_tensors, save_tensors
from crucible_kit.chunks import sha256_file
from crucible_kit.errors import DataLossError
from crucible_kit.faults import fault_point

_WEIGHT, _GRADIENT = "weight", "grad"
_MOMENTS = ("exp_avg", "exp_avg_sq", "master")


@dataclass(frozen=True)
class ParkedFile:
    """A session's tensors on disk."""

    path: Path
    sha256: str
    device: torch.device


class Parking:
    """A folder of parked sessions, emptied when it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._parked: dict[TrainingSession, ParkedFile] = {}

    def is_parked(self, session: TrainingSession) -> bool:
        """Whether the session's tensors are on disk."""
        return session in self._parked

    def park(self, session: TrainingSession) -> None:
        """Write the session's tensors and free their memory. The session is as it was when this raises OSError."""
        if session in self._parked:
            return
        path = self._folder / f"{id(session)}.safetensors"
        parameters = session.parameters
        tensors = {f"{_WEIGHT}.{name}": parameter.detach() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                tensors[f"{_GRADIENT}.{name}"] = parameter.grad
        for kind in _MOMENTS:
            tensors |= {f"{kind}.{name}": tensor for name, tensor in getattr(session.optimizer, kind).items()}
        try:
            save_tensors(tensors, path)
            fault_point("engine.park.mid")
            parked = ParkedFile(path, sha256_file(path), session.model.device)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        for parameter in parameters.values():
            parameter.grad = None
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        for kind in _MOMENTS:
            getattr(session.optimizer, kind).clear()
        self._parked[session] = parked

    def bring_back(self, session: TrainingSession) -> None:
        """Make the session's tensors what they were; nothing to do for one that is not parked.

        Raises DataLossError CHECKPOINT_CORRUPT when the file is damaged or gone: the session is lost.
        """
        parked = self._parked.get(session)
        if parked is None:
            return
        try:
            actual = sha256_file(parked.path)
        except FileNotFoundError:
            raise _lost("is missing", parked) from None
        if actual != parked.sha256:
            raise _lost("was changed while it was parked", parked, actual=actual)
        # copies of their own: what safetensors gives may be views of the mapped file
        tensors = {key: each.clone().to(parked.device) for key, each in read_tensors(parked.path).items()}
        fault_point("engine.unpark.mid")
        for name, parameter in session.parameters.items():
            parameter.data = tensors.pop(f"{_WEIGHT}.{name}")
            # after its weight: torch refuses a gradient of another shape
            parameter.grad = tensors.pop(f"{_GRADIENT}.{name}", None)
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            getattr(session.optimizer, kind)[name] = tensor
        self.forget(session)

    def forget(self, session: TrainingSession) -> None:
        """Remove a session's file, if it has one."""
        parked = self._parked.pop(session, None)
        if parked is not None:
            parked.path.unlink(missing_ok=True)


def _lost(problem: str, parked: ParkedFile, **hashes: str) -> DataLossError:
    return DataLossError(
        f"{parked.path.name} {problem}, and the session's tensors were in it: open a new session from its last "
        "checkpoint",
        reason="CHECKPOINT_CORRUPT",
        metadata={"file": parked.path.name, "expected": parked.sha256, **hashes},
    )
