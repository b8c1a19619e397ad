"""kitchen adapters: which adapter serves each port, and mapping ports to others while a server runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kitchen.cli.connection import connected, connected_to_catalog, execute
from crucible_kitchen.cli.options import Target, json_option, server_options, target_options
from crucible_kitchen.cli.output import note, print_messages, print_table
from crucible_kitchen.cli.values import parse_value

_port = click.argument("port")


@click.group(invoke_without_command=True)
@target_options
@json_option
@click.pass_context
def adapters(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Show which adapter serves each port, and map ports to others on a server that runs.

    Without a command: list. To write an adapter: kitchen adapter new.
    """
    if ctx.invoked_subcommand is None:
        _list(target, as_json=as_json)
        return
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if given:
        words = ", ".join(f"--{'json' if name == 'as_json' else name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"give {words} behind the command: kitchen adapters {ctx.invoked_subcommand} ...")


@adapters.command("list")
@target_options
@json_option
def list_adapters(target: Target, as_json: bool) -> None:
    """Show the ports and the adapters that serve them; starts none."""
    _list(target, as_json=as_json)


def _list(target: Target, *, as_json: bool) -> None:
    async def work() -> list[adapter_admin_pb2.Adapter]:
        async with connected_to_catalog(target) as client:
            return await client.list_adapters()

    _print(execute(work()), as_json=as_json)


@adapters.command()
@_port
@target_options
@json_option
def probe(port: str, target: Target, as_json: bool) -> None:
    """Start a port's adapter if it does not run, and ask whether it can serve."""

    async def work() -> list[adapter_admin_pb2.Adapter]:
        async with connected_to_catalog(target) as client:
            return [await client.probe_adapter(port)]

    _print(execute(work()), as_json=as_json)


@adapters.command()
@_port
@click.argument("adapter", metavar="TARGET")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A setting of the adapter. Repeatable.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=VARIABLE",
    help="A secret of the adapter and the environment variable of the server that holds it. Repeatable.",
)
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Encrypt, checking the adapter with these authorities.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="The server's own certificate, with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The private key of --tls-cert.")
@click.option("--tls-server-name", default="", help="The name that the adapter's certificate has.")
@click.option("--tls-system", is_flag=True, help="Encrypt, checking the adapter with the system's authorities.")
@click.option(
    "--token-env", default="", metavar="VARIABLE", help="Environment variable of the server that holds a bearer token."
)
@click.option("--wait-seconds", type=float, help="How long a call waits for an adapter that is away.  [default: 30]")
@click.option("--insecure", is_flag=True, help="Allow plain text to an adapter on another machine.")
@click.option("--validate-only", is_flag=True, help="Only check whether it could be done.")
@click.option("--force", is_flag=True, help="Also when the port is in use: open sessions are lost.")
@server_options
@json_option
def add(
    port: str,
    adapter: str,
    options: tuple[str, ...],
    secrets: tuple[str, ...],
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str,
    tls_system: bool,
    token_env: str,
    wait_seconds: float | None,
    insecure: bool,
    validate_only: bool,
    force: bool,
    target: Target,
    as_json: bool,
) -> None:
    """Map PORT to TARGET on a running server: builtin:NAME, python:package.module:Class, "exec:COMMAND LINE",
    grpc:ADDRESS or attach:NAME. It counts at once and after a restart.

    Files are those of the server's machine; relative ones count from this folder.
    """
    _need_server(target, "add", "write the mapping into a manifest")
    mapping: dict[str, Any] = {
        "adapter": adapter,
        "options": {key: parse_value(value) for key, value in _pairs("--option", options).items()},
        "secrets": _pairs("--secret", secrets),
        "token_env": token_env,
        "wait_seconds": wait_seconds,
        "insecure": insecure,
    }
    files = {"ca": tls_ca, "cert": tls_cert, "key": tls_key}
    tls = {name: str(path.expanduser().absolute()) for name, path in files.items() if path is not None}
    tls |= {"server_name": tls_server_name} if tls_server_name else {}
    if tls or tls_system:
        mapping["tls"] = tls

    async def work() -> adapter_admin_pb2.Adapter | None:
        async with connected(target) as client:
            return await client.add_adapter(port, **mapping, validate_only=validate_only, force=force)

    found = execute(work())
    if validate_only:
        note(f"{port} could be mapped to {adapter}; nothing was changed")
    _print([] if found is None else [found], as_json=as_json)


@adapters.command()
@_port
@click.option("--force", is_flag=True, help="Also when the port is in use: open sessions are lost.")
@server_options
@json_option
def remove(port: str, force: bool, target: Target, as_json: bool) -> None:
    """Take back what `add` did: the manifest's mapping or the default counts again."""
    _need_server(target, "remove", "change the manifest")

    async def work() -> adapter_admin_pb2.Adapter | None:
        async with connected(target) as client:
            return await client.remove_adapter(port, force=force)

    found = execute(work())
    if found is None:
        note(f"no adapter serves the port {port} any more")
    _print([] if found is None else [found], as_json=as_json)


def _need_server(target: Target, command: str, instead: str) -> None:
    if not target.server:
        raise click.UsageError(f"adapters {command} needs --server: without a running server, {instead}")


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key.strip():
            # The word itself is not shown: it may be a secret that was given in place of its variable.
            raise click.BadParameter("must be two words with '=' between them", param_hint=option)
        found[key.strip()] = value.strip()
    return found


def _print(found: Sequence[adapter_admin_pb2.Adapter], *, as_json: bool) -> None:
    if as_json:
        print_messages(found)
        return
    if not found:
        return
    rows = [
        (
            each.port,
            each.target,
            adapter_admin_pb2.AdapterSource.Name(each.source).removeprefix("ADAPTER_SOURCE_").lower(),
            adapter_admin_pb2.AdapterState.Name(each.state).removeprefix("ADAPTER_STATE_"),
            f"{each.name} {each.version}".strip() or "-",
            each.detail or " ".join(each.capabilities),
        )
        for each in found
    ]
    print_table(("PORT", "ADAPTER", "FROM", "STATE", "NAME", "DETAIL"), rows)
