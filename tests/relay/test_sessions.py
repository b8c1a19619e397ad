"""Whose a session is, and when it ends."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_kit.errors import NotFoundError, ResourceExhaustedError, UnavailableError
from crucible_kit.ports import PORTS
from tests.relay.fake_adapters import LEASE
from tests.relay.harness import ANNE, BERT, CROSS_ENTROPY, READ, Client, Kitchen, datum, facts, refusal, relaying

NOT_FOUND = ("NOT_FOUND", "SESSION_NOT_FOUND")


def every_training_call(client: Client, session_id: str) -> list[partial]:
    """One call of each method that names a training session, but for closing."""
    on: dict[str, Any] = {"session_id": session_id}
    data: dict[str, Any] = {"data": [datum(2)], "loss_fn": CROSS_ENTROPY}
    stub = client.training
    return [
        partial(stub.GetTrainingSession, tp.GetTrainingSessionRequest(**on)),
        partial(stub.Forward, tp.ForwardRequest(**on, sequence=9, **data)),
        partial(stub.ForwardBackward, tp.ForwardBackwardRequest(**on, sequence=9, **data)),
        partial(stub.OptimStep, tp.OptimStepRequest(**on, sequence=9, adam=tp.AdamParams(learning_rate=1))),
        partial(stub.SaveCheckpoint, tp.SaveCheckpointRequest(**on, sequence=9, name="n")),
        partial(stub.LoadCheckpoint, tp.LoadCheckpointRequest(**on, sequence=9, uri="u")),
        partial(stub.AwaitOperation, tp.AwaitOperationRequest(**on, operation_id="o")),
        partial(stub.CancelOperation, tp.CancelOperationRequest(**on, operation_id="o")),
        partial(
            client.sampling.CreateSamplingSession,
            sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), training_session_id=session_id),
        ),
    ]


def every_sampling_call(client: Client, session_id: str) -> list[partial]:
    on: dict[str, Any] = {"session_id": session_id}
    prompt: dict[str, Any] = {
        "prompt_tokens_int32": bytes(8),
        "params": sp.SamplingParams(max_tokens=2),
        "num_samples": 1,
    }
    stub = client.sampling
    return [
        partial(stub.Sample, sp.SampleRequest(**on, sequence=9, **prompt)),
        partial(stub.StreamSample, sp.StreamSampleRequest(**on, **prompt)),
        partial(stub.ComputeLogprobs, sp.ComputeLogprobsRequest(**on, sequence=9, tokens_int32=bytes(8))),
        partial(stub.AwaitOperation, sp.AwaitOperationRequest(**on, operation_id="o")),
        partial(stub.CancelOperation, sp.CancelOperationRequest(**on, operation_id="o")),
    ]


async def test_a_session_is_its_opener_s_alone(kitchen: Kitchen):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    training, sampling = await anne.open_training(), await anne.open_sampling()
    reached = len(kitchen.training.calls), len(kitchen.sampling.calls)
    unknown = [await refusal(call) for call in every_training_call(bert, "training-99")]
    foreign = [await refusal(call) for call in every_training_call(bert, training)]
    unknown += [await refusal(call) for call in every_sampling_call(bert, "sampling-99")]
    foreign += [await refusal(call) for call in every_sampling_call(bert, sampling)]
    assert {facts(error) for error in foreign + unknown} == {NOT_FOUND}
    # Nobody can tell a session that is somebody else's from one that is not there.
    assert [each.message.replace("99", "1") for each in unknown] == [each.message for each in foreign]
    # Closing what is not there is OK, and closes nothing.
    await bert.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=training))
    await bert.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=sampling))
    assert (len(kitchen.training.calls), len(kitchen.sampling.calls)) == reached
    await anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=training))
    assert await anne.open_sampling(training_session_id=training) == "sampling-2"


async def test_a_session_that_a_run_has_at_the_adapter_is_nobody_s(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    await anne.open_training()
    theirs = kitchen.training.create(tp.CreateTrainingSessionRequest(request_id="of a run"))
    for call in every_training_call(anne, theirs):
        assert facts(await refusal(call)) == NOT_FOUND
    await anne.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=theirs))
    assert theirs in kitchen.training.open


async def test_every_call_of_a_port_with_sessions_has_a_rule(local: Kitchen):
    """A method that comes to the contract must not be forwarded without a look at whose session it names."""
    rules = local.relay._rules
    for port, public in {
        "training": (),
        "sampling": (),
        "dataset": ("FindDataset",),
        "python_bridge": ("ListLibraries",),
        "environment": ("ListEnvironments",),
    }.items():
        for method in PORTS[port].service.methods:
            assert hasattr(rules[port], method.name) or method.name in public, method.full_name


async def test_equal_request_ids_of_two_callers_open_two_sessions(kitchen: Kitchen):
    anne, bert, request_id = kitchen.client(ANNE), kitchen.client(BERT), str(uuid.uuid4())
    first = await anne.open_training(request_id=request_id)
    assert await anne.open_training(request_id=request_id) == first
    second = await bert.open_training(request_id=request_id)
    assert second != first
    error = await refusal(bert.open_training(request_id=request_id, base_model="builtin:other"))
    assert facts(error) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    # In terms of what the caller sent, not of what the adapter got.
    assert error.metadata["request_id"] == request_id
    sent = {request.request_id for request in kitchen.training.requests("CreateTrainingSession")}
    assert len(sent) == 2 and request_id not in sent
    assert await anne.open_sampling(request_id=request_id) != await bert.open_sampling(request_id=request_id)


async def test_a_reader_opens_nothing(local: Kitchen):
    reader = local.client(READ)
    for call in (reader.open_training(), reader.open_sampling()):
        assert facts(await refusal(call)) == ("PERMISSION_DENIED", "ROLE_MISSING")
    assert not local.training.calls and not local.sampling.calls


async def test_without_tokens_all_are_one_caller(tmp_path: Path):
    async with relaying(tmp_path, with_tokens=False) as kitchen:
        session_id = await kitchen.client("").open_training()
        # A token that nobody asked for names nobody.
        request = tp.GetTrainingSessionRequest(session_id=session_id)
        await kitchen.client(BERT).training.GetTrainingSession(request)


async def test_a_restarted_adapter_has_no_session(kitchen: Kitchen):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    mine = await anne.open_training()
    followed = await anne.open_sampling(training_session_id=mine)
    kitchen.host.crash("training")
    for call in every_training_call(anne, mine):
        assert facts(await refusal(call)) == NOT_FOUND
    # A call that can only fail does not bring it back.
    assert kitchen.host.starts["training"] == 1
    # Counted from 1 again: the new adapter gives an old id to somebody else.
    kitchen.training._made = 0
    assert await bert.open_training() == mine
    assert facts(await refusal(every_training_call(anne, mine)[0])) == NOT_FOUND
    assert kitchen.host.starts["training"] == 2
    assert followed == "sampling-1"


async def test_an_adapter_that_ends_under_a_call_has_lost_the_session(local: Kitchen):
    anne = local.client(ANNE)
    session_id = await anne.open_training()
    request = tp.GetTrainingSessionRequest(session_id=session_id)
    local.training.errors["GetTrainingSession"] = UnavailableError("gone", reason="CONNECTION_LOST")
    # It still runs: the call may be tried again.
    assert facts(await refusal(anne.training.GetTrainingSession(request))) == ("UNAVAILABLE", "CONNECTION_LOST")
    gate = local.training.gates["GetTrainingSession"] = asyncio.Event()
    asking = asyncio.create_task(refusal(anne.training.GetTrainingSession(request)))
    await local.training.reached("GetTrainingSession")
    local.host.crash("training")
    gate.set()
    assert facts(await asking) == NOT_FOUND


async def test_what_the_adapter_has_closed_is_forgotten(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    training, sampling = await anne.open_training(), ""
    sampling = await anne.open_sampling(training_session_id=training)
    kitchen.training.end(training)
    told = await refusal(anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=training)))
    assert told.message == f"no session {training}"  # the adapter's own words
    calls = len(kitchen.training.calls)
    assert facts(await refusal(every_training_call(anne, training)[0])) == NOT_FOUND
    assert len(kitchen.training.calls) == calls
    # A sampling session whose training session is gone is still there to be closed.
    lost = NotFoundError("gone", reason="SESSION_NOT_FOUND", metadata={"session_id": training})
    kitchen.sampling.errors["Sample"] = lost
    assert facts(await refusal(every_sampling_call(anne, sampling)[0])) == NOT_FOUND
    await anne.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=sampling))
    assert not kitchen.sampling.open


async def test_a_lease_ends_by_the_server_s_clock_too(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    training, idle = await anne.open_training(), await anne.open_training()
    sampling = await anne.open_sampling(training_session_id=training)
    kitchen.clock.now += LEASE
    # Whoever samples from a session uses it.
    kitchen.sampling.errors["Sample"] = ResourceExhaustedError("busy", reason="BUSY")
    await refusal(every_sampling_call(anne, sampling)[0])
    kitchen.clock.now += 1
    await kitchen.relay.close_expired()
    assert set(kitchen.training.open) == {training} and set(kitchen.sampling.open) == {sampling}
    assert facts(await refusal(every_training_call(anne, idle)[0])) == NOT_FOUND
    await anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=training))


async def test_a_session_in_use_does_not_expire(local: Kitchen):
    anne = local.client(ANNE)
    session_id = await anne.open_training()
    gate = local.training.gates["GetTrainingSession"] = asyncio.Event()
    request = tp.GetTrainingSessionRequest(session_id=session_id)
    asking = asyncio.create_task(anne.training.GetTrainingSession(request))
    await local.training.reached("GetTrainingSession")
    local.clock.now += 10 * LEASE
    await local.relay.close_expired()
    gate.set()
    await asking
    assert session_id in local.training.open


async def test_a_caller_that_goes_away_leaves_no_session_without_an_owner(kitchen: Kitchen):
    anne, bert, request_id = kitchen.client(ANNE), kitchen.client(BERT), str(uuid.uuid4())
    gate = kitchen.training.gates["CreateTrainingSession"] = asyncio.Event()
    opening = asyncio.create_task(anne.open_training(request_id=request_id))
    await kitchen.training.reached("CreateTrainingSession")
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    gate.set()
    session_id = await anne.open_training(request_id=request_id)
    assert list(kitchen.training.open) == [session_id]
    assert facts(await refusal(every_training_call(bert, session_id)[0])) == NOT_FOUND


async def test_the_base_model_is_named_as_it_was_asked_for(kitchen: Kitchen):
    anne = kitchen.client(ANNE)
    request = tp.CreateTrainingSessionRequest(request_id=str(uuid.uuid4()), base_model="builtin:m")
    session = (await anne.training.CreateTrainingSession(request)).session
    again = tp.GetTrainingSessionRequest(session_id=session.session_id)
    again = (await anne.training.GetTrainingSession(again)).session
    assert session.base_model == again.base_model == "builtin:m"
    (sent,) = kitchen.training.requests("CreateTrainingSession")
    assert (sent.base_model, sent.base_model_name) == ("/hub/builtin:m", "")
    named = tp.CreateTrainingSessionRequest(
        request_id=str(uuid.uuid4()), base_model="/models/m", base_model_name="owner/m"
    )
    await anne.training.CreateTrainingSession(named)
    sent = kitchen.training.requests("CreateTrainingSession")[-1]
    assert (sent.base_model, sent.base_model_name) == ("/hub//models/m", "owner/m")


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("builtin:missing", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("/outside/m", "INVALID_ARGUMENT", "PATH_NOT_ALLOWED"),
    ],
)
async def test_an_unknown_model_is_refused_before_the_engine_starts(local: Kitchen, name: str, code: str, reason: str):
    anne = local.client(ANNE)
    for call in (anne.open_training(base_model=name), anne.open_sampling(base_model=name)):
        error = await refusal(call)
        assert facts(error) == (code, reason)
        assert error.metadata["field"] == "base_model" and error.message.startswith("base_model: ")
    assert local.host.starts["training"] == local.host.starts["sampling"] == 0


async def test_an_adapter_that_knows_models_by_name_gets_the_name(local: Kitchen):
    local.host.capabilities = frozenset()
    await local.client(ANNE).open_training(base_model="owner/m")
    (sent,) = local.training.requests("CreateTrainingSession")
    assert (sent.base_model, sent.base_model_name) == ("owner/m", "")
    assert not local.hub.calls


async def test_open_datasets_belong_to_their_opener(kitchen: Kitchen, tmp_path: Path):
    anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}\n{"a": 2}\n')
    opening = dataset_pb2.OpenDatasetRequest(source=dataset_pb2.DatasetSource(uri=str(rows)))
    mine = (await anne.dataset.OpenDataset(opening)).dataset.dataset_id
    everything = dataset_pb2.RowRange()

    def read(client: Client, dataset_id: str):
        return client.dataset.ReadRows(dataset_pb2.ReadRowsRequest(dataset_id=dataset_id, range=everything))

    for dataset_id in (mine, "dataset-unknown"):
        info = dataset_pb2.GetDatasetInfoRequest(dataset_id=dataset_id)
        for call in (read(bert, dataset_id), bert.dataset.GetDatasetInfo(info)):
            assert facts(await refusal(call)) == ("NOT_FOUND", "DATASET_NOT_FOUND")
        await bert.dataset.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=dataset_id))
    assert [row async for page in read(anne, mine) for row in page.rows_json] == ['{"a": 1}', '{"a": 2}']
    kitchen.clock.now += 1801
    await kitchen.relay.close_expired()
    assert facts(await refusal(read(anne, mine))) == ("NOT_FOUND", "DATASET_NOT_FOUND")
    assert not kitchen.host.adapters["dataset"]._open
