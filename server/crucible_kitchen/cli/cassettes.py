"""kitchen cassettes: look after recordings."""

from __future__ import annotations

import json
from pathlib import Path

import click

from crucible_kit.cassettes.verify import Verdict, verify_cassette
from crucible_kitchen.cli.options import json_option
from crucible_kitchen.cli.output import one_line
from crucible_kitchen.cli.stubs import cassette_files


@click.group()
def cassettes() -> None:
    """Look after recordings of adapters."""


@cassettes.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE...")
@json_option
@click.pass_context
def verify(ctx: click.Context, *, files: tuple[Path, ...], as_json: bool) -> None:
    """Read FILE... (or folders), encode every message to its bytes and back, and compare.

    A recording is stale when a proto has changed since; it still holds as long as there is no problem. The exit code is
    1 when there is one.
    """
    verdicts = [verify_cassette(path) for path in cassette_files(files)]
    for verdict in verdicts:
        click.echo(_as_json(verdict) if as_json else _as_text(verdict))
    ctx.exit(0 if all(verdict.ok for verdict in verdicts) else 1)


def _as_json(verdict: Verdict) -> str:
    facts = {
        "file": str(verdict.path),
        "calls": verdict.calls,
        "messages": verdict.messages,
        "problems": verdict.problems,
        "stale": verdict.stale,
    }
    return json.dumps(facts, ensure_ascii=False)


def _as_text(verdict: Verdict) -> str:
    word = "ok" if verdict.ok else f"{len(verdict.problems)} problems"
    lines = [f"{verdict.path}: {verdict.calls} calls, {verdict.messages} messages, {word}"]
    lines += [f"  {one_line(problem)}" for problem in verdict.problems]
    hint = "record it again" if verdict.problems else "it still reads the same"
    lines += [f"  stale: the proto of {service} has changed since; {hint}" for service in verdict.stale]
    return "\n".join(lines)
