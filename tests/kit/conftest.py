from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crucible_kit.channel import Channel, ObjectChannel, connect
from crucible_kit.serving import serve_ports
from tests.kit.notes import SERVICE, ScriptedBlobs
from tests.kit.tunnels import tunnelled


@pytest.fixture
def blobs() -> ScriptedBlobs:
    return ScriptedBlobs()


@pytest.fixture(params=["object", "serialise", "unix", "tcp", "tunnel"])
async def channel(request: pytest.FixtureRequest, blobs: ScriptedBlobs) -> AsyncIterator[Channel]:
    """The same servicer behind each kind of channel."""
    if request.param in ("object", "serialise"):
        yield ObjectChannel({SERVICE: blobs}, serialise=request.param == "serialise")
        return
    if request.param == "tunnel":
        async with tunnelled({"blob": blobs}) as channels:
            yield channels["blob"]
        return
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 's'}" if request.param == "unix" else "127.0.0.1:0"
        served = await serve_ports({"blob": blobs}, address, name="scripted", capabilities={"blob": ()})
        remote = connect(served.address)
        yield remote
        await remote.close()
        await served.stop(0)
