"""The root of the commands. Each command's module is imported when it is used: `kitchen --help` loads none of them."""

from __future__ import annotations

import importlib
from typing import Any

import click

# name -> (module:attribute, help in one line)
_COMMANDS = {
    "adapter": ("adapter:adapter", "Write an adapter of your own: a starter for any port."),
    "adapters": ("adapters:adapters", "Show which adapter serves each port, and change that."),
    "call": ("call:call", "Call any gRPC method of any server that has reflection."),
    "cassettes": ("cassettes:cassettes", "Look after recordings of adapters."),
    "conformance": ("conformance:conformance", "Test whether an adapter does what its port's contract says."),
    "recipes": ("catalog:recipes", "Show the recipes, or one with its configuration."),
    "record": ("record:record", "Record what a client and an adapter say to each other."),
    "replay": ("replay:replay", "Serve recordings as an adapter, or hold them against one."),
    "run": ("run:run", "Run a recipe and follow it."),
    "runs": ("runs:runs", "List, watch and steer runs."),
    "serve": ("serve:serve", "Start a server."),
    "stages": ("catalog:stages", "Show the stages that workflows are made of."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(f"crucible_kitchen.cli.{module}"), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        # The one place where a command's failure becomes text and an exit code.
        from crucible_kit.errors import KitchenError
        from crucible_kitchen.cli.output import print_error

        try:
            return super().invoke(ctx)
        except KitchenError as error:
            print_error(error, as_json=ctx.meta.get("kitchen.json", False))
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="crucible-kitchen", prog_name="kitchen")
def main() -> None:
    """Post-train language models: run recipes, here or on a server, and talk to any kitchen.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted or paused.
    """
