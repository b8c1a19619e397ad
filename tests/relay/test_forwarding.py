"""Calls on their way: what reaches the adapter, what comes back, what is refused before."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.hub.v1 import hub_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.port.training.v1 import training_pb2 as tp
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    KitchenError,
    OperationCancelledError,
    ResourceExhaustedError,
)
from crucible_kit.ports import PORTS
from crucible_kitchen.api.access import METHOD_ROLES, MUTATIONS, Role
from tests.relay.harness import ANNE, READ, Kitchen, facts, refusal
from tests.stalls import longer

# What each role may call, written out: a method that comes to the contract must be put somewhere.
READERS = """
blob StatBlob ReadBlob ListBlobs
dataset FindDataset GetDatasetInfo ReadRows
deployment GetDeployment ListDeployments CheckHealth GetDeploymentMetrics
embedding ListModels
environment ListEnvironments
evaluator ListTasks GenerateReport
feedback CheckTriggers ExportExamples ExportPreferencePairs GetDriftStatus GetQualityMetrics
hub GetRepoInfo ListRepoFiles DownloadFile
llm ListModels
metrics QueryMetrics GetLatestMetrics ListMetricNames
python_bridge ListLibraries
registry GetVersion ListVersions GetLineage
reward ListRewards
sampling AwaitOperation
training GetTrainingSession AwaitOperation ReadCheckpointFile
vector GetCollection ListCollections QueryItems ListItems
"""
RUNNERS = """
blob WriteBlob DeleteBlob
dataset OpenDataset CloseDataset
embedding EmbedTexts
environment Reset Step Close
evaluator Evaluate
feedback IngestInteractions RecordSignals CurateExamples UpdateBaseline
hub SnapshotRepo
llm Chat StreamChat
metrics RecordMetrics
registry RegisterVersion PromoteVersion AddArtifact
reward Score
sampling CreateSamplingSession Sample StreamSample ComputeLogprobs CancelOperation CloseSamplingSession
tokenizer GetTokenizerInfo EncodeBatch DecodeBatch ApplyChatTemplate
training CreateTrainingSession Forward ForwardBackward OptimStep SaveCheckpoint LoadCheckpoint CancelOperation
training UploadCheckpoint DeleteCheckpoint CloseTrainingSession
vector CreateCollection DeleteCollection UpsertItems DeleteItems
"""
ADMINS = """
deployment DeployModel UpdateDeployment TerminateDeployment SetTrafficWeight
hub UploadFile
python_bridge OpenSession CallFunction StreamFunction CallMethod GetAttribute ReleaseRef CloseSession
"""
FREEING = """
dataset CloseDataset
environment Close
python_bridge ReleaseRef CloseSession
sampling CancelOperation CloseSamplingSession
training CancelOperation CloseTrainingSession
"""


def paths(table: str) -> set[str]:
    lines = [line.split() for line in table.strip().splitlines()]
    return {f"/{PORTS[port].service.full_name}/{name}" for port, *names in lines for name in names}


def test_every_port_s_method_has_the_role_that_fits():
    by_role = {Role.READ: paths(READERS), Role.RUN: paths(RUNNERS), Role.ADMIN: paths(ADMINS)}
    methods = {f"/{port.service.full_name}/{each.name}" for port in PORTS.values() for each in port.service.methods}
    assert set().union(*by_role.values()) == methods
    for role, names in by_role.items():
        assert {METHOD_ROLES[name] for name in names} == {role}
    assert MUTATIONS & methods == (paths(RUNNERS) | paths(ADMINS)) - paths(FREEING)


async def test_health_knows_the_ports(local: Kitchen):
    async with grpc.aio.insecure_channel(local.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for port in PORTS.values():
            request = health_pb2.HealthCheckRequest(service=port.service.full_name)
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_calls_without_a_rule_go_through_as_they_are(kitchen: Kitchen):
    reader = kitchen.client(READ)
    request = hub_pb2.GetRepoInfoRequest(ref=hub_pb2.RepoRef(repo="owner/m", revision="r1"))
    assert await reader.hub.GetRepoInfo(request) == hub_pb2.GetRepoInfoResponse(ref=request.ref, num_files=3)
    assert kitchen.hub.requests("GetRepoInfo") == [request]
    found = dataset_pb2.FindDatasetRequest(source=dataset_pb2.DatasetSource(uri="builtin:word-problems"))
    assert (await reader.dataset.FindDataset(found)).source.split == "train"


@pytest.mark.parametrize(
    "error",
    [
        FailedPreconditionError(
            "gradients: none, call ForwardBackward first",
            reason="NO_GRADIENTS",
            metadata={"step": 3, "ünï": "çødé"},
            fields=[FieldViolation("a.b[3]", "is bad"), FieldViolation("c", "is worse")],
        ),
        ResourceExhaustedError("full", reason="TOO_MANY_IN_FLIGHT", metadata={"limit": 64}, retry_delay=1.25),
        OperationCancelledError("stopped", reason="OPERATION_CANCELLED"),
        KitchenError("said no more", reason="UNKNOWN"),
    ],
)
async def test_an_adapter_s_error_arrives_unchanged(kitchen: Kitchen, error: KitchenError):
    anne = kitchen.client(ANNE)
    session_id = await anne.open_training()
    kitchen.training.errors["GetTrainingSession"] = error
    told = await refusal(anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session_id)))
    for fact in ("code", "message", "reason", "metadata", "fields", "retry_delay"):
        assert getattr(told, fact) == getattr(error, fact)
    # In a stream too, after what came before it.
    uri = await anne.save(session_id, 1, "final")
    kitchen.training.errors["ReadCheckpointFile/more"] = error
    stream = anne.training.ReadCheckpointFile(tp.ReadCheckpointFileRequest(uri=uri, path="f"))
    assert (await anext(stream)).data
    told = await refusal(stream)
    assert (told.message, told.reason, told.fields) == (error.message, error.reason, error.fields)


async def test_a_defect_of_an_adapter_tells_nothing_but_where_to_look(kitchen: Kitchen, caplog):
    anne = kitchen.client(ANNE)
    session_id = await anne.open_training()
    kitchen.training.errors["GetTrainingSession"] = RuntimeError("secret path")  # type: ignore[assignment]
    told = await refusal(anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=session_id)))
    assert facts(told) == ("INTERNAL", "INTERNAL_BUG")
    assert "secret" not in told.message and told.metadata["error_id"] in caplog.text


@pytest.mark.parametrize("method", ["GetTrainingSession", "ReadCheckpointFile/more", "UploadCheckpoint"])
async def test_a_caller_that_hangs_up_ends_the_adapter_s_call(kitchen: Kitchen, method: str):
    anne, training = kitchen.client(ANNE), kitchen.training
    session_id = await anne.open_training()
    uri = await anne.save(session_id, 1, "final")
    training.gates[method] = asyncio.Event()

    async def read() -> None:
        async for _ in anne.training.ReadCheckpointFile(tp.ReadCheckpointFileRequest(uri=uri, path="f")):
            pass

    async def upload():
        files = [tp.CheckpointFile(path="f", sha256="0" * 64)]
        yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name="n", files=files))

    calls = {
        "GetTrainingSession": lambda: anne.training.GetTrainingSession(
            tp.GetTrainingSessionRequest(session_id=session_id)
        ),
        "ReadCheckpointFile/more": read,
        "UploadCheckpoint": lambda: anne.training.UploadCheckpoint(upload()),
    }
    calling = asyncio.create_task(calls[method]())
    await training.reached(method)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await training.until(lambda: method in training.cancelled)


async def test_a_deadline_ends_the_adapter_s_call(kitchen: Kitchen):
    anne, training = kitchen.client(ANNE), kitchen.training
    session_id = await anne.open_training()
    training.gates["GetTrainingSession"] = asyncio.Event()
    request = tp.GetTrainingSessionRequest(session_id=session_id)
    for seconds in longer(0.2):
        with pytest.raises(DeadlineExceededError):
            await anne.training.GetTrainingSession(request, timeout=seconds)
        if training.requests("GetTrainingSession"):
            break
    await training.until(lambda: "GetTrainingSession" in training.cancelled)


async def test_an_upload_arrives_piece_by_piece(kitchen: Kitchen):
    anne, training = kitchen.client(ANNE), kitchen.training

    async def pieces():
        files = [tp.CheckpointFile(path="f", size_bytes=3, sha256="0" * 64)]
        yield tp.UploadCheckpointRequest(header=tp.UploadCheckpointHeader(name="n", files=files))
        for offset in range(3):
            # The next one is sent when the adapter has those before it.
            await training.until(lambda before=offset: len(training.requests("UploadCheckpoint")) > before)
            yield tp.UploadCheckpointRequest(chunk=tp.UploadCheckpointChunk(offset=offset, data=b"x"))

    await anne.training.UploadCheckpoint(pieces())
    sent = training.requests("UploadCheckpoint")
    assert [each.WhichOneof("part") for each in sent] == ["header", "chunk", "chunk", "chunk"]
    assert [each.chunk.offset for each in sent[1:]] == [0, 1, 2]


async def test_what_the_contract_forbids_never_reaches_an_adapter(local: Kitchen):
    async with grpc.aio.insecure_channel(local.address) as channel:
        method = channel.unary_unary("/crucible.port.tokenizer.v1.TokenizerService/EncodeBatch")
        good = tokenizer_pb2.EncodeBatchRequest(tokenizer="builtin:m", texts=["a"]).SerializeToString()
        bearer = (("authorization", f"Bearer {ANNE}"),)
        await method(good, metadata=bearer)
        unknown_field = bytes([0x98, 0x3F, 0x01])
        empty = tokenizer_pb2.EncodeBatchRequest(tokenizer="builtin:m").SerializeToString()
        for request, reason in ((good + unknown_field, "FIELD_UNKNOWN"), (empty, "FIELD_INVALID"), (b"\xff", "MALF")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, metadata=bearer)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in str(dict(caught.value.trailing_metadata() or ())["crucible-reason"])
        assert len(local.host.adapters["tokenizer"].calls) == 1
        # An adapter need not have every method; one that the contract lacks is nobody's.
        decode = tokenizer_pb2.DecodeBatchRequest(tokenizer="builtin:m", sequences=[tokenizer_pb2.TokenSequence()])
        assert facts(await refusal(local.client(ANNE).tokenizer.DecodeBatch(decode))) == (
            "UNIMPLEMENTED",
            "METHOD_MISSING",
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/crucible.port.tokenizer.v1.TokenizerService/Drop")(b"", metadata=bearer)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_caller_s_token_goes_no_further(kitchen: Kitchen):
    request = tokenizer_pb2.GetTokenizerInfoRequest(tokenizer="builtin:m")
    await kitchen.client(ANNE).tokenizer.GetTokenizerInfo(request)
    seen = kitchen.host.adapters["tokenizer"].metadata
    assert seen is not None and "authorization" not in seen and ANNE not in str(seen)


async def test_a_draining_server_lets_clients_read_and_tidy_up(local: Kitchen):
    anne = local.client(ANNE)
    session_id = await anne.open_training()
    operation = await anne.forward_backward(session_id, 1, 2)
    await local.endpoint.drain()
    for call in (anne.open_training(), anne.forward_backward(session_id, 2, 2), anne.open_sampling()):
        error = await refusal(call)
        assert facts(error) == ("UNAVAILABLE", "DRAINING") and error.retry_delay
    await anne.result(session_id, operation)
    cancel = tp.CancelOperationRequest(session_id=session_id, operation_id=operation)
    await anne.training.CancelOperation(cancel)
    await anne.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))
    assert not local.training.open
