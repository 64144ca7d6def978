"""An event of fake workers, and dispatchers that run it in threads of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from runner.config import load_config
from runner.dispatcher import Dispatcher, Rhythm
from runner.errors import KitError
from runner.kit import Kit
from runner.records import SubmissionRecord
from runner.retry import RetryPolicy
from runner.states import Cause, State
from runner.store import Store
from runner.testing import PATIENCE, FakeClock, FakeWorker, Memory, Platform, Way
from runner.workers.base import BaseWorker
from tests.event_folder import EventFolder

AT_ONCE = RetryPolicy(max_attempts=3, backoff=timedelta(0))
QUICK = Rhythm(tick=0.01, reconcile=0.05, stop=PATIENCE)


class Bench:
    """An event in a folder and its store, an SQLite file unless ``url`` names another database."""

    def __init__(self, folder: Path, url: URL | None = None) -> None:
        self.event = EventFolder(folder, worker_type="runner.testing:FakeWorker", timeout=30)
        self.database = folder / "store" / "ramp-cloud.db"
        self.database.parent.mkdir()
        self.url = url or URL.create("sqlite", database=str(self.database))
        self.platform = Platform()
        self.clock = FakeClock()
        self.heard = Memory()
        self.ways: dict[str, Way] = {}
        self._stores: list[Store] = []

    def open_store(self, *, patience: float = 0.0) -> Store:
        """Open the event's store; the bench closes it."""
        store = Store.open(
            self.url,
            event_name="toy_event",
            submissions_dir=str(self.event.submissions),
            clock=self.clock,
            patience=patience,
        )
        self._stores.append(store)
        return store

    def close(self) -> None:
        """Close every store."""
        for store in self._stores:
            store.close()

    def dispatcher(
        self,
        worker: type[BaseWorker] = FakeWorker,
        *,
        policy: RetryPolicy = AT_ONCE,
        rhythm: Rhythm = QUICK,
        kit: KitError | None = None,
        patience: float = 0.0,
        **keys: Any,
    ) -> Dispatcher:
        """Return a dispatcher with a store of its own; ``keys`` are of config.yml."""
        self.event.keys |= keys
        config = load_config(self.event.config)

        def read_kit() -> Kit | None:
            if kit is not None:
                raise kit
            return None

        return Dispatcher(
            config,
            worker=worker,
            worker_config={**config.worker_config(), "platform": self.platform, "ways": self.ways},
            store=self.open_store(patience=patience),
            read_kit=read_kit,
            listener=self.heard,
            policy=policy,
            clock=self.clock,
            rhythm=rhythm,
        )

    def add(self, *names: str) -> None:
        """Put submissions in."""
        for name in names:
            self.event.add(name)

    def records(self) -> dict[str, SubmissionRecord]:
        """Return what the store knows of the submissions."""
        return {record.name: record for record in self.open_store().submissions()}

    def ends(self) -> dict[str, tuple[State, Cause | None, int]]:
        """Return how the submissions stand: state, cause of the newest attempt, attempts."""
        return {name: (record.state, record.cause, record.attempts) for name, record in self.records().items()}


class Running:
    """A dispatcher in a thread, and what came of it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.dispatcher.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def result(self) -> None:
        """Wait for the end of ``run`` and raise what it raised."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.dispatcher.stop()
            self._thread.join(PATIENCE)
            pytest.fail("run() did not return")
        if self.error is not None:
            raise self.error


@contextmanager
def running(dispatcher: Dispatcher) -> Iterator[Running]:
    """Run a dispatcher in a thread; it is stopped at the end of the block."""
    run = Running(dispatcher)
    try:
        yield run
    finally:
        dispatcher.stop()
    run.result()
