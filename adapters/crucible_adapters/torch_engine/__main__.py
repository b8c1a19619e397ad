"""The engine's process: `python -m crucible_adapters.torch_engine --listen unix:PATH --work-dir DIR`.

It listens only once torch is loaded and the device answers, so a host that can connect can use it. When it ends, a step
that runs may take minutes and saves nothing: half-written checkpoints are swept at the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_adapters.torch_engine.spec import TORCH_ENGINE, TorchEngineOptions
from crucible_kit.adapter_process import run_process

logger = logging.getLogger(__name__)


async def make(options: TorchEngineOptions, work_dir: Path) -> Mapping[str, Any]:
    """The engine's services."""
    from crucible_adapters.torch_engine import service_sampling, service_training
    from crucible_adapters.torch_engine.engine import Engine, EngineOptions

    engine = Engine(EngineOptions(work_dir=work_dir, **options.model_dump()))
    await engine.started()
    logger.info("device %s", engine.device)
    return {
        "training": service_training.TrainingService(engine),
        "sampling": service_sampling.SamplingService(engine),
    }


if __name__ == "__main__":
    run_process(TORCH_ENGINE, make)
