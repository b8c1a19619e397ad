"""Following a run until it stops, with Ctrl-C as a request to pause it."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_client import KitchenClient, RunView
from crucible_client.fold import ENDED_STATES
from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.cli.options import Target
from crucible_kitchen.cli.output import note, one_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
OnEvent = Callable[[event_pb2.RunEvent], None]


class Interrupts:
    """Counts Ctrl-C and SIGTERM while the block runs, in place of what they do otherwise."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[None] = asyncio.Queue()
        self._before: list[object] = []

    async def next(self) -> None:
        """Returns at the next one."""
        await self._arrived.get()

    def __enter__(self) -> Interrupts:
        loop = asyncio.get_running_loop()
        self._before = [signal.getsignal(each) for each in _SIGNALS]
        for each in _SIGNALS:
            loop.add_signal_handler(each, self._arrived.put_nowait, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for each, handler in zip(_SIGNALS, self._before, strict=True):
            loop.remove_signal_handler(each)
            signal.signal(each, handler)  # type: ignore[arg-type]


async def follow_to_stop(client: KitchenClient, run: run_pb2.Run, on_event: OnEvent, interrupts: Interrupts) -> RunView:
    """Follows a run until it has ended or is paused, and through its waits for adapters. The first interrupt asks for a
    pause, the second leaves.

    Args:
        run: as CreateRun or ResumeRun answered; only what happens after its last event stops the following.

    Returns:
        what the events said; its state is that of a run at work when a second interrupt came.
    """
    view = RunView()
    watching = asyncio.create_task(_watch(client, run, view, on_event))
    try:
        if not await ends_first(watching, interrupts):
            note("pausing at the next checkpoint; interrupt again to leave at once")
            await _ask_to_pause(client, run.run_id)
            if not await ends_first(watching, interrupts):
                return view
        await watching
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return view


async def ends_first(task: asyncio.Task[None], interrupts: Interrupts) -> bool:
    """Waits until the task has ended or an interrupt arrives; whether it was the task. The task goes on otherwise."""
    interrupt = asyncio.create_task(interrupts.next())
    await asyncio.wait({task, interrupt}, return_when=asyncio.FIRST_COMPLETED)
    interrupt.cancel()
    return task.done()


async def _ask_to_pause(client: KitchenClient, run_id: str) -> None:
    try:
        await client.pause_run(run_id)
    except FailedPreconditionError as error:
        # It ended in this moment, or has not begun: the watch tells which.
        note(one_line(error.message))


async def _watch(client: KitchenClient, run: run_pb2.Run, view: RunView, on_event: OnEvent) -> None:
    async with aclosing(client.watch(run.run_id)) as events:
        async for event in events:
            view.apply(event)
            on_event(event)
            # One that waits for an adapter goes on by itself.
            stopped = view.ended or (view.state == event_pb2.RUN_STATE_PAUSED and not view.waiting_for_port)
            if stopped and event.sequence > run.last_sequence:
                return


def resume_command(target: Target, run_id: str) -> str:
    """What to type to go on."""
    where = ["--server", target.server] if target.server else ["--data", str(target.data.absolute())]
    manifest = ["--manifest", str(target.manifest.absolute())] if target.manifest and not target.server else []
    return shlex.join(["kitchen", "runs", "resume", run_id, *where, *manifest])


def exit_code(state: event_pb2.RunState) -> int:
    """0 COMPLETED, 1 FAILED or CANCELLED, 130 paused or left."""
    if state == event_pb2.RUN_STATE_COMPLETED:
        return 0
    return 1 if state in ENDED_STATES else INTERRUPTED
