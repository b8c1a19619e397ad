"""kitchen recipes, stages: what a kitchen can do."""

from __future__ import annotations

import json

import click
from google.protobuf.json_format import MessageToDict

from crucible.kitchen.v1 import catalog_pb2
from crucible_kitchen.cli.connection import connected_to_catalog, execute
from crucible_kitchen.cli.options import Target, json_option, target_options
from crucible_kitchen.cli.output import print_messages, print_table


@click.command()
@click.argument("name", required=False)
@target_options
@json_option
def recipes(name: str | None, target: Target, as_json: bool) -> None:
    """Show the recipes, or NAME with its configuration keys."""

    async def work() -> list[catalog_pb2.Recipe]:
        async with connected_to_catalog(target) as client:
            return await client.list_recipes() if name is None else [await client.get_recipe(name)]

    found = execute(work())
    if as_json:
        print_messages(found)
    elif name is None:
        rows = [(each.name, ", ".join(preset.name for preset in each.presets), each.description) for each in found]
        print_table(("RECIPE", "PRESETS", "WHAT IT IS FOR"), rows)
    else:
        _print_recipe(found[0])


def _print_recipe(recipe: catalog_pb2.Recipe) -> None:
    click.echo(f"{recipe.name}: {recipe.description}\nworkflow: {recipe.workflow}\n")
    for preset in recipe.presets:
        config = " ".join(f"{key}={_short(value)}" for key, value in sorted(MessageToDict(preset.config).items()))
        click.echo(f"preset {preset.name}: {preset.description}\n  {config}\n")
    schema = MessageToDict(recipe.config_schema)
    required = set(schema.get("required", ()))
    rows = []
    for key, field in sorted(schema.get("properties", {}).items()):
        default = "required" if key in required else _short(field.get("default"))
        choices = f" One of {', '.join(field['enum'])}." if "enum" in field else ""
        rows.append((key, _type(field), default, field.get("description", "") + choices))
    print_table(("KEY", "TYPE", "DEFAULT", "MEANING"), rows)


def _type(field: dict) -> str:
    if "anyOf" in field:
        return "|".join(_type(each) for each in field["anyOf"])
    return str(field.get("type", "any"))


def _short(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(_whole(value), ensure_ascii=False)


def _whole(value: object) -> object:
    """A Struct's numbers are all doubles; people expect 16, not 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@click.command()
@target_options
@json_option
def stages(target: Target, as_json: bool) -> None:
    """Show the stages that workflows are made of."""

    async def work() -> list[catalog_pb2.Stage]:
        async with connected_to_catalog(target) as client:
            return await client.list_stages()

    found = execute(work())
    if as_json:
        print_messages(found)
        return
    print_table(
        ("STAGE", "PORTS", "WHAT IT DOES"),
        [(each.name, " ".join(each.ports) or "-", each.description) for each in found],
    )
