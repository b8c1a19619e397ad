"""CatalogService over the catalogue's data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from crucible.kitchen.v1 import catalog_pb2, catalog_pb2_grpc


class Catalog(Protocol):
    """What the server can do, as messages. The module crucible_kitchen.catalog is one."""

    def recipes(self) -> Sequence[catalog_pb2.Recipe]: ...
    def recipe(self, name: str) -> catalog_pb2.Recipe: ...
    def workflows(self) -> Sequence[catalog_pb2.Workflow]: ...
    def workflow(self, name: str) -> catalog_pb2.Workflow: ...
    def stages(self) -> Sequence[catalog_pb2.Stage]: ...
    def metric_definitions(self) -> Sequence[catalog_pb2.MetricDefinition]: ...


class CatalogService(catalog_pb2_grpc.CatalogServiceServicer):
    """See catalog.proto."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def ListRecipes(
        self, request: catalog_pb2.ListRecipesRequest, context: Any
    ) -> catalog_pb2.ListRecipesResponse:
        response = catalog_pb2.ListRecipesResponse(recipes=_by_name(self._catalog.recipes()))
        for recipe in response.recipes:
            recipe.ClearField("config_schema")
        return response

    async def GetRecipe(self, request: catalog_pb2.GetRecipeRequest, context: Any) -> catalog_pb2.GetRecipeResponse:
        return catalog_pb2.GetRecipeResponse(recipe=self._catalog.recipe(request.name))

    async def ListWorkflows(
        self, request: catalog_pb2.ListWorkflowsRequest, context: Any
    ) -> catalog_pb2.ListWorkflowsResponse:
        return catalog_pb2.ListWorkflowsResponse(workflows=_by_name(self._catalog.workflows()))

    async def GetWorkflow(
        self, request: catalog_pb2.GetWorkflowRequest, context: Any
    ) -> catalog_pb2.GetWorkflowResponse:
        return catalog_pb2.GetWorkflowResponse(workflow=self._catalog.workflow(request.name))

    async def ListStages(self, request: catalog_pb2.ListStagesRequest, context: Any) -> catalog_pb2.ListStagesResponse:
        return catalog_pb2.ListStagesResponse(stages=_by_name(self._catalog.stages()))

    async def ListMetricDefinitions(
        self, request: catalog_pb2.ListMetricDefinitionsRequest, context: Any
    ) -> catalog_pb2.ListMetricDefinitionsResponse:
        return catalog_pb2.ListMetricDefinitionsResponse(metrics=_by_name(self._catalog.metric_definitions()))


def _by_name(entries: Sequence[Any]) -> list[Any]:
    return sorted(entries, key=lambda each: each.name)
