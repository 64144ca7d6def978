"""Every event has an id that is unique in the world."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; an event gets its id when it is next opened."""
    op.add_column("events", sa.Column("uid", sa.Text))


def downgrade() -> None:
    """Take the column away."""
    op.drop_column("events", "uid")
