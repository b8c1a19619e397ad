"""Tables of metrics.db."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, Table, Text

SCHEMA_VERSION = 1
metadata = MetaData()

# Which batches were recorded, so that a repeat changes nothing.
batches = Table(
    "batches",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("batch_key", Integer, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

points = Table(
    "points",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("value", Float, nullable=True, doc="NULL is NaN, which SQLite has no number for."),
    Column("time_seconds", Integer, nullable=True, doc="Seconds since 1970; NULL: not said."),
    Column("time_nanos", Integer, nullable=True),
    sqlite_with_rowid=False,
)

# The newest step of each metric, so that names and latest values are found without reading all points.
series = Table(
    "series",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_step", Integer, nullable=False),
    sqlite_with_rowid=False,
)
