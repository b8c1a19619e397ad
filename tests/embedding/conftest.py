"""The real libraries of the providers against a server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible_kit.adapter import AdapterContext
from tests import providers
from tests.contract.conftest import Binding
from tests.embedding.wires import WIRES, Wire
from tests.llm.server import Server
from tests.providers import Waits

KEY = "sk-planted-0123456789abcdef"
Make = Callable[..., Awaitable[Any]]


no_settings_from_outside = providers.no_settings_from_outside
waits = providers.waits
server = providers.server


@pytest.fixture(params=WIRES, ids=lambda wire: wire.name)
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


@pytest.fixture
async def binding(request: pytest.FixtureRequest) -> AsyncIterator[Binding]:
    """Behind serialised messages, or as a test's parameter says."""
    binding = Binding(getattr(request, "param", "serialise"))
    yield binding
    await binding.stop()


@pytest.fixture
def make(server: Server, binding: Binding, waits: Waits, tmp_path: Path) -> Make:
    """Makes an adapter of a wire that asks the test's server, and gives a stub of it."""

    async def made(wire: Wire, *, key: str = KEY, **options: Any) -> Any:
        given = {"base_url": server.address + wire.base_path, **options}
        context = AdapterContext(data_dir=tmp_path, secrets={"api_key": key} if key else {})
        kind: Any = wire.adapter
        return await binding.stub(kind(kind.description.options(**given), context, clock=waits.clock()))

    return made


async def embed(stub: Any, *texts: str, **fields: Any) -> pb.EmbedTextsResponse:
    return await stub.EmbedTexts(pb.EmbedTextsRequest(texts=texts, **fields))
