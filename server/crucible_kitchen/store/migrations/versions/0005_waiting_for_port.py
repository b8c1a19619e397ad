"""Which adapter a paused run waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("runs", sa.Column("waiting_for_port", sa.String(63), nullable=False, server_default=""))
