"""The one thread that writes. It commits all that is waiting in one transaction: many calls share one fsync."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from crucible_kit.errors import UnavailableError
from crucible_kit.faults import fault_point
from crucible_kitchen.store.database import storage_error

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_MAX_BATCH = 256


class _Job(NamedTuple):
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    committed: Callable[[Any], None] | None


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


class Writer:
    """Runs functions on the writing connection, each in a savepoint of its own: one that raises undoes only itself.

    Make it on the event loop that submits to it. It owns the engine's connection from then on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(
        self, work: Callable[[Connection], Result], committed: Callable[[Result], None] | None = None
    ) -> Result:
        """The function's result, once it is on disk. Cancelling the caller does not undo the write.

        Args:
            work: runs in the writer's thread.
            committed: gets the result, on the event loop after the commit, also when the caller is gone.

        Raises:
            KitchenError: what the function raised.
            UnavailableError: STORE_WRITE_FAILED, the disk took nothing; STORE_CLOSED.
        """
        if self._closed:
            raise UnavailableError("the run store is closed: the server has stopped", reason="STORE_CLOSED")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._jobs.put(_Job(work, future, committed))
        return await future

    def close(self) -> None:
        """Commits what was submitted and ends the thread. Blocks: call it from another thread than the event loop's."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while True:
            batch: list[_Job | None] = [self._jobs.get()]
            while len(batch) < _MAX_BATCH:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            jobs = [job for job in batch if job is not None]
            if jobs:
                outcomes = self._commit(jobs)
                self._loop.call_soon_threadsafe(_resolve, jobs, outcomes)
            if len(jobs) < len(batch):
                return

    def _commit(self, jobs: list[_Job]) -> list[_Outcome]:
        try:
            with self._engine.begin() as connection:
                outcomes = [_in_savepoint(connection, job) for job in jobs]
                fault_point("store.commit.before")
            fault_point("store.commit.after")
            return outcomes
        except Exception as error:
            logger.exception("the run store took nothing of %d writes", len(jobs))
            # Nobody knows what state the connection is in: the next batch gets a new one.
            self._engine.dispose()
            return [_Outcome(error=_write_error(error)) for _ in jobs]


def _in_savepoint(connection: Connection, job: _Job) -> _Outcome:
    savepoint = connection.begin_nested()
    try:
        value = job.work(connection)
    except Exception as error:
        if isinstance(error, DBAPIError) and storage_error(error, reason="STORE_WRITE_FAILED") is not None:
            raise  # SQLite may have undone the whole transaction: nothing of this batch may count
        savepoint.rollback()
        return _Outcome(error=error)
    savepoint.commit()
    return _Outcome(value)


def _write_error(error: Exception) -> Exception:
    known = storage_error(error, reason="STORE_WRITE_FAILED") if isinstance(error, DBAPIError) else None
    return known or error


def _resolve(jobs: list[_Job], outcomes: list[_Outcome]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.error is None and job.committed is not None:
            job.committed(outcome.value)
        if job.future.done():  # its caller was cancelled
            continue
        if outcome.error is None:
            job.future.set_result(outcome.value)
        else:
            job.future.set_exception(outcome.error)
