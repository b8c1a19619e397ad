"""The real library against a server of the test's own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from tests.contract.conftest import Binding
from tests.llm.conftest import Waits
from tests.llm.server import Server


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def binding(request: pytest.FixtureRequest) -> AsyncIterator[Binding]:
    """Behind serialised messages, or as a test's parameter says."""
    binding = Binding(getattr(request, "param", "serialise"))
    yield binding
    await binding.stop()
