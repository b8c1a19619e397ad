"""Adapters that are other processes: started, shaken hands with, configured, and started anew."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml

from crucible.kitchen.v1 import adapter_admin_pb2 as admin_pb
from crucible.port.blob.v1 import blob_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_kit.adapter import AdapterContext, AdapterDescription
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from crucible_kit.ports import PORTS
from crucible_kit.redaction import MARK
from crucible_kitchen.ports import executable, handshake, process
from crucible_kitchen.ports import host as host_module
from crucible_kitchen.ports.binding import Kind, Opened
from crucible_kitchen.ports.host import PortHost
from crucible_kitchen.ports.mapping import PortMapping
from crucible_kitchen.ports.remote import RemoteAdapter
from tests.server.certificates import make_certificates
from tests.server.program import OTHER_CONTRACT, Behaviour, Info, serve
from tests.stalls import longer

PROGRAM = Path(__file__).parent / "program.py"
SECRET = "sk-of-the-program-0123456789"
Open = Callable[..., PortHost]


def command(folder: Path, *words: str) -> str:
    return shlex.join([sys.executable, str(PROGRAM), str(folder), *words])


@pytest.fixture
async def open_host(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens hosts of manifests, each on a data folder of its own unless one is named, and closes them."""
    hosts: list[PortHost] = []

    def opened(kinds: dict[str, Kind] | None = None, data_folder: str = "", **ports: Any) -> PortHost:
        data = tmp_path / (data_folder or f"data-{len(hosts)}")
        data.mkdir(exist_ok=True)
        manifest = tmp_path / "kitchen.yaml"
        manifest.write_text(yaml.safe_dump({"profile": "local", "ports": ports}))
        hosts.append(PortHost.open(manifest, AdapterContext(data_dir=data), kinds=kinds))
        return hosts[-1]

    yield opened
    for host in hosts:
        await host.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "program"


def lines(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def configured(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(folder, "configured")]


async def stat(host: PortHost, key: str = "k") -> str:
    """The reason of the answer about a blob."""
    stub = await host.stub("blob")
    try:
        await stub.StatBlob(blob_pb2.StatBlobRequest(key=key))
    except KitchenError as error:
        assert error.port == "blob"
        return error.reason
    return "OK"


async def stat_at_last(host: PortHost) -> str:
    """`stat`, once the adapter is reached: a wait that a manifest keeps short passes while the machine stands still."""
    for _ in range(5):
        try:
            return await stat(host)
        except UnavailableError:
            continue
    return await stat(host)


# exec:


async def test_one_program_serves_the_ports_with_its_command(
    open_host: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = f"exec:{command(folder)}"
    host = open_host(blob=adapter, metrics={"command": [sys.executable, str(PROGRAM), str(folder)]})
    assert lines(folder, "pids") == []  # nobody has needed it
    with caplog.at_level(logging.INFO):
        assert await stat(host) == "BLOB_NOT_FOUND"
        await (await host.stub("metrics")).ListMetricNames(metrics_pb2.ListMetricNamesRequest(run_id="r"))
    assert len(lines(folder, "pids")) == 1
    assert "serving blobs" in caplog.text
    blob, metrics = (host.describe(port) for port in ("blob", "metrics"))
    assert blob.instance_id == metrics.instance_id != ""
    await host.close()
    assert lines(folder, "ended") == lines(folder, "pids")


async def test_other_options_are_another_program(open_host: Open, folder: Path) -> None:
    adapter = f"exec:{command(folder)}"
    host = open_host(blob={"adapter": adapter, "options": {"a": 1}}, metrics={"adapter": adapter, "options": {"a": 2}})
    await host.stub("blob")
    await host.stub("metrics")
    assert len(lines(folder, "pids")) == 2
    assert [each["settings"] for each in configured(folder)] == [{"a": 1}, {"a": 2}]


async def test_a_program_that_is_killed_between_calls_is_started_again(open_host: Open, folder: Path) -> None:
    host = open_host(blob={"adapter": f"exec:{command(folder)}", "options": {"a": 1}})
    stub = await host.stub("blob")
    instance = host.describe("blob").instance_id
    os.kill(int(lines(folder, "pids")[0]), signal.SIGKILL)
    with pytest.raises(NotFoundError):  # an answer, from the new one
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))
    assert len(lines(folder, "pids")) == 2
    assert len(configured(folder)) == 2
    assert host.describe("blob").instance_id not in ("", instance)
    # A stream of answers that has not begun is asked for again too.
    os.kill(int(lines(folder, "pids")[1]), signal.SIGKILL)
    with pytest.raises(NotFoundError):
        async for _ in stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k")):
            pass
    assert len(lines(folder, "pids")) == 3


async def test_a_call_that_kills_every_program_fails(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder)}")
    stub = await host.stub("blob")
    with pytest.raises(UnavailableError):
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="die"))
    assert len(lines(folder, "pids")) == 2
    assert await stat(host) == "BLOB_NOT_FOUND"


async def test_many_callers_share_one_start(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder)}")
    assert set(await asyncio.gather(*(stat(host) for _ in range(8)))) == {"BLOB_NOT_FOUND"}
    assert len(lines(folder, "pids")) == 1


async def test_a_caller_that_hangs_up_does_not_stop_the_start(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder)}")
    impatient = asyncio.create_task(host.stub("blob"))
    waiting = asyncio.create_task(stat(host))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await waiting == "BLOB_NOT_FOUND"
    assert len(lines(folder, "pids")) == 1


async def test_a_program_may_listen_elsewhere(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder, 'elsewhere')}")
    stub = await host.stub("blob")
    os.kill(int(lines(folder, "pids")[0]), signal.SIGKILL)
    with pytest.raises(NotFoundError):  # over another channel: the new one has another address
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("dies", "ended with status 3; its last lines: no licence found"),
        ("babbles", "first line of its stdout.*'hello'"),
        ("beyond", "first line of its stdout.*10.0.0.1:5"),
    ],
)
async def test_a_program_that_does_not_start_says_why(open_host: Open, folder: Path, word: str, says: str) -> None:
    host = open_host(blob=f"exec:{command(folder, word)}")
    with pytest.raises(UnavailableError, match=f"(?s){says}") as caught:
        await host.stub("blob")
    error = caught.value
    assert (error.reason, error.port, error.retry_delay is not None) == ("ADAPTER_UNAVAILABLE", "blob", True)
    # The next caller gets the same answer, and not another process.
    with pytest.raises(UnavailableError, match=f"(?s){says}"):
        await host.stub("blob")
    assert len(lines(folder, "pids")) == 1
    described = host.describe("blob")
    assert described.state == admin_pb.ADAPTER_STATE_DEGRADED
    assert described.last_error.startswith("ADAPTER_UNAVAILABLE: exec:")


async def test_one_that_failed_is_tried_again_after_a_pause(
    open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executable, "_FIRST_PAUSE_SECONDS", 0.0)
    folder.mkdir()
    (folder / "dies").touch()
    host = open_host(blob=f"exec:{command(folder)}")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await host.stub("blob")
    (folder / "dies").unlink()
    assert await stat(host) == "BLOB_NOT_FOUND"
    assert len(lines(folder, "pids")) == 3
    assert host.describe("blob").last_error == ""


async def test_calls_wait_no_longer_than_they_should_for_a_start(open_host: Open, tmp_path: Path) -> None:
    host = open_host(blob={"command": ["sleep", "100"], "wait_seconds": 0.2})
    with pytest.raises(UnavailableError, match="still starting") as caught:
        await host.stub("blob")
    assert caught.value.reason == "ADAPTER_UNAVAILABLE"


async def test_a_program_that_ignores_the_end_is_killed_with_its_children(
    open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STOP_SECONDS", 0.2)
    script = f"trap '' TERM; {command(folder)} < /dev/null & echo $! > {folder}.shell; sleep 100; sleep 100"
    host = open_host(blob={"command": ["sh", "-c", script], "wait_seconds": 0.2})
    with pytest.raises(UnavailableError, match="still starting"):
        await host.stub("blob")
    child = Path(f"{folder}.shell")
    async with asyncio.timeout(60):
        # Another process writes it and tells nobody.
        while not child.exists() or not child.read_text().strip():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await host.close()
    pid = int(child.read_text())
    # Where nobody reaps orphans, a killed one stays as a zombie.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_program_that_is_not_there_is_found_at_once(open_host: Open) -> None:
    with pytest.raises(InvalidArgumentError, match=r"manifest\.ports\.blob.*no 'no-such-program'") as caught:
        open_host(blob="exec:no-such-program --port 1")
    assert caught.value.reason == "MANIFEST_INVALID"


async def test_a_program_gets_no_variable_that_holds_a_secret(
    open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROGRAM_KEY", SECRET)
    host = open_host(
        blob=f"exec:{command(folder, 'dies')}",
        metrics={"adapter": "grpc:unix:/nowhere", "secrets": {"api_key": "PROGRAM_KEY"}},
    )
    with pytest.raises(UnavailableError, match="no licence found, no key"):
        await host.stub("blob")


# Settings


async def test_settings_come_before_calls_and_generations_count_up(
    open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROGRAM_KEY", SECRET)
    mapping = {
        "adapter": f"exec:{command(folder, 'strict', 'slow')}",
        "options": {"root": "/r", "size": 2},
        "secrets": {"api_key": "PROGRAM_KEY"},
    }
    monkeypatch.setattr(handshake, "_STARTING_POLL_SECONDS", 0.0)
    host = open_host(data_folder="data", blob=mapping, metrics=mapping)
    assert await stat(host) == "BLOB_NOT_FOUND"
    await host.stub("metrics")
    first = configured(folder)
    assert [each["service"] for each in first] == ["BlobStoreService", "MetricsStoreService"]
    assert first[0]["settings"] == {"root": "/r", "size": 2}
    assert first[0]["secrets"] == ["api_key"]
    assert f"api_key {MARK} is unusual" in caplog.text and SECRET not in caplog.text
    await host.close()
    again = open_host(data_folder="data", blob=mapping)
    await again.stub("blob")
    generations = [each["generation"] for each in configured(folder)]
    assert generations[2] > max(generations[:2]) >= 1
    shown = again.describe("blob")
    assert dict(shown.options.items()) == {"root": MARK, "size": 2}
    assert dict(shown.secrets) == {"api_key": "PROGRAM_KEY"}


@pytest.mark.parametrize(
    ("words", "given", "says"),
    [
        (["settled"], {"options": {"a": 1}}, "the port blob, takes no settings, but options are given"),
        (["settled"], {"secrets": {"api_key": "PROGRAM_KEY"}}, "takes no settings, but secrets are given"),
        (["strict"], {"options": {"size": 0}}, r"options\.size: 0 is less than"),
        (["strict"], {"options": {"rot": "/"}}, r"'rot' was unexpected"),
        (
            ["strict"],
            {"options": {"size": "big", "root": 1}},
            r"options\.root: 1 is not.*; options\.size: 'big' is not",
        ),
    ],
)
async def test_settings_that_don_t_fit_name_the_port(
    open_host: Open,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    given: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setenv("PROGRAM_KEY", SECRET)
    host = open_host(blob={"adapter": f"exec:{command(folder, *words)}", **given})
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        await host.stub("blob")
    assert (caught.value.reason, caught.value.metadata["port"]) == ("MANIFEST_INVALID", "blob")
    assert caught.value.message.startswith("manifest.ports.blob: ")
    assert configured(folder) == []


async def test_an_adapter_that_takes_no_settings_needs_none(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder, 'settled')}")
    assert await stat(host) == "BLOB_NOT_FOUND"


async def test_one_that_lost_its_settings_gets_them_again(open_host: Open, folder: Path) -> None:
    host = open_host(blob={"adapter": f"exec:{command(folder)}", "options": {"a": 1}})
    assert await stat(host, "forget") == "NOT_CONFIGURED"
    assert await stat(host) == "BLOB_NOT_FOUND"
    assert len(configured(folder)) == 2 and len(lines(folder, "pids")) == 1


async def test_one_that_says_it_can_t_serve_is_away(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder, 'sick')}")
    with pytest.raises(UnavailableError, match="can't serve now: refused") as caught:
        await host.stub("blob")
    assert caught.value.reason == "ADAPTER_UNAVAILABLE"


# grpc:


@asynccontextmanager
async def served(folder: Path, address: str, *words: str, credentials: Any = None) -> AsyncIterator[tuple[str, Info]]:
    folder.mkdir(exist_ok=True)
    server, bound, info = await serve(Behaviour(folder, list(words)), address, credentials)
    try:
        yield bound, info
    finally:
        await server.stop(0)


async def test_another_contract_is_told_once_and_served(
    open_host: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(folder, "127.0.0.1:0", "older") as (address, _):
        host = open_host(blob=f"grpc:{address}")
        for _ in range(2):
            assert await stat(host) == "BLOB_NOT_FOUND"
        # Asked for its settings anew, as after a lost connection.
        assert await stat(host, "forget") == "NOT_CONFIGURED"
        assert await stat(host) == "BLOB_NOT_FOUND"
    [told] = [each.getMessage() for each in caplog.records if OTHER_CONTRACT in each.getMessage()]
    assert "the port blob" in told and PORTS["blob"].descriptor_sha256 in told and f"grpc:{address}" in told


async def test_another_instance_at_the_address_gets_its_settings_before_calls(open_host: Open, folder: Path) -> None:
    async with served(folder, "127.0.0.1:0") as (address, _):
        host = open_host(blob={"adapter": f"grpc:{address}", "options": {"a": 1}, "wait_seconds": 20})
        stub = await host.stub("blob")
        first = host.attached("blob")
        assert await stat(host) == "BLOB_NOT_FOUND"
    # When the machine stands still, nobody has noticed by then that the connection is gone.
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"), timeout=0.2)
    async with served(folder, address):
        with pytest.raises(NotFoundError):
            await stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))
        second = host.attached("blob")
        assert first is not None and second is not None and first.instance_id != second.instance_id
        assert [each["generation"] for each in configured(folder)] == [1, 1]


async def test_the_same_instance_keeps_its_settings(open_host: Open, folder: Path) -> None:
    async with served(folder, "127.0.0.1:0") as (address, info):
        host = open_host(blob={"adapter": f"grpc:{address}", "options": {"a": 1}})
        assert await stat(host, "away") == "DISK_AWAY"  # its own trouble, not the connection's
        assert await stat(host) == "BLOB_NOT_FOUND"
        assert len(configured(folder)) == 1 and len(info.metadata) == 1
        await host.probe("blob")
        assert len(configured(folder)) == 1 and len(info.metadata) == 2


async def test_an_adapter_that_is_away_is_waited_for_and_then_told(open_host: Open, folder: Path) -> None:
    folder.mkdir()
    socket = folder / "s"
    host = open_host(blob={"adapter": f"grpc:unix:{socket}", "wait_seconds": 1})
    with pytest.raises(UnavailableError, match=f"grpc:unix:{socket} does not answer: .*") as caught:
        await host.stub("blob")
    assert (caught.value.reason, caught.value.port) == ("ADAPTER_UNAVAILABLE", "blob")
    assert caught.value.retry_delay is not None
    assert host.describe("blob").last_error.startswith("ADAPTER_UNAVAILABLE: ")
    async with served(folder, f"unix:{socket}"):
        assert await stat_at_last(host) == "BLOB_NOT_FOUND"


async def test_a_token_goes_with_every_call(open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROGRAM_TOKEN", SECRET)
    async with served(folder, "127.0.0.1:0") as (address, info):
        host = open_host(blob={"adapter": f"grpc:{address}", "token_env": "PROGRAM_TOKEN"})
        await host.stub("blob")
        assert info.metadata[0]["authorization"] == f"Bearer {SECRET}"
        assert host.describe("blob").token_env == "PROGRAM_TOKEN"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls")
    make_certificates(made, "localhost", "blobs.example", "kitchen")
    return made


def tls_server(pems: Path, name: str, *, clients: str = "") -> grpc.ServerCredentials:
    pair = (pems / f"{name}.key").read_bytes(), (pems / f"{name}.pem").read_bytes()
    authority = (pems / f"{clients}.pem").read_bytes() if clients else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=bool(clients))


async def test_tls_and_mtls(open_host: Open, folder: Path, pems: Path) -> None:
    ca, mine = (
        {"ca": str(pems / "localhost.pem")},
        {"cert": str(pems / "kitchen.pem"), "key": str(pems / "kitchen.key")},
    )
    async with served(folder, "localhost:0", credentials=tls_server(pems, "localhost")) as (address, _):
        host = open_host(blob={"adapter": f"grpc:{address}", "tls": ca})
        assert await stat(host) == "BLOB_NOT_FOUND"
    mutual = tls_server(pems, "localhost", clients="kitchen")
    async with served(folder, "localhost:0", credentials=mutual) as (address, _):
        assert await stat(open_host(blob={"adapter": f"grpc:{address}", "tls": {**ca, **mine}})) == "BLOB_NOT_FOUND"
        stranger = open_host(blob={"adapter": f"grpc:{address}", "tls": ca, "wait_seconds": 1})
        with pytest.raises(UnavailableError) as caught:
            await stranger.stub("blob")
        assert caught.value.reason == "ADAPTER_UNAVAILABLE"


async def test_a_certificate_of_another_name_needs_the_name(open_host: Open, folder: Path, pems: Path) -> None:
    ca = {"ca": str(pems / "blobs.example.pem")}
    async with served(folder, "localhost:0", credentials=tls_server(pems, "blobs.example")) as (address, _):
        host = open_host(blob={"adapter": f"grpc:{address}", "tls": {**ca, "server_name": "blobs.example"}})
        assert await stat(host) == "BLOB_NOT_FOUND"
        other = open_host(blob={"adapter": f"grpc:{address}", "tls": ca, "wait_seconds": 1})
        with pytest.raises(UnavailableError, match="does not answer"):
            await other.stub("blob")


async def test_a_wrong_authority_and_plain_text_don_t_get_through(open_host: Open, folder: Path, pems: Path) -> None:
    async with served(folder, "localhost:0", credentials=tls_server(pems, "localhost")) as (address, info):
        ca = {"ca": str(pems / "kitchen.pem")}
        for seconds in longer(1.0):
            wrong = open_host(blob={"adapter": f"grpc:{address}", "tls": ca, "wait_seconds": seconds})
            with pytest.raises(UnavailableError) as caught:
                await wrong.stub("blob")
            assert caught.value.reason == "ADAPTER_UNAVAILABLE"
            if "CERTIFICATE_VERIFY_FAILED" in caught.value.message:
                break
        else:
            pytest.fail("no wait was long enough for the reason to be known")
        plain = open_host(blob={"adapter": f"grpc:{address}", "wait_seconds": 1})
        with pytest.raises(UnavailableError):
            await plain.stub("blob")
        assert info.metadata == []


@pytest.mark.parametrize(
    "tls", [{"ca": "missing.pem"}, {"cert": "kitchen.pem", "key": "localhost.key"}, {"ca": "x.pem"}]
)
async def test_files_that_can_t_be_used_are_found_at_once(open_host: Open, pems: Path, tls: dict[str, str]) -> None:
    (pems / "x.pem").write_text("no certificate")
    with pytest.raises(InvalidArgumentError, match=r"^manifest\.ports\.blob: .*PEM files"):
        open_host(blob={"adapter": "grpc:10.0.0.1:1", "tls": {name: str(pems / each) for name, each in tls.items()}})


# Kinds, and ports without an adapter


async def test_attach_is_refused_until_a_server_takes_attachments(open_host: Open, folder: Path) -> None:
    with pytest.raises(UnimplementedError, match=r"manifest\.ports\.blob: .*attach:laptop"):
        open_host(blob="attach:laptop")

    async with served(folder, "127.0.0.1:0") as (address, _):

        def attached(opening: Any) -> Opened:
            from crucible_kit.channel import connect

            return Opened(binding=RemoteAdapter(opening, connect(address)))

        kinds = {"attach": Kind(open=attached, check=lambda opening: None)}
        host = open_host(kinds=kinds, blob={"adapter": "attach:laptop", "options": {"a": 1}})
        assert await stat(host) == "BLOB_NOT_FOUND"
        assert len(configured(folder)) == 1


async def test_a_port_without_an_adapter_says_so(open_host: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    host = open_host()
    del host._ports["blob"]
    for ask in (host.stub, host.info, host.capabilities, host.known_capabilities):
        with pytest.raises(FailedPreconditionError, match="no adapter serves the port blob") as caught:
            await ask("blob")
        assert (caught.value.reason, caught.value.port) == ("PORT_NOT_MAPPED", "blob")
    assert host.attached("blob") is None
    with pytest.raises(FailedPreconditionError, match="no adapter serves the port blob"):
        await host.probe("blob")
    with pytest.raises(NotFoundError):
        await host.probe("blobs")


async def test_an_adapter_without_the_port_s_service_is_refused(open_host: Open, folder: Path) -> None:
    host = open_host(hub=f"exec:{command(folder)}")
    with pytest.raises(FailedPreconditionError) as caught:
        await host.stub("hub")
    assert caught.value.reason == "PORT_NOT_SERVED"


async def test_a_contract_version_that_the_host_lacks_is_refused_with_both_sides(open_host: Open, folder: Path) -> None:
    host = open_host(blob=f"exec:{command(folder, 'ancient')}")
    with pytest.raises(FailedPreconditionError, match=r"the host speaks \[1\], program speaks \[7\]") as caught:
        await host.stub("blob")
    assert caught.value.reason == "CONTRACT_VERSION_UNSUPPORTED"


@pytest.mark.parametrize("kind", ["grpc", "exec"])
async def test_calls_at_an_adapter_that_is_replaced_end_and_say_so(
    open_host: Open, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(host_module, "_RETIRE_SECONDS", 0.0)

    async def may_replace() -> None: ...

    async with served(folder, "127.0.0.1:0") as (address, info):
        host = open_host(blob=f"grpc:{address}" if kind == "grpc" else f"exec:{command(folder)}")
        stub = await host.stub("blob")
        hanging = asyncio.create_task(stub.StatBlob(blob_pb2.StatBlobRequest(key="hang" if kind == "grpc" else "k")))
        if kind == "grpc":
            await info.behaviour.hanging.wait()
        else:
            with pytest.raises(NotFoundError):
                await hanging
        await host.add("blob", PortMapping(adapter="builtin:local"), where="mapping", may_replace=may_replace)
        late = stub.StatBlob(blob_pb2.StatBlobRequest(key="k"))
        for call in (hanging, late) if kind == "grpc" else (late,):
            with pytest.raises(UnavailableError) as caught:
                await call
            error = caught.value
            assert (error.reason, error.port, error.retryable) == ("ADAPTER_REPLACED", "blob", True)
        assert await stat(host) == "BLOB_NOT_FOUND"
        assert host.describe("blob").target == "builtin:local"


class Greedy:
    """Takes one secret, and shows it where it should not."""

    description = AdapterDescription(name="greedy", port="blob", secrets=("api_key",))

    def __init__(self, options: Any, context: AdapterContext) -> None:
        if context.secrets["api_key"] == SECRET:
            raise RuntimeError(f"the key {context.secrets['api_key']} is none")

    async def close(self) -> None: ...


async def test_objects_get_their_secrets_and_their_failures_show_none(
    open_host: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOD_KEY", "another-key-0123456789")
    monkeypatch.setenv("BAD_KEY", SECRET)
    adapter = "python:tests.server.test_host:Greedy"
    open_host(blob={"adapter": adapter, "secrets": {"api_key": "GOOD_KEY"}})
    with pytest.raises(InvalidArgumentError, match="can't be made: RuntimeError: the key") as caught:
        open_host(blob={"adapter": adapter, "secrets": {"api_key": "BAD_KEY"}})
    assert MARK in caught.value.message and SECRET not in caught.value.message
    with pytest.raises(InvalidArgumentError, match="takes no secret api_kye: unknown key; did you mean api_key"):
        open_host(blob={"adapter": adapter, "secrets": {"api_kye": "GOOD_KEY"}})
    for port, builtin in (("training", "torch"), ("vector", "memory"), ("metrics", "sqlite")):
        mapping = {"adapter": f"builtin:{builtin}", "secrets": {"api_key": "GOOD_KEY"}}
        with pytest.raises(
            InvalidArgumentError, match=f"{port}: builtin:{builtin} takes no secrets: leave api_key out"
        ):
            open_host(**{port: mapping})
    with pytest.raises(
        InvalidArgumentError, match="the environment variable NO_KEY, the secret api_key of the port blob"
    ):
        open_host(blob={"adapter": adapter, "secrets": {"api_key": "NO_KEY"}})


@pytest.mark.parametrize(
    ("port", "adapter", "options", "ready"),
    [
        ("llm", "anthropic", {}, False),
        ("llm", "openai", {}, False),
        ("llm", "openai", {"base_url": "http://127.0.0.1:1/v1"}, True),
        ("llm", "google_genai", {}, False),
        ("embedding", "openai", {}, False),
        ("embedding", "google_genai", {}, False),
        ("training", "tinker", {}, False),
        ("sampling", "tinker", {}, False),
    ],
)
async def test_a_provider_s_adapter_without_its_key_is_not_ready(
    open_host: Open, monkeypatch: pytest.MonkeyPatch, port: str, adapter: str, options: dict[str, Any], ready: bool
) -> None:
    if adapter == "tinker":
        pytest.importorskip("tinker")
    monkeypatch.setenv("GOOD_KEY", "tml-0123456789")
    mapping = {"adapter": f"builtin:{adapter}", "options": options}
    probed = await open_host(**{port: mapping}).probe(port)
    if ready:
        assert (probed.state, probed.detail) == (admin_pb.ADAPTER_STATE_READY, "")
    else:
        assert probed.state == admin_pb.ADAPTER_STATE_DEGRADED
        assert "has no key, its secret api_key: name the environment variable" in probed.detail
    if adapter != "tinker":  # which asks Tinker then
        host = open_host(**{port: {**mapping, "secrets": {"api_key": "GOOD_KEY"}}})
        assert (await host.probe(port)).state == admin_pb.ADAPTER_STATE_READY
