"""kitchen serve: run a server until it is told to stop. Its options are those of ServerOptions."""

from __future__ import annotations

import asyncio
import json
import logging
import types
import typing
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from crucible_kit.errors import InvalidArgumentError
from crucible_kit.redaction import redact_logs
from crucible_kit.settings import parse_settings
from crucible_kitchen.cli.connection import execute
from crucible_kitchen.cli.embedded import server_installed
from crucible_kitchen.cli.follow import Interrupts
from crucible_kitchen.cli.options import DEFAULT_DATA, json_option
from crucible_kitchen.cli.output import note
from crucible_kitchen.options import ServerOptions

_FOLDER_OPTION = "data"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_tuple(annotation: Any) -> bool:
    """Whether it is a tuple or an optional one."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(part) is tuple for part in parts)


def _option(name: str, field: FieldInfo) -> click.Option:
    """The command line's form of a field; the model checks types and ranges."""
    if field.annotation is bool:
        words = [f"{_flag(name)}/--no-{name.replace('_', '-')}"] if field.default else [_flag(name)]
        return click.Option([*words, name], default=None, help=field.description, is_flag=True)
    shown = "" if field.default is None or field.is_required() else f"  [default: {field.default}]"
    if name == _FOLDER_OPTION:
        shown = f"  [KITCHEN_DATA; default: {DEFAULT_DATA}]"
    return click.Option(
        [_flag(name), name],
        envvar="KITCHEN_DATA" if name == _FOLDER_OPTION else None,
        multiple=_is_tuple(field.annotation),
        help=f"{field.description}{shown}",
        metavar="VALUE",
    )


def _serve(as_json: bool, **given: Any) -> None:
    options = server_options(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    redact_logs()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    execute(_run_server(options, as_json=as_json))


def server_options(given: dict[str, Any]) -> ServerOptions:
    """The options that were given, checked.

    Raises:
        click.UsageError: naming each bad option.
    """
    values = {name: value for name, value in given.items() if value not in (None, ())}
    values.setdefault(_FOLDER_OPTION, Path(DEFAULT_DATA))
    try:
        return parse_settings(ServerOptions, values, where="serve")
    except InvalidArgumentError as error:
        lines = []
        for path, problem in error.fields:
            name = path.removeprefix("serve").removeprefix(".").partition(".")[0]
            lines.append(f"{_flag(name)}: {problem}" if name else problem)
        raise click.UsageError("\n".join(lines)) from error


async def _run_server(options: ServerOptions, *, as_json: bool) -> None:
    with server_installed():
        from crucible_kitchen.server import KitchenServer  # the options' help must not wait for the database's imports

    server = KitchenServer(options)
    # Before anybody learns the address: from then on a SIGTERM must find somebody who drains.
    with Interrupts() as interrupts:
        await server.start()
        try:
            if as_json:
                click.echo(json.dumps({"address": server.address, "data": str(options.data)}))
            else:
                note(f"listening on {server.address}, data in {options.data}")
            await interrupts.next()
            note("stopping; interrupt again to stop at once")
            stopping = asyncio.create_task(server.stop())
            again = asyncio.create_task(interrupts.next())
            await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
            for task in (stopping, again):
                task.cancel()
            await asyncio.gather(stopping, again, return_exceptions=True)
        finally:
            await server.stop()


serve = click.Command(
    "serve",
    callback=_serve,
    help="Start a server and serve until SIGTERM or Ctrl-C; runs then save a checkpoint and go on at the next start.",
    params=[_option(name, field) for name, field in ServerOptions.model_fields.items()],
)
json_option(serve)
