"""One server for all tests that do not kill it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import run_pb2_grpc
from crucible_client import KitchenClient
from crucible_kit.channel import connect
from tests.system.harness import Server, serving, write_rows


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("system") / "data") as running:
        yield running


@pytest.fixture
async def kitchen(server: Server) -> AsyncIterator[KitchenClient]:
    async with KitchenClient.connect(server.address) as client:
        yield client


@pytest.fixture
async def runs(server: Server) -> AsyncIterator[Any]:
    """RunService without the client's comforts."""
    channel = connect(server.address)
    yield run_pb2_grpc.RunServiceStub(channel)
    await channel.close()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
