from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_kitchen.store import Store
from tests.server.fakes import Api, Clock, serve


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "kitchen.db", clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path) as served:
        yield served
