"""The tables of the store. Changes need a migration in runner/migrations; a test holds both equal."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: aware in Python, without zone in the database, which SQLite could not keep."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002, RUF100 - SQLAlchemy's signature
        """Refuse a naive moment; it would silently be read as UTC later."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"{value} has no time zone"
            raise ValueError(msg)
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002, RUF100 - SQLAlchemy's signature
        """Give the moment its zone back."""
        return None if value is None else value.replace(tzinfo=UTC)


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

EVENTS = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("submissions_dir", Text, nullable=False),
    Column("kit_key", Text),  # what the kit's facts were read from; other content means reading them again
    Column("kit", JSON),
    Column("created", UtcDateTime, nullable=False),
    Column("uid", Text),  # unique in the world: what the event launches elsewhere is tagged with it
)

# One row per run of a dispatcher; its heartbeat tells whether what it claimed is still cared for.
DISPATCHERS = Table(
    "dispatchers",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("event_id", ForeignKey("events.id"), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Float, nullable=False),  # seconds since 1970, to tell a pid from its next owner
    Column("started", UtcDateTime, nullable=False),
    Column("heartbeat", UtcDateTime, nullable=False),
    Column("ended", UtcDateTime),
)

SUBMISSIONS = Table(
    "submissions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("event_id", ForeignKey("events.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("submitted", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),  # ours, since the last submit or rerun
    Column("not_before", UtcDateTime),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("run", Text),  # the newest attempt
    UniqueConstraint("event_id", "name"),
    Index("ix_submissions_event_id_state", "event_id", "state"),
)

ATTEMPTS = Table(
    "attempts",
    METADATA,
    Column("run", Text, primary_key=True),  # unique in the world: names the run's folder, tags and tokens
    Column("submission_id", ForeignKey("submissions.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("dispatcher_id", ForeignKey("dispatchers.id"), nullable=False, index=True),
    Column("worker", Text, nullable=False),
    Column("handle", JSON),  # the worker's state(), enough to find the training again
    Column("time_limit", Float),  # seconds
    Column("started", UtcDateTime, nullable=False),
    Column("launched", UtcDateTime),
    Column("ended", UtcDateTime),
    Column("cause", Text),
    Column("returncode", Integer),
    Column("cpu_seconds", Float),
    Column("peak_memory_mb", Float),
    Column("message", Text, nullable=False, server_default=""),
    Column("detail", Text, nullable=False, server_default=""),
)

# fold is NULL for the scores of the bagged predictions.
SCORES = Table(
    "scores",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", ForeignKey("attempts.run"), nullable=False, index=True),
    Column("fold", Integer),
    Column("step", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Float),  # NULL where the score is not a finite number
)
