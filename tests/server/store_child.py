"""Writes to a store until it is killed, and prints each sequence that was acknowledged."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from crucible.kitchen.v1.event_pb2 import RUN_STATE_CREATED
from crucible_kitchen.store import Store
from tests.server.fakes import checkpoint, checkpoint_event, log_event, record, state_event


async def main() -> None:
    store = await Store.open(Path(sys.argv[1]))
    if not await store.list_runs():
        await store.create_run(record(), [state_event(RUN_STATE_CREATED)])
    steps = count()

    async def write() -> None:
        for step in steps:
            saved = checkpoint(step)
            events = [log_event("a" * 500), log_event("b"), checkpoint_event(saved)]
            appended = await store.append("run-1", events, changes={"step": step}, checkpoint=saved)
            print(appended.last_sequence, flush=True)

    await asyncio.gather(*(write() for _ in range(8)))


asyncio.run(main())
