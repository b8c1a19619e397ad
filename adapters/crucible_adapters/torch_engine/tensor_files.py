"""Tensors in files, and the errors of files that are not what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crucible_kit.errors import DataLossError, FailedPreconditionError

# one key: two or more are written in an order that differs from process to process
_METADATA = {"format": "pt"}


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; the same tensors give the same bytes. Raises OSError, as for a full disk."""
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, _METADATA)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU. Raises DataLossError CHECKPOINT_CORRUPT."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise corrupt(path.parent, path.name, "is missing") from error
    except SafetensorError as error:
        raise corrupt(path.parent, path.name, f"is not a safetensors file ({error})") from error


def mismatch(folder: Path, problem: str) -> FailedPreconditionError:
    """The error of a checkpoint that does not fit the session."""
    return FailedPreconditionError(f"checkpoint {folder.name} {problem}", reason="CHECKPOINT_MISMATCH")


def corrupt(folder: Path, file: str, problem: str, **hashes: Any) -> DataLossError:
    """The error of a file that is not what its manifest says."""
    return DataLossError(
        f"checkpoint {folder.name}: {file} {problem}: use another checkpoint",
        reason="CHECKPOINT_CORRUPT",
        metadata={"file": file, **hashes},
    )
