"""What a run came to, and which checkpoints are deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("summary", sa.LargeBinary))
    op.add_column("checkpoints", sa.Column("delete_sequence", sa.BigInteger))
