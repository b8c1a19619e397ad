"""A run whose light ports are objects in the server, and one whose are gRPC servers elsewhere: the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_adapters.tokenizer.tokenizers_folder import TokenizersFolder
from crucible_client import KitchenClient
from crucible_kit.adapter import AdapterContext
from crucible_kit.serving import ServedAdapter, serve_ports
from tests.contract.processes import HAS_NODE, WHY_NOT_NODE, node
from tests.system.harness import SMALL, Server, checkpoint_folder, serving, tensor_files

ADAPTERS: tuple[Any, ...] = (LocalBlobStore, LocalDatasets, SqliteMetricsStore, SqliteModelRegistry, TokenizersFolder)


@contextmanager
def served_elsewhere(folder: Path, address: str) -> Iterator[str]:
    """Every light adapter on one address, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    context = AdapterContext(data_dir=folder)

    async def start() -> tuple[list, ServedAdapter]:
        made = [adapter(adapter.description.options(), context) for adapter in ADAPTERS]
        servicers = {each.description.port: each for each in made}
        capabilities = {port: each.description.capabilities for port, each in servicers.items()}
        return made, await serve_ports(servicers, address, name="elsewhere", capabilities=capabilities)

    async def stop(made: list, served: ServedAdapter) -> None:
        await served.stop()
        for each in made:
            await each.close()

    made, served = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield served.address
    finally:
        asyncio.run_coroutine_threadsafe(stop(made, served), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def completed(server: Server, rows: Path) -> dict[str, bytes]:
    async with KitchenClient.connect(server.address) as kitchen:
        run = await kitchen.create_run("sl_basic", preset="tiny", config=SMALL | {"dataset": str(rows)}, seed=2)
        ended = await kitchen.wait(run.run_id)
    assert ended.state == event_pb2.RUN_STATE_COMPLETED, ended.failure
    return tensor_files(checkpoint_folder(ended.latest_checkpoint.uri))


@pytest.mark.parametrize("address", ["unix:{folder}/a.sock", "127.0.0.1:0"])
async def test_ports_over_grpc_give_the_bytes_of_ports_in_the_process(
    server: Server, rows: Path, tmp_path: Path, address: str
):
    elsewhere = tmp_path / "e"
    elsewhere.mkdir()
    with served_elsewhere(elsewhere, address.format(folder=elsewhere)) as target:
        manifest = tmp_path / "kitchen.yaml"
        lines = [f'  {adapter.description.port}: "grpc:{target}"' for adapter in ADAPTERS]
        manifest.write_text("\n".join(["ports:", *lines, ""]))
        with serving(tmp_path / "data", "--manifest", str(manifest)) as other:
            remote = await completed(other, rows)
    # What the ports keep lies with them, not with the server.
    assert list((elsewhere / "blobs" / "runs").iterdir())
    assert not (tmp_path / "data" / "blobs").exists()
    assert remote == await completed(server, rows)


@pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)
async def test_blobs_kept_by_an_adapter_in_javascript_have_the_same_bytes(server: Server, rows: Path, tmp_path: Path):
    store = node("blob_store.mjs", "--root", str(tmp_path / "blobs"))
    try:
        manifest = tmp_path / "kitchen.yaml"
        manifest.write_text(f'ports: {{blob: "grpc:{store.address}"}}\n')
        with serving(tmp_path / "data", "--manifest", str(manifest)) as other:
            remote = await completed(other, rows)
    finally:
        store.stop()
    assert [path.name for path in (tmp_path / "blobs" / "runs").iterdir()]
    assert not (tmp_path / "data" / "blobs").exists()
    assert remote == await completed(server, rows)
