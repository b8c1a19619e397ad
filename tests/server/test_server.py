"""The composition: order of start and stop, what a failed start leaves, TLS, sockets."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from crucible.kitchen.v1 import run_pb2
from crucible.kitchen.v1.run_pb2_grpc import RunServiceStub
from crucible_kit.channel import connect
from crucible_kit.errors import InvalidArgumentError, KitchenError, UnavailableError
from crucible_kitchen import server as server_module
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.server import KitchenServer
from crucible_kitchen.store import Store
from tests.server.fakes import FakeAdapters, FakeRuns, log_event

TOKEN = "admin-token-0123456789"


class Journal(list[str]):
    """What happened, in order."""


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Replaces the adapters and the run manager by parts that write down when they are called."""
    happened = Journal()

    class Ports(FakeAdapters):
        @classmethod
        def open(cls, manifest: Path | None, context: Any, **_: Any) -> Ports:
            happened.append("ports open")
            return cls()

        async def close(self) -> None:
            happened.append("ports close")

    class Manager(FakeRuns):
        def __init__(self, store: Store, ports: Ports, options: ServerOptions) -> None:
            super().__init__(store)
            self._held = store

        async def start(self, *, recover: bool) -> None:
            happened.append(f"runs start recover={recover}")

        async def drain(self, seconds: float) -> None:
            # The store and the watches still work: runs save their checkpoints now.
            for run in await self._held.list_runs():
                await self._held.append(run.run_id, [log_event("saved while draining")])
            happened.append(f"runs drain {seconds:g}")

    monkeypatch.setattr(server_module, "PortHost", Ports)
    monkeypatch.setattr(server_module, "RunManager", Manager)
    return happened


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ck-"))
    yield folder
    shutil.rmtree(folder)


async def test_a_server_starts_serves_and_stops_in_order(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    token_file = tmp_path / "tokens"
    token_file.write_text(f"admin: {TOKEN}\n")
    token_file.chmod(0o600)
    options = ServerOptions(listen="127.0.0.1:0", data=tmp_path / "data", tokens=token_file, drain_seconds=30)
    server = KitchenServer(options)
    with caplog.at_level(logging.INFO):
        await server.start()
    assert server.address.startswith("127.0.0.1:") and not server.address.endswith(":0")
    assert f"serving on {server.address}, data folder {tmp_path / 'data'}" in caplog.text
    assert TOKEN not in caplog.text
    channel = connect(server.address, token=TOKEN)
    runs = RunServiceStub(channel)
    await runs.CreateRun(run_pb2.CreateRunRequest(run_id="run-1", recipe="sl_basic"))
    watching = runs.WatchRun(run_pb2.WatchRunRequest(run_id="run-1", after_sequence=1))
    await anext(watching)
    stopping = [asyncio.create_task(each) for each in (server.stop(), server.stop(), server.wait())]
    response = await anext(watching)
    assert response.events[0].log_recorded.message == "saved while draining"
    with pytest.raises(UnavailableError) as caught:
        await anext(watching)
    assert caught.value.reason == "DRAINING"
    await asyncio.gather(*stopping)
    await channel.close()
    assert journal == ["ports open", "runs start recover=True", "runs drain 30", "ports close"]
    again = KitchenServer(options)  # address, folder and lock are free again
    await again.start()
    await again.stop()


async def test_a_second_server_on_the_folder_touches_nothing(tmp_path: Path, journal: Journal) -> None:
    first = KitchenServer(ServerOptions(listen="127.0.0.1:0", data=tmp_path))
    await first.start()
    try:
        journal.clear()
        with pytest.raises(KitchenError) as caught:
            await KitchenServer(ServerOptions(listen="127.0.0.1:0", data=tmp_path)).start()
        assert caught.value.reason == "DATA_FOLDER_IN_USE"
        assert caught.value.metadata["address"] == first.address
        assert journal == []
    finally:
        await first.stop()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_taken_address_starts_no_run_and_frees_the_folder(
    tmp_path: Path, journal: Journal, socket_folder: Path, kind: str
) -> None:
    listen = "127.0.0.1:0" if kind == "tcp" else f"unix:{socket_folder}/s"
    first = KitchenServer(ServerOptions(listen=listen, data=tmp_path / "a"))
    await first.start()
    try:
        journal.clear()
        with pytest.raises(UnavailableError) as caught:
            await KitchenServer(ServerOptions(listen=first.address, data=tmp_path / "b")).start()
        assert caught.value.reason == "ADDRESS_IN_USE"
        assert journal == ["ports open", "ports close"]
        channel = connect(first.address)
        await RunServiceStub(channel).ListRuns(run_pb2.ListRunsRequest())  # the first one still has it
        await channel.close()
    finally:
        await first.stop()
    free = KitchenServer(ServerOptions(listen="127.0.0.1:0", data=tmp_path / "b"))
    await free.start()
    await free.stop()


async def test_a_socket_is_for_its_user_alone_and_a_dead_one_is_replaced(
    tmp_path: Path, journal: Journal, socket_folder: Path
) -> None:
    path = socket_folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    server = KitchenServer(ServerOptions(listen=f"unix:{path}", data=tmp_path))
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    channel = connect(server.address)
    await RunServiceStub(channel).ListRuns(run_pb2.ListRunsRequest())
    await channel.close()
    await server.stop()


async def test_a_manager_that_fails_to_start_takes_everything_down(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Any, *, recover: bool) -> None:
        raise UnavailableError("run store: full", reason="STORE_WRITE_FAILED")

    options = ServerOptions(listen="127.0.0.1:0", data=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(server_module.RunManager, "start", fail)
        with pytest.raises(UnavailableError, match="full"):
            await KitchenServer(options).start()
    assert journal == ["ports open", "runs drain 20", "ports close"]
    server = KitchenServer(options)
    await server.start()
    await server.stop()


async def test_stop_before_start_is_nothing(tmp_path: Path) -> None:
    await KitchenServer(ServerOptions(data=tmp_path)).stop()


async def test_a_store_that_is_refused_frees_the_folder(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "kitchen.db").write_bytes(b"no database" * 1000)
    for _ in range(2):
        with pytest.raises(KitchenError) as caught:
            await KitchenServer(ServerOptions(listen="127.0.0.1:0", data=tmp_path)).start()
        assert caught.value.reason == "STORE_CORRUPT"
    assert journal == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    for name in ("server", "other"):
        subprocess.run(
            [
                *"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(),
                *"-subj /CN=localhost -addext subjectAltName=DNS:localhost".split(),
                *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")),
            ],
            check=True,
            capture_output=True,
        )
    return folder


async def test_tls_serves_only_clients_that_its_authority_signed(
    tmp_path: Path, journal: Journal, certificates: Path
) -> None:
    cert, key = certificates / "server.pem", certificates / "server.key"
    options = ServerOptions(listen="localhost:0", data=tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=cert)
    server = KitchenServer(options)
    await server.start()

    async def call(credentials: grpc.ChannelCredentials | None, timeout: float = 30) -> None:
        channel = connect(server.address, credentials=credentials)
        try:
            await RunServiceStub(channel).ListRuns(run_pb2.ListRunsRequest(), timeout=timeout)
        finally:
            await channel.close()

    try:
        root = cert.read_bytes()
        await call(grpc.ssl_channel_credentials(root, key.read_bytes(), root))
        strangers = [None, grpc.ssl_channel_credentials(root)]
        for credentials in strangers:
            with pytest.raises(KitchenError):
                await call(credentials, timeout=1)
    finally:
        await server.stop()


async def test_a_key_of_another_certificate_is_found_at_start(tmp_path: Path, certificates: Path) -> None:
    options = ServerOptions(
        listen="localhost:0",
        data=tmp_path / "data",
        tls_cert=certificates / "server.pem",
        tls_key=certificates / "other.key",
    )
    with pytest.raises(InvalidArgumentError, match="tls_cert"):
        await KitchenServer(options).start()
    assert not (tmp_path / "data").exists()


def test_the_server_process_loads_no_torch() -> None:
    code = (
        "import sys, crucible_kitchen.server; loaded = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(loaded & {'torch', 'transformers', 'crucible_adapters'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
