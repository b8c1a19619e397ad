"""A process that serves the light adapters, and fakes of ports without any, as an adapter author's own server would.

python -m tests.fuzz.adapter_host DATA_FOLDER
"""

from __future__ import annotations

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
from crucible_kit.author import run_adapter

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

if __name__ == "__main__":
    context = AdapterContext(data_dir=Path(sys.argv[1]))
    adapters = {each.description.port: each(each.description.options(), context) for each in ADAPTERS}
    run_adapter(
        name="light-adapters",
        ports=adapters,
        capabilities={port: adapter.description.capabilities for port, adapter in adapters.items()},
        argv=["--listen", "127.0.0.1:0"],
    )
