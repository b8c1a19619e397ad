"""Runs, events, checkpoints, requests."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(63), primary_key=True),
        sa.Column("recipe", sa.String(63), nullable=False),
        sa.Column("preset", sa.String(63), nullable=False),
        sa.Column("workflow", sa.String(63), nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("config_sha256", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("pause_requested", sa.Boolean, nullable=False),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("total_steps", sa.BigInteger, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_event_time", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("start_time", sa.BigInteger),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("model_version_id", sa.Text, nullable=False),
        sa.Column("queue_order", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_sequence", sa.BigInteger),
    )
    op.create_index("runs_by_create_time", "runs", ["create_time", "run_id"])
    op.create_index("runs_by_state", "runs", ["state", "queue_order"])
    op.create_index("runs_by_queue_order", "runs", ["queue_order"])
    op.create_table(
        "events",
        sa.Column("run_id", sa.String(63), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.String(63), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("final", sa.Boolean, nullable=False),
        sa.Column("position", sa.JSON, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("key_prefix", sa.Text, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("method", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("payload_sha256", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(63), sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("requests_by_create_time", "requests", ["create_time"])
