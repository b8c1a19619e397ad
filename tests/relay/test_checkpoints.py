"""Whose a checkpoint is."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import pytest

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_kit.errors import KitchenError
from crucible_kitchen.relay.checkpoints import Address, Checkpoints
from tests.relay.harness import ANNE, BERT, Client, Kitchen, facts, refusal, relaying

NOT_FOUND = ("NOT_FOUND", "CHECKPOINT_NOT_FOUND")


def sampling_from(client: Client, uri: str, **fields: str):
    request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), checkpoint_uri=uri, **fields)
    return client.sampling.CreateSamplingSession(request)


def every_use(client: Client, session_id: str, uri: str) -> list[partial]:
    """One call of each method that takes a checkpoint's address, but for deleting."""
    load = tp.LoadCheckpointRequest(session_id=session_id, sequence=9, uri=uri)
    return [
        partial(client.training.LoadCheckpoint, load),
        partial(client.training.ReadCheckpointFile, tp.ReadCheckpointFileRequest(uri=uri, path="f")),
        partial(sampling_from, client, uri),
    ]


async def uploads(name: str):
    files = [tp.CheckpointFile(path="f", size_bytes=1, sha256="0" * 64)]
    yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name=name, files=files))
    yield tp.UploadCheckpointRequest(chunk=tp.UploadCheckpointChunk(data=b"x"))


async def test_one_name_of_two_callers_is_two_checkpoints(kitchen: Kitchen):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    first = await anne.save(await anne.open_training(), 1, "run/final")
    second = await bert.save(await bert.open_training(), 1, "run/final")
    third = (await bert.training.UploadCheckpoint(uploads("run/other"))).checkpoint.uri
    assert len({first, second, third}) == 3
    names = list(kitchen.training.checkpoints)
    assert len(set(names)) == 3
    # Out of reach of the names that runs use: RUN_ID/attempt-N/...
    assert all(name.startswith("clients/") and "attempt" not in name for name in names)
    assert [name.split("/", 2)[2] for name in names] == ["run/final", "run/final", "run/other"]
    assert names[1].split("/")[1] == names[2].split("/")[1] != names[0].split("/")[1]


async def test_a_checkpoint_is_its_owner_s_alone(kitchen: Kitchen):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    mine, theirs = await anne.open_training(), await bert.open_training()
    saved = await anne.save(mine, 1, "final")
    uploaded = (await anne.training.UploadCheckpoint(uploads("up"))).checkpoint.uri
    reached = [name for name, _ in kitchen.training.calls], len(kitchen.sampling.calls)
    inner = "fake:" + next(iter(kitchen.training.checkpoints))
    # What a caller can make up: the adapter's own address, a run's, and those of somebody else.
    for uri in (saved, uploaded, inner, "fake:run-7/attempt-1/step-2", saved.replace("final", "other"), "x", ":::"):
        for call in every_use(bert, theirs, uri):
            error = await refusal(call)
            assert facts(error) == NOT_FOUND
            assert uri in error.message
        await bert.training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=uri))
    for uri in (inner, "fake:run-7/attempt-1/step-2"):
        assert {facts(await refusal(call)) for call in every_use(anne, mine, uri)} == {NOT_FOUND}
    assert ([name for name, _ in kitchen.training.calls], len(kitchen.sampling.calls)) == reached
    for uri in (saved, uploaded):
        for call in every_use(anne, mine, uri)[:1]:
            await call()
        read = anne.training.ReadCheckpointFile(tp.ReadCheckpointFileRequest(uri=uri, path="f"))
        (inner,) = {chunk.data.decode() async for chunk in read}
        assert uri.endswith(inner) and inner.removeprefix("fake:") in kitchen.training.checkpoints
        await sampling_from(anne, uri)
        await anne.training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=uri))
    assert not kitchen.training.checkpoints


async def test_a_loaded_checkpoint_keeps_its_address(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    session_id = await anne.open_training()
    saved = await anne.save(session_id, 1, "final")
    request = tp.LoadCheckpointRequest(session_id=session_id, sequence=2, uri=saved)
    operation = (await anne.training.LoadCheckpoint(request)).operation.id
    assert (await anne.result(session_id, operation)).checkpoint.uri == saved


async def test_ownership_outlives_the_server_but_not_its_secret(tmp_path: Path):
    async with relaying(tmp_path) as kitchen:
        anne = kitchen.client(ANNE)
        uri = await anne.save(await anne.open_training(), 1, "final")
        (name,) = kitchen.training.checkpoints
    read = tp.ReadCheckpointFileRequest(uri=uri, path="f")
    async with relaying(tmp_path) as kitchen:
        chunks = [chunk.data async for chunk in kitchen.client(ANNE).training.ReadCheckpointFile(read)]
        assert chunks == [f"fake:{name}".encode()] * 3
        assert facts(await refusal(kitchen.client(BERT).training.ReadCheckpointFile(read))) == NOT_FOUND
    async with relaying(tmp_path, secret=bytes(32)) as kitchen:
        assert facts(await refusal(kitchen.client(ANNE).training.ReadCheckpointFile(read))) == NOT_FOUND


async def test_a_checkpoint_s_base_model_goes_with_it(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    saved = await anne.save(await anne.open_training(base_model="builtin:m"), 1, "final")
    await sampling_from(anne, saved)
    await sampling_from(anne, saved, checkpoint_base_model="owner/other")
    uploaded = (await anne.training.UploadCheckpoint(uploads("up"))).checkpoint
    assert uploaded.base_model == "/recorded/base"
    await sampling_from(anne, uploaded.uri)
    sent = [each.checkpoint_base_model for each in kitchen.sampling.requests("CreateSamplingSession")]
    # Whatever a checkpoint says its base is, it is looked for where this caller may look.
    assert sent == ["/hub/builtin:m", "/hub/owner/other", "/hub//recorded/base"]
    error = await refusal(sampling_from(anne, saved, checkpoint_base_model="owner/missing"))
    assert facts(error) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert error.metadata["field"] == "checkpoint_base_model"
    request = sp.CreateSamplingSessionRequest(
        request_id=str(uuid.uuid4()), base_model="builtin:m", checkpoint_base_model="builtin:m"
    )
    error = await refusal(anne.sampling.CreateSamplingSession(request))
    assert facts(error) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_an_upload_must_say_what_comes_before_the_engine_starts(local: Kitchen):
    anne = local.client(ANNE)

    async def nothing():
        for each in ():
            yield each

    async def headless():
        yield tp.UploadCheckpointRequest(chunk=tp.UploadCheckpointChunk(data=b"x"))

    for requests in (nothing(), headless(), uploads("x" * 250)):
        error = await refusal(anne.training.UploadCheckpoint(requests))
        assert facts(error) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert not local.host.starts["training"]


async def test_a_name_that_gets_too_long_is_refused(local: Kitchen):
    anne = local.client(ANNE)
    error = await refusal(anne.save(await anne.open_training(), 1, "x" * 231))
    assert facts(error) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert "at most 230" in error.message
    await anne.save(await anne.open_training(), 1, "x" * 230)


@pytest.mark.parametrize("base_model", ["", "owner/m", "/a:b/c d%2F", "builtin:m"])
def test_an_address_tells_its_owner_everything_and_others_nothing(base_model: str):
    checkpoints = Checkpoints(bytes(32))
    address = Address("engine:a/b:c", base_model)
    uri = checkpoints.wrap("anne", address)
    assert checkpoints.unwrap("anne", uri) == address
    assert checkpoints.unwrap("bert", uri) is None
    assert Checkpoints(bytes(31) + b"1").unwrap("anne", uri) is None
    # No other address has the same signature, however the parts are shifted.
    scheme, signature, base, inner = uri.split(":", 3)
    for forged in (
        f"{scheme}:{signature}:{base}x:{inner}",
        f"{scheme}:{signature}:{base}:{inner}x",
        f"{scheme}:{signature}:{base}{inner}",
        f"{scheme}:{signature}:engine:{inner}",
        f"{scheme}::{base}:{inner}",
        f"{scheme}:é:{base}:{inner}",
        f"other:{signature}:{base}:{inner}",
    ):
        assert checkpoints.unwrap("anne", forged) is None, forged
    with pytest.raises(KitchenError):
        checkpoints.get("anne", "x" * 4096, field="uri")
