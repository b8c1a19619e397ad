"""Which checkpoints can't be read any more."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("damage_sequence", sa.BigInteger))
