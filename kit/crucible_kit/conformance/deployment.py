"""Deployment targets: models in use, and the traffic they share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.deployment.v1 import deployment_pb2 as pb
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckFailed, check, check_close, check_equal, check_refused, one_by_one
from crucible_kit.conformance.paging import Page, all_keys, check_pages
from crucible_kit.conformance.requirement import Samples, Suite
from crucible_kit.conformance.settings import SuiteSettings

_READY, _TERMINATED = pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_TERMINATED
_POLL_SECONDS = 0.2


class DeploymentSettings(SuiteSettings):
    """Settings of the suite of deployment targets."""

    checkpoint_uri: str = Field(default="file:///checkpoints/one", description="A checkpoint that can be served.")
    other_checkpoint_uri: str = Field(default="file:///checkpoints/two", description="Another one.")
    base_model: str = Field(default="", description="Their base model, of LoRA weights.")
    missing_uri: str = Field(
        default="file:///checkpoints/missing", description="An address where there is no checkpoint."
    )
    ready_seconds: float = Field(default=120.0, gt=0, description="How long a deployment may take to be ready.")


SUITE = Suite(port="deployment", settings=DeploymentSettings)
Deployments = Context[DeploymentSettings]


def model(context: Deployments, uri: str | None = None) -> pb.DeployedModel:
    """What is served."""
    uri = context.settings.checkpoint_uri if uri is None else uri
    return pb.DeployedModel(checkpoint_uri=uri, base_model=context.settings.base_model)


def deploy_request(context: Deployments, endpoint: str, **fields: Any) -> pb.DeployModelRequest:
    """A request for a deployment."""
    given = {"request_id": str(uuid.uuid4()), "endpoint": endpoint, "model": model(context)}
    return pb.DeployModelRequest(**(given | fields))


async def send(context: Deployments, request: pb.DeployModelRequest) -> pb.Deployment:
    """A deployment that is ended after the check."""
    deployment = (await context.stub.DeployModel(request)).deployment
    end = pb.TerminateDeploymentRequest(deployment_id=deployment.deployment_id)
    context.defer(lambda: context.stub.TerminateDeployment(end))
    return deployment


async def deploy(context: Deployments, endpoint: str, **fields: Any) -> pb.Deployment:
    """A deployment that is ready."""
    deployment = await send(context, deploy_request(context, endpoint, **fields))
    return await ready(context, deployment.deployment_id)


async def get(context: Deployments, deployment_id: str) -> pb.Deployment:
    """A deployment now."""
    return (await context.stub.GetDeployment(pb.GetDeploymentRequest(deployment_id=deployment_id))).deployment


async def ready(context: Deployments, deployment_id: str) -> pb.Deployment:
    """A deployment once it is ready."""
    end = asyncio.get_running_loop().time() + context.settings.ready_seconds
    while True:
        deployment = await get(context, deployment_id)
        if deployment.state == _READY:
            return deployment
        going = deployment.state in (pb.DEPLOYMENT_STATE_STARTING, pb.DEPLOYMENT_STATE_UPDATING)
        if not going or asyncio.get_running_loop().time() > end:
            state = pb.DeploymentState.Name(deployment.state)
            raise CheckFailed("a deployment that becomes ready", f"{state} {deployment.detail}")
        await asyncio.sleep(_POLL_SECONDS)


async def weigh(context: Deployments, deployment_id: str, weight: float, etag: str = "") -> list[pb.Deployment]:
    """Changes a deployment's weight; the endpoint's deployments."""
    request = pb.SetTrafficWeightRequest(deployment_id=deployment_id, traffic_weight=weight, etag=etag)
    return list((await context.stub.SetTrafficWeight(request)).deployments)


async def terminate(context: Deployments, deployment_id: str, etag: str = "") -> pb.Deployment:
    """Ends a deployment."""
    request = pb.TerminateDeploymentRequest(deployment_id=deployment_id, etag=etag)
    return (await context.stub.TerminateDeployment(request)).deployment


async def update(context: Deployments, deployment_id: str, **fields: Any) -> pb.Deployment:
    """Changes a deployment."""
    request = pb.UpdateDeploymentRequest(deployment_id=deployment_id, **fields)
    return (await context.stub.UpdateDeployment(request)).deployment


def pages(context: Deployments, endpoint: str, **fields: Any) -> Any:
    """What asks for a page of ids."""

    async def page(size: int, token: str) -> Page:
        request = pb.ListDeploymentsRequest(endpoint=endpoint, page_size=size, page_token=token, **fields)
        response = await context.stub.ListDeployments(request)
        return Page([each.deployment_id for each in response.deployments], response.next_page_token)

    return page


def check_shares(deployments: Sequence[pb.Deployment], expected: Sequence[float]) -> None:
    """The shares of traffic."""
    for deployment, share in zip(deployments, expected, strict=True):
        check_close(
            deployment.traffic_share,
            share,
            f"traffic_share of the weight {deployment.traffic_weight:g}",
            relative=1e-6,
            absolute=1e-9,
        )


@SUITE.samples
async def _samples(context: Deployments) -> Samples:
    endpoint = context.name()
    deployment_id = (await deploy(context, endpoint)).deployment_id
    return {
        "DeployModel": deploy_request(context, endpoint, traffic_weight=0.0),
        "UpdateDeployment": pb.UpdateDeploymentRequest(deployment_id=deployment_id, model=model(context)),
        "TerminateDeployment": pb.TerminateDeploymentRequest(deployment_id=deployment_id),
        "GetDeployment": pb.GetDeploymentRequest(deployment_id=deployment_id),
        "ListDeployments": pb.ListDeploymentsRequest(endpoint=endpoint),
        "CheckHealth": pb.CheckHealthRequest(deployment_id=deployment_id),
        "GetDeploymentMetrics": pb.GetDeploymentMetricsRequest(deployment_id=deployment_id),
        "SetTrafficWeight": pb.SetTrafficWeightRequest(deployment_id=deployment_id, traffic_weight=1.0),
    }


@SUITE.pings
async def _ping(context: Deployments) -> None:
    await context.stub.ListDeployments(pb.ListDeploymentsRequest(page_size=1))


@SUITE.undoes("DeployModel")
async def _end_deployed(context: Deployments, messages: Sequence[Any], answer: Any) -> None:
    # The same request again: the first may have been answered to nobody.
    await send(context, messages[0])


@SUITE.requirement(
    "DEP-DEPLOY-01",
    "DeployModel MUST make a deployment that becomes ready and tells what it serves: one replica, weight 1 for an "
    "endpoint's "
    "first and 0 for the next.",
    quote="Its weight. Absent: 1 for an endpoint's first deployment that lives, otherwise 0",
)
async def _deploys(context: Deployments) -> None:
    endpoint = context.name()
    first, second = await deploy(context, endpoint), await deploy(context, endpoint)
    check(first.deployment_id != second.deployment_id, "another id for another request", second.deployment_id)
    for deployment, weight in ((first, 1.0), (second, 0.0)):
        got = (deployment.endpoint, deployment.model, deployment.replicas, deployment.traffic_weight)
        check_equal(got, (endpoint, model(context), 1, weight), "(endpoint, model, replicas, weight)")
        check(bool(deployment.etag), "an etag", "an empty one")
        check(deployment.create_time.seconds > 0, "a create_time", deployment.create_time)
    check_shares([first, second], [1.0, 0.0])


@SUITE.requirement(
    "DEP-DEPLOY-02",
    "The same request_id MUST get the same deployment, with other content INVALID_ARGUMENT REQUEST_ID_REUSED.",
    quote="the same content again gets the deployment as it is now, other content is INVALID_ARGUMENT "
    "REQUEST_ID_REUSED.",
)
async def _same_request(context: Deployments) -> None:
    request = deploy_request(context, context.name())
    both = await asyncio.gather(send(context, request), send(context, request))
    check_equal(both[1].deployment_id, both[0].deployment_id, "the deployment of a repeated request_id")
    await ready(context, both[0].deployment_id)
    await weigh(context, both[0].deployment_id, 5.0)
    check_equal((await send(context, request)).traffic_weight, 5.0, "the weight now, of a repeat,")
    request.replicas = 3
    call = context.stub.DeployModel(request)
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with other content")


@SUITE.requirement(
    "DEP-DEPLOY-03",
    "A checkpoint that is not there MUST be NOT_FOUND CHECKPOINT_NOT_FOUND, in updates too.",
    quote="NOT_FOUND CHECKPOINT_NOT_FOUND",
)
async def _missing_checkpoint(context: Deployments) -> None:
    missing = model(context, context.settings.missing_uri)
    call = send(context, deploy_request(context, context.name(), model=missing))
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="deploying a checkpoint that is not there")
    deployment = await deploy(context, context.name())
    call = update(context, deployment.deployment_id, model=missing)
    await check_refused(call, "NOT_FOUND", "CHECKPOINT_NOT_FOUND", what="an update to a checkpoint that is not there")
    now = await get(context, deployment.deployment_id)
    check_equal((now.model, now.etag), (deployment.model, deployment.etag), "(model, etag) after a refused update")


@SUITE.requirement(
    "DEP-MISSING-01",
    "A deployment that is not there MUST be NOT_FOUND DEPLOYMENT_NOT_FOUND.",
    quote="NOT_FOUND DEPLOYMENT_NOT_FOUND",
)
async def _missing(context: Deployments) -> None:
    name = context.name()
    calls = {
        "GetDeployment": get(context, name),
        "UpdateDeployment": update(context, name, replicas=2),
        "TerminateDeployment": terminate(context, name),
        "SetTrafficWeight": weigh(context, name, 1.0),
        "CheckHealth": context.stub.CheckHealth(pb.CheckHealthRequest(deployment_id=name)),
        "GetDeploymentMetrics": context.stub.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(deployment_id=name)),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "NOT_FOUND", "DEPLOYMENT_NOT_FOUND", what=f"{what} of an unknown deployment")


@SUITE.requirement(
    "DEP-UPDATE-01",
    "UpdateDeployment MUST change what it names and leave the rest, with another etag; a change to what is there "
    "already "
    "changes nothing.",
    quote="What is absent stays.",
)
async def _updates(context: Deployments) -> None:
    deployment = await deploy(context, context.name())
    name = deployment.deployment_id
    await update(context, name, replicas=2)
    more = await ready(context, name)
    check_equal((more.replicas, more.model), (2, deployment.model), "(replicas, model) after more replicas")
    check(more.etag != deployment.etag, "another etag", more.etag)
    other = model(context, context.settings.other_checkpoint_uri)
    await update(context, name, model=other)
    moved = await ready(context, name)
    check_equal((moved.replicas, moved.model), (2, other), "(replicas, model) after another model")
    same = await update(context, name, model=other, replicas=2)
    check_equal(same.etag, moved.etag, "the etag after a change to what is there")


@SUITE.requirement(
    "DEP-ETAG-01",
    "A change with another etag than the deployment's MUST be ABORTED ETAG_MISMATCH and change nothing.",
    quote="Refuse when the deployment's etag is another. Empty: whatever it is.",
)
async def _etags(context: Deployments) -> None:
    old = await deploy(context, context.name())
    name = old.deployment_id
    await weigh(context, name, 3.0, old.etag)
    now = await get(context, name)
    calls = {
        "UpdateDeployment": update(context, name, replicas=4, etag=old.etag),
        "SetTrafficWeight": weigh(context, name, 9.0, old.etag),
        "TerminateDeployment": terminate(context, name, old.etag),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "ABORTED", "ETAG_MISMATCH", what=f"{what} with an older etag")
    check_equal(await get(context, name), now, "the deployment after refused changes")


@SUITE.requirement(
    "DEP-TRAFFIC-01",
    "Traffic MUST be shared by weight among the endpoint's deployments that serve, and be told of all of them, "
    "newest first.",
    quote="Of the endpoint's traffic it gets its weight over the sum of the weights of all that are READY or UPDATING.",
)
async def _traffic(context: Deployments) -> None:
    endpoint = context.name()
    first, second, elsewhere = [await deploy(context, each) for each in (endpoint, endpoint, context.name())]
    told = await weigh(context, second.deployment_id, 3.0)
    check_equal([each.deployment_id for each in told], [second.deployment_id, first.deployment_id], "the deployments")
    check_shares(told, [0.75, 0.25])
    again = await weigh(context, second.deployment_id, 3.0)
    check_equal([each.etag for each in again], [each.etag for each in told], "the etags after the same weight again")
    check_shares([await get(context, elsewhere.deployment_id)], [1.0])
    check_shares(await weigh(context, first.deployment_id, 0.0), [1.0, 0.0])
    check_shares(await weigh(context, second.deployment_id, 0.0), [0.0, 0.0])


@SUITE.requirement(
    "DEP-TERMINATE-01",
    "TerminateDeployment MUST end a deployment for good: its traffic goes to the others, changes are "
    "FAILED_PRECONDITION "
    "DEPLOYMENT_TERMINATED, ending it again is OK.",
    quote="its share of the traffic goes to the endpoint's others. Idempotent: a terminated one is OK.",
)
async def _terminates(context: Deployments) -> None:
    endpoint = context.name()
    first, second = await deploy(context, endpoint), await deploy(context, endpoint, traffic_weight=1.0)
    for _ in range(2):
        check_equal((await terminate(context, first.deployment_id)).state, _TERMINATED, "the state of an ended one")
    check_shares([await get(context, second.deployment_id), await get(context, first.deployment_id)], [1.0, 0.0])
    calls = {
        "UpdateDeployment": update(context, first.deployment_id, replicas=2),
        "SetTrafficWeight": weigh(context, first.deployment_id, 1.0),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "FAILED_PRECONDITION", "DEPLOYMENT_TERMINATED", what=f"{what} of an ended one")
    health = await context.stub.CheckHealth(pb.CheckHealthRequest(deployment_id=first.deployment_id))
    check_equal(health.health, pb.HEALTH_UNHEALTHY, "the health of an ended one")


@SUITE.requirement(
    "DEP-LIST-01",
    "ListDeployments MUST list an endpoint's deployments, newest first, in pages of any size; ended ones only when "
    "asked for.",
    quote="ListDeployments lists deployments, newest first.",
)
async def _lists(context: Deployments) -> None:
    endpoint = context.name()
    made = [(await deploy(context, endpoint)).deployment_id for _ in range(5)]
    await terminate(context, made[1])
    living = [each for each in made[::-1] if each != made[1]]
    await check_pages(pages(context, endpoint), living, "the deployments of an endpoint")
    everything = await all_keys(pages(context, endpoint, include_terminated=True), 2)
    check_equal(everything, made[::-1], "the deployments with those that are ended")
    token = (await pages(context, endpoint)(1, "")).next_token
    calls = {
        "another endpoint": pages(context, context.name())(1, token),
        "nobody": pages(context, endpoint)(1, "no-token-of-yours"),
    }
    for what, call in one_by_one(calls):
        await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"the token of {what}")


@SUITE.requirement(
    "DEP-HEALTH-01",
    "CheckHealth MUST tell a ready deployment's health and replicas; GetDeploymentMetrics what it has served.",
    quote="CheckHealth asks a deployment now whether it answers. A deployment in trouble is an answer, not an error.",
)
async def _health(context: Deployments) -> None:
    deployment = await deploy(context, context.name(), replicas=2)
    name = deployment.deployment_id
    health = await context.stub.CheckHealth(pb.CheckHealthRequest(deployment_id=name))
    good = health.health in (pb.HEALTH_HEALTHY, pb.HEALTH_DEGRADED)
    check(good, "a ready deployment that answers", f"{pb.Health.Name(health.health)} {health.detail}")
    check(1 <= health.ready_replicas <= 2, "1 or 2 replicas that answer", health.ready_replicas)
    metrics = await context.stub.GetDeploymentMetrics(pb.GetDeploymentMetricsRequest(deployment_id=name))
    if metrics.HasField("num_errors"):
        check(0 <= metrics.num_errors <= metrics.num_requests, "num_errors among num_requests", metrics.num_errors)
    if metrics.HasField("latency_p95_ms") and metrics.HasField("latency_p50_ms"):
        rising = 0 <= metrics.latency_p50_ms <= metrics.latency_p95_ms
        check(rising, "a median below the 95th percentile", (metrics.latency_p50_ms, metrics.latency_p95_ms))
