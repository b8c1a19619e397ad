"""The process of a ProcessAdapter: the command line that hosts start it with, and how it serves and ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_kit.adapter import ProcessAdapter
from crucible_kit.errors import KitchenError
from crucible_kit.serving import serve_ports
from crucible_kit.settings import parse_settings

logger = logging.getLogger(__name__)

Make = Callable[[Any, Path], Awaitable[Mapping[str, Any]]]
"""Given the options and the work folder, gives the servicers by port once they can be used. Heavy modules are imported
in it, so that wrong options are told at once."""

_STOP_GRACE_SECONDS = 1.0
_ORPHAN_SECONDS = 5.0


def run_process(adapter: ProcessAdapter, make: Make) -> None:
    """Entry point of the process. Serves until SIGTERM, SIGINT or, with --parent-pipe, the end of stdin; listens only
    once the servicers are made, so a host that can connect can use them.
    """
    arguments = parse_arguments(adapter)
    for name, value in adapter.environment.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(adapter, make, arguments))
    except KitchenError as error:
        sys.exit(f"{adapter.name}: {error.message}")


def parse_arguments(adapter: ProcessAdapter, arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `options` holds those of the adapter that are given, as texts."""
    parser = argparse.ArgumentParser(prog=f"python -m {adapter.module}", argument_default=argparse.SUPPRESS)
    parser.add_argument("--listen", required=True, help="unix:PATH or host:port")
    parser.add_argument("--work-dir", required=True, type=Path, help="folder for its files")
    parser.add_argument("--parent-pipe", action="store_true", default=False, help="exit when stdin closes")
    group = parser.add_argument_group("options")
    names = [group.add_argument(f"--{name.replace('_', '-')}").dest for name in adapter.options.model_fields]
    parsed = vars(parser.parse_args(arguments))
    options = {name: parsed.pop(name) for name in names if name in parsed}
    return argparse.Namespace(**parsed, options=options)


async def _run(adapter: ProcessAdapter, make: Make, arguments: argparse.Namespace) -> None:
    options = parse_settings(adapter.options, arguments.options, where="options")
    adapter.check_packages()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.parent_pipe:
        threading.Thread(target=_watch_parent, args=(loop, stop), name="parent", daemon=True).start()
    servicers = await make(options, arguments.work_dir)
    served = await serve_ports(servicers, arguments.listen, name=adapter.name, capabilities=adapter.capabilities)
    logger.info("serving on %s", served.address)
    await stop.wait()
    await served.stop(_STOP_GRACE_SECONDS)
    # what runs in a thread may take minutes and is nobody's any more; its caller has an error already
    logging.shutdown()
    os._exit(0)


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not sys.stdin, whose lock this thread would hold when the interpreter ends: it would abort.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)
    # an event loop that does not come round must not leave an orphan on the device
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)
