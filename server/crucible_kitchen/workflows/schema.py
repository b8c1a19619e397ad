"""A workflow's configuration: the union of its stages' options as one strict model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from crucible_kitchen.workflows.stage import StageRegistry
from crucible_kitchen.workflows.tree import Workflow


def workflow_options(workflow: Workflow, registry: StageRegistry, defaults: dict[str, Any]) -> type[BaseModel]:
    """The model of all keys that the workflow's stages own.

    Args:
        defaults: a recipe's defaults, laid over the stages' own.

    Raises:
        ValueError: two stages own a key with different types, or a default is of no stage's key.
    """
    fields: dict[str, tuple[Any, FieldInfo]] = {}
    owners: dict[str, str] = {}
    for name in workflow.stage_names():
        for key, info in registry[name].options.model_fields.items():
            if key in fields:
                if fields[key][0] != info.annotation or fields[key][1].metadata != info.metadata:
                    raise ValueError(f"stages {owners[key]} and {name} own the key {key} with different types")
                continue
            fields[key] = (info.annotation, info)
            owners[key] = name
    unknown = sorted(set(defaults) - set(fields))
    if unknown:
        raise ValueError(f"workflow {workflow.name} has no key {', '.join(unknown)}")
    for key, value in defaults.items():
        annotation, info = fields[key]
        with_default = FieldInfo.merge_field_infos(info, default=value)
        fields[key] = (annotation, with_default)
    name = "".join(part.title() for part in workflow.name.split("_")) + "Config"
    return create_model(
        name,
        __config__=ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True),
        **{key: fields[key] for key in sorted(fields)},  # type: ignore[call-overload]
    )
