"""A run's log as its stages write to it."""

from __future__ import annotations

from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible_kitchen.store.records import CheckpointRecord, RunRecord
from crucible_kitchen.store.store import Store


class RunJournal:
    """Appends events of one run. The store fills in sequence, time and what all events of the run share."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id

    async def emit(
        self,
        *,
        stage_path: str = "",
        step: int = 0,
        changes: dict[str, Any] | None = None,
        checkpoint: CheckpointRecord | None = None,
        **payload: Any,
    ) -> RunRecord:
        """Appends one event, with changes of the run's row and a checkpoint in the same transaction. Durable when it
        returns.
        """
        event = event_pb2.RunEvent(stage_path=stage_path, step=step, **payload)
        return await self._store.append(self._run_id, [event], changes=changes or {}, checkpoint=checkpoint)
