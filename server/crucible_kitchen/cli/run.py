"""kitchen run: create a run and follow it."""

from __future__ import annotations

import click

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient
from crucible_kitchen.cli.connection import connected, execute
from crucible_kitchen.cli.display import new_display
from crucible_kitchen.cli.follow import Interrupts, exit_code, follow_to_stop, resume_command
from crucible_kitchen.cli.options import Target, json_option, target_options
from crucible_kitchen.cli.output import note, print_json
from crucible_kitchen.cli.summary import print_summary
from crucible_kitchen.cli.values import parse_settings


@click.command()
@click.argument("recipe")
@click.option("--preset", default="", help="One of the recipe's presets, such as tiny.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of every random choice.  [default: 0]")
@click.option("--run-id", default="", help="Identifier of the run; otherwise the server gives one.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label the run; repeatable.")
@click.option("--detach", is_flag=True, help="With --server: leave when the run is queued.")
@target_options
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    *,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seed: int | None,
    run_id: str,
    labels: tuple[str, ...],
    detach: bool,
    target: Target,
    as_json: bool,
) -> None:
    """Run RECIPE and follow it to its end.

    Without --server a server starts in this process, on the folder --data, and ends with the run. Ctrl-C pauses the run
    at a checkpoint and prints the command that goes on with it. With --json stdout has each event and then the run.

    Example: kitchen run sl_basic --preset tiny --set learning_rate=1e-3
    """
    if detach and not target.server:
        raise click.UsageError("--detach needs --server: without one the run would end with this command")
    config, tags = parse_settings(settings), _labels(labels)

    async def work() -> int:
        async with connected(target) as client:
            created = await client.create_run(
                recipe,
                preset=preset,
                config=config,
                seed=seed,
                run_id=run_id,
                labels=tags,
            )
            if detach:
                _print_detached(created, as_json=as_json)
                return 0
            note(f"run {created.run_id}")
            return await follow(client, created, target, as_json=as_json)

    ctx.exit(execute(work()))


async def follow(client: KitchenClient, run: run_pb2.Run, target: Target, *, show_after: int = 0, as_json: bool) -> int:
    """Shows a run's events after a sequence number until it stops, and what it came to; returns the exit code."""
    with Interrupts() as interrupts:
        with new_display() as display:

            def on_event(event: event_pb2.RunEvent) -> None:
                if event.sequence <= show_after:
                    return
                display.apply(event)
                if as_json:
                    print_json(event)

            view = await follow_to_stop(client, run, on_event, interrupts)
        if as_json:
            print_json(await client.get_run(run.run_id))
        else:
            print_summary(view, resume_command(target, run.run_id))
    return exit_code(view.state)


def _print_detached(run: run_pb2.Run, *, as_json: bool) -> None:
    if as_json:
        print_json(run)
    else:
        click.echo(run.run_id)


def _labels(words: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{word!r} must be key=value", param_hint="--label")
        labels[key] = value
    return labels
