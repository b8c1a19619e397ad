from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.relay.harness import Kitchen, relaying


@pytest.fixture(params=["object", "tcp"])
async def kitchen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kitchen]:
    """Over both kinds of adapters: objects, and a gRPC server."""
    async with relaying(tmp_path, request.param) as served:
        yield served


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Kitchen]:
    """Over objects alone, for what the way to the adapter does not change."""
    async with relaying(tmp_path) as served:
        yield served
