"""Deployments that exist on paper."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from crucible.port.deployment.v1 import deployment_pb2, deployment_pb2_grpc
from crucible_adapters.fakes.seeded import Requests, digest, logical_time, plain
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import AbortedError, FailedPreconditionError, NotFoundError, ResourceExhaustedError
from crucible_kit.settings import parse_settings

_READY = deployment_pb2.DEPLOYMENT_STATE_READY
_SERVING = (_READY, deployment_pb2.DEPLOYMENT_STATE_UPDATING)
_TERMINATED = deployment_pb2.DEPLOYMENT_STATE_TERMINATED
_FAILED = deployment_pb2.DEPLOYMENT_STATE_FAILED
_MISSING, _UNSUPPORTED = "missing", "unsupported"


class _TargetOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fail: bool = Field(default=False, description="The deployment does not come up.")
    lost_replicas: int = Field(default=0, ge=0, description="Replicas that do not answer.")


class FakeDeploymentOptions(AdapterOptions):
    """How much there is to deploy to."""

    seed: int = Field(default=0, description="Seed of what GetDeploymentMetrics tells.")
    max_replicas: int = Field(default=64, ge=1, description="Replicas of all deployments together.")


class FakeDeployment(deployment_pb2_grpc.DeploymentServiceServicer):
    """Deployments in memory that are ready at once. A checkpoint whose address ends with `missing` does not exist, and
    one whose address ends with `unsupported` can't be served.
    """

    description = AdapterDescription(name="fake-deployment", port="deployment", options=FakeDeploymentOptions)

    def __init__(self, options: FakeDeploymentOptions, context: AdapterContext) -> None:
        self._options = options
        # In the order they were made.
        self._deployments: dict[str, deployment_pb2.Deployment] = {}
        self._requests: Requests[deployment_pb2.Deployment] = Requests()
        self._changes = 0

    async def close(self) -> None:
        """Forgets everything."""
        self._deployments.clear()

    async def DeployModel(
        self, request: deployment_pb2.DeployModelRequest, context: Any
    ) -> deployment_pb2.DeployModelResponse:
        deployment = self._requests.once(request, lambda: self._deploy(request))
        self._share(deployment.endpoint)
        return deployment_pb2.DeployModelResponse(deployment=deployment)

    def _deploy(self, request: deployment_pb2.DeployModelRequest) -> deployment_pb2.Deployment:
        replicas = request.replicas or 1
        _check_model(request.model)
        settings = _settings(request.options)
        self._check_room(replicas)
        weight = request.traffic_weight
        if not request.HasField("traffic_weight"):
            weight = 0.0 if self._living(request.endpoint) else 1.0
        number = len(self._deployments) + 1
        deployment = deployment_pb2.Deployment(
            deployment_id=f"deployment-{number}",
            endpoint=request.endpoint,
            model=request.model,
            traffic_weight=weight,
            replicas=replicas,
            options=request.options,
            uri=f"http://fake.invalid/{request.endpoint}/{number}",
        )
        self._deployments[deployment.deployment_id] = deployment
        self._changed(deployment)
        deployment.create_time.CopyFrom(deployment.update_time)
        _bring_up(deployment, settings)
        return deployment

    async def UpdateDeployment(
        self, request: deployment_pb2.UpdateDeploymentRequest, context: Any
    ) -> deployment_pb2.UpdateDeploymentResponse:
        deployment = self._changeable(request.deployment_id, request.etag)
        wanted = deployment_pb2.Deployment()
        wanted.CopyFrom(deployment)
        if request.HasField("model"):
            _check_model(request.model)
            wanted.model.CopyFrom(request.model)
        if request.HasField("options"):
            wanted.options.CopyFrom(request.options)
        settings = _settings(wanted.options)
        if request.HasField("replicas"):
            self._check_room(request.replicas - deployment.replicas)
            wanted.replicas = request.replicas
        if wanted != deployment:
            deployment.CopyFrom(wanted)
            self._changed(deployment)
            _bring_up(deployment, settings)
        self._share(deployment.endpoint)
        return deployment_pb2.UpdateDeploymentResponse(deployment=deployment)

    async def TerminateDeployment(
        self, request: deployment_pb2.TerminateDeploymentRequest, context: Any
    ) -> deployment_pb2.TerminateDeploymentResponse:
        deployment = self._find(request.deployment_id)
        if deployment.state != _TERMINATED:
            _check_etag(deployment, request.etag)
            deployment.state, deployment.detail, deployment.uri = _TERMINATED, "", ""
            deployment.traffic_weight = 0.0
            self._changed(deployment)
            self._share(deployment.endpoint)
        return deployment_pb2.TerminateDeploymentResponse(deployment=deployment)

    async def GetDeployment(
        self, request: deployment_pb2.GetDeploymentRequest, context: Any
    ) -> deployment_pb2.GetDeploymentResponse:
        return deployment_pb2.GetDeploymentResponse(deployment=self._find(request.deployment_id))

    async def ListDeployments(
        self, request: deployment_pb2.ListDeploymentsRequest, context: Any
    ) -> deployment_pb2.ListDeploymentsResponse:
        listed = [
            (-number, each)
            for number, each in enumerate(self._deployments.values())
            if request.endpoint in ("", each.endpoint) and (request.include_terminated or each.state != _TERMINATED)
        ]
        scope = "ListDeployments", request.endpoint, request.include_terminated
        shown, token = page(listed[::-1], lambda entry: entry[0], request, *scope)
        deployments = [each for _, each in shown]
        return deployment_pb2.ListDeploymentsResponse(deployments=deployments, next_page_token=token)

    async def CheckHealth(
        self, request: deployment_pb2.CheckHealthRequest, context: Any
    ) -> deployment_pb2.CheckHealthResponse:
        deployment = self._find(request.deployment_id)
        if deployment.state != _READY:
            state = deployment_pb2.DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_")
            return deployment_pb2.CheckHealthResponse(
                health=deployment_pb2.HEALTH_UNHEALTHY, detail=deployment.detail or f"it is {state}"
            )
        ready = max(0, deployment.replicas - _settings(deployment.options).lost_replicas)
        if not ready:
            return deployment_pb2.CheckHealthResponse(
                health=deployment_pb2.HEALTH_UNHEALTHY, detail="no replica answers"
            )
        lost = deployment.replicas - ready
        return deployment_pb2.CheckHealthResponse(
            health=deployment_pb2.HEALTH_DEGRADED if lost else deployment_pb2.HEALTH_HEALTHY,
            detail=f"{lost} of {deployment.replicas} replicas do not answer" if lost else "",
            ready_replicas=ready,
            latency_ms=1.0,
        )

    async def GetDeploymentMetrics(
        self, request: deployment_pb2.GetDeploymentMetricsRequest, context: Any
    ) -> deployment_pb2.GetDeploymentMetricsResponse:
        deployment = self._find(request.deployment_id)
        bits = int(digest(self._options.seed, "metrics", deployment.deployment_id)[:12], 16)
        requests = bits % 1000 if deployment.state != _FAILED else 0
        metrics = deployment_pb2.GetDeploymentMetricsResponse(
            num_requests=requests, num_errors=requests // 100, input_tokens=requests * 20, output_tokens=requests * 10
        )
        if requests:
            metrics.latency_p50_ms, metrics.latency_p95_ms = 10.0 + bits % 7, 20.0 + bits % 11
        return metrics

    async def SetTrafficWeight(
        self, request: deployment_pb2.SetTrafficWeightRequest, context: Any
    ) -> deployment_pb2.SetTrafficWeightResponse:
        deployment = self._changeable(request.deployment_id, request.etag)
        if deployment.traffic_weight != request.traffic_weight:
            deployment.traffic_weight = request.traffic_weight
            self._changed(deployment)
        self._share(deployment.endpoint)
        return deployment_pb2.SetTrafficWeightResponse(deployments=self._living(deployment.endpoint)[::-1])

    def _find(self, deployment_id: str) -> deployment_pb2.Deployment:
        if deployment_id not in self._deployments:
            raise NotFoundError(
                f"deployment_id: there is no deployment {deployment_id!r}",
                reason="DEPLOYMENT_NOT_FOUND",
                metadata={"deployment_id": deployment_id},
            )
        return self._deployments[deployment_id]

    def _changeable(self, deployment_id: str, etag: str) -> deployment_pb2.Deployment:
        deployment = self._find(deployment_id)
        if deployment.state == _TERMINATED:
            raise FailedPreconditionError(
                f"{deployment_id} is terminated for good: deploy the model anew",
                reason="DEPLOYMENT_TERMINATED",
                metadata={"deployment_id": deployment_id},
            )
        _check_etag(deployment, etag)
        return deployment

    def _living(self, endpoint: str) -> list[deployment_pb2.Deployment]:
        """An endpoint's deployments that are not terminated, oldest first."""
        return [each for each in self._deployments.values() if each.endpoint == endpoint and each.state != _TERMINATED]

    def _share(self, endpoint: str) -> None:
        """Works the endpoint's traffic out anew."""
        mine = [each for each in self._deployments.values() if each.endpoint == endpoint]
        total = sum(each.traffic_weight for each in mine if each.state in _SERVING)
        for each in mine:
            each.traffic_share = each.traffic_weight / total if total and each.state in _SERVING else 0.0

    def _changed(self, deployment: deployment_pb2.Deployment) -> None:
        self._changes += 1
        deployment.etag = digest("etag", self._changes)[:16]
        deployment.update_time.CopyFrom(logical_time(self._changes))

    def _check_room(self, more: int) -> None:
        used = sum(each.replicas for each in self._deployments.values() if each.state != _TERMINATED)
        if used + more > self._options.max_replicas:
            raise ResourceExhaustedError(
                f"{more} more replicas beside {used} pass the limit of {self._options.max_replicas}: terminate others",
                reason="CAPACITY",
                metadata={"limit": self._options.max_replicas, "used": used},
            )


def _check_model(model: deployment_pb2.DeployedModel) -> None:
    if model.checkpoint_uri.endswith(_MISSING):
        raise NotFoundError(
            f"model.checkpoint_uri: there is nothing at {model.checkpoint_uri!r}",
            reason="CHECKPOINT_NOT_FOUND",
            metadata={"field": "model.checkpoint_uri", "uri": model.checkpoint_uri},
        )
    if model.checkpoint_uri.endswith(_UNSUPPORTED):
        raise FailedPreconditionError(
            f"model.checkpoint_uri: {model.checkpoint_uri!r} holds a model that can't be served here",
            reason="MODEL_UNSUPPORTED",
            metadata={"field": "model.checkpoint_uri"},
        )


def _settings(options: Any) -> _TargetOptions:
    return parse_settings(_TargetOptions, plain(options), where="options", reason="FIELD_INVALID")


def _check_etag(deployment: deployment_pb2.Deployment, etag: str) -> None:
    if etag and etag != deployment.etag:
        raise AbortedError(
            f"{deployment.deployment_id} has changed since the etag {etag!r}: read it again and decide anew",
            reason="ETAG_MISMATCH",
            metadata={"deployment_id": deployment.deployment_id, "etag": deployment.etag},
        )


def _bring_up(deployment: deployment_pb2.Deployment, settings: _TargetOptions) -> None:
    deployment.state = _FAILED if settings.fail else _READY
    deployment.detail = "its options say that it fails" if settings.fail else ""
