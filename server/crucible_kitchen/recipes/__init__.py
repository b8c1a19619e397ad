"""Recipes: a workflow with defaults and presets."""

from crucible_kitchen.recipes.recipe import Preset, Recipe
from crucible_kitchen.recipes.sl_basic import SL_BASIC

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (SL_BASIC,)}

__all__ = ["RECIPES", "Preset", "Recipe"]
