"""Serving ports, the handshake, and what an adapter may read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.adapter import AdapterContext, AdapterOptions, ProcessAdapter
from crucible_kit.channel import connect
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from crucible_kit.serving import bind, new_server, serve_ports
from tests.kit.notes import SERVICE, ScriptedBlobs


async def test_the_handshake() -> None:
    served = await serve_ports(
        {"blob": ScriptedBlobs()}, "127.0.0.1:0", name="scripted", capabilities={"blob": ("b", "a")}
    )
    channel = connect(served.address)
    stub = adapter_pb2_grpc.AdapterServiceStub(channel)
    try:
        info = await stub.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1, 9]))
        assert (info.name, list(info.contract_versions)) == ("scripted", [1])
        assert [(port.service, list(port.capabilities)) for port in info.ports] == [(SERVICE, ["a", "b"])]
        assert info.ports[0].descriptor_sha256 == hashlib.sha256(blob_pb2.DESCRIPTOR.serialized_pb).hexdigest()
        assert (await stub.Probe(adapter_pb2.ProbeRequest())).state == adapter_pb2.ProbeResponse.STATE_READY
        with pytest.raises(FailedPreconditionError) as caught:
            await stub.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[9]))
        assert caught.value.reason == "CONTRACT_VERSION_UNSUPPORTED"
    finally:
        await channel.close()
        await served.stop(0)


async def test_a_token_goes_with_every_kind_of_call() -> None:
    blobs = ScriptedBlobs()
    served = await serve_ports({"blob": blobs}, "127.0.0.1:0", name="scripted", capabilities={"blob": ()})
    channel = connect(served.address, token="t0k3n")
    stub = blob_pb2_grpc.BlobStoreServiceStub(channel)

    async def header():
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="k"))

    async def drain(stream) -> None:
        async for _ in stream:
            pass

    try:
        for call in (
            stub.StatBlob(blob_pb2.StatBlobRequest(key="k"), metadata=[("other", "1")]),
            drain(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="k"))),
            stub.WriteBlob(header()),
        ):
            blobs.seen = {}
            await call
            assert blobs.seen["authorization"] == "Bearer t0k3n"
    finally:
        await channel.close()
        await served.stop(0)


async def test_an_address_in_use_is_refused() -> None:
    first = new_server([])
    address = bind(first, "127.0.0.1:0")
    await first.start()
    second = new_server([])
    try:
        with pytest.raises(UnavailableError) as caught:
            bind(second, address)
        assert (caught.value.reason, caught.value.metadata) == ("ADDRESS_IN_USE", {"address": address})
    finally:
        await first.stop(0)


def test_paths_are_read_only_inside_the_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "file").touch()
    (root / "link").symlink_to(outside / "file")
    (tmp_path / "alias").symlink_to(root)
    context = AdapterContext(data_dir=tmp_path, read_roots=(tmp_path / "alias",))
    assert context.readable(str(root / "file"), field="f") == root / "file"
    assert context.readable(str(tmp_path / "alias" / "file"), field="f") == root / "file"
    for path in ("file", str(outside / "file"), str(root / "link"), str(root / ".." / "outside" / "file")):
        with pytest.raises(InvalidArgumentError) as caught:
            context.readable(path, field="config.dataset")
        assert (caught.value.reason, caught.value.fields[0].field) == ("PATH_NOT_ALLOWED", "config.dataset")
    assert AdapterContext(data_dir=tmp_path).readable(str(outside / "file"), field="f") == outside / "file"


def test_a_process_adapters_settings_become_arguments() -> None:
    class Options(AdapterOptions):
        max_tokens: int = 3
        device: str | None = None

    adapter = ProcessAdapter(name="a", ports=("training",), module="m", options=Options)
    assert adapter.arguments(Options()) == ["--max-tokens", "3"]
