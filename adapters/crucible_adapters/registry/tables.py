"""Tables of registry.db."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text

SCHEMA_VERSION = 1
metadata = MetaData()

versions = Table(
    "versions",
    metadata,
    Column("number", Integer, primary_key=True, doc="Rises with every registration: newest first is by it."),
    Column("version_id", Text, nullable=False, unique=True),
    Column("run_id", Text, nullable=False, unique=True),
    Column("model_name", Text, nullable=False, index=True),
    Column("checkpoint_uri", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("config_sha256", Text, nullable=False, index=True),
    Column("stage", Integer, nullable=False, doc="VersionStage."),
    Column("create_time_ns", Integer, nullable=False, doc="Nanoseconds since 1970."),
    Column(
        "registration_sha256",
        Text,
        nullable=False,
        doc="Of the request: tells a repeat from other content.",
    ),
)

version_metrics = Table(
    "version_metrics",
    metadata,
    Column("version_id", Text, ForeignKey(versions.c.version_id), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Float, nullable=True, doc="NULL is NaN, which SQLite has no number for."),
    sqlite_with_rowid=False,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("version_id", Text, ForeignKey(versions.c.version_id), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("uri", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Each says that the later node came from the earlier one. Kinds are EdgeKind and NodeKind.
edges = Table(
    "edges",
    metadata,
    Column("from_kind", Integer, primary_key=True, autoincrement=False),
    Column("from_id", Text, primary_key=True),
    Column("to_kind", Integer, primary_key=True, autoincrement=False),
    Column("to_id", Text, primary_key=True),
    Column("kind", Integer, primary_key=True, autoincrement=False),
    Index("edges_by_earlier", "to_kind", "to_id"),
    sqlite_with_rowid=False,
)
