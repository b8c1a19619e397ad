"""What is written to the database: plain functions over the writer's connection, each one transaction's work."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from crucible.kitchen.v1.event_pb2 import RUN_STATE_QUEUED, RUN_STATE_UNSPECIFIED, RunEvent, RunState
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError
from crucible_kitchen.store.reads import earlier_checkpoint, request_run, run_record
from crucible_kitchen.store.records import CheckpointRecord, RequestKey, RunRecord
from crucible_kitchen.store.tables import checkpoints, events, requests, runs

REQUESTS_KEPT = timedelta(hours=24)
_TIMES = ("start_time", "end_time")
CHANGEABLE = frozenset(
    {
        "state",
        "attempt",
        "pause_requested",
        "failure",
        "step",
        "total_steps",
        "start_time",
        "end_time",
        "model_version_id",
        "queue_order",
        "summary",
        "fed_sequence",
        "waiting_for_port",
    }
)


def create_run(
    connection: Connection, record: RunRecord, new_events: Sequence[RunEvent], request: RequestKey | None, now: datetime
) -> tuple[RunRecord, bool]:
    """Stores a run with its first events. False: the request came before, and this is its run.

    Raises:
        AlreadyExistsError: RUN_EXISTS.
        InvalidArgumentError: REQUEST_ID_REUSED.
    """
    earlier = _earlier(connection, request, now)
    if earlier is not None:
        return earlier, False
    if connection.execute(select(runs.c.run_id).where(runs.c.run_id == record.run_id)).first() is not None:
        raise AlreadyExistsError(
            f"run_id: run {record.run_id!r} exists: choose another id, or leave it empty to get one",
            reason="RUN_EXISTS",
            metadata={"run_id": record.run_id},
        )
    if record.state == RUN_STATE_QUEUED:
        record = dataclasses.replace(record, queue_order=_next_queue_order(connection))
    values = {name: getattr(record, name) for name in RunRecord.__dataclass_fields__ if name in runs.c}
    values["last_sequence"] = 0
    connection.execute(insert(runs).values(**values, last_event_time=now))
    record = _append(connection, dataclasses.replace(record, last_sequence=0), RUN_STATE_UNSPECIFIED, new_events, now)
    _remember(connection, request, record.run_id, now)
    return record, True


def append(
    connection: Connection,
    run_id: str,
    new_events: Sequence[RunEvent],
    changes: Mapping[str, Any],
    expect: Collection[RunState] | None,
    checkpoint: CheckpointRecord | None,
    deleted: Sequence[int],
    damaged: int | None,
    request: RequestKey | None,
    now: datetime,
) -> RunRecord:
    """Adds events to a run's log and changes its columns; see Store.append."""
    earlier = _earlier(connection, request, now)
    if earlier is not None:
        return earlier
    record = run_record(connection, run_id)
    if expect is not None and record.state not in expect:
        raise _wrong_state(record, expect)
    changed = dict(changes)
    times = {name: changed[name] for name in _TIMES if changed.get(name) is not None}
    changed |= {name: _no_earlier(connection, run_id, time) for name, time in times.items()}
    now = max([now, *times.values()])
    if changed.get("state") == RUN_STATE_QUEUED != record.state and "queue_order" not in changed:
        changed["queue_order"] = _next_queue_order(connection)
    before, record = record.state, dataclasses.replace(record, **changed)
    record = _append(connection, record, before, new_events, now, changed, checkpoint, deleted, damaged)
    _remember(connection, request, run_id, now)
    return record


def _append(
    connection: Connection,
    record: RunRecord,
    state: RunState,
    new_events: Sequence[RunEvent],
    now: datetime,
    changed: Mapping[str, Any] | None = None,
    checkpoint: CheckpointRecord | None = None,
    deleted: Sequence[int] = (),
    damaged: int | None = None,
) -> RunRecord:
    """Writes the events, the checkpoints and the changed columns of a record that has the changes already.

    `state` is the one before them.
    """
    time = _no_earlier(connection, record.run_id, now)
    filled: list[RunEvent] = []
    for sequence, each in enumerate(new_events, record.last_sequence + 1):
        event = _filled(each, record, sequence, time)
        if event.WhichOneof("payload") == "state_changed":
            event.state_changed.from_state = event.state_changed.from_state or state
            state = event.state_changed.to_state
        filled.append(event)
    columns: dict[str, Any] = {**(changed or {}), "last_sequence": record.last_sequence + len(filled)}
    if filled:
        connection.execute(
            insert(events),
            [
                {
                    "run_id": record.run_id,
                    "sequence": each.sequence,
                    "attempt": each.attempt,
                    "step": each.step,
                    "payload": each.SerializeToString(),
                }
                for each in filled
            ],
        )
        columns["last_event_time"] = time
    if checkpoint is not None:
        sequence = next(each.sequence for each in filled if each.WhichOneof("payload") == "checkpoint_saved")
        checkpoint = dataclasses.replace(checkpoint, sequence=sequence)
        connection.execute(
            insert(checkpoints).values(
                run_id=record.run_id,
                **{name: getattr(checkpoint, name) for name in CheckpointRecord.__dataclass_fields__},
            )
        )
        columns["checkpoint_sequence"] = sequence
    told = [each.sequence for each in filled if each.WhichOneof("payload") == "checkpoint_deleted"]
    for saved, sequence in zip(deleted, told, strict=True):
        _delete_checkpoint(connection, record, saved, sequence)
    if damaged is not None:
        sequence = next(each.sequence for each in filled if each.WhichOneof("payload") == "checkpoint_damaged")
        checkpoint = _damage_checkpoint(connection, record, damaged, sequence)
        columns["checkpoint_sequence"] = checkpoint.sequence
    connection.execute(update(runs).where(runs.c.run_id == record.run_id).values(**columns))
    return dataclasses.replace(
        record, last_sequence=columns["last_sequence"], latest_checkpoint=checkpoint or record.latest_checkpoint
    )


def _no_earlier(connection: Connection, run_id: str, now: datetime) -> datetime:
    """The time of what happens next: the clock may go back, a log does not."""
    return max(now, connection.execute(select(runs.c.last_event_time).where(runs.c.run_id == run_id)).scalar_one())


def _delete_checkpoint(connection: Connection, record: RunRecord, saved: int, sequence: int) -> None:
    if record.latest_checkpoint is not None and record.latest_checkpoint.sequence == saved:
        raise ValueError(f"checkpoint {saved} of run {record.run_id} is its newest: the run goes on from it")
    row = (checkpoints.c.run_id == record.run_id) & (checkpoints.c.sequence == saved)
    there = row & checkpoints.c.delete_sequence.is_(None)
    if not connection.execute(update(checkpoints).where(there).values(delete_sequence=sequence)).rowcount:
        raise ValueError(f"run {record.run_id} has no checkpoint {saved} to delete")


def _damage_checkpoint(connection: Connection, record: RunRecord, damaged: int, sequence: int) -> CheckpointRecord:
    """Marks the run's newest checkpoint as damaged; returns the one that takes its place."""
    if record.latest_checkpoint is None or record.latest_checkpoint.sequence != damaged:
        raise ValueError(f"checkpoint {damaged} is not the newest of run {record.run_id}")
    earlier = earlier_checkpoint(connection, record.run_id, damaged)
    if earlier is None:
        raise ValueError(f"run {record.run_id} has no checkpoint before {damaged} to go on from")
    row = (checkpoints.c.run_id == record.run_id) & (checkpoints.c.sequence == damaged)
    connection.execute(update(checkpoints).where(row).values(damage_sequence=sequence))
    return earlier


def _filled(given: RunEvent, record: RunRecord, sequence: int, time: datetime) -> RunEvent:
    # A copy: the caller may send the same event again after a failed write.
    event = RunEvent()
    event.CopyFrom(given)
    event.sequence = sequence
    event.run_id, event.recipe, event.workflow, event.dataset = (
        record.run_id,
        record.recipe,
        record.workflow,
        record.dataset,
    )
    event.attempt = record.attempt
    event.step = given.step or record.step
    event.time.FromDatetime(time)
    return event


def _wrong_state(record: RunRecord, expect: Collection[RunState]) -> FailedPreconditionError:
    state = state_name(record.state)
    allowed = ", ".join(state_name(each) for each in sorted(expect))
    return FailedPreconditionError(
        f"run {record.run_id!r} is {state}; this needs one that is {allowed}",
        reason="RUN_STATE",
        metadata={"run_id": record.run_id, "state": state, "allowed": allowed},
    )


def state_name(state: int) -> str:
    """Such as RUNNING."""
    return RunState.Name(state).removeprefix("RUN_STATE_")


def _next_queue_order(connection: Connection) -> int:
    return (connection.execute(select(func.max(runs.c.queue_order))).scalar() or 0) + 1


def _earlier(connection: Connection, request: RequestKey | None, now: datetime) -> RunRecord | None:
    return None if request is None else request_run(connection, request, now - REQUESTS_KEPT)


def _remember(connection: Connection, request: RequestKey | None, run_id: str, now: datetime) -> None:
    if request is None:
        return
    connection.execute(delete(requests).where(requests.c.create_time <= now - REQUESTS_KEPT))
    connection.execute(insert(requests).values(**dataclasses.asdict(request), run_id=run_id, create_time=now))
