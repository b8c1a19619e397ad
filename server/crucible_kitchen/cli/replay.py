"""kitchen replay: serve recordings as an adapter, or hold them against one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from crucible_kit.cassettes.check import Report, check_cassette
from crucible_kit.cassettes.format import Cassette, read_cassette
from crucible_kit.cassettes.matching import Approximate
from crucible_kit.cassettes.playback import Playback
from crucible_kit.cassettes.replayer import Replayer
from crucible_kitchen.cli.connection import execute
from crucible_kitchen.cli.options import json_option
from crucible_kitchen.cli.output import note, one_line
from crucible_kitchen.cli.stubs import (
    announce,
    cassette_files,
    environment_values,
    listen_address,
    pairs,
    target_channel,
    target_credentials,
    target_options,
    until_stopped,
)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE...")
@click.option(
    "--listen", metavar="ADDR", help="Where to serve: host:port or unix:PATH.  [default: 127.0.0.1, any port]"
)
@click.option(
    "--strict/--any-order",
    default=True,
    show_default=True,
    help="Calls of one session come in the recorded order, or each whenever it likes.",
)
@click.option("--repeat", is_flag=True, help="A recording starts over once all its calls have come.")
@click.option("--check", is_flag=True, help="Send the recorded requests to --target and compare its answers.")
@click.option("--target", metavar="ADDR", help="With --check: the adapter, host:port or unix:PATH.")
@click.option("--set", "parameters", multiple=True, metavar="NAME=VALUE", help="With --check: a parameter's value.")
@click.option(
    "--secret-env",
    "secrets",
    multiple=True,
    metavar="NAME=VARIABLE",
    help="With --check: the environment variable with the value of ${secret:NAME}.",
)
@click.option("--token", default="", envvar="KITCHEN_TOKEN", help="With --check: bearer token. [KITCHEN_TOKEN]")
@click.option("--rtol", type=click.FloatRange(0), default=1e-4, show_default=True, help="With --check: of numbers.")
@click.option("--atol", type=click.FloatRange(0), default=1e-6, show_default=True, help="With --check: of numbers.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine, in the clear.")
@target_options
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    *,
    files: tuple[Path, ...],
    listen: str | None,
    strict: bool,
    repeat: bool,
    check: bool,
    target: str | None,
    parameters: tuple[str, ...],
    secrets: tuple[str, ...],
    token: str,
    rtol: float,
    atol: float,
    insecure: bool,
    tls: bool,
    ca_cert: Path | None,
    as_json: bool,
) -> None:
    """Serve the recordings in FILE... (or in folders) as an adapter, or with --check hold them against a real one.

    A call that is not in the recording fails with FAILED_PRECONDITION CASSETTE_MISMATCH, naming the first field that
    differs; then the exit code is 1. The address is printed as one JSON line.

    \b
    Examples:
      kitchen replay tests/stubs/training/full.jsonl --listen 127.0.0.1:50061
      kitchen replay --check tests/stubs/blob/local.jsonl --target unix:/run/my-blobs.sock
    """
    if check != bool(target):
        raise click.UsageError("--check and --target go together")
    cassettes = [read_cassette(path) for path in cassette_files(files)]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    if target:
        values = pairs(parameters, "--set")
        for name, variable in pairs(secrets, "--secret-env").items():
            values[f"secret.{name}"] = environment_values([variable], "--secret-env")[variable]
        metadata = [("authorization", f"Bearer {token}")] if token else []
        tolerance = Approximate(path="response.**", rtol=rtol, atol=atol)
        ok = True
        with target_channel(target, target_credentials(tls=tls, ca_cert=ca_cert)) as channel:
            for cassette in cassettes:
                report = check_cassette(cassette, channel, parameters=values, metadata=metadata, tolerance=tolerance)
                _print_report(cassette, report, as_json=as_json)
                ok = ok and report.ok
        ctx.exit(0 if ok else 1)
    address = listen_address(listen, insecure=insecure)
    ctx.exit(execute(_serve(cassettes, address, strict=strict, repeat=repeat)))


async def _serve(cassettes: list[Cassette], address: str, *, strict: bool, repeat: bool) -> int:
    playback = Playback(cassettes, order="session" if strict else "any", repeat=repeat)
    replayer = Replayer(playback)
    async with until_stopped() as stopped:
        announce(await replayer.start(address))
        try:
            await stopped()
        finally:
            await replayer.stop()
    for track in playback.tracks:
        note(f"{track.cassette.path}: {len(track.taken)} of {len(track.calls)} calls came")
    if playback.mismatches:
        note(f"{len(playback.mismatches)} calls were not as recorded")
    return 1 if playback.mismatches else 0


def _print_report(cassette: Cassette, report: Report, *, as_json: bool) -> None:
    if as_json:
        differences = [
            {"call": call.number, "line": call.line, "method": call.method.full_name, **difference._asdict()}
            for call, difference in report.findings
        ]
        facts = {"file": str(cassette.path), "checked": report.checked, "differences": differences}
        click.echo(json.dumps(facts | ({"skipped": report.skipped} if report.skipped else {}), ensure_ascii=False))
        return
    if report.skipped:
        click.echo(f"{cassette.path}: skipped, {report.skipped}")
        return
    click.echo(f"{cassette.path}: {report.checked} calls, {len(report.findings)} differences")
    for finding in report.findings:
        click.echo(f"  {one_line(str(finding))}")
