"""Bridges, environments, evaluators, feedback stores and deployments with a defect: the fakes, changed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from crucible.port.deployment.v1 import deployment_pb2
from crucible.port.environment.v1 import environment_pb2
from crucible.port.evaluator.v1 import evaluator_pb2
from crucible.port.feedback.v1 import feedback_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2 as bridge_pb2
from crucible_adapters.fakes.deployment import FakeDeployment
from crucible_adapters.fakes.environment import FakeEnvironment
from crucible_adapters.fakes.evaluator import FakeEvaluator
from crucible_adapters.fakes.feedback import FakeFeedback
from crucible_adapters.fakes.python_bridge import FakePythonBridge
from tests.conformance.mutants.mutant import adapter_mutant, changed

_numbers = itertools.count()


class SessionsAreOpenedTwice(FakePythonBridge):
    async def OpenSession(self, request: Any, context: Any) -> bridge_pb2.OpenSessionResponse:
        return await super().OpenSession(changed(request, request_id=f"request-{next(_numbers)}"), context)


class ZerosLoseTheirSign(FakePythonBridge):
    async def CallFunction(self, request: Any, context: Any) -> bridge_pb2.CallFunctionResponse:
        response = await super().CallFunction(request, context)
        if response.result.WhichOneof("kind") == "real":
            response.result.real += 0.0
        return response


class RefsAreNeverReleased(FakePythonBridge):
    async def ReleaseRef(self, request: Any, context: Any) -> bridge_pb2.ReleaseRefResponse:
        return bridge_pb2.ReleaseRefResponse()


class ItemsComeTwice(FakePythonBridge):
    async def StreamFunction(self, request: Any, context: Any) -> AsyncIterator[bridge_pb2.StreamFunctionResponse]:
        async for each in super().StreamFunction(request, context):
            yield each
            yield each


class StepsAreNotRemembered(FakeEnvironment):
    async def Step(self, request: Any, context: Any) -> environment_pb2.StepResponse:
        response = await super().Step(request, context)
        self._episodes[request.episode_id].last = None
        return response


class AnyOptions(FakeEnvironment):
    async def Reset(self, request: Any, context: Any) -> environment_pb2.ResetResponse:
        copy = changed(request)
        copy.ClearField("options")
        return await super().Reset(copy, context)


class MeansAreRounded(FakeEvaluator):
    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[evaluator_pb2.EvaluateResponse]:
        stream: Any = super().Evaluate(request, context)
        async with aclosing(stream) as messages:
            async for each in messages:
                for aggregate in each.summary.aggregates:
                    aggregate.mean = round(aggregate.mean, 1) + 0.01
                yield each


class SummariesComeFirst(FakeEvaluator):
    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[evaluator_pb2.EvaluateResponse]:
        messages = [each async for each in super().Evaluate(request, context)]
        for each in (messages[-1], *messages[:-1]):
            yield each


class VersionsAreMixed(FakeFeedback):
    async def GetQualityMetrics(self, request: Any, context: Any) -> feedback_pb2.GetQualityMetricsResponse:
        return await super().GetQualityMetrics(changed(request, version_id=""), context)


class CuratedTwice(FakeFeedback):
    async def CurateExamples(self, request: Any, context: Any) -> feedback_pb2.CurateExamplesResponse:
        return await super().CurateExamples(changed(request, request_id=f"request-{next(_numbers)}"), context)


class EtagsAreIgnored(FakeDeployment):
    async def UpdateDeployment(self, request: Any, context: Any) -> deployment_pb2.UpdateDeploymentResponse:
        return await super().UpdateDeployment(changed(request, etag=""), context)


class OldestFirst(FakeDeployment):
    async def ListDeployments(self, request: Any, context: Any) -> deployment_pb2.ListDeploymentsResponse:
        response = await super().ListDeployments(request, context)
        return deployment_pb2.ListDeploymentsResponse(
            deployments=list(response.deployments)[::-1], next_page_token=response.next_page_token
        )


SERVICE_MUTANTS = (
    adapter_mutant(SessionsAreOpenedTwice, "a repeat opens another session", "PYB-SESSION-01"),
    adapter_mutant(ZerosLoseTheirSign, "the sign of zero is lost", "PYB-VALUE-02"),
    adapter_mutant(RefsAreNeverReleased, "references are not released", "PYB-REF-02", others=2),
    adapter_mutant(ItemsComeTwice, "items come twice", "PYB-STREAM-01"),
    adapter_mutant(StepsAreNotRemembered, "a repeated step is refused", "ENV-STEP-02", "ENV-STEP-04"),
    adapter_mutant(AnyOptions, "unknown options are ignored", "ENV-RESET-03"),
    adapter_mutant(MeansAreRounded, "means do not follow from the samples", "EVL-RUN-02"),
    adapter_mutant(SummariesComeFirst, "the summary comes first", "EVL-RUN-01", others=4),
    adapter_mutant(VersionsAreMixed, "versions are mixed", "FBK-QUALITY-01"),
    adapter_mutant(CuratedTwice, "a repeat curates again", "FBK-CURATE-03"),
    adapter_mutant(EtagsAreIgnored, "etags are ignored", "DEP-ETAG-01"),
    adapter_mutant(OldestFirst, "the oldest come first", "DEP-LIST-01"),
)
