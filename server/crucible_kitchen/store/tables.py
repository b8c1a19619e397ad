"""The tables. Migrations make them; a test holds both to the same shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

from crucible.kitchen.v1.event_pb2 import RunSummary
from crucible.type.v1.failure_pb2 import Failure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Instant(TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970: exact, ordered, and the same in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


class MessageBytes(TypeDecorator[Message]):
    """A protobuf message of one type as its bytes."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, kind: type[Message]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Message | None, dialect: Any) -> bytes | None:
        return None if value is None else value.SerializeToString(deterministic=True)

    def process_result_value(self, value: bytes | None, dialect: Any) -> Message | None:
        return None if value is None else self.kind.FromString(value)


metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(63), primary_key=True),
    Column("recipe", String(63), nullable=False),
    Column("preset", String(63), nullable=False),
    Column("workflow", String(63), nullable=False),
    Column("dataset", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("config_sha256", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("pause_requested", Boolean, nullable=False),
    Column("failure", MessageBytes(Failure)),
    Column("labels", JSON, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_event_time", Instant, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("start_time", Instant),
    Column("end_time", Instant),
    Column("model_version_id", Text, nullable=False),
    Column("queue_order", BigInteger, nullable=False),
    # Sequence of the newest checkpoint's event; its row is in checkpoints.
    Column("checkpoint_sequence", BigInteger),
    Column("summary", MessageBytes(RunSummary)),
    # Last event whose metrics are known to be in the metrics store.
    Column("fed_sequence", BigInteger, nullable=False, server_default="0"),
    # The port whose adapter a PAUSED run waits for; empty: none.
    Column("waiting_for_port", String(63), nullable=False, server_default=""),
    Index("runs_by_create_time", "create_time", "run_id"),
    Index("runs_by_state", "state", "queue_order"),
    Index("runs_by_queue_order", "queue_order"),
)

events = Table(
    "events",
    metadata,
    Column("run_id", String(63), ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # a whole RunEvent
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", String(63), ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("uri", Text, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("position", JSON, nullable=False),
    Column("files", JSON, nullable=False),
    Column("key_prefix", Text, nullable=False),
    # Sequence of the event that says it is deleted; NULL: it is there.
    Column("delete_sequence", BigInteger),
    # Sequence of the event that says it can't be read; NULL: nobody has found that.
    Column("damage_sequence", BigInteger),
)

requests = Table(
    "requests",
    metadata,
    Column("method", String(63), primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("payload_sha256", String(64), nullable=False),
    Column("run_id", String(63), ForeignKey("runs.run_id"), nullable=False),
    Column("create_time", Instant, nullable=False),
    Index("requests_by_create_time", "create_time"),
)
