"""A hub on this machine, and the adapters that are set to it."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crucible_adapters.dataset.huggingface import HuggingFaceDatasetOptions, HuggingFaceDatasets
from crucible_adapters.hub.huggingface import HuggingFaceHub
from crucible_adapters.huggingface.options import HuggingFaceOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import ObjectChannel
from crucible_kit.ports import PORTS
from tests.contract.conftest import Binding
from tests.hub.fake_hub import FakeHub

Row = dict[str, Any]
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    # Its protocol is spoken by a closed library; what is sent and received without it is the same.
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    server = FakeHub()
    yield server
    server.close()


class Adapters:
    """Makes adapters on one data folder and one cache; closes them in the end."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.hub = hub
        self.cache = folder / "cache"
        self.context = AdapterContext(data_dir=folder / "data")
        self.context.data_dir.mkdir()
        self._stack = AsyncExitStack()

    def hub_adapter(self, **options: Any) -> HuggingFaceHub:
        given: dict[str, Any] = {"endpoint": self.hub.url, "cache_dir": self.cache, **options}
        return HuggingFaceHub(HuggingFaceOptions(**given), self.context)

    def dataset_adapter(self, **options: Any) -> HuggingFaceDatasets:
        given: dict[str, Any] = {"endpoint": self.hub.url, "cache_dir": self.cache, **options}
        return HuggingFaceDatasets(HuggingFaceDatasetOptions(**given), self.context)

    def stub(self, adapter: HuggingFaceHub | HuggingFaceDatasets) -> Any:
        """A stub of the object itself; it is closed in the end."""
        self._stack.push_async_callback(adapter.close)
        port = PORTS[adapter.description.port]
        return port.stub(ObjectChannel({port.service.full_name: adapter}))

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def adapters(hub: FakeHub, tmp_path: Path) -> AsyncIterator[Adapters]:
    made = Adapters(hub, tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def binding() -> AsyncIterator[Binding]:
    """Over the network, where most tests call the object itself."""
    binding = Binding("tcp")
    yield binding
    await binding.stop()


def jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: Sequence[Row] | pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows)), out, **options)
    return out.getvalue()
