"""What the commands around recorded stubs share: addresses, targets, files, and serving until told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import grpc

from crucible_client.tls import credentials
from crucible_kit.channel import MAX_MESSAGE_BYTES
from crucible_kitchen.cli.follow import Interrupts

LISTEN_VARIABLE = "CRUCIBLE_ADAPTER_LISTEN"
_LOOPBACK = "127.0.0.1:0"


def cassette_files(paths: Iterable[Path]) -> list[Path]:
    """The cassettes that the paths name; a folder stands for all in it."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise click.UsageError(f"{path} has no .jsonl file")
        found += inside
    return found


def listen_address(given: str | None, *, insecure: bool) -> str:
    """Where to listen: as given, else where the host that started this process wants it, else any port of loopback.

    Raises:
        click.UsageError: for an address that other machines reach, unless `insecure`.
    """
    address = given or os.environ.get(LISTEN_VARIABLE) or _LOOPBACK
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or insecure or host == "localhost":
        return address
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may lead anywhere
        local = False
    if not local:
        raise click.UsageError(
            f"--listen {address} is no host:port of this machine alone and no unix:PATH: what is recorded is told to "
            "whoever connects; use 127.0.0.1, or --insecure"
        )
    return address


def pairs(values: Iterable[str], option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping."""
    found = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{value!r} must be NAME=VALUE", param_hint=option)
        found[name] = text
    return found


def environment_values(names: Iterable[str], option: str) -> dict[str, str]:
    """Values of environment variables, by the variables' names."""
    found = {}
    for name in names:
        if not os.environ.get(name):
            raise click.BadParameter(f"the environment variable {name} is not set", param_hint=option)
        found[name] = os.environ[name]
    return found


def target_credentials(*, tls: bool, ca_cert: Path | None) -> grpc.ChannelCredentials | None:
    """TLS to the target; None: plain text."""
    return credentials(ca_cert=ca_cert) if tls or ca_cert else None


def target_channel(address: str, tls: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel of gRPC's threads to a target."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    return grpc.insecure_channel(address, options) if tls is None else grpc.secure_channel(address, tls, options)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of how to reach a target."""
    for option in (
        click.option(
            "--ca-cert",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Encrypt the way to the target, checking it with these authorities (PEM).",
        ),
        click.option("--tls", is_flag=True, help="Encrypt the way to the target."),
    ):
        command = option(command)
    return command


def announce(address: str) -> None:
    """Tells where it listens: one JSON line on stdout, as hosts that start adapters read it."""
    click.echo(json.dumps({"crucible": 1, "address": address}))


@asynccontextmanager
async def until_stopped() -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Within the block signals are noted; what it yields waits for SIGINT, SIGTERM or, for a host that started this
    process, the end of stdin.
    """
    with Interrupts() as interrupts:
        ended = asyncio.Event()
        if LISTEN_VARIABLE in os.environ:
            loop = asyncio.get_running_loop()
            threading.Thread(target=_watch_stdin, args=(loop, ended), name="stdin", daemon=True).start()

        async def wait() -> None:
            waiting = {asyncio.ensure_future(interrupts.next()), asyncio.ensure_future(ended.wait())}
            _, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        yield wait


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(ended.set)
