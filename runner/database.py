"""One database and its transactions: SQLite in WAL mode or PostgreSQL, waited for while it is briefly away."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from runner.errors import StoreError

T = TypeVar("T")
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between tries while the database is away


class Database:
    """Runs short transactions from any thread; the constructor does not connect.

    Args:
        url: where the database is.
        patience: seconds to wait for a database that is away before StoreError is raised.
    """

    def __init__(self, url: URL, *, patience: float) -> None:
        self._engine = _engine(url)
        self._patience = patience
        self._closing = threading.Event()

    def close(self) -> None:
        """Let go of the database; whoever waits for it gives up. May be called twice."""
        self._closing.set()
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
        give_up = time.monotonic() + self._patience
        tries = 0
        while True:
            try:
                return work()
            except IntegrityError:
                raise
            except DBAPIError as error:
                may_pass = isinstance(error, OperationalError) or error.connection_invalidated
                if not may_pass or self._closing.is_set() or time.monotonic() > give_up:
                    raise _translated(error, self._engine.url) from error
                # Jitter keeps dispatchers that lost the same database from coming back all at once.
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
                tries += 1
                self._closing.wait(pause)
            except SQLAlchemyError as error:
                raise _translated(error, self._engine.url) from error


def _translated(error: SQLAlchemyError, url: URL) -> StoreError:
    original = getattr(error, "orig", None) or error
    where = url.render_as_string(hide_password=True)
    return StoreError(
        f"the database {where} cannot be used: {str(original).strip()}; "
        "check that it is there, that its disk has room and that `database:` in config.yml is right"
    )


def _engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20, connect_args={"connect_timeout": 10})
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
