"""What a recipe is, and how a configuration is made from one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from crucible_kit.chunks import canonical_json
from crucible_kit.errors import NotFoundError
from crucible_kit.settings import parse_settings, unknown_key
from crucible_kitchen.stages import STAGES
from crucible_kitchen.workflows.dataflow import check_dataflow
from crucible_kitchen.workflows.schema import workflow_options
from crucible_kitchen.workflows.tree import Workflow


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of overrides."""

    name: str
    description: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A workflow with defaults.

    Attributes:
        defaults: by configuration key, over the stages' own; a key without any default must be given by the caller.
    """

    name: str
    description: str
    workflow: Workflow
    defaults: Mapping[str, Any]
    presets: tuple[Preset, ...] = field(default=())

    @cached_property
    def options(self) -> type[BaseModel]:
        """Type of the configuration. Checks workflow, defaults and presets when first read."""
        check_dataflow(self.workflow, STAGES)
        options = workflow_options(self.workflow, STAGES, dict(self.defaults))
        for preset in self.presets:
            options.model_validate({**self.defaults, **preset.config})
        return options

    def configure(self, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The whole configuration: defaults, preset, overrides, validated and normalised.

        Raises:
            NotFoundError: PRESET_NOT_FOUND.
            InvalidArgumentError: CONFIG_INVALID with a violation config.<key> for each bad key.
        """
        values = dict(self._preset(preset).config) if preset else {}
        values.update(overrides)
        return parse_settings(self.options, values, where="config").model_dump(mode="json")

    def origins(self, preset: str, overrides: Mapping[str, Any]) -> dict[str, str]:
        """Where the value of each key that is not in `overrides` comes from, in words."""
        preset_keys = self._preset(preset).config if preset else {}
        return {
            key: f"the preset {preset}" if key in preset_keys else "the recipe"
            for key in self.options.model_fields
            if key not in overrides
        }

    def _preset(self, name: str) -> Preset:
        for each in self.presets:
            if each.name == name:
                return each
        known = [each.name for each in self.presets]
        raise NotFoundError(
            f"recipe {self.name} has no preset {name!r}; its presets are {', '.join(known) or 'none'}",
            reason="PRESET_NOT_FOUND",
            metadata={"field": "preset", "preset": name},
        )


def find_recipe(name: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe. Raises NOT_FOUND RECIPE_NOT_FOUND with the known names."""
    if name not in recipes:
        problem = (
            unknown_key(name, recipes).replace("unknown key", "unknown").replace("the keys are", "the recipes are")
        )
        raise NotFoundError(
            f"recipe {name!r}: {problem}", reason="RECIPE_NOT_FOUND", metadata={"field": "recipe", "recipe": name}
        )
    return recipes[name]


def config_sha256(recipe: str, config: Mapping[str, Any], seed: int) -> str:
    """Hash of what decides a run: recipe, normalised configuration, seed."""
    return hashlib.sha256(canonical_json({"recipe": recipe, "config": config, "seed": seed})).hexdigest()
