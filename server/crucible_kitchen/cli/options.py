"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

DEFAULT_DATA = Path("kitchen-data")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The kitchen that a command talks to.

    Attributes:
        server: address of a running one; empty: one in this process, on `data`.
        data: data folder of the one in this process.
        manifest: its manifest; None: the default adapters.
    """

    server: str = ""
    token: str = ""
    tls: bool = False
    ca_cert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    data: Path = DEFAULT_DATA
    manifest: Path | None = None


def _file(*names: str, help: str) -> Any:
    return click.option(*names, type=click.Path(dir_okay=False, path_type=Path), help=help)


def _token(variable: str) -> Any:
    return click.option("--token", default="", envvar=variable, help=f"Bearer token. [{variable}]")


_TLS_OPTIONS = (
    click.option("--tls", is_flag=True, help="Encrypt, checking the server with the system's authorities."),
    _file("--ca-cert", help="Encrypt, checking the server with these authorities (PEM)."),
    _file("--cert", help="The client's own certificate (PEM), with --key."),
    _file("--key", help="The private key of --cert (PEM)."),
)
_SERVER_OPTIONS = (
    click.option(
        "--server", default="", envvar="KITCHEN_SERVER", metavar="ADDR", help="Address of a server. [KITCHEN_SERVER]"
    ),
    _token("KITCHEN_TOKEN"),
    *_TLS_OPTIONS,
)
# A kitchen's token is nobody's but the kitchen's.
_ADAPTER_OPTIONS = (_token("KITCHEN_ADAPTER_TOKEN"), *_TLS_OPTIONS)
_EMBEDDED_OPTIONS = (
    click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_DATA,
        envvar="KITCHEN_DATA",
        show_default=True,
        help="Without --server: data folder. [KITCHEN_DATA]",
    ),
    _file("--manifest", help="Without --server: YAML file that maps ports to adapters."),
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a command that talks to a running server; it gets them as `target`."""
    return _with_target(command, _SERVER_OPTIONS)


def adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Token and TLS of a command that talks to an adapter; it gets them as `target`."""
    return _with_target(command, _ADAPTER_OPTIONS)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a command that talks to a running server or starts one in this process; it gets them as `target`."""
    return _with_target(command, (*_SERVER_OPTIONS, *_EMBEDDED_OPTIONS))


def _with_target(command: Callable[..., Any], options: tuple[Any, ...]) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapped(*args: Any, **given: Any) -> Any:
        chosen = {name: given.pop(name) for name in Target.__dataclass_fields__ if name in given}
        return command(*args, target=Target(**chosen), **given)

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta["kitchen.json"] = value
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember, help="Print protojson lines on stdout, errors as JSON."
)
