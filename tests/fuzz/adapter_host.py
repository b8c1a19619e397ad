"""A process that serves the light adapters, and fakes of ports without any, as an adapter author's own server would.

python -m tests.fuzz.adapter_host DATA_FOLDER
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.fakes.deployment import FakeDeployment
from crucible_adapters.fakes.embedding import FakeEmbedding
from crucible_adapters.fakes.environment import FakeEnvironment
from crucible_adapters.fakes.evaluator import FakeEvaluator
from crucible_adapters.fakes.feedback import FakeFeedback
from crucible_adapters.fakes.llm import FakeLLM
from crucible_adapters.fakes.python_bridge import FakePythonBridge
from crucible_adapters.fakes.reward import FakeReward
from crucible_adapters.fakes.vector import FakeVectorStore
from crucible_adapters.hub.local import LocalHub
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_kit.adapter import AdapterContext
from crucible_kit.serving import serve_ports

ADAPTERS: tuple[Any, ...] = (
    LocalBlobStore,
    LocalDatasets,
    LocalHub,
    SqliteMetricsStore,
    SqliteModelRegistry,
    TokenizersFolder,
    FakeDeployment,
    FakeEmbedding,
    FakeEnvironment,
    FakeEvaluator,
    FakeFeedback,
    FakeLLM,
    FakePythonBridge,
    FakeReward,
    FakeVectorStore,
)


async def serve(data: Path) -> None:
    """Serves until SIGTERM; prints the address."""
    context = AdapterContext(data_dir=data)
    adapters = {each.description.port: each(each.description.options(), context) for each in ADAPTERS}
    capabilities = {port: adapter.description.capabilities for port, adapter in adapters.items()}
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    served = await serve_ports(adapters, "127.0.0.1:0", name="light-adapters", capabilities=capabilities)
    print(served.address, flush=True)
    await stop.wait()
    await served.stop(1.0)
    for adapter in adapters.values():
        await adapter.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(Path(sys.argv[1])))
