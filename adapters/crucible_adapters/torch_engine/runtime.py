"""Process-wide torch settings: fixed threads and deterministic kernels."""

from __future__ import annotations

import os

import torch
import torch.utils.deterministic as deterministic


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def configure_torch(threads: int) -> None:
    """Fix the thread count and ask for deterministic kernels; call once, before any compute."""
    torch.set_num_threads(threads)
    # CUDA has operations without a deterministic kernel that are still exact here (scatter to distinct places)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # deterministic mode otherwise fills every new buffer with NaN, a pass over memory per operation
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
