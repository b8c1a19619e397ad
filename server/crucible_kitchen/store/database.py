"""The SQLite file: how connections are set up, how its schema is brought up to date, what its errors mean."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from crucible_kit.errors import DataLossError, FailedPreconditionError, KitchenError, UnavailableError

# How long a connection waits for a lock: another program may have the file open, such as the sqlite3 shell.
_LOCK_SECONDS = 5.0

_CAUSES = {
    "SQLITE_FULL": "the disk of the data folder is full: free space",
    "SQLITE_READONLY": "the data folder is read-only: make it writable",
    "SQLITE_IOERR": "the disk of the data folder has an input/output error: check it",
    "SQLITE_CANTOPEN": "the database file cannot be opened: check that the data folder is there and its permissions",
    "SQLITE_BUSY": "another program holds the database file's lock: end it",
    "SQLITE_LOCKED": "another program holds the database file's lock: end it",
    "SQLITE_NOMEM": "the server is out of memory: free some",
}
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def writer_engine(path: Path) -> Engine:
    """The engine of the one writer; its transactions take the write lock at once."""
    engine = _engine(path, connections=1)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def reader_engine(path: Path, connections: int) -> Engine:
    """The engine of the readers; each transaction sees one state of the database."""
    engine = _engine(path, connections=connections)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only = ON"))
    return engine


def _engine(path: Path, *, connections: int) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
    )
    event.listen(engine, "connect", _set_up)
    return engine


def _set_up(raw: sqlite3.Connection, _: Any) -> None:
    # sqlite3's own transactions begin late and leave out reads and DDL; the engines' begin events replace them.
    raw.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        raw.execute(f"PRAGMA {pragma}")


def migrate(engine: Engine) -> None:
    """Brings the schema up to date in one transaction.

    Raises:
        FailedPreconditionError: SCHEMA_NEWER when a newer server has written the file.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.begin() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and present not in known:
            raise FailedPreconditionError(
                f"the run store has schema {present}, this server knows schemas up to {head}: use the newer server "
                "that wrote it, or another data folder",
                reason="SCHEMA_NEWER",
                metadata={"found": present, "known": head},
            )
        if present != head:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def storage_error(error: DBAPIError, *, reason: str) -> KitchenError | None:
    """What a database error tells about the disk; None when it is no matter of the disk but a defect of ours."""
    name = getattr(error.orig, "sqlite_errorname", "")
    if name.startswith(_DAMAGE):
        return DataLossError(
            "the run store is damaged or not a SQLite database: restore it from a backup, or use another data folder",
            reason="STORE_CORRUPT",
            metadata={"cause": name},
        )
    for prefix, explanation in _CAUSES.items():
        if name.startswith(prefix):
            return UnavailableError(f"run store: {explanation}", reason=reason, metadata={"cause": name})
    return None
