"""kitchen record: sit between a client and an adapter, and write down what they say."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from crucible_kit.cassettes.methods import service_name
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.redaction import Redactor
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kitchen.cli.connection import execute
from crucible_kitchen.cli.output import note
from crucible_kitchen.cli.stubs import (
    announce,
    environment_values,
    listen_address,
    pairs,
    target_credentials,
    target_options,
    until_stopped,
)


@click.command()
@click.option("--target", required=True, metavar="ADDR", help="The adapter: host:port or unix:PATH.")
@click.option("--listen", metavar="ADDR", help="Where clients connect.  [default: 127.0.0.1, any port]")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The new cassette, a .jsonl file."
)
@click.option(
    "--service", "services", multiple=True, metavar="NAME", help="Record only this port or service; repeatable."
)
@click.option(
    "--requires", multiple=True, metavar="CAPABILITY", help="What an adapter must have to answer like this; repeatable."
)
@click.option(
    "--set",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Write ${set:NAME} in the place of VALUE: whoever plays the recording chooses it; repeatable.",
)
@click.option(
    "--secret-env",
    "secrets",
    multiple=True,
    metavar="VARIABLE",
    help="Keep the value of this environment variable out of the file, wherever it appears; repeatable.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine, in the clear.")
@target_options
def record(
    *,
    target: str,
    listen: str | None,
    output: Path,
    services: tuple[str, ...],
    requires: tuple[str, ...],
    parameters: tuple[str, ...],
    secrets: tuple[str, ...],
    insecure: bool,
    tls: bool,
    ca_cert: Path | None,
) -> None:
    """Forward every call to an adapter and write the calls of ports and of AdapterService into a cassette.

    Ctrl-C or SIGTERM completes the file; a crash leaves the calls that had ended by then. Fields that their proto marks
    as secret and bearer tokens are never written. The address is printed as one JSON line.

    Example: kitchen record --target unix:/run/engine.sock --output session.jsonl
    """
    address = listen_address(listen, insecure=insecure)
    recorded = [service_name(name) for name in services] or None
    redactor = Redactor(environment_values(secrets, "--secret-env").values())
    values = pairs(parameters, "--set")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    writer = CassetteWriter(
        output,
        requires=requires,
        parameters={name: (value, f"what takes the place of {name}") for name, value in values.items()},
        redactor=redactor,
    )
    proxy = RecordingProxy(writer, target, services=recorded, credentials=target_credentials(tls=tls, ca_cert=ca_cert))

    async def work() -> None:
        async with until_stopped() as stopped:
            try:
                announce(proxy.start(address))
                await stopped()
            finally:
                await asyncio.to_thread(proxy.stop)

    execute(work())
    note(f"{writer.calls} calls in {output}")
