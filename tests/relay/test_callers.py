"""Who a caller is."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from crucible.port.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from crucible_kit.channel import connect
from crucible_kit.errors import FailedPreconditionError, NotFoundError
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.relay.callers import LOCAL, Callers, load_secret
from crucible_kitchen.server import KitchenServer

SECRET = bytes(32)


class Context:
    """What a call says of its caller."""

    def __init__(self, authorization: str = "", identities: list[bytes] | None = None) -> None:
        self._authorization = authorization
        self._identities = identities

    def invocation_metadata(self) -> Any:
        return (("authorization", self._authorization), ("other", "x")) if self._authorization else None

    def peer_identities(self) -> list[bytes] | None:
        return self._identities


def test_a_token_is_a_caller_however_it_is_spelled():
    callers = Callers(SECRET, with_tokens=True)
    anne = callers.of(Context("Bearer anne"))
    assert anne == callers.of(Context("bearer  anne ")) != callers.of(Context("Bearer bert"))
    # The token counts where there are both, and its name tells nothing of it to those without the secret.
    assert callers.of(Context("Bearer anne", [b"cn"])) == anne
    assert "anne" not in anne and Callers(bytes(31) + b"1", with_tokens=True).of(Context("Bearer anne")) != anne


def test_a_certificate_s_names_are_a_caller():
    callers = Callers(SECRET, with_tokens=False)
    first = callers.of(Context(identities=[b"a", b"b"]))
    assert first == callers.of(Context(identities=[b"b", b"a"]))
    assert len({first, callers.of(Context(identities=[b"ab"])), callers.of(Context(identities=[b"a"]))}) == 3
    assert callers.of(Context()) == callers.of(Context("Bearer unasked")) == LOCAL


def test_the_secret_is_made_once_and_for_this_user_alone(tmp_path: Path):
    path = tmp_path / "clients.key"
    secret = load_secret(path)
    assert len(secret) == 32 and load_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["clients.key"]


def test_a_secret_that_was_cut_is_not_replaced(tmp_path: Path):
    path = tmp_path / "clients.key"
    path.write_bytes(b"short")
    with pytest.raises(FailedPreconditionError, match="has 5 bytes") as caught:
        load_secret(path)
    assert caught.value.reason == "DATA_FOLDER_UNUSABLE" and path.read_bytes() == b"short"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_two_certificates_are_two_callers_of_a_real_server(tmp_path: Path):
    pems: dict[str, tuple[bytes, bytes]] = {}
    for name in ("localhost", "anne", "bert"):
        cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split()
        names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
        pems[name] = key.read_bytes(), cert.read_bytes()
    authority = tmp_path / "clients.pem"
    authority.write_bytes(pems["anne"][1] + pems["bert"][1])
    cert, key = tmp_path / "localhost.pem", tmp_path / "localhost.key"
    data = tmp_path / "data"
    options = ServerOptions(listen="localhost:0", data=data, tls_cert=cert, tls_key=key, tls_client_ca=authority)
    server = KitchenServer(options)
    await server.start()
    channels = {
        name: connect(server.address, credentials=grpc.ssl_channel_credentials(pems["localhost"][1], *pems[name]))
        for name in ("anne", "bert")
    }
    anne, bert = (dataset_pb2_grpc.DatasetServiceStub(channel) for channel in channels.values())  # type: ignore[arg-type]
    try:
        source = dataset_pb2.DatasetSource(uri="builtin:word-problems")
        opened = (await anne.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source))).dataset
        request = dataset_pb2.GetDatasetInfoRequest(dataset_id=opened.dataset_id)
        assert (await anne.GetDatasetInfo(request)).dataset == opened
        with pytest.raises(NotFoundError) as caught:
            await bert.GetDatasetInfo(request)
        assert caught.value.reason == "DATASET_NOT_FOUND"
    finally:
        for channel in channels.values():
            await channel.close()
        await server.stop()
