"""How much of a log the metrics store has."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("fed_sequence", sa.BigInteger, nullable=False, server_default="0"))
