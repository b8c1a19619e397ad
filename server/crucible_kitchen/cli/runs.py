"""kitchen runs: list, read, watch and steer runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import click

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient
from crucible_kitchen.cli.connection import connected, execute
from crucible_kitchen.cli.event_text import event_text, state_name, state_text
from crucible_kitchen.cli.follow import INTERRUPTED, Interrupts, ends_first, exit_code
from crucible_kitchen.cli.options import Target, json_option, target_options
from crucible_kitchen.cli.output import print_json, print_messages, print_table
from crucible_kitchen.cli.run import follow
from crucible_kitchen.cli.summary import Rows, local_path, print_rows, sample_rows, summary_rows

_STATES = [state_name(value) for value in event_pb2.RunState.values() if value]
_PAGE = 500
_run_id = click.argument("run_id")


@click.group()
def runs() -> None:
    """List, watch and steer runs, on a server or in a data folder."""


@runs.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES, case_sensitive=False), help="Repeatable.")
@click.option("--recipe", default="", help="Only runs of this recipe.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@target_options
@json_option
def list_runs(states: tuple[str, ...], recipe: str, limit: int, target: Target, as_json: bool) -> None:
    """List runs, newest first."""
    wanted = [getattr(event_pb2, f"RUN_STATE_{name.upper()}") for name in states]

    async def work() -> list[run_pb2.Run]:
        found: list[run_pb2.Run] = []
        async with connected(target, existing=True) as client:
            token = ""
            while True:
                size = min(_PAGE, limit - len(found))
                page = await client.list_runs(page_size=size, page_token=token, states=wanted, recipe=recipe)
                found.extend(page.runs)
                token = page.next_page_token
                if not token or len(found) >= limit:
                    return found

    found = execute(work())
    if as_json:
        print_messages(found)
        return
    rows = [
        (
            each.run_id,
            state_text(each.state, each.waiting_for_port),
            f"{each.step}/{each.total_steps or '?'}",
            each.recipe,
            each.preset or "-",
            each.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S"),
        )
        for each in found
    ]
    print_table(("RUN", "STATE", "STEP", "RECIPE", "PRESET", "CREATED (UTC)"), rows)


@runs.command()
@_run_id
@target_options
@json_option
def get(run_id: str, target: Target, as_json: bool) -> None:
    """Show one run, and what it came to when it last stopped."""
    _print_run(_ask(target, lambda client: client.get_run(run_id)), as_json=as_json)


@runs.command()
@_run_id
@target_options
@json_option
def pause(run_id: str, target: Target, as_json: bool) -> None:
    """Ask a run to stop at its next checkpoint."""
    _print_run(_ask(target, lambda client: client.pause_run(run_id)), as_json=as_json)


@runs.command()
@_run_id
@click.option("--reason", default="", help="Stands in the run's log.")
@target_options
@json_option
def cancel(run_id: str, reason: str, target: Target, as_json: bool) -> None:
    """Ask a run to stop for good; its checkpoints stay."""
    _print_run(_ask(target, lambda client: client.cancel_run(run_id, reason=reason)), as_json=as_json)


@runs.command()
@_run_id
@click.option("--detach", is_flag=True, help="With --server: leave when the run is queued.")
@target_options
@json_option
@click.pass_context
def resume(ctx: click.Context, run_id: str, detach: bool, target: Target, as_json: bool) -> None:
    """Go on with a run that is paused, failed or cancelled, from its last checkpoint, and follow it."""
    if detach and not target.server:
        raise click.UsageError("--detach needs --server: without one the run would end with this command")

    async def work() -> int:
        async with connected(target, existing=True) as client:
            run = await client.resume_run(run_id)
            if not detach:
                return await follow(client, run, target, show_after=run.last_sequence, as_json=as_json)
            _print_run(run, as_json=as_json)
            return 0

    ctx.exit(execute(work()))


@runs.command()
@_run_id
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this sequence number.")
@target_options
@json_option
@click.pass_context
def watch(ctx: click.Context, run_id: str, after: int, target: Target, as_json: bool) -> None:
    """Print a run's events, those in its log and then each new one, until it ends.

    The exit code is 0 when it is COMPLETED, 1 when it is FAILED or CANCELLED, 130 after Ctrl-C. Without --server
    nothing new can happen, and the command ends with the log.
    """

    async def work() -> int:
        async with connected(target, existing=True) as client:
            if not target.server:
                await _print_log(client, run_id, after, None, as_json=as_json)
                return 0
            return await _watch(client, run_id, after, as_json=as_json)

    ctx.exit(execute(work()))


async def _watch(client: KitchenClient, run_id: str, after: int, *, as_json: bool) -> int:
    async def print_events() -> None:
        async with aclosing(client.watch(run_id, after)) as events:
            async for event in events:
                _print_event(event, as_json=as_json)

    with Interrupts() as interrupts:
        printing = asyncio.create_task(print_events())
        try:
            if not await ends_first(printing, interrupts):
                return INTERRUPTED
            await printing
        finally:
            printing.cancel()
    return exit_code((await client.get_run(run_id)).state)


@runs.command()
@_run_id
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this sequence number.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.  [default: all]")
@target_options
@json_option
def events(run_id: str, after: int, limit: int | None, target: Target, as_json: bool) -> None:
    """Print the events of a run's log."""

    async def work() -> None:
        async with connected(target, existing=True) as client:
            await _print_log(client, run_id, after, limit, as_json=as_json)

    execute(work())


async def _print_log(client: KitchenClient, run_id: str, after: int, limit: int | None, *, as_json: bool) -> None:
    left = limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await client.list_run_events(run_id, after_sequence=after, page_size=size)
        for event in page:
            _print_event(event, as_json=as_json)
        if len(page) < size:
            return
        after = page[-1].sequence
        left = None if left is None else left - len(page)


def _print_event(event: event_pb2.RunEvent, *, as_json: bool) -> None:
    if as_json:
        print_json(event)
    else:
        click.echo(f"{event.sequence:>6}  {event.time.ToDatetime():%H:%M:%S}  {event_text(event)}")


def _ask(target: Target, question: Callable[[KitchenClient], Awaitable[run_pb2.Run]]) -> run_pb2.Run:
    async def work() -> run_pb2.Run:
        async with connected(target, existing=True) as client:
            return await question(client)

    return execute(work())


def _print_run(run: run_pb2.Run, *, as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    rows: Rows = [
        ("run", run.run_id),
        (
            "state",
            state_text(run.state, run.waiting_for_port) + (" (a pause was asked for)" if run.pause_requested else ""),
        ),
        ("recipe", f"{run.recipe} {run.preset}".rstrip()),
        ("seed", str(run.seed)),
        ("step", f"{run.step} of {run.total_steps or '?'}"),
        ("attempt", str(run.attempt)),
        ("events", str(run.last_sequence)),
    ]
    if run.HasField("failure"):
        rows.append(("failure", f"{run.failure.reason}: {run.failure.status.message}"))
    rows += summary_rows(run.summary)
    if run.HasField("latest_checkpoint"):
        rows.append(("checkpoint", local_path(run.latest_checkpoint.uri)))
    if run.model_version_id:
        rows.append(("model version", run.model_version_id))
    print_rows([*rows, *sample_rows(run.summary)])
