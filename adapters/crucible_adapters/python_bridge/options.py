"""Settings of the adapter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crucible_kit.adapter import AdapterOptions

MIN_MEMORY_BYTES = 1024 * 1024
"""A worker needs a quarter of it to take its first call: less would end it without a word of why."""
BuiltinLibrary = Literal["math_verify", "pylatexenc", "sympy"]


class WorkersOptions(AdapterOptions):
    """Which libraries there are, and how much a call may use."""

    libraries: tuple[BuiltinLibrary, ...] = Field(
        default=("math_verify", "pylatexenc", "sympy"), description="Libraries of those that have a manifest here."
    )
    manifests: tuple[str, ...] = Field(
        default=(), description="Full paths of manifests of your own, one library each; see below."
    )
    python_path: tuple[str, ...] = Field(
        default=(), description="Folders in which the workers look for modules, beside the installed packages."
    )
    workers: int | None = Field(
        default=None, ge=1, le=256, description="Calls that run at a time; none: as many as there are processors."
    )
    start_seconds: float = Field(
        default=120.0, gt=0, description="Longest time in which the libraries are loaded; then it is tried anew."
    )
    max_queue: int = Field(
        default=256, ge=0, description="Calls that may wait for a worker; the next is RESOURCE_EXHAUSTED."
    )
    max_sessions: int = Field(
        default=128, ge=1, le=4096, description="Sessions that may be open; each has a process once it is used."
    )
    max_objects: int = Field(default=10_000, ge=1, description="References that a session may hold.")
    lease_seconds: float = Field(default=600.0, gt=0, description="A session that no call names for so long expires.")
    call_timeout_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="Longest wall-clock time of a call; sessions may ask for less."
    )
    cpu_seconds: int = Field(default=10, ge=1, le=3600, description="Most seconds of processor time of a call.")
    memory_limit_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=MIN_MEMORY_BYTES,
        description="Most memory of a session, beside that of the loaded libraries; sessions may ask for less, down to "
        "1 MiB.",
    )
    max_result_bytes: int = Field(
        default=1024 * 1024, ge=1024, le=24 * 1024 * 1024, description="Largest result that travels as a value."
    )
