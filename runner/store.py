"""The event's truth: which submissions there are, who runs them, how every attempt ended, what it scored.

SQLite in WAL mode by default, PostgreSQL by URL. Every method is one short transaction and may be called from any
thread; StoreError means that nothing of it has happened.
"""

import contextlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from runner.database import Database
from runner.errors import StoreError, UsageError
from runner.lookup import Lookup, attempts_where
from runner.migrate import bring_up_to_date
from runner.records import Attempt, Outcome, Score
from runner.retry import Decision
from runner.schema import ATTEMPTS, DISPATCHERS, EVENTS, SCORES, SUBMISSIONS
from runner.states import FINAL, State, sources_of

MAX_TEXT = 100_000  # characters kept of a message or detail; the log has the rest
T = TypeVar("T")
_MAX_INTEGER = 2**31 - 1  # of an INTEGER column in PostgreSQL
_COLLISIONS = 10  # times that another process may write the same row first


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)


class Store(Lookup):
    """The store of one event: what a Lookup answers, and all that changes it. Make it with ``Store.open``.

    Args:
        database: with its tables in place.
        event_id: row of the event; ``uid`` is its id that is unique in the world.
        clock: the present moment, UTC.
    """

    def __init__(self, database: Database, event_id: int, uid: str, *, clock: Callable[[], datetime]) -> None:
        super().__init__(database, event_id)
        self.uid = uid
        self._clock = clock

    @classmethod
    def open(
        cls,
        url: URL,
        *,
        event_name: str,
        submissions_dir: str,
        clock: Callable[[], datetime] = utc_now,
        patience: float = 60.0,
    ) -> "Store":
        """Connect, bring the tables up to date and register the event.

        Raises:
            StoreError: the database cannot be reached or was written by a newer version of ramp-cloud, or it has an
                event of this name with another submissions folder, which still exists.
        """
        database = Database(url, patience=patience)
        try:
            bring_up_to_date(database)
            event_id, uid = _against_others(
                lambda: database.write(lambda connection: _register(connection, event_name, submissions_dir, clock()))
            )
        except BaseException:
            database.close()
            raise
        return cls(database, event_id, uid, clock=clock)

    # -- dispatchers ---------------------------------------------------------------------------------------------

    def begin_dispatcher(self, *, host: str, pid: int, process_started: float) -> str:
        """Note that a dispatcher starts, and return its id."""
        row = {
            "id": uuid.uuid4().hex,
            "event_id": self._event_id,
            "host": host,
            "pid": pid,
            "process_started": process_started,
            "started": self._clock(),
            "heartbeat": self._clock(),
        }

        def begin(connection: Connection) -> None:
            if not connection.execute(select(DISPATCHERS.c.id).where(DISPATCHERS.c.id == row["id"])).scalar():
                connection.execute(insert(DISPATCHERS).values(row))

        self._database.write(begin)
        return str(row["id"])

    def heartbeat(self, dispatcher: str) -> None:
        """Note that a dispatcher is alive, also when another one has taken it for dead meanwhile."""
        alive = {"heartbeat": self._clock(), "ended": None}
        statement = update(DISPATCHERS).where(DISPATCHERS.c.id == dispatcher).values(alive)
        self._database.write(lambda connection: connection.execute(statement))

    def end_dispatcher(self, dispatcher: str) -> None:
        """Note that a dispatcher ended. What it left open may be adopted at once."""
        statement = update(DISPATCHERS).where(DISPATCHERS.c.id == dispatcher).values(ended=self._clock())
        self._database.write(lambda connection: connection.execute(statement))

    def adopt(self, heir: str, *, alive: Iterable[str]) -> list[Attempt]:
        """Take over every open attempt whose dispatcher has ended, and return them together with the heir's own.

        Args:
            heir: the dispatcher that takes them.
            alive: ids of the other dispatchers that live; nothing is taken from them.
        """
        mine = select(SUBMISSIONS.c.id).where(SUBMISSIONS.c.event_id == self._event_id).scalar_subquery()
        # Who has ended is asked here: since ``alive`` was read, another heir may have begun and taken them.
        ended = select(DISPATCHERS.c.id).where(DISPATCHERS.c.ended.is_not(None)).scalar_subquery()
        orphaned = and_(
            ATTEMPTS.c.submission_id.in_(mine),
            ATTEMPTS.c.ended.is_(None),
            ATTEMPTS.c.dispatcher_id.not_in(list(alive)),
            or_(ATTEMPTS.c.dispatcher_id == heir, ATTEMPTS.c.dispatcher_id.in_(ended)),
        )
        taking = update(ATTEMPTS).where(orphaned).values(dispatcher_id=heir).returning(ATTEMPTS.c.run)

        def take(connection: Connection) -> list[Attempt]:
            runs = list(connection.execute(taking).scalars())
            return attempts_where(connection, ATTEMPTS.c.run.in_(runs)) if runs else []

        return self._database.write(take)

    # -- submissions ---------------------------------------------------------------------------------------------

    def enrol(self, names: Sequence[str]) -> list[str]:
        """Add submissions in state new; return those that were not there before, in the order given."""
        known = select(SUBMISSIONS.c.name).where(SUBMISSIONS.c.event_id == self._event_id)

        def add(connection: Connection) -> list[str]:
            present = set(connection.execute(known).scalars())
            added = [name for name in dict.fromkeys(names) if name not in present]
            row = {"event_id": self._event_id, "state": State.NEW, "submitted": self._clock()}
            if added:
                connection.execute(insert(SUBMISSIONS), [{**row, "name": name} for name in added])
            return added

        return _against_others(lambda: self._database.write(add))

    def claim(self, dispatcher: str, *, worker: str, time_limit: float | None) -> Attempt | None:
        """Take the submission that waits longest, or None when none is due.

        The claim is one UPDATE, so of any number of dispatchers exactly one gets a submission.
        """
        now = self._clock()
        run = uuid.uuid4().hex
        due = or_(SUBMISSIONS.c.not_before.is_(None), SUBMISSIONS.c.not_before <= now)
        waiting = (
            select(SUBMISSIONS.c.id)
            .where(SUBMISSIONS.c.event_id == self._event_id, SUBMISSIONS.c.state == State.NEW, due)
            .order_by(SUBMISSIONS.c.id)
            .limit(1)
        )
        # PostgreSQL: pass over what another dispatcher is taking just now.
        first = waiting.with_for_update(skip_locked=True).scalar_subquery()
        taking = (
            update(SUBMISSIONS)
            .where(SUBMISSIONS.c.id == first, SUBMISSIONS.c.state == State.NEW)
            .values(state=State.SENT_TO_TRAINING, run=run, attempts=SUBMISSIONS.c.attempts + 1, not_before=None)
            .returning(SUBMISSIONS.c.id, SUBMISSIONS.c.attempts)
        )

        def take(connection: Connection) -> Attempt | None:
            # The connection may have broken after the commit; then this is the second time, and the claim stands.
            if taken := attempts_where(connection, ATTEMPTS.c.run == run):
                return taken[0]
            row = connection.execute(taking).one_or_none()
            if row is None:
                return None
            attempt = {"run": run, "submission_id": row.id, "number": row.attempts, "dispatcher_id": dispatcher}
            values = {**attempt, "worker": worker, "time_limit": time_limit, "started": now}
            connection.execute(insert(ATTEMPTS).values(values))
            return attempts_where(connection, ATTEMPTS.c.run == run)[0]

        # Looking first spares a writing transaction every time that nothing waits.
        return self._database.write(take) if self._database.read(lambda c: c.execute(waiting).scalar()) else None

    def request_cancel(self, name: str) -> State:
        """Cancel a submission that waits, or ask for the end of one that runs; return its state now.

        Raises:
            NoSuchSubmission: the event has none of that name.
            UsageError: it has ended already.
        """
        this = self._this(name)
        waiting = update(SUBMISSIONS).where(this, SUBMISSIONS.c.state == State.NEW).values(state=State.CANCELLED)
        running = update(SUBMISSIONS).where(this).values(cancel_requested=True)

        def cancel(connection: Connection) -> State:
            state = self._state_of(connection, name, hold=True)
            if connection.execute(waiting).rowcount:
                return State.CANCELLED
            if state.is_final:
                msg = f"submission {name!r} has ended ({state}); there is nothing to cancel"
                raise UsageError(msg)
            connection.execute(running)
            return state

        return self._database.write(cancel)

    def rerun(self, name: str) -> None:
        """Put a submission that ended back to new, with all of its attempts to come.

        Raises:
            NoSuchSubmission: the event has none of that name.
            UsageError: it has not ended.
        """
        fresh = {"state": State.NEW, "failures": 0, "not_before": None, "cancel_requested": False}
        statement = update(SUBMISSIONS).where(self._this(name), SUBMISSIONS.c.state.in_(FINAL)).values(fresh)

        def put_back(connection: Connection) -> None:
            if not connection.execute(statement).rowcount:
                state = self._state_of(connection, name)
                msg = f"submission {name!r} has not ended ({state}); cancel it first or wait"
                raise UsageError(msg)

        self._database.write(put_back)

    # -- one attempt ---------------------------------------------------------------------------------------------

    def save_handle(self, dispatcher: str, run: str, handle: Mapping[str, Any] | None) -> bool:
        """Keep what a worker needs to find its training again; False when the attempt is no longer ours.

        Raises:
            TypeError, ValueError: the handle is no JSON.
        """
        statement = update(ATTEMPTS).where(*self._mine(dispatcher, run)).values(handle=_as_json(handle))
        return self._database.write(lambda connection: connection.execute(statement).rowcount == 1)

    def begin_training(self, dispatcher: str, run: str, handle: Mapping[str, Any] | None) -> bool:
        """Move a submission to training and keep its worker's handle; False when the attempt is no longer ours.

        Raises:
            TypeError, ValueError: the handle is no JSON.
        """
        launched = func.coalesce(ATTEMPTS.c.launched, self._clock())  # one that is found again started long ago
        return self._move(dispatcher, run, State.TRAINING, {"handle": _as_json(handle), "launched": launched})

    def mark_tested(self, dispatcher: str, run: str) -> bool:
        """Move a submission whose training ended well to tested; False when the attempt is no longer ours."""
        return self._move(dispatcher, run, State.TESTED, {"run": run})

    def _move(self, dispatcher: str, run: str, state: State, values: Mapping[str, Any]) -> bool:
        touched = update(ATTEMPTS).where(*self._mine(dispatcher, run)).values(values)
        moved = (
            update(SUBMISSIONS)
            .where(SUBMISSIONS.c.run == run, SUBMISSIONS.c.state.in_(sources_of(state)))
            .values(state=state)
        )

        def move(connection: Connection) -> bool:
            if connection.execute(touched).rowcount != 1:
                return False
            connection.execute(moved)
            return True

        return self._database.write(move)

    def finish(
        self,
        dispatcher: str,
        run: str,
        outcome: Outcome,
        *,
        decide: Callable[[int], Decision],
        scores: Sequence[Score] = (),
        counts: bool = True,
    ) -> State | None:
        """End an attempt: its outcome, its scores and the submission's next state, all or nothing.

        Args:
            decide: gets the number of attempts that failed for our reasons (this one included) and says what becomes
                of the submission.
            scores: kept only together with the outcome.
            counts: whether a failure of ours counts; one that came before the training started does not.

        Returns:
            The submission's new state; None when the attempt is no longer ours, and then nothing was written.
        """
        ending = {"ended": self._clock(), **_as_row(outcome)}
        ended = update(ATTEMPTS).where(*self._mine(dispatcher, run)).values(ending)
        this = SUBMISSIONS.c.run == run
        # Held, so that a cancel cannot come between this look and the submission's next state.
        current = select(SUBMISSIONS.c.failures, SUBMISSIONS.c.cancel_requested).where(this).with_for_update()
        by_us = (ATTEMPTS.c.run == run, ATTEMPTS.c.dispatcher_id == dispatcher, ATTEMPTS.c.ended == ending["ended"])
        rows = [_score_row(run, score) for score in scores]

        def end(connection: Connection) -> State | None:
            if connection.execute(ended).rowcount != 1:
                # The connection may have broken after the commit; then this is the second time, and all is written.
                done = select(SUBMISSIONS.c.state).join(ATTEMPTS, ATTEMPTS.c.run == SUBMISSIONS.c.run).where(*by_us)
                state = connection.execute(done).scalar()
                return None if state is None else State(state)
            row = connection.execute(current).one()
            failures = row.failures + (1 if outcome.cause.is_ours and counts else 0)
            decision = decide(failures)
            state = State.CANCELLED if row.cancel_requested and decision.state is State.NEW else decision.state
            values = {
                "state": state,
                "failures": failures,
                "not_before": decision.not_before,
                "cancel_requested": False,
            }
            connection.execute(update(SUBMISSIONS).where(this).values(values))
            if rows:
                connection.execute(insert(SCORES), rows)
            return state

        return self._database.write(end)

    # -- the kit -------------------------------------------------------------------------------------------------

    def save_kit(self, key: str, kit: Mapping[str, Any]) -> None:
        """Keep facts about the kit under a key."""
        statement = update(EVENTS).where(EVENTS.c.id == self._event_id).values(kit_key=key, kit=dict(kit))
        self._database.write(lambda connection: connection.execute(statement))

    # -- inside --------------------------------------------------------------------------------------------------

    @staticmethod
    def _mine(dispatcher: str, run: str) -> tuple[ColumnElement[bool], ...]:
        # The fence: a dispatcher that was taken for dead can wake up, but it can no longer write.
        return ATTEMPTS.c.run == run, ATTEMPTS.c.dispatcher_id == dispatcher, ATTEMPTS.c.ended.is_(None)


def _against_others(work: Callable[[], T]) -> T:
    """Do what others may be doing at the same moment: see what is left after a row of theirs came first."""
    for _ in range(_COLLISIONS):
        with contextlib.suppress(IntegrityError):
            return work()
    return work()


def _register(connection: Connection, name: str, submissions_dir: str, now: datetime) -> tuple[int, str]:
    """Return row and uid of an event, which is made when the database does not have it."""
    columns = (EVENTS.c.id, EVENTS.c.submissions_dir, EVENTS.c.uid)
    row = connection.execute(select(*columns).where(EVENTS.c.name == name).with_for_update()).one_or_none()
    uid = uuid.uuid4().hex if row is None or row.uid is None else str(row.uid)
    if row is None:
        values = {"name": name, "submissions_dir": submissions_dir, "created": now, "uid": uid}
        return int(connection.execute(insert(EVENTS).values(values).returning(EVENTS.c.id)).scalar_one()), uid
    this = update(EVENTS).where(EVENTS.c.id == row.id)
    if row.uid is None:  # written by a version that knew none
        connection.execute(this.values(uid=uid))
    if row.submissions_dir != submissions_dir:
        if Path(row.submissions_dir).is_dir():
            msg = (
                f"the database has an event {name!r} whose submissions are in {row.submissions_dir}, not in "
                f"{submissions_dir}; give this event another event_name or another database"
            )
            raise StoreError(msg)
        # The folder was moved as a whole; the event moves with it.
        connection.execute(this.values(submissions_dir=submissions_dir))
    return int(row.id), uid


def _as_json(handle: Mapping[str, Any] | None) -> Any:
    return None if handle is None else json.loads(json.dumps(dict(handle), allow_nan=False))


def _as_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "cause": outcome.cause,
        "returncode": _storable_integer(outcome.returncode),
        "cpu_seconds": _storable_number(outcome.cpu_seconds),
        "peak_memory_mb": _storable_number(outcome.peak_memory_mb),
        "message": _storable(outcome.message),
        "detail": _storable(outcome.detail),
    }


def _score_row(run: str, score: Score) -> dict[str, Any]:
    return {
        "run": run,
        "fold": _storable_integer(score.fold),
        "step": score.step,
        "name": _storable(score.name),
        "value": _storable_number(score.value),
    }


def _storable(text: str) -> str:
    """Make a text from a log fit for any database: no NUL, no half of a character, not endless."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out, the log has them …]\n{text[-half:]}"


def _storable_integer(value: int | None) -> int | None:
    """Make a number that a training or a worker chose fit for any database."""
    return None if value is None else max(min(value, _MAX_INTEGER), -_MAX_INTEGER)


def _storable_number(value: float | None) -> float | None:
    """Keep what JSON can show: a finite number, or None."""
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
