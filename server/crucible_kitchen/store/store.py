"""The store's asynchronous face: writes go through one thread, reads through a few connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from crucible.kitchen.v1.event_pb2 import RunEvent, RunState
from crucible_kit.errors import UnavailableError
from crucible_kit.redaction import redact_message
from crucible_kitchen.store import reads, writes
from crucible_kitchen.store.database import migrate, reader_engine, storage_error, writer_engine
from crucible_kitchen.store.newest import NewestRecords
from crucible_kitchen.store.reads import EventPage
from crucible_kitchen.store.records import CheckpointRecord, RequestKey, RunRecord
from crucible_kitchen.store.signals import Signals
from crucible_kitchen.store.writer import Writer

Result = TypeVar("Result")
_READERS = 4
MAX_READ_BYTES = 256 * 1024


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class Store:
    """Runs, logs and checkpoints. Every method may raise RUN_NOT_FOUND, and UNAVAILABLE when the disk fails.

    What a call has written is on disk when it returns; nobody sees it before.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = _wall_clock) -> None:
        """Use `open`."""
        self._path = path
        self._clock = clock
        self._signals = Signals()
        self._newest = NewestRecords()
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._read_engine = reader_engine(path, _READERS)
        self._writer: Writer

    @classmethod
    async def open(cls, path: Path, *, clock: Callable[[], datetime] = _wall_clock) -> Store:
        """Opens the database file, makes it when it is missing, and brings its schema up to date.

        Args:
            clock: an aware datetime in UTC.

        Raises:
            FailedPreconditionError: SCHEMA_NEWER.
            DataLossError: STORE_CORRUPT.
            UnavailableError: STORE_WRITE_FAILED when the file can't be made or changed.
        """
        store = cls(path, clock=clock)
        try:
            engine = await asyncio.get_running_loop().run_in_executor(store._threads, _migrated, path)
        except BaseException:
            store._threads.shutdown(wait=False)
            raise
        store._writer = Writer(engine)
        return store

    async def close(self) -> None:
        """Commits what was submitted and closes the file. Waits end at once."""
        self.interrupt_waits()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._writer.close)
        self._threads.shutdown()
        self._read_engine.dispose()

    async def create_run(
        self, record: RunRecord, events: Sequence[RunEvent], *, request: RequestKey | None = None
    ) -> tuple[RunRecord, bool]:
        """Stores a new run with its first events. False: the request came before, and this is its run as it is now.

        Raises:
            AlreadyExistsError: RUN_EXISTS.
            InvalidArgumentError: REQUEST_ID_REUSED.
        """
        _redact(events)
        return await self._writer.submit(
            lambda connection: writes.create_run(connection, record, events, request, self._clock())
        )

    async def append(
        self,
        run_id: str,
        events: Sequence[RunEvent],
        *,
        changes: Mapping[str, Any] | None = None,
        expect: Collection[RunState] | None = None,
        checkpoint: CheckpointRecord | None = None,
        deleted: Sequence[int] = (),
        damaged: int | None = None,
        request: RequestKey | None = None,
    ) -> RunRecord:
        """Adds events to a run's log and changes the run, in one transaction; then wakes those who wait for it.

        The store fills in each event's sequence, run_id, recipe, workflow, dataset, attempt and time; its step where
        that is 0; and from_state of a RunStateChanged where that is unspecified.

        Args:
            changes: new values of state, attempt, pause_requested, failure, step, total_steps, start_time, end_time,
                model_version_id, summary, fed_sequence, waiting_for_port or queue_order (given by the store when the
                run becomes QUEUED).
                A start_time or end_time that lies before the log's end becomes the log's end.
            expect: states in which this is allowed; None: all.
            checkpoint: stored with the sequence of the CheckpointSaved among the events; the run's latest from then on.
            deleted: sequences of checkpoints that are gone from then on, one for each CheckpointDeleted among the
                events, in the same order.
            damaged: sequence of the run's newest checkpoint when it can't be read, with a CheckpointDamaged among the
                events; the newest earlier one that is there and whole is the run's newest from then on.
            request: a repeat of the same request changes nothing.

        Returns:
            The run afterwards.

        Raises:
            FailedPreconditionError: RUN_STATE.
            InvalidArgumentError: REQUEST_ID_REUSED.
            ValueError: a change of another column, a checkpoint without its event, a deleted checkpoint that is the
                run's latest or not there, a damaged one that is not the latest or the only one.
        """
        changed = dict(changes or {})
        if not changed.keys() <= writes.CHANGEABLE:
            raise ValueError(f"not to be changed: {sorted(changed.keys() - writes.CHANGEABLE)}")
        saved = sum(each.WhichOneof("payload") == "checkpoint_saved" for each in events)
        if checkpoint is not None and saved != 1:
            raise ValueError(f"a checkpoint is stored with exactly one CheckpointSaved event, not with {saved}")
        told = sum(each.WhichOneof("payload") == "checkpoint_deleted" for each in events)
        if told != len(deleted):
            raise ValueError(f"{len(deleted)} deleted checkpoints need a CheckpointDeleted event each, not {told}")
        found = sum(each.WhichOneof("payload") == "checkpoint_damaged" for each in events)
        if found != (damaged is not None):
            raise ValueError(f"{found} CheckpointDamaged events don't fit the damaged checkpoint {damaged}")

        _redact(events)

        def committed(record: RunRecord) -> None:
            if checkpoint is None:
                self._newest.committed(record)
            else:
                # Its position is the run's own still, and changes with it; the one that is read is a copy.
                self._newest.forget(run_id)
            self._signals.notify(run_id, record.last_sequence)

        try:
            return await self._writer.submit(
                lambda connection: writes.append(
                    connection, run_id, events, changed, expect, checkpoint, deleted, damaged, request, self._clock()
                ),
                committed,
            )
        except UnavailableError:
            # The disk may have taken it or not.
            self._newest.forget(run_id)
            raise

    async def get_run(self, run_id: str) -> RunRecord:
        """The run. The record is shared: not to be changed."""
        record = self._newest.get(run_id)
        if record is None:
            changes = self._newest.changes
            record = await self._read(reads.run_record, run_id)
            self._newest.was_read(record, changes)
        return record

    async def list_runs(
        self,
        states: Collection[RunState] = (),
        recipe: str = "",
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        before: tuple[datetime, str] | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first. Empty filters take all; `before` is create time and id of the last run already seen."""
        return await self._read(reads.list_runs, list(states), recipe, dict(labels or {}), limit, before)

    async def runs_in_states(self, states: Collection[RunState]) -> list[RunRecord]:
        """All runs in these states, in queue order."""
        return await self._read(reads.runs_in_states, list(states))

    async def runs_to_feed(self) -> list[tuple[str, int]]:
        """Runs that are not at work and whose log may hold metrics that the metrics store lacks, and how far it is."""
        return await self._read(reads.runs_to_feed)

    async def read_events(
        self, run_id: str, after: int, *, limit: int, max_bytes: int = MAX_READ_BYTES
    ) -> list[RunEvent]:
        """Events after a sequence number, in order: at most `limit`, and no more once `max_bytes` are reached."""
        return (await self.event_page(run_id, after, limit=limit, max_bytes=max_bytes)).events

    async def event_page(self, run_id: str, after: int, *, limit: int, max_bytes: int = MAX_READ_BYTES) -> EventPage:
        """The same, with the log's end and the run's state at that moment."""
        return await self._read(reads.event_page, run_id, after, limit, max_bytes)

    async def checkpoints(self, run_id: str) -> list[CheckpointRecord]:
        """The run's checkpoints, oldest first: without those that are deleted, with those that are damaged."""
        return await self._read(reads.run_checkpoints, run_id)

    async def request_seen(self, request: RequestKey) -> RunRecord | None:
        """The run of an earlier request with this key, as it is now. Raises INVALID_ARGUMENT REQUEST_ID_REUSED."""
        return await self._read(reads.request_run, request, self._clock() - writes.REQUESTS_KEPT)

    async def wait_for_events(self, run_id: str, after: int, timeout: float) -> bool:
        """Waits until the log goes past `after`. False: the time, in seconds, ran out or waits were interrupted."""
        with self._signals.waiter(run_id) as waiter:
            if (await self.get_run(run_id)).last_sequence > after:
                return True
            try:
                async with asyncio.timeout(timeout):
                    while waiter.last_sequence <= after and not self._signals.interrupted:
                        waiter.changed.clear()
                        await waiter.changed.wait()
            except TimeoutError:
                return False
            return waiter.last_sequence > after

    def interrupt_waits(self) -> None:
        """Ends all waits, those to come too: the server shuts down."""
        self._signals.interrupt()

    async def _read(self, work: Callable[..., Result], *arguments: Any) -> Result:
        def read() -> Result:
            with self._read_engine.begin() as connection:
                return work(connection, *arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except DBAPIError as error:
            raise storage_error(error, reason="STORE_READ_FAILED") or error from error


def _redact(events: Sequence[RunEvent]) -> None:
    """A log is for everybody who may read: no secret of an adapter gets into it."""
    for event in events:
        redact_message(event)


def _migrated(path: Path) -> Any:
    engine = writer_engine(path)
    try:
        migrate(engine)
    except DBAPIError as error:
        engine.dispose()
        raise storage_error(error, reason="STORE_WRITE_FAILED") or error from error
    except BaseException:
        engine.dispose()
        raise
    return engine
