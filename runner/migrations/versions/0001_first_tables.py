"""The first tables: events, dispatchers, submissions, attempts, scores."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("submissions_dir", sa.Text, nullable=False),
        sa.Column("kit_key", sa.Text),
        sa.Column("kit", sa.JSON),
        sa.Column("created", sa.DateTime, nullable=False),
    )
    op.create_table(
        "dispatchers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Integer, sa.ForeignKey("events.id"), nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.Float, nullable=False),
        sa.Column("started", sa.DateTime, nullable=False),
        sa.Column("heartbeat", sa.DateTime, nullable=False),
        sa.Column("ended", sa.DateTime),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("event_id", sa.Integer, sa.ForeignKey("events.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("submitted", sa.DateTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("not_before", sa.DateTime),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("run", sa.Text),
        sa.UniqueConstraint("event_id", "name"),
    )
    op.create_index("ix_submissions_event_id_state", "submissions", ["event_id", "state"])
    op.create_table(
        "attempts",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("submission_id", sa.Integer, sa.ForeignKey("submissions.id"), nullable=False, index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("dispatcher_id", sa.Text, sa.ForeignKey("dispatchers.id"), nullable=False, index=True),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("handle", sa.JSON),
        sa.Column("time_limit", sa.Float),
        sa.Column("started", sa.DateTime, nullable=False),
        sa.Column("launched", sa.DateTime),
        sa.Column("ended", sa.DateTime),
        sa.Column("cause", sa.Text),
        sa.Column("returncode", sa.Integer),
        sa.Column("cpu_seconds", sa.Float),
        sa.Column("peak_memory_mb", sa.Float),
        sa.Column("message", sa.Text, nullable=False, server_default=""),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
    )
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run", sa.Text, sa.ForeignKey("attempts.run"), nullable=False, index=True),
        sa.Column("fold", sa.Integer),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Float),
    )
