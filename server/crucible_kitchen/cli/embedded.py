"""A server inside this process, reached like any other: over gRPC, on a socket that only this user can open."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from crucible_kit.errors import FailedPreconditionError
from crucible_kit.redaction import redact_logs
from crucible_kit.temporary import TemporaryFolder

# A run that is not paused in time goes on from its last checkpoint, so leaving must not take long.
_DRAIN_SECONDS = 5.0
# A socket's path has at most 107 bytes, and TMPDIR may take most of them.
_LONGEST_FOLDER = 74


@contextmanager
def server_installed() -> Iterator[None]:
    """Around the imports of the server. Raises FAILED_PRECONDITION SERVER_NOT_INSTALLED where they fail."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"the server's part is not installed ({error.name} is missing): pip install 'crucible-kitchen[all]', or "
            "name a running server with --server",
            reason="SERVER_NOT_INSTALLED",
        ) from error


@asynccontextmanager
async def embedded_server(data: Path, manifest: Path | None) -> AsyncIterator[str]:
    """Serves a data folder, without taking up the runs that are in it, and yields the address.

    Raises:
        FailedPreconditionError: SERVER_NOT_INSTALLED; DATA_FOLDER_IN_USE with the address of the server that has it.
    """
    with server_installed():
        from crucible_kitchen.options import ServerOptions
        from crucible_kitchen.server import KitchenServer
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    redact_logs()
    usual = tempfile.gettempdir()
    with TemporaryFolder(usual if len(usual.encode()) <= _LONGEST_FOLDER else "/tmp") as folder:
        server = KitchenServer(
            ServerOptions(
                listen=f"unix:{folder / 'kitchen'}",
                data=data,
                manifest=manifest,
                recover=False,
                drain_seconds=_DRAIN_SECONDS,
            )
        )
        await server.start()
        try:
            yield server.address
        finally:
            await server.stop()
