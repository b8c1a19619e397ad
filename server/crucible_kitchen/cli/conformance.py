"""kitchen conformance: does an adapter do what the contract of its port says?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crucible_client.tls import credentials
from crucible_kit.conformance import (
    REPORTS,
    SUITES,
    Opened,
    Report,
    Result,
    Verdict,
    all_requirements,
    open_command,
    open_target,
    parse_known_failing,
    requirements_of,
    run_suite,
    settings_of,
)
from crucible_kit.errors import InvalidArgumentError
from crucible_kitchen.cli.options import Target, adapter_options
from crucible_kitchen.cli.output import one_line
from crucible_kitchen.cli.values import parse_settings

_STYLES = {
    Verdict.PASSED: "green",
    Verdict.FAILED: "bold red",
    Verdict.SKIPPED: "dim",
    Verdict.ADVICE: "yellow",
}


@click.command()
@click.option("--port", type=click.Choice(sorted(SUITES)), metavar="PORT", help="Port to test, such as training.")
@click.option(
    "--target",
    "address",
    metavar="ADDR",
    help="The adapter: host:port, unix:PATH, builtin:NAME, or python:package.module:Class.",
)
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    help="Start the adapter here with this command, as a manifest's exec: does, and kill it in between.",
)
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="A builtin: or python: adapter's setting."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What the suite has to know, such as a model."
)
@click.option("--only", multiple=True, metavar="ID", help="Only this requirement, or those whose ids begin so.")
@click.option(
    "--list", "listing", is_flag=True, help="List the requirements, and with a port its settings; test nothing."
)
@click.option(
    "--report",
    "form",
    type=click.Choice(["table", *REPORTS]),
    default="table",
    show_default=True,
    help="Form of the report.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report there, and the table to stdout.",
)
@click.option(
    "--known-failing",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the ids of requirements that are known to fail, one a line. One that passes is an error.",
)
@adapter_options
@click.pass_context
def conformance(
    context: click.Context,
    *,
    port: str | None,
    address: str | None,
    command: str | None,
    options: tuple[str, ...],
    settings: tuple[str, ...],
    only: tuple[str, ...],
    listing: bool,
    form: str,
    output: Path | None,
    known_failing: Path | None,
    target: Target,
) -> None:
    """Test an adapter against the contract of its port. Exit code 1: something failed that was not known to fail.

    The adapter runs already (--target ADDR), is part of this installation (--target builtin:NAME), or is started here
    (--exec COMMAND), which alone shows what it keeps when it is killed. What the suite writes has names of its own and
    is deleted afterwards where the contract has a way.

    Example: kitchen conformance --port blob --target unix:/run/my-blobs.sock --report junit --output blobs.xml
    """
    if listing:
        _list(port, only)
        return
    if port is None:
        raise click.UsageError("give --port PORT")
    if (address is None) == (command is None):
        raise click.UsageError("give either --target ADDR or --exec COMMAND")
    try:
        suite_settings = settings_of(port, parse_settings(settings))
        listed = "" if known_failing is None else known_failing.read_text("utf-8")
        known = parse_known_failing(listed, requirements_of(port))
        report = asyncio.run(_run(port, address, command, parse_settings(options), suite_settings, only, target))
        report = report.with_known_failing(known)
    except InvalidArgumentError as error:
        raise click.UsageError(one_line(error.message)) from error
    if form == "table" or output is not None:
        _print(report)
    if form != "table" or output is not None:
        _write(REPORTS["md" if form == "table" else form](report), output)
    context.exit(0 if report.ok else 1)


async def _run(
    port: str,
    address: str | None,
    command: str | None,
    options: dict[str, Any],
    settings: Any,
    only: Collection[str],
    target: Target,
) -> Report:
    async with _opened(port, address, command, options, target) as opened:
        return await run_suite(
            opened.channel,
            port,
            settings,
            target=address or f"exec:{command}",
            only=only,
            restart=opened.restart,
        )


@asynccontextmanager
async def _opened(
    port: str, address: str | None, command: str | None, options: dict[str, Any], target: Target
) -> AsyncIterator[Opened]:
    opening = (
        open_command(command or "")
        if address is None
        else open_target(address, port, options=options, credentials=_credentials(target), token=target.token)
    )
    async with opening as opened:
        yield opened


def _credentials(target: Target) -> grpc.ChannelCredentials | None:
    if not (target.tls or target.ca_cert or target.cert or target.key):
        return None
    return credentials(ca_cert=target.ca_cert, client_cert=target.cert, client_key=target.key)


def _list(port: str | None, only: Collection[str]) -> None:
    requirements = all_requirements() if port is None else requirements_of(port)
    for each in requirements:
        if not only or each.id.startswith(tuple(only)):
            needs = f" [{each.capability}]" if each.capability else f" [not {each.without}]" if each.without else ""
            click.echo(f"{each.id}{needs}: {each.text}")
    if port is None:
        return
    click.echo("\nSettings (--set KEY=VALUE):")
    for name, field in SUITES[port].settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        click.echo(f"{name}: {field.description} [default: {default!r}]")


def _print(report: Report) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in report.results:
        table.add_row(result.requirement.id, _verdict(result), Text(one_line(result.problem)))
    console.print(table)
    for result in report.results:
        if result.bad or (result.verdict is Verdict.ADVICE):
            console.print()
            console.print(Text(result.requirement.id, style="bold"), Text(result.requirement.text))
            if result.requirement.quote:
                console.print(Text(f"  the contract: {result.requirement.quote}", style="dim"))
    console.print()
    for remark in report.advice:
        console.print(Text(one_line(remark), style="dim"))
    summary = f"{report.adapter}, port {report.port}: {report.summary}"
    console.print(Text(one_line(summary), style="green" if report.ok else "bold red"))


def _verdict(result: Result) -> Text:
    text = f"{result.verdict.value} (known)" if result.known else result.verdict.value
    style = "bold red" if result.bad else "dim" if result.known else _STYLES[result.verdict]
    return Text(text, style=style)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise click.BadParameter(f"cannot write {output}: {error.strerror}", param_hint="--output") from error
