"""A run's log as its execution writes to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import UnavailableError
from crucible_kitchen.runs.control import RunControl
from crucible_kitchen.store.records import CheckpointRecord, RunRecord, checkpoint_message
from crucible_kitchen.store.store import Store

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0


class RunJournal:
    """Appends events of one run. The store fills in sequence, time and what all events of the run share.

    A store that takes no writes, because its disk is full or has failed, is waited for: the run stands still where it
    is and loses nothing. Only a server that shuts down ends the waiting.
    """

    def __init__(self, store: Store, run_id: str, control: RunControl) -> None:
        self._store = store
        self._run_id = run_id
        self._control = control
        self._behind: asyncio.Task[RunRecord] | None = None

    async def append(self, events: Sequence[event_pb2.RunEvent], **parts: Any) -> RunRecord:
        """Appends events in one transaction; `parts` are those of Store.append. Durable when it returns.

        Raises:
            UnavailableError: STORE_WRITE_FAILED when the server shuts down meanwhile.
        """
        await self.settle()
        return await self._append(events, **parts)

    async def settle(self) -> None:
        """Waits for the event that nobody has waited for yet. Raises what `append` raises."""
        behind, self._behind = self._behind, None
        if behind is not None:
            await behind

    async def _append(self, events: Sequence[event_pb2.RunEvent], **parts: Any) -> RunRecord:
        wait = 0.0
        while True:
            try:
                record = await self._store.append(self._run_id, events, **parts)
            except UnavailableError as error:
                if error.reason != "STORE_WRITE_FAILED" or self._control.drain:
                    raise
                if not wait:
                    logger.warning("run %s waits: %s", self._run_id, error)
                wait = min(wait * 2 or _FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
            else:
                if wait:
                    logger.warning("run %s goes on: the run store takes writes again", self._run_id)
                return record
            await asyncio.sleep(wait)

    async def emit(
        self,
        *,
        stage_path: str = "",
        step: int = 0,
        changes: dict[str, Any] | None = None,
        checkpoint: CheckpointRecord | None = None,
        wait: bool = True,
        **payload: Any,
    ) -> None:
        """Appends one event, with changes of the run's row and a checkpoint in the same transaction.

        Args:
            wait: it is durable on return. Otherwise it will be before the next event of the run is, and `settle` waits
                for it: an event that nothing else stands on need not hold the run up while the disk takes it.
        """
        event = event_pb2.RunEvent(stage_path=stage_path, step=step, **payload)
        await self.settle()
        appending = self._append([event], changes=changes or {}, checkpoint=checkpoint)
        if wait:
            await appending
        else:
            self._behind = asyncio.create_task(appending)

    async def checkpoints(self) -> list[CheckpointRecord]:
        """The run's checkpoints that are there, oldest first."""
        return await self._store.checkpoints(self._run_id)

    async def delete_checkpoint(self, record: CheckpointRecord, *, stage_path: str, step: int) -> None:
        """Makes a checkpoint count as deleted, and says so. Its files are the caller's to delete."""
        deleted = event_pb2.CheckpointDeleted(checkpoint=checkpoint_message(record))
        event = event_pb2.RunEvent(stage_path=stage_path, step=step, checkpoint_deleted=deleted)
        await self.append([event], deleted=[record.sequence])
