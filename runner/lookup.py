"""What can be asked of the store. Nothing here changes it."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from runner.database import Database
from runner.errors import NoSuchSubmission
from runner.records import Attempt, DispatcherRecord, Score, SubmissionRecord
from runner.schema import ATTEMPTS, DISPATCHERS, EVENTS, SCORES, SUBMISSIONS
from runner.states import FINAL, Cause, State


class Lookup:
    """Answers about one event. Every method is one short transaction and may be called from any thread.

    Args:
        database: with its tables in place.
        event_id: row of the event.
    """

    def __init__(self, database: Database, event_id: int) -> None:
        self._database = database
        self._event_id = event_id

    def close(self) -> None:
        """Let go of the database. A method that waits for it gives up. May be called twice."""
        self._database.close()

    def lose_patience(self) -> None:
        """Wait no longer for a database that is away; for whoever is about to end."""
        self._database.lose_patience()

    def open_dispatchers(self) -> list[DispatcherRecord]:
        """Return this event's dispatchers that have not ended by their own word, alive or dead."""
        columns = [DISPATCHERS.c[name] for name in ("id", "host", "pid", "process_started", "heartbeat")]
        statement = select(*columns).where(DISPATCHERS.c.event_id == self._event_id, DISPATCHERS.c.ended.is_(None))
        return [DispatcherRecord(**row) for row in self._rows(statement)]

    def open_attempts(self) -> list[Attempt]:
        """Return every attempt of the event that has not ended, whoever owns it."""
        open_ones = and_(SUBMISSIONS.c.event_id == self._event_id, ATTEMPTS.c.ended.is_(None))
        return self._database.read(lambda connection: attempts_where(connection, open_ones))

    def next_due(self) -> datetime | None:
        """Return when the next submission that waits out a back-off may be claimed; None when none waits."""
        waiting = and_(SUBMISSIONS.c.event_id == self._event_id, SUBMISSIONS.c.state == State.NEW)
        statement = select(func.min(SUBMISSIONS.c.not_before)).where(waiting)
        return self._database.read(lambda connection: connection.execute(statement).scalar())

    def count_open(self) -> int:
        """Return the number of submissions that are not in a final state."""
        is_open = and_(SUBMISSIONS.c.event_id == self._event_id, SUBMISSIONS.c.state.not_in(FINAL))
        statement = select(func.count()).select_from(SUBMISSIONS).where(is_open)
        return self._database.read(lambda connection: int(connection.execute(statement).scalar_one()))

    def state(self, name: str) -> State:
        """Return where a submission stands.

        Raises:
            NoSuchSubmission: the event has none of that name.
        """
        return self._database.read(lambda connection: self._state_of(connection, name))

    def submissions(self) -> list[SubmissionRecord]:
        """Return every submission with its newest attempt, in the order in which they came."""
        newest = [ATTEMPTS.c[name] for name in ("cause", "worker", "started", "ended", "cpu_seconds", "peak_memory_mb")]
        texts = [ATTEMPTS.c.time_limit, func.coalesce(ATTEMPTS.c.message, "").label("message")]
        own = [SUBMISSIONS.c[name] for name in ("name", "state", "submitted", "attempts", "run")]
        statement = (
            select(*own, *newest, *texts, func.coalesce(ATTEMPTS.c.detail, "").label("detail"))
            .outerjoin(ATTEMPTS, ATTEMPTS.c.run == SUBMISSIONS.c.run)
            .where(SUBMISSIONS.c.event_id == self._event_id)
            .order_by(SUBMISSIONS.c.id)
        )
        return [
            SubmissionRecord(
                **{**row, "state": State(row["state"]), "cause": Cause(row["cause"]) if row["cause"] else None}
            )
            for row in self._rows(statement)
        ]

    def scores(self) -> dict[str, list[Score]]:
        """Return the scores of every scored submission by its name, in the order in which ramp-test wrote them."""
        columns = [SCORES.c[name] for name in ("fold", "step", "name", "value")]
        scored = and_(SUBMISSIONS.c.event_id == self._event_id, SUBMISSIONS.c.state == State.SCORED)
        statement = (
            select(SUBMISSIONS.c.name.label("submission"), *columns)
            .join(SCORES, SCORES.c.run == SUBMISSIONS.c.run)
            .where(scored)
            .order_by(SCORES.c.id)
        )
        found: dict[str, list[Score]] = {}
        for row in self._rows(statement):
            found.setdefault(row.pop("submission"), []).append(Score(**row))
        return found

    def kit(self, key: str) -> dict[str, Any] | None:
        """Return the facts about the kit that were kept under this key, or None."""
        statement = select(EVENTS.c.kit).where(EVENTS.c.id == self._event_id, EVENTS.c.kit_key == key)
        return self._database.read(lambda connection: connection.execute(statement).scalar())

    def newest_kit(self) -> dict[str, Any] | None:
        """Return the facts about the kit that were kept last, or None before the first run."""
        statement = select(EVENTS.c.kit).where(EVENTS.c.id == self._event_id)
        return self._database.read(lambda connection: connection.execute(statement).scalar())

    def _this(self, name: str) -> ColumnElement[bool]:
        return and_(SUBMISSIONS.c.event_id == self._event_id, SUBMISSIONS.c.name == name)

    def _state_of(self, connection: Connection, name: str, *, hold: bool = False) -> State:
        statement = select(SUBMISSIONS.c.state).where(self._this(name))
        # Held, so that the attempt cannot end between this look and what is written next.
        state = connection.execute(statement.with_for_update() if hold else statement).scalar()
        if state is None:
            msg = f"the event has no submission {name!r}; `./inv status` lists them"
            raise NoSuchSubmission(msg)
        return State(state)

    def _rows(self, statement: Any) -> list[dict[str, Any]]:
        return self._database.read(lambda connection: [dict(row) for row in connection.execute(statement).mappings()])

    def cancel_requests(self, dispatcher: str) -> set[str]:
        """Return the runs of a dispatcher that somebody asked to end."""
        statement = (
            select(ATTEMPTS.c.run)
            .join(SUBMISSIONS, SUBMISSIONS.c.run == ATTEMPTS.c.run)
            .where(ATTEMPTS.c.dispatcher_id == dispatcher, ATTEMPTS.c.ended.is_(None), SUBMISSIONS.c.cancel_requested)
        )
        return self._database.read(lambda connection: set(connection.execute(statement).scalars()))


def attempts_where(connection: Connection, condition: ColumnElement[bool]) -> list[Attempt]:
    """Return the attempts that a condition names, oldest first, with the state that their submission is in."""
    names = ("run", "submission_id", "number", "handle", "time_limit", "started", "launched")
    statement = (
        select(*(ATTEMPTS.c[name] for name in names), SUBMISSIONS.c.name, SUBMISSIONS.c.state)
        .join(SUBMISSIONS, SUBMISSIONS.c.id == ATTEMPTS.c.submission_id)
        .where(condition)
        .order_by(ATTEMPTS.c.started)
    )
    rows = connection.execute(statement).all()
    return [Attempt(**{**row._asdict(), "state": State(row.state)}) for row in rows]
