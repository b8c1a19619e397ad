"""What tests of the libraries of hosted services share: a clock, and an environment that tells them nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from crucible_adapters.retries import Clock
from tests.llm.server import Server

_VARIABLES = ("ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_", "TINKER_")


@dataclass
class Waits:
    """Time that passes only by waiting.

    Attributes:
        told: seconds of every wait.
    """

    now: float = 1000.0
    told: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        async def sleep(seconds: float) -> None:
            self.told.append(seconds)
            self.now += seconds

        return Clock(monotonic=lambda: self.now, wall=lambda: 1_790_000_000.0, sleep=sleep, chance=lambda: 1.0)


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides keys, addresses and proxies: the libraries read them from the environment."""
    for name in list(os.environ):
        if name.startswith(_VARIABLES) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


# Fixtures: a conftest takes the ones it wants by name.


@pytest.fixture(autouse=True)
def no_settings_from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only live tests see what the machine's environment holds for the libraries."""
    if not request.node.get_closest_marker("live"):
        without_settings(monkeypatch)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()
