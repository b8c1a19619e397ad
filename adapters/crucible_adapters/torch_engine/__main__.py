"""The engine's process: `python -m crucible_adapters.torch_engine --listen unix:PATH --work-dir DIR`.

It listens only once torch is loaded and the device answers, so a host that can connect can use it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from crucible_adapters.torch_engine.spec import TORCH_ENGINE, TorchEngineOptions
from crucible_kit.errors import KitchenError
from crucible_kit.serving import serve_ports
from crucible_kit.settings import parse_settings

logger = logging.getLogger(__name__)

_STOP_GRACE_SECONDS = 1.0
_ORPHAN_SECONDS = 5.0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; options are described in spec.TorchEngineOptions."""
    parser = argparse.ArgumentParser(prog="python -m crucible_adapters.torch_engine", description=__doc__)
    parser.add_argument("--listen", required=True, help="unix:PATH or host:port")
    parser.add_argument("--work-dir", required=True, type=Path, help="folder for checkpoints")
    parser.add_argument("--parent-pipe", action="store_true", help="exit when stdin closes")
    for name, field in TorchEngineOptions.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=field.default)
    return parser.parse_args(arguments)


async def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM, SIGINT or, with --parent-pipe, the end of stdin."""
    given = {name: getattr(arguments, name) for name in TorchEngineOptions.model_fields}
    options = parse_settings(TorchEngineOptions, given, where="options")
    # imported here, so that wrong options are told at once and not after torch has loaded
    from crucible_adapters.torch_engine import service_sampling, service_training
    from crucible_adapters.torch_engine.engine import Engine, EngineOptions

    engine = Engine(EngineOptions(work_dir=arguments.work_dir, **options.model_dump()))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.parent_pipe:
        threading.Thread(target=_watch_parent, args=(loop, stop), name="parent", daemon=True).start()
    await engine.started()
    served = await serve_ports(
        {
            "training": service_training.TrainingService(engine),
            "sampling": service_sampling.SamplingService(engine),
        },
        arguments.listen,
        name=TORCH_ENGINE.name,
        capabilities=TORCH_ENGINE.capabilities,
    )
    logger.info("serving on %s, device %s", served.address, engine.device)
    await stop.wait()
    await served.stop(_STOP_GRACE_SECONDS)
    # a step that runs may take minutes and saves nothing: half-written checkpoints are swept at the next start
    logging.shutdown()
    os._exit(0)


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(stop.set)
    # an event loop that does not come round must not leave an orphan on the device
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def main() -> None:
    """Entry point of the process."""
    arguments = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(arguments))
    except KitchenError as error:
        sys.exit(f"torch engine: {error.message}")


if __name__ == "__main__":
    main()
