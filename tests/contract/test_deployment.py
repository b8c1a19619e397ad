"""Deployment: shares of traffic add up, and nothing happens twice or on stale knowledge."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.deployment.v1 import deployment_pb2 as pb
from crucible_adapters.fakes.deployment import FakeDeployment, FakeDeploymentOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from tests.contract.conftest import Binding
from tests.contract.listing import all_pages, assert_pages
from tests.contract.refusals import refused


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext) -> Any:
    return await binding.stub(FakeDeployment(FakeDeploymentOptions(max_replicas=8), context))


def model(uri: str = "file:///checkpoint") -> pb.DeployedModel:
    return pb.DeployedModel(checkpoint_uri=uri, base_model="builtin:tiny-qwen3", version_id="v1")


def options(**values: Any) -> Struct:
    return ParseDict(values, Struct())


async def deploy(stub: Any, endpoint: str = "chat", **fields: Any) -> pb.Deployment:
    request = pb.DeployModelRequest(
        **{"request_id": str(uuid.uuid4()), "endpoint": endpoint, "model": model(), **fields}
    )
    return (await stub.DeployModel(request)).deployment


async def update(stub: Any, deployment: pb.Deployment, **fields: Any) -> pb.Deployment:
    request = pb.UpdateDeploymentRequest(deployment_id=deployment.deployment_id, **fields)
    return (await stub.UpdateDeployment(request)).deployment


async def get(stub: Any, deployment: pb.Deployment) -> pb.Deployment:
    return (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id=deployment.deployment_id))).deployment


async def weigh(stub: Any, deployment: pb.Deployment, weight: float, **fields: Any) -> list[pb.Deployment]:
    request = pb.SetTrafficWeightRequest(deployment_id=deployment.deployment_id, traffic_weight=weight, **fields)
    return list((await stub.SetTrafficWeight(request)).deployments)


async def terminate(stub: Any, deployment: pb.Deployment, **fields: Any) -> pb.Deployment:
    request = pb.TerminateDeploymentRequest(deployment_id=deployment.deployment_id, **fields)
    return (await stub.TerminateDeployment(request)).deployment


async def health(stub: Any, deployment: pb.Deployment) -> pb.CheckHealthResponse:
    return await stub.CheckHealth(pb.CheckHealthRequest(deployment_id=deployment.deployment_id))


async def test_a_deployment_is_made_once_for_a_request_id(stub: Any) -> None:
    request_id = str(uuid.uuid4())
    made = await deploy(stub, request_id=request_id)
    assert (made.state, made.endpoint, made.replicas, made.model) == (pb.DEPLOYMENT_STATE_READY, "chat", 1, model())
    assert made.etag and made.uri and made.create_time == made.update_time
    changed = await update(stub, made, replicas=2)
    # As it is now.
    assert await deploy(stub, request_id=request_id) == changed
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await deploy(stub, request_id=request_id, replicas=3)
    assert len((await stub.ListDeployments(pb.ListDeploymentsRequest())).deployments) == 1


async def test_the_first_gets_all_the_traffic_and_newcomers_none(stub: Any) -> None:
    first, second = await deploy(stub), await deploy(stub)
    assert [(each.traffic_weight, each.traffic_share) for each in (first, second)] == [(1, 1), (0, 0)]
    other = await deploy(stub, "search", traffic_weight=5)
    assert (other.traffic_weight, other.traffic_share) == (5, 1)


async def test_shares_are_weights_over_their_sum(stub: Any) -> None:
    first, second = await deploy(stub), await deploy(stub)
    both = await weigh(stub, second, 3)
    assert [each.deployment_id for each in both] == [second.deployment_id, first.deployment_id]
    assert [each.traffic_share for each in both] == [0.75, 0.25]
    assert (await get(stub, first)).traffic_share == 0.25
    await terminate(stub, second)
    assert (await get(stub, first)).traffic_share == 1
    gone = await get(stub, second)
    assert (gone.state, gone.traffic_share) == (pb.DEPLOYMENT_STATE_TERMINATED, 0)
    assert [each.traffic_share for each in await weigh(stub, first, 0)] == [0]
    # The next one is the first that lives only when nobody else does.
    assert (await deploy(stub)).traffic_weight == 0
    await terminate(stub, first)


async def test_one_that_does_not_serve_has_no_share(stub: Any) -> None:
    first = await deploy(stub)
    broken = await deploy(stub, traffic_weight=3, options=options(fail=True))
    assert (broken.state, broken.traffic_share) == (pb.DEPLOYMENT_STATE_FAILED, 0) and broken.detail
    assert (await get(stub, first)).traffic_share == 1
    mended = await update(stub, broken, options=options())
    assert (mended.state, mended.detail, mended.traffic_share) == (pb.DEPLOYMENT_STATE_READY, "", 0.75)


async def test_updates_change_what_they_name(stub: Any) -> None:
    made = await deploy(stub, replicas=2, options=options(lost_replicas=1))
    changed = await update(stub, made, model=model("file:///other"))
    assert (changed.model, changed.replicas, changed.options) == (model("file:///other"), 2, made.options)
    assert changed.etag != made.etag and changed.update_time.seconds > made.update_time.seconds
    # What is there already changes nothing.
    assert await update(stub, made, model=model("file:///other"), replicas=2) == changed
    assert await update(stub, made) == changed
    with refused(InvalidArgumentError, "FIELD_INVALID", field="replicas"):
        await update(stub, made, replicas=0)


async def test_a_stale_etag_stops_a_change(stub: Any) -> None:
    made = await deploy(stub)
    changed = await update(stub, made, etag=made.etag, replicas=2)
    for call in (
        update(stub, made, etag=made.etag, replicas=3),
        weigh(stub, made, 2, etag=made.etag),
        terminate(stub, made, etag=made.etag),
    ):
        with refused(AbortedError, "ETAG_MISMATCH"):
            await call
    assert await get(stub, made) == changed
    await weigh(stub, made, 2, etag=changed.etag)
    assert (await get(stub, made)).etag != changed.etag


async def test_termination_is_for_good_and_happens_once(stub: Any) -> None:
    made = await deploy(stub)
    ended = await terminate(stub, made)
    assert ended.state == pb.DEPLOYMENT_STATE_TERMINATED and not ended.uri
    assert await terminate(stub, made, etag=made.etag) == ended
    for call in (update(stub, made, replicas=2), weigh(stub, made, 1)):
        with refused(FailedPreconditionError, "DEPLOYMENT_TERMINATED"):
            await call


async def test_what_can_t_be_served_is_refused(stub: Any) -> None:
    made = await deploy(stub)
    for call in (
        lambda uri: deploy(stub, model=model(uri)),
        lambda uri: update(stub, made, model=model(uri)),
    ):
        with refused(NotFoundError, "CHECKPOINT_NOT_FOUND", says="file:///missing"):
            await call("file:///missing")
        with refused(FailedPreconditionError, "MODEL_UNSUPPORTED"):
            await call("file:///unsupported")
    assert await get(stub, made) == made
    with refused(InvalidArgumentError, "FIELD_INVALID", field="options.speed"):
        await deploy(stub, options=options(speed=3))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="endpoint"):
        await deploy(stub, "No Such Name")


async def test_replicas_are_limited_until_others_end(stub: Any) -> None:
    first = await deploy(stub, replicas=6)
    for call in (lambda: deploy(stub, replicas=3), lambda: update(stub, first, replicas=9)):
        with refused(ResourceExhaustedError, "CAPACITY", says="8"):
            await call()
    await terminate(stub, first)
    assert (await deploy(stub, replicas=8)).replicas == 8


async def test_trouble_is_an_answer(stub: Any) -> None:
    well = await health(stub, await deploy(stub, replicas=2))
    assert (well.health, well.ready_replicas, well.detail) == (pb.HEALTH_HEALTHY, 2, "") and well.HasField("latency_ms")
    half = await health(stub, await deploy(stub, replicas=2, options=options(lost_replicas=1)))
    assert (half.health, half.ready_replicas) == (pb.HEALTH_DEGRADED, 1) and half.detail
    for deployment in (
        await deploy(stub, options=options(lost_replicas=1)),
        await deploy(stub, options=options(fail=True)),
        await terminate(stub, await deploy(stub)),
    ):
        ill = await health(stub, deployment)
        assert (ill.health, ill.ready_replicas, ill.HasField("latency_ms")) == (pb.HEALTH_UNHEALTHY, 0, False)
        assert ill.detail


async def test_metrics_are_consistent(stub: Any) -> None:
    made = await deploy(stub)
    request = pb.GetDeploymentMetricsRequest(deployment_id=made.deployment_id)
    metrics = await stub.GetDeploymentMetrics(request)
    assert metrics.num_errors <= metrics.num_requests and metrics.latency_p50_ms <= metrics.latency_p95_ms
    assert await stub.GetDeploymentMetrics(request) == metrics


async def test_unknown_deployments_are_not_found(stub: Any) -> None:
    nobody = pb.Deployment(deployment_id="deployment-99")
    for call in (
        get(stub, nobody),
        update(stub, nobody, replicas=2),
        weigh(stub, nobody, 1),
        terminate(stub, nobody),
        health(stub, nobody),
        stub.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(deployment_id="deployment-99")),
    ):
        with refused(NotFoundError, "DEPLOYMENT_NOT_FOUND", says="deployment-99"):
            await call


async def test_lists_are_newest_first(stub: Any) -> None:
    made = [await deploy(stub, "chat"), await deploy(stub, "search"), await deploy(stub, "chat")]
    ids = [each.deployment_id for each in made]
    request = pb.ListDeploymentsRequest()
    await assert_pages(stub.ListDeployments, request, "deployments")
    found = await all_pages(stub.ListDeployments, pb.ListDeploymentsRequest(), "deployments")
    assert [each.deployment_id for each in found] == ids[::-1]
    found = await all_pages(stub.ListDeployments, pb.ListDeploymentsRequest(endpoint="chat"), "deployments")
    assert [each.deployment_id for each in found] == [ids[2], ids[0]]
    await terminate(stub, made[2])
    chat = pb.ListDeploymentsRequest(endpoint="chat")
    assert [each.deployment_id for each in (await stub.ListDeployments(chat)).deployments] == [ids[0]]
    chat.include_terminated = True
    assert len((await stub.ListDeployments(chat)).deployments) == 2


async def test_a_weight_must_be_given(stub: Any) -> None:
    made = await deploy(stub)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="traffic_weight"):
        await stub.SetTrafficWeight(pb.SetTrafficWeightRequest(deployment_id=made.deployment_id))
    with refused(InvalidArgumentError, "FIELD_INVALID", field="traffic_weight"):
        await weigh(stub, made, -1)
