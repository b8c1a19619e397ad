"""The rules of the ports that take trained models: clients name their checkpoints as this server named them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from crucible.port.deployment.v1 import deployment_pb2
from crucible.port.evaluator.v1 import evaluator_pb2
from crucible_kitchen.relay.call import Call
from crucible_kitchen.relay.checkpoints import Checkpoints


class EvaluatorRules:
    """Each method is the rule of the call of its name."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def Evaluate(
        self, call: Call, request: evaluator_pb2.EvaluateRequest
    ) -> AsyncIterator[evaluator_pb2.EvaluateResponse]:
        if request.model.HasField("checkpoint_uri"):
            request.model.checkpoint_uri = self._checkpoints.resolve(
                call.caller, request.model.checkpoint_uri, field="model.checkpoint_uri"
            )
        return call.stream(request)


class DeploymentRules:
    """Each method is the rule of the call of its name."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    async def DeployModel(
        self, call: Call, request: deployment_pb2.DeployModelRequest
    ) -> deployment_pb2.DeployModelResponse:
        self._resolve(call, request.model)
        return await call.send(request)

    async def UpdateDeployment(
        self, call: Call, request: deployment_pb2.UpdateDeploymentRequest
    ) -> deployment_pb2.UpdateDeploymentResponse:
        if request.HasField("model"):
            self._resolve(call, request.model)
        return await call.send(request)

    def _resolve(self, call: Call, model: deployment_pb2.DeployedModel) -> None:
        model.checkpoint_uri = self._checkpoints.resolve(
            call.caller, model.checkpoint_uri, field="model.checkpoint_uri"
        )
