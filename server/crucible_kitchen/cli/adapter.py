"""kitchen adapter: what an author of an adapter needs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from crucible_kitchen.cli.output import note
from crucible_kitchen.cli.starters import COMPLETE, starter, write_starter

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@click.group()
def adapter() -> None:
    """Write an adapter of your own. Which adapters serve a kitchen's ports: kitchen adapters."""


@adapter.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--port", required=True, type=click.Choice(sorted(PORTS)), metavar="PORT", help="Port, such as reward.")
@click.option("--language", required=True, type=click.Choice(sorted(COMPLETE)), help="Language to write it in.")
@click.option("--name", default="", metavar="NAME", help="Name of the adapter.  [default: that of DIR]")
def new(folder: Path, port: str, language: str, name: str) -> None:
    """Write a starter into DIR, a new or empty folder: an adapter of PORT that serves, its test and a README.

    In Python blob, embedding, llm and reward pass the conformance suite as they are, in TypeScript blob and reward; the
    others are skeletons that serve and answer the handshake.

    Example: kitchen adapter new --port reward --language python my-rewards
    """
    folder = folder.absolute()
    if name and not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} must be letters in lower case, digits, '-', '_' and '.', such as my-{port}", param_hint="--name"
        )
    files = starter(port, language, name or _named(folder, port), folder)
    try:
        write_starter(files, folder)
    except KitchenError as error:
        raise click.UsageError(error.message) from error
    for path in files:
        if not path.startswith("crucible/"):
            click.echo(folder / path)
    done = port in COMPLETE[language]
    note(f"{'complete' if done else 'a skeleton'}: {folder / 'README.md'} says how to install, test and run it")


def _named(folder: Path, port: str) -> str:
    """A name made of the folder's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._")[:63]
    return name if _NAME.fullmatch(name) else f"my-{port}"
