"""A SQLite file that one adapter owns: how it is set up, how its schema is recognised, what its errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, MetaData, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from crucible_kit.errors import DataLossError, FailedPreconditionError, KitchenError, UnavailableError

# How long a transaction waits for a lock: another program may have the file open, such as the sqlite3 shell.
_LOCK_SECONDS = 5.0
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_CAUSES = {
    "SQLITE_FULL": "the disk is full: free space",
    "SQLITE_READONLY": "the file is read-only: make it writable",
    "SQLITE_IOERR": "the disk has an input/output error: check it",
    "SQLITE_CANTOPEN": "the file can't be opened: check its folder and permissions",
    "SQLITE_BUSY": "another program holds the file's lock: end it",
    "SQLITE_LOCKED": "another program holds the file's lock: end it",
}


class SqliteFile:
    """One connection to one file, durable at every commit. Use it from one thread at a time.

    Args:
        path: the file; made when missing.
        tables: its tables.
        version: number of the schema, from 1; kept in the file's user_version.
    """

    def __init__(self, path: Path, tables: MetaData, *, version: int) -> None:
        """Raises FAILED_PRECONDITION SCHEMA_NEWER when a newer release has written the file; DATA_LOSS; UNAVAILABLE."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
            poolclass=StaticPool,
        )
        event.listen(self._engine, "connect", _set_up)
        # At once: a read that writes later would fail where a write that waits does not.
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        try:
            with self.transaction() as connection:
                found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
                if found > version:
                    raise FailedPreconditionError(
                        f"{path} has schema {found}, this release knows schemas up to {version}: use the newer release "
                        "that wrote it, or another data folder",
                        reason="SCHEMA_NEWER",
                        metadata={"file": path, "found": found, "known": version},
                    )
                if found == 0:
                    tables.create_all(connection)
                    connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: committed, durable, when the block ends well, and undone otherwise."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, sqlite3.Error) as error:  # sqlite3's own come out of `_set_up`
            known = self._explained(error)
            if known is None:
                raise
            raise known from error

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    def _explained(self, error: DBAPIError | sqlite3.Error) -> KitchenError | None:
        """What a database error tells about the file; None when it is no matter of the file but a defect of ours."""
        name = getattr(getattr(error, "orig", error), "sqlite_errorname", None) or ""
        if name.startswith(_DAMAGE):
            return DataLossError(
                f"{self._path} is damaged or not a SQLite database: restore it from a backup, or move it away",
                reason="STORE_CORRUPT",
                metadata={"file": self._path, "cause": name},
            )
        for prefix, explanation in _CAUSES.items():
            if name.startswith(prefix):
                return UnavailableError(
                    f"{self._path}: {explanation}",
                    reason="STORE_UNAVAILABLE",
                    metadata={"file": self._path, "cause": name},
                )
        return None


def _set_up(raw: sqlite3.Connection, _: Any) -> None:
    # sqlite3's own transactions begin late and leave out reads and DDL; the engine's begin event replaces them.
    raw.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        raw.execute(f"PRAGMA {pragma}")
