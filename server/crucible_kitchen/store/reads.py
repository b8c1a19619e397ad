"""What is read from the database: plain functions over a connection, each inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, exists, func, or_, select

from crucible.kitchen.v1.event_pb2 import RUN_STATE_PAUSED, RunEvent, RunState
from crucible_kit.errors import InvalidArgumentError, NotFoundError
from crucible_kitchen.store.records import TERMINAL_STATES, CheckpointRecord, RequestKey, RunRecord
from crucible_kitchen.store.tables import checkpoints, events, requests, runs

_RUN_COLUMNS = [runs.c[name] for name in RunRecord.__dataclass_fields__ if name in runs.c]
_CHECKPOINT_COLUMNS = [checkpoints.c[name] for name in CheckpointRecord.__dataclass_fields__]
_SELECT_RUN = select(
    *_RUN_COLUMNS, *(column.label(f"checkpoint_{column.name}") for column in _CHECKPOINT_COLUMNS)
).outerjoin(
    checkpoints, and_(checkpoints.c.run_id == runs.c.run_id, checkpoints.c.sequence == runs.c.checkpoint_sequence)
)


class EventPage(NamedTuple):
    """A piece of a run's log, and where the run stood at that moment.

    Attributes:
        events: in order.
        last_sequence: the log's end.
        state: the run's state.
    """

    events: list[RunEvent]
    last_sequence: int
    state: RunState


def run_record(connection: Connection, run_id: str) -> RunRecord:
    """The run. Raises NOT_FOUND RUN_NOT_FOUND."""
    row = connection.execute(_SELECT_RUN.where(runs.c.run_id == run_id)).one_or_none()
    if row is None:
        raise _not_found(run_id)
    return _record(row)


def list_runs(
    connection: Connection,
    states: Collection[RunState],
    recipe: str,
    labels: Mapping[str, str],
    limit: int,
    before: tuple[datetime, str] | None,
) -> list[RunRecord]:
    """Runs, newest first. Empty filters take all; `before` is create time and id of the last run already seen."""
    query: Select[Any] = _SELECT_RUN.order_by(runs.c.create_time.desc(), runs.c.run_id.desc()).limit(limit)
    if states:
        query = query.where(runs.c.state.in_(states))
    if recipe:
        query = query.where(runs.c.recipe == recipe)
    for key, value in labels.items():
        label = func.json_each(runs.c.labels).table_valued("key", "value")
        query = query.where(exists().where(label.c.key == key, label.c.value == value))
    if before is not None:
        time, run_id = before
        query = query.where(or_(runs.c.create_time < time, and_(runs.c.create_time == time, runs.c.run_id < run_id)))
    return [_record(row) for row in connection.execute(query)]


def runs_in_states(connection: Connection, states: Collection[RunState]) -> list[RunRecord]:
    """All runs in these states, in queue order."""
    query = _SELECT_RUN.where(runs.c.state.in_(states)).order_by(runs.c.queue_order, runs.c.create_time, runs.c.run_id)
    return [_record(row) for row in connection.execute(query)]


def runs_to_feed(connection: Connection) -> list[tuple[str, int]]:
    """Id and fed_sequence of the stopped runs whose log is longer than that, oldest first."""
    query = (
        select(runs.c.run_id, runs.c.fed_sequence)
        .where(runs.c.state.in_([*TERMINAL_STATES, RUN_STATE_PAUSED]), runs.c.fed_sequence < runs.c.last_sequence)
        .order_by(runs.c.create_time)
    )
    return [(row.run_id, row.fed_sequence) for row in connection.execute(query)]


def event_page(connection: Connection, run_id: str, after: int, limit: int, max_bytes: int) -> EventPage:
    """Events after a sequence number: at most `limit`, and no more once `max_bytes` are reached. RUN_NOT_FOUND."""
    run = connection.execute(select(runs.c.last_sequence, runs.c.state).where(runs.c.run_id == run_id)).one_or_none()
    if run is None:
        raise _not_found(run_id)
    found: list[RunEvent] = []
    if run.last_sequence > after:
        query = (
            select(events.c.payload)
            .where(events.c.run_id == run_id, events.c.sequence > after)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        size = 0
        with connection.execute(query) as rows:
            for payload in rows.scalars():
                found.append(RunEvent.FromString(payload))
                size += len(payload)
                if size >= max_bytes:
                    break
    return EventPage(found, run.last_sequence, run.state)


def run_checkpoints(connection: Connection, run_id: str) -> list[CheckpointRecord]:
    """The run's checkpoints, oldest first: without those that are deleted, with those that are damaged.

    Raises NOT_FOUND RUN_NOT_FOUND.
    """
    query = (
        select(*_CHECKPOINT_COLUMNS)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.delete_sequence.is_(None))
        .order_by(checkpoints.c.sequence)
    )
    found = [CheckpointRecord(**row) for row in connection.execute(query).mappings()]
    if not found:
        run_record(connection, run_id)
    return found


def earlier_checkpoint(connection: Connection, run_id: str, before: int) -> CheckpointRecord | None:
    """The newest checkpoint saved before an event that is there and not known to be damaged."""
    query = (
        select(*_CHECKPOINT_COLUMNS)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.sequence < before)
        .where(checkpoints.c.delete_sequence.is_(None), checkpoints.c.damage_sequence.is_(None))
        .order_by(checkpoints.c.sequence.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else CheckpointRecord(**row)


def request_run(connection: Connection, request: RequestKey, since: datetime) -> RunRecord | None:
    """The run of an earlier request with this key, as it is now; None when there was none since then.

    Raises:
        InvalidArgumentError: REQUEST_ID_REUSED when that request had another payload.
    """
    row = connection.execute(
        select(requests.c.payload_sha256, requests.c.run_id).where(
            requests.c.method == request.method,
            requests.c.request_id == request.request_id,
            requests.c.create_time > since,
        )
    ).one_or_none()
    if row is None:
        return None
    if row.payload_sha256 != request.payload_sha256:
        raise InvalidArgumentError(
            f"request_id {request.request_id!r} was used for another {request.method} request: use a new UUID",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request.request_id, "method": request.method},
        )
    return run_record(connection, row.run_id)


def _record(row: Row[Any]) -> RunRecord:
    values = row._mapping
    fields = {column.name: values[column] for column in _RUN_COLUMNS}
    checkpoint = None
    if values["checkpoint_sequence"] is not None:
        checkpoint = CheckpointRecord(
            **{name: values[f"checkpoint_{name}"] for name in CheckpointRecord.__dataclass_fields__}
        )
    return RunRecord(**fields, latest_checkpoint=checkpoint)


def _not_found(run_id: str) -> NotFoundError:
    return NotFoundError(
        f"run {run_id!r} does not exist: ListRuns shows those that do",
        reason="RUN_NOT_FOUND",
        metadata={"run_id": run_id},
    )
