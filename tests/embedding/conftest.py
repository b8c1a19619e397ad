"""The real libraries of the providers against a server of the test's own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible_kit.adapter import AdapterContext
from tests.contract.conftest import Binding
from tests.embedding.wires import WIRES, Wire
from tests.llm.conftest import Waits
from tests.llm.server import Server

KEY = "sk-planted-0123456789abcdef"
_VARIABLES = ("OPENAI_", "GEMINI_", "GOOGLE_")
Make = Callable[..., Awaitable[Any]]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries read keys, addresses and proxies from the environment."""
    if request.node.get_closest_marker("live"):
        return
    for name in list(os.environ):
        if name.startswith(_VARIABLES) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=WIRES, ids=lambda wire: wire.name)
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


@pytest.fixture
def waits() -> Waits:
    return Waits()


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
