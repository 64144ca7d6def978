"""One database and its transactions: SQLite in WAL mode or PostgreSQL, waited for while it is briefly away."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError, TimeoutError
from sqlalchemy.pool import NullPool

from runner.errors import StoreError

T = TypeVar("T")
FIRST_PATIENCE = 5.0  # seconds
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between tries while the database is away
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
# A server or network that falls silent is noticed within a minute and not after the system's quarter of an hour.
_NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


class Database:
    """Runs short transactions from any thread; the constructor does not connect.

    Args:
        url: where the database is.
        patience: seconds to wait for a database that is away before StoreError is raised. One that has never answered
            is rather a mistake in the config: it is given at most ``FIRST_PATIENCE`` seconds.
    """

    def __init__(self, url: URL, *, patience: float) -> None:
        self._engine = _engine(url)
        self._patience = patience
        self._answered = False
        self._closing = threading.Event()

    def lose_patience(self) -> None:
        """Let whoever waits for the database give up, now and from now on."""
        self._closing.set()

    def close(self) -> None:
        """Let go of the database; whoever waits for it gives up. May be called twice."""
        self.lose_patience()
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction that only reads. It is run again when the database was away."""

        def once() -> T:
            with self._engine.connect() as connection, connection.begin():
                return work(connection)

        return self._patiently(once)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, all or nothing. It is run again when the database was away.

        Raises:
            IntegrityError: a row broke a constraint.
            StoreError: the database stayed away or refused the work.
        """

        def once() -> T:
            with self._engine.connect() as connection:
                connection = connection.execution_options(ramp_cloud_writes=True)
                with connection.begin():
                    return work(connection)

        return self._patiently(once)

    def _patiently(self, work: Callable[[], T]) -> T:
        began = time.monotonic()
        tries = 0
        while True:
            try:
                result = work()
            except IntegrityError:
                raise
            except SQLAlchemyError as error:
                patience = self._patience if self._answered else min(self._patience, FIRST_PATIENCE)
                if not _may_pass(error) or self._closing.is_set() or time.monotonic() - began > patience:
                    raise _translated(error, self._engine.url) from error
                # Jitter keeps dispatchers that lost the same database from coming back all at once.
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
                tries += 1
                self._closing.wait(pause)
            else:
                self._answered = True
                return result


def _may_pass(error: SQLAlchemyError) -> bool:
    """Whether it is worth trying again: the database is away, busy or out of room, and not wrong."""
    if isinstance(error, TimeoutError):
        return True  # every connection of the pool is in use
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_AWAY  # the higher bits tell variants apart
    return isinstance(error, OperationalError) or error.connection_invalidated


def _translated(error: SQLAlchemyError, url: URL) -> StoreError:
    original = getattr(error, "orig", None) or error
    # A password may also stand in the query part, which SQLAlchemy shows.
    shown = url.set(query={key: "***" if "password" in key else value for key, value in url.query.items()})
    return StoreError(
        f"the database {shown.render_as_string(hide_password=True)} cannot be used: {str(original).strip()}; "
        "check that it is there, that its disk has room and that `database:` in config.yml is right"
    )


def _engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20, connect_args=_NETWORK)
    # One connection per transaction: opening one takes 0.1 ms, and no thread's connection outlives it.
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 30, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A write that starts as a read can fail half-way with "database is locked", which waiting does not mend.
        writes = connection.get_execution_options().get("ramp_cloud_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
