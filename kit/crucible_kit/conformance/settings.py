"""What a suite has to be told about an adapter; the defaults suit the built-in adapters and the fakes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class SuiteSettings(BaseModel):
    """Settings of every suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call_seconds: float = Field(default=30.0, gt=0, description="Deadline of each call, in seconds.")
    check_seconds: float = Field(
        default=300.0, gt=0, description="Time after which a requirement counts as failed, in seconds."
    )
    largest_message_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=1024 * 1024,
        description="Largest request that is sent, if the adapter says that it takes so much.",
    )


TINY_MODEL = "tiny-qwen3-base"
"""A language model that ships with the adapters."""


def tiny_model(*, folders: bool) -> str:
    """That model as an adapter takes it: its folder, or its name for one that takes no `folders`."""
    return builtin_folder(TINY_MODEL) if folders else f"builtin:{TINY_MODEL}"


def builtin_folder(name: str) -> str:
    """The folder of files that ship with the adapters, when they are installed; otherwise the name builtin:NAME."""
    spec = find_spec("crucible_adapters")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(place) / "builtin" / name.replace("-", "_")
        if folder.is_dir():
            return str(folder)
    return f"builtin:{name}"
