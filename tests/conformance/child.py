"""An adapter in a process of its own, as the exec binding starts one: child.py NAME FOLDER."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from crucible.adapter.v1 import adapter_pb2
from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.metrics.tensorboard import TensorboardMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_kit import serving
from crucible_kit.adapter import AdapterContext, AdapterInfoService
from tests.conformance.bindings import Capabilities, Servicers
from tests.conformance.toy import training
from tests.conformance.toy.blob import ToyBlobs
from tests.conformance.toy.sampling import CAPABILITIES as TOY_SAMPLING
from tests.conformance.toy.sampling import ToySampling
from tests.conformance.toy.training import CAPABILITIES as TOY_TRAINING
from tests.conformance.toy.training import ToyTraining

Made = tuple[Servicers, Capabilities]


def _local(kind: Any) -> Callable[[Path], Made]:
    description = kind.description

    def make(folder: Path) -> Made:
        adapter = kind(description.options(), AdapterContext(data_dir=folder))
        return {description.port: adapter}, {description.port: description.capabilities}

    return make


def _toy(folder: Path) -> Made:
    trainer = ToyTraining()
    return (
        {"training": trainer, "sampling": ToySampling(trainer)},
        {"training": TOY_TRAINING, "sampling": TOY_SAMPLING},
    )


def _same_sessions(folder: Path) -> Made:
    """Counts its sessions from 0 after each start."""
    numbers = itertools.count()
    training.uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"session-{next(numbers)}"))
    return {"training": ToyTraining()}, {"training": TOY_TRAINING}


class SameId(AdapterInfoService):
    """One instance_id for all instances."""

    async def GetAdapterInfo(self, request: Any, context: Any) -> adapter_pb2.GetAdapterInfoResponse:
        info = await super().GetAdapterInfo(request, context)
        info.instance_id = "always-the-same"
        return info


def _same_id(folder: Path) -> Made:
    serving.AdapterInfoService = SameId
    return {"blob": ToyBlobs()}, {"blob": ()}


ADAPTERS: dict[str, Callable[[Path], Made]] = {
    "blob": _local(LocalBlobStore),
    "dataset": _local(LocalDatasets),
    "metrics": _local(SqliteMetricsStore),
    "tensorboard-metrics": _local(TensorboardMetricsStore),
    "registry": _local(SqliteModelRegistry),
    "training": _toy,
    "sampling": _toy,
    # With a defect.
    "forgetful-blob": lambda folder: ({"blob": ToyBlobs()}, {"blob": ()}),
    "same-sessions-training": _same_sessions,
    "same-id-blob": _same_id,
}


async def main(name: str, folder: str) -> None:
    """Serves until stdin ends or SIGTERM comes."""
    servicers, capabilities = ADAPTERS[name](Path(folder))
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_reader(sys.stdin, ended.set)
    served = await serving.serve_ports(
        servicers, os.environ["CRUCIBLE_ADAPTER_LISTEN"], name=name, capabilities=capabilities
    )
    print(json.dumps({"crucible": 1, "address": served.address}), flush=True)
    await ended.wait()
    await served.stop(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
