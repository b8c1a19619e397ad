"""The real library against a server of the test's own, which computes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tinker")

from crucible.port.training.v1 import training_pb2 as pb
from crucible_adapters.tinker.options import TinkerOptions
from crucible_adapters.tinker.sampling import TinkerSampling
from crucible_adapters.tinker.training import TinkerTraining
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.ports import PORTS
from crucible_kit.training import TrainingSession
from tests import providers
from tests.engine.tiny import save_tiny_model
from tests.providers import Waits
from tests.tinker.server import TinkerServer

KEY = "tml-planted-0123456789abcdef"
MODEL = "builtin:tiny-qwen3-base"
LORA = pb.LoraConfig(rank=4)


@dataclass
class AtTinker:
    """Adapters of both ports, as stubs over messages that go through their bytes."""

    training: Any
    sampling: Any
    adapters: tuple[Any, ...]

    async def session(self, **fields: Any) -> TrainingSession:
        """A new training session."""
        return await TrainingSession.create(self.training, **{"base_model": MODEL, "lora": LORA, **fields})


Make = Callable[..., AtTinker]


no_settings_from_outside = providers.no_settings_from_outside
waits = providers.waits


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tinker") / "model")


@pytest.fixture
async def server(model: Path, tmp_path: Path) -> AsyncIterator[TinkerServer]:
    server = TinkerServer({"tiny/qwen3": model}, tmp_path / "engine")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def make(server: TinkerServer, model: Path, waits: Waits, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes adapters that ask the test's server."""
    made: list[AtTinker] = []

    def adapters(*, key: str = KEY, **options: Any) -> AtTinker:
        models = {MODEL: {"name": "tiny/qwen3", "folder": str(model)}}
        given = TinkerOptions(**{"base_url": server.address, "models": models, **options})
        context = AdapterContext(data_dir=tmp_path, secrets={"api_key": key} if key else {})
        both = tuple(kind(given, context, clock=waits.clock()) for kind in (TinkerTraining, TinkerSampling))
        services = {PORTS[each.description.port].service.full_name: each for each in both}
        channel = ObjectChannel(services, serialise=True)
        made.append(AtTinker(*(PORTS[port].stub(channel) for port in ("training", "sampling")), adapters=both))
        return made[-1]

    yield adapters
    for each in made:
        for adapter in each.adapters:
            await adapter.close()
