"""From a target to a client: connect to a running server, or start one in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from crucible_client import KitchenClient
from crucible_kit.errors import NotFoundError
from crucible_kit.temporary import TemporaryFolder
from crucible_kitchen.cli.embedded import embedded_server
from crucible_kitchen.cli.options import Target

Result = TypeVar("Result")


def execute(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a command's work on an event loop of its own."""
    return asyncio.run(work)


@asynccontextmanager
async def connected(target: Target, *, existing: bool = False) -> AsyncIterator[KitchenClient]:
    """A client of the target; a server in this process ends with the block.

    Raises:
        NotFoundError: DATA_FOLDER_NOT_FOUND when the data folder must be `existing` and is not.
    """
    if target.server:
        async with _remote(target, target.server) as client:
            yield client
        return
    if existing and not target.data.is_dir():
        raise NotFoundError(
            f"data: there is no folder {target.data.absolute()}: name one with --data, or a server with --server",
            reason="DATA_FOLDER_NOT_FOUND",
            metadata={"data": target.data.absolute()},
        )
    async with embedded_server(target.data, target.manifest) as address, KitchenClient.connect(address) as client:
        yield client


@asynccontextmanager
async def connected_to_catalog(target: Target) -> AsyncIterator[KitchenClient]:
    """As `connected`, but a server in this process gets an empty folder: the catalogue is the same everywhere."""
    if target.server:
        async with connected(target) as client:
            yield client
        return
    with TemporaryFolder() as folder:
        async with connected(replace(target, data=folder)) as client:
            yield client


def _remote(target: Target, address: str) -> KitchenClient:
    return KitchenClient.connect(
        address,
        token=target.token,
        tls=target.tls,
        ca_cert=target.ca_cert,
        client_cert=target.cert,
        client_key=target.key,
    )
