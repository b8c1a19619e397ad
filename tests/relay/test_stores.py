"""The ports without sessions: what hosted runs wrote stays theirs; names mean what they mean for runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from crucible.port.blob.v1 import blob_pb2
from crucible.port.hub.v1 import hub_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible_kit.chunks import crc32
from tests.relay.harness import ANNE, READ, Client, Kitchen, facts, refusal, relaying


async def write(stub, key: str, data: bytes):
    async def parts():
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
        yield blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(crc32=crc32(data), data=data))
        finish = blob_pb2.WriteBlobFinish(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        yield blob_pb2.WriteBlobRequest(finish=finish)

    return await stub.WriteBlob(parts())


async def read(client: Client, key: str) -> bytes:
    chunks = client.blob.ReadBlob(blob_pb2.ReadBlobRequest(key=key))
    return b"".join([chunk.data async for chunk in chunks])


async def test_a_run_s_blobs_are_read_and_nothing_else(kitchen: Kitchen):
    anne, reader, key = kitchen.client(ANNE), kitchen.client(READ), "runs/run-1/attempt-1/final/model.safetensors"
    await write(await kitchen.host.stub("blob"), key, b"weights")
    for bad in (key, "runs/new", "runs", "Runs/run-1/x", "RUNS/run-1"):
        for call in (write(anne.blob, bad, b"x"), anne.blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key=bad))):
            error = await refusal(call)
            assert facts(error) == ("PERMISSION_DENIED", "BLOB_OF_RUN") and bad in error.message
    for bad in ("./runs/run-1", "a/../runs/run-1", "/runs/run-1", "runs//x"):
        assert (await refusal(write(anne.blob, bad, b"x"))).reason in ("FIELD_INVALID", "BLOB_OF_RUN")
    assert await read(reader, key) == b"weights"
    page = await reader.blob.ListBlobs(blob_pb2.ListBlobsRequest(prefix="runs/"))
    assert [entry.key for entry in page.blobs] == [key]
    await write(anne.blob, "mine/runs/x", b"x")
    assert await read(anne, "mine/runs/x") == b"x"
    await anne.blob.DeleteBlob(blob_pb2.DeleteBlobRequest(key="mine/runs/x"))
    assert facts(await refusal(write(reader.blob, "mine/y", b"y"))) == ("PERMISSION_DENIED", "ROLE_MISSING")


async def test_metrics_and_versions_of_runs_are_the_server_s_to_write(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    points = [metrics_pb2.MetricPoint(name="train/loss", step=1, value=2.0)]

    def record(run_id: str):
        request = metrics_pb2.RecordMetricsRequest(run_id=run_id, batch_key=1, attempt=9, points=points)
        return anne.metrics.RecordMetrics(request)

    def register(run_id: str):
        version = registry_pb2.ModelVersion(
            model_name="m", run_id=run_id, checkpoint_uri="u", manifest_sha256="0" * 64, base_model="b"
        )
        return anne.registry.RegisterVersion(registry_pb2.RegisterVersionRequest(version=version))

    # A run may have this name, or get it tomorrow: its own version would find its place taken.
    for make, field in ((record, "run_id"), (register, "version.run_id")):
        for run_id in ("run-1", "clients", "Clients/x"):
            error = await refusal(make(run_id))
            assert facts(error) == ("PERMISSION_DENIED", "RUN_OF_SERVER")
            assert error.metadata["field"] == field
    await record("clients/loop-1")
    version = (await register("clients/loop-1")).version
    latest = metrics_pb2.GetLatestMetricsRequest(run_id="clients/loop-1")
    assert [point.value for point in (await anne.metrics.GetLatestMetrics(latest)).points] == [2.0]
    request = registry_pb2.GetVersionRequest(version_id=version.version_id)
    assert (await kitchen.client(READ).registry.GetVersion(request)).version == version


async def test_files_of_folders_are_handed_out_only_below_named_roots(tmp_path: Path):
    folder = hub_pb2.RepoRef(repo=str(tmp_path))
    builtin = hub_pb2.RepoRef(repo="builtin:m")

    def calls(client: Client, ref: hub_pb2.RepoRef):
        return (
            client.hub.ListRepoFiles(hub_pb2.ListRepoFilesRequest(ref=ref)),
            client.hub.DownloadFile(hub_pb2.DownloadFileRequest(ref=ref, path="f")),
        )

    async with relaying(tmp_path) as kitchen:
        for call in calls(kitchen.client(READ), folder):
            assert facts(await refusal(call)) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
        assert not kitchen.hub.calls
        listed, download = calls(kitchen.client(READ), builtin)
        await listed
        assert [part.data async for part in download] == [b"content"]
    async with relaying(tmp_path, read_roots=(tmp_path,)) as kitchen:
        listed, download = calls(kitchen.client(READ), folder)
        await listed
        assert [part.data async for part in download] == [b"content"]


async def test_uploading_to_the_hub_takes_an_admin(local: Kitchen):
    async def upload():
        yield hub_pb2.UploadFileRequest(chunk=b"x")

    assert facts(await refusal(local.client(ANNE).hub.UploadFile(upload()))) == ("PERMISSION_DENIED", "ROLE_MISSING")


async def test_a_tokenizer_is_named_like_a_model(kitchen: Kitchen):
    anne, tokenizer = kitchen.client(ANNE), kitchen.host.adapters["tokenizer"]

    async def ask(name: str) -> None:
        await anne.tokenizer.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest(tokenizer=name))

    await ask("owner/m")
    encode = tokenizer_pb2.EncodeBatchRequest(tokenizer="owner/m", texts=["a"])
    await anne.tokenizer.EncodeBatch(encode)
    await ask("/models/m")
    assert [request.tokenizer for _, request in tokenizer.calls] == ["/hub/owner/m", "/hub/owner/m", "/models/m"]
    # Asked once for both calls, and not for the weights.
    (snapshot,) = kitchen.hub.requests("SnapshotRepo")
    assert snapshot.ref.repo == "owner/m" and "*.safetensors" not in snapshot.allow_patterns
    error = await refusal(ask("owner/missing"))
    assert facts(error) == ("NOT_FOUND", "TOKENIZER_NOT_FOUND")
    assert error.metadata["field"] == "tokenizer"
    with pytest.raises(Exception, match="required"):
        await ask("")
