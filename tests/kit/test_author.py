"""The author's kit: an adapter in ten lines, in a process of its own, in each of the ways in which it may be run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.port.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from crucible_kit.adapter import to_struct
from crucible_kit.author import check_servicers, declared_capabilities, run_adapter
from crucible_kit.author_command import parse_command
from crucible_kit.channel import connect
from crucible_kit.errors import KitchenError, NotFoundError, UnauthenticatedError
from crucible_kit.serving import serve_ports
from crucible_kit.tls import client_credentials, server_credentials
from crucible_kitchen.ports.attachments import Attachments
from tests.kit.notes import SERVICE, ScriptedBlobs
from tests.kit.ten_lines import Blobs, Sized
from tests.kit.tunnels import gateway

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "CRUCIBLE_ADAPTER_LISTEN"
MINE = blob_pb2.StatBlobRequest(key="mine")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Child:
    """The adapter's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def announced(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 60))

    async def ended(self) -> tuple[int, bytes, str]:
        """Status, what else it wrote to stdout, and its stderr."""
        assert self.process.stdout is not None and self.process.stderr is not None
        rest, errors = await asyncio.gather(self.process.stdout.read(), self.process.stderr.read())
        return await self.process.wait(), rest, errors.decode()


@asynccontextmanager
async def child(
    *arguments: str, script: Path | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    program = ("-m", "tests.kit.ten_lines") if script is None else (str(script),)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stat(address: str, *, token: str = "", credentials: Any = None) -> str:
    channel = connect(address, token=token, credentials=credentials)
    try:
        return (await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(MINE, timeout=20)).blob.uri
    finally:
        await channel.close()


async def test_it_listens_where_it_is_told_and_ends_by_sigterm() -> None:
    async with child("--listen", "127.0.0.1:0") as adapter:
        announcement = await adapter.announced()
        assert set(announcement) == {"crucible", "address"} and announcement["crucible"] == 1
        channel = connect(announcement["address"])
        stub = blob_pb2_grpc.BlobStoreServiceStub(channel)
        assert (await stub.StatBlob(MINE)).blob.uri == "blob:mine"
        with pytest.raises(NotFoundError, match="no blob 'other'"):
            await stub.StatBlob(blob_pb2.StatBlobRequest(key="other"))
        info = await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(
            adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1])
        )
        assert (info.name, info.version, [each.service for each in info.ports]) == ("ten-lines", "0", [SERVICE])
        await channel.close()
        adapter.process.terminate()
        status, rest, errors = await adapter.ended()
        assert (status, rest) == (0, b"")
        assert errors.endswith("closed\n")


@pytest.mark.parametrize("how", ["stdin", "SIGTERM"])
async def test_a_host_starts_it_and_ends_it(folder: Path, how: str) -> None:
    async with child(environment={VARIABLE: f"unix:{folder}/s"}) as adapter:
        address = (await adapter.announced())["address"]
        assert address == f"unix:{folder}/s"
        assert await stat(address) == "blob:mine"
        if how == "stdin":
            assert adapter.process.stdin is not None
            adapter.process.stdin.close()
        else:
            adapter.process.terminate()
        status, rest, errors = await adapter.ended()
        assert (status, rest) == (0, b"")
        assert errors.endswith("closed\n")


async def test_it_dials_out() -> None:
    attachments = Attachments()
    port = attachments.add("blob", "laptop", token="own-token-0123456789")
    stub = blob_pb2_grpc.BlobStoreServiceStub(port.channel)
    async with gateway(attachments) as address:
        arguments = ("--attach", address, "--name", "laptop", "--token-env", "MY_TOKEN")
        async with child(*arguments, environment={"MY_TOKEN": "own-token-0123456789"}) as adapter:
            assert (await adapter.announced())["address"] == address
            assert (await stub.StatBlob(MINE)).blob.uri == "blob:mine"
            adapter.process.terminate()
            status, rest, errors = await adapter.ended()
            assert (status, rest) == (0, b"")
            assert errors.endswith("closed\n") and "own-token" not in errors
        async with child(*arguments, environment={"MY_TOKEN": "wrong-token-0123456789"}) as adapter:
            status, rest, errors = await adapter.ended()
            assert (status, rest) == (1, b"")
            assert "ten-lines: the token is not one of this server" in errors


async def test_the_example_of_the_documentation(folder: Path) -> None:
    text = (ROOT / "docs" / "adapters" / "dial_out.md").read_text()
    example = folder / "printed.py"
    example.write_text(text.split("```python\n")[1].split("```")[0])
    async with child("--listen", f"unix:{folder}/s", script=example) as adapter:
        channel = connect((await adapter.announced())["address"])
        point = metrics_pb2.MetricPoint(name="train/loss", step=3, value=0.5)
        request = metrics_pb2.RecordMetricsRequest(run_id="run-1", batch_key=1, attempt=1, points=[point])
        await metrics_pb2_grpc.MetricsStoreServiceStub(channel).RecordMetrics(request)
        await channel.close()
        adapter.process.terminate()
        status, rest, _ = await adapter.ended()
    assert (status, rest) == (0, b"run-1 3 train/loss 0.5\n")


async def test_an_address_that_is_taken(folder: Path) -> None:
    served = await serve_ports({"blob": ScriptedBlobs()}, "127.0.0.1:0", name="first", capabilities={"blob": ()})
    async with child("--listen", served.address) as adapter:
        status, rest, errors = await adapter.ended()
        assert (status, rest) == (1, b"")
        assert f"ten-lines: cannot listen on {served.address}" in errors
    await served.stop(0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], VARIABLE),
        (["--listen", "127.0.0.1:0", "--attach", "127.0.0.1:1"], "not allowed with"),
        (["--listen", "0.0.0.0:7000"], "reachable from other machines"),
        (["--listen", "nowhere"], "--listen: must be host:port"),
        (["--attach", "nowhere"], "--attach: must be host:port"),
        (["--listen", "127.0.0.1:0", "--name", "x"], "--name goes with --attach"),
        (["--listen", "127.0.0.1:0", "--tls-cert", "c"], "go together"),
        (["--listen", "127.0.0.1:0", "--tls-ca", "c"], "--tls-ca goes with"),
        (["--attach", "127.0.0.1:1", "--token-env", "CRUCIBLE_TEST_NOT_SET"], "CRUCIBLE_TEST_NOT_SET is not set"),
    ],
)
def test_command_lines_that_are_wrong(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(SystemExit) as caught:
        run_adapter(name="mine", ports={"blob": Blobs()}, argv=arguments)
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "encrypted"),
    [
        (["--attach", "kitchen.example:443"], True),
        (["--attach", "kitchen.example:443", "--insecure"], False),
        (["--attach", "127.0.0.1:443"], False),
        (["--attach", "unix:/s"], False),
    ],
)
def test_beyond_this_machine_it_speaks_tls_unless_told_otherwise(arguments: list[str], encrypted: bool) -> None:
    command = parse_command("mine", arguments)
    assert (command.channel_credentials() is not None) == encrypted
    assert command.name == "mine"


async def test_whoever_connects_needs_the_token_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "own-token-0123456789")
    command = parse_command("mine", ["--listen", "127.0.0.1:0", "--token-env", "MY_TOKEN"])
    served = await serve_ports(
        {"blob": Blobs()}, command.listen, name="mine", capabilities={"blob": ()}, guard=command.guard()
    )
    try:
        assert await stat(served.address, token="own-token-0123456789") == "blob:mine"
        for token, reason in (("", "TOKEN_MISSING"), ("own-token", "TOKEN_INVALID")):
            with pytest.raises(UnauthenticatedError) as caught:
                await stat(served.address, token=token)
            assert caught.value.reason == reason
    finally:
        await served.stop(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that has signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split(),
            *"-subj /CN=localhost -addext subjectAltName=DNS:localhost".split(),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_tls_on_both_sides(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    credentials = server_credentials(cert=cert, key=key, client_ca=cert)
    served = await serve_ports(
        {"blob": Blobs()}, "localhost:0", name="mine", capabilities={"blob": ()}, credentials=credentials
    )
    try:
        mine = client_credentials(ca=cert, cert=cert, key=key)
        assert await stat(served.address, credentials=mine) == "blob:mine"
        nobody = client_credentials(ca=cert, cert=None, key=None)
        channel = connect(served.address, credentials=nobody, wait_for_ready=False, retry=False)
        with pytest.raises(KitchenError):
            await blob_pb2_grpc.BlobStoreServiceStub(channel).StatBlob(MINE, timeout=5)
        await channel.close()
    finally:
        await served.stop(0)


def test_tls_files_that_cannot_be_used(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    (tmp_path / "junk").write_text("junk")
    for ca, own, its_key in (
        (tmp_path / "junk", None, None),
        (tmp_path / "missing", None, None),
        (cert, key, cert),
        (cert, cert, None),
    ):
        with pytest.raises(KitchenError, match="tls-") as caught:
            client_credentials(ca=ca, cert=own, key=its_key)
        assert caught.value.reason == "CONFIG_INVALID"


class Blocking(blob_pb2_grpc.BlobStoreServiceServicer):
    def StatBlob(self, request: Any, context: Any) -> Any:
        return blob_pb2.StatBlobResponse()


class BlockingStream(blob_pb2_grpc.BlobStoreServiceServicer):
    def ReadBlob(self, request: Any, context: Any) -> Any:
        yield blob_pb2.ReadBlobResponse()


class NoStream(blob_pb2_grpc.BlobStoreServiceServicer):
    async def ReadBlob(self, request: Any, context: Any) -> Any:
        return [blob_pb2.ReadBlobResponse()]


class BlockingConfigure(Blobs):
    options = Sized.options

    def configure(self, options: Any, secrets: Any) -> None: ...


class NoOptions(Blobs):
    async def configure(self, options: Any, secrets: Any) -> None: ...


@pytest.mark.parametrize("servicer", [Blocking, BlockingStream, NoStream, BlockingConfigure])
def test_methods_that_would_block_are_refused_at_the_start(servicer: type) -> None:
    with pytest.raises(TypeError, match=rf"{servicer.__name__}\.\w+.* make it async"):
        run_adapter(name="mine", ports={"blob": servicer()}, argv=["--listen", "127.0.0.1:0"])


def test_other_mistakes_of_an_author() -> None:
    with pytest.raises(TypeError, match=r"NoOptions\.options must be the pydantic model"):
        check_servicers({"blob": NoOptions()})
    with pytest.raises(ValueError, match="'blobs': unknown key; did you mean blob"):
        check_servicers({"blobs": Blobs()})
    with pytest.raises(ValueError, match="at least one"):
        check_servicers({})


def test_capabilities() -> None:
    ports = {"blob": Sized()}
    assert declared_capabilities(ports, {}) == {"blob": ("blob.sized",)}
    assert declared_capabilities(ports, {"blob": ()}) == {"blob": ()}
    assert declared_capabilities({"blob": Blobs()}, {}) == {"blob": ()}
    for wrong in (("sized",), ("hub.upload",), ("blob.Sized",), "blob.sized"):
        with pytest.raises(ValueError, match="capabilities of blob"):
            declared_capabilities(ports, {"blob": wrong})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'hub' is not among the ports, blob"):
        declared_capabilities(ports, {"hub": ()})


def configure(generation: int, secrets: dict[str, str] | None = None, **settings: Any) -> adapter_pb2.ConfigureRequest:
    return adapter_pb2.ConfigureRequest(
        service=SERVICE, generation=generation, settings=to_struct(settings), secrets=secrets or {}
    )


async def test_settings_from_the_manifest() -> None:
    sized = Sized()
    served = await serve_ports({"blob": sized}, "127.0.0.1:0", name="mine", capabilities={"blob": ()})
    channel = connect(served.address)
    stub = adapter_pb2_grpc.AdapterServiceStub(channel)

    async def refused(request: adapter_pb2.ConfigureRequest) -> KitchenError:
        with pytest.raises(KitchenError) as caught:
            await stub.Configure(request)
        return caught.value

    try:
        info = await stub.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1]))
        assert info.ports[0].config_schema["properties"]["size"]["exclusiveMinimum"] == 0
        assert list((await stub.Configure(configure(2, {"api_key": "s"}, size=1))).warnings) == ["that is small"]
        for again in (configure(2, {"api_key": "s"}, size=1), configure(3, {"api_key": "s"}, size=1)):
            assert not (await stub.Configure(again)).warnings
        assert sized.settings == [(1, {"api_key": "s"})]
        await stub.Configure(configure(4, size=9))
        assert sized.settings[1:] == [(9, {})]
        assert (await refused(configure(3, size=9))).reason == "STALE_GENERATION"
        bad = await refused(configure(5, size=0))
        assert (bad.reason, bad.fields[0].field) == ("FIELD_INVALID", "settings.size")
        assert "did you mean size" in (await refused(configure(5, size=1, siez=2))).message
        other = configure(5, size=1)
        other.instance = "second"
        assert (await refused(other)).reason == "CAPABILITY_MISSING"
        elsewhere = configure(5)
        elsewhere.service = "crucible.port.hub.v1.HubService"
        assert (await refused(elsewhere)).reason == "CAPABILITY_MISSING"
        assert sized.settings[2:] == []
    finally:
        await channel.close()
        await served.stop(0)
