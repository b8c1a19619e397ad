"""The model's process: `python -m crucible_adapters.embedding.minilm --listen unix:PATH --work-dir DIR`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_adapters.embedding.minilm.service import MiniLMEmbedding
from crucible_adapters.embedding.minilm.spec import MINILM, MiniLMOptions
from crucible_kit.adapter_process import run_process


async def make(options: MiniLMOptions, work_dir: Path) -> Mapping[str, Any]:
    """The model's service."""
    from crucible_adapters.embedding.minilm.model import MiniLM

    return {"embedding": await MiniLMEmbedding.open(lambda: MiniLM(options))}


if __name__ == "__main__":
    run_process(MINILM, make)
