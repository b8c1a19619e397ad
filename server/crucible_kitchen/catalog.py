"""What the server can do, as the catalogue sends it."""

from __future__ import annotations

from crucible.kitchen.v1 import catalog_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.errors import NotFoundError
from crucible_kit.settings import unknown_key
from crucible_kitchen.metric_definitions import definitions as metric_definitions
from crucible_kitchen.recipes import RECIPES, Recipe
from crucible_kitchen.recipes.recipe import find_recipe
from crucible_kitchen.stages import STAGES
from crucible_kitchen.workflows.stage import option_defaults
from crucible_kitchen.workflows.tree import to_proto


def recipes() -> list[catalog_pb2.Recipe]:
    """All recipes, sorted by name, without their schemas."""
    return [_recipe(RECIPES[name], with_schema=False) for name in sorted(RECIPES)]


def recipe(name: str) -> catalog_pb2.Recipe:
    """One recipe with its schema. Raises NOT_FOUND RECIPE_NOT_FOUND."""
    return _recipe(find_recipe(name, RECIPES), with_schema=True)


def _recipe(recipe: Recipe, *, with_schema: bool) -> catalog_pb2.Recipe:
    return catalog_pb2.Recipe(
        name=recipe.name,
        description=recipe.description,
        workflow=recipe.workflow.name,
        presets=[
            catalog_pb2.Preset(name=each.name, description=each.description, config=to_struct(each.config))
            for each in sorted(recipe.presets, key=lambda preset: preset.name)
        ],
        defaults=to_struct(option_defaults(recipe.options)),
        config_schema=to_struct(recipe.options.model_json_schema()) if with_schema else None,
    )


def workflows() -> list[catalog_pb2.Workflow]:
    """All workflows, sorted by name."""
    found = {recipe.workflow.name: recipe.workflow for recipe in RECIPES.values()}
    return [to_proto(found[name]) for name in sorted(found)]


def workflow(name: str) -> catalog_pb2.Workflow:
    """One workflow. Raises NOT_FOUND WORKFLOW_NOT_FOUND."""
    found = {each.name: each for each in workflows()}
    if name not in found:
        raise NotFoundError(
            f"workflow {name!r}: {unknown_key(name, found)}", reason="WORKFLOW_NOT_FOUND", metadata={"workflow": name}
        )
    return found[name]


def stages() -> list[catalog_pb2.Stage]:
    """All stages, sorted by name."""
    return [stage.describe() for stage in STAGES]


__all__ = ["metric_definitions", "recipe", "recipes", "stages", "workflow", "workflows"]
