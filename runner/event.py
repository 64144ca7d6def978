"""An event put together: config, folders, store and worker. What tasks.py calls."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config import EventConfig, load_config
from runner.dispatcher import Dispatcher, Rhythm
from runner.inbox import put
from runner.kit import Kit, kit_key, read_kit
from runner.layout import EventPaths
from runner.life import Listener
from runner.liveness import any_seems_alive
from runner.retry import RetryPolicy
from runner.scores import Row, leaderboard
from runner.states import State
from runner.status import event_status, write_leaderboard
from runner.store import Store, utc_now
from runner.workers import load_worker


@dataclass(frozen=True, kw_only=True)
class Event:
    """An open event. Make it with ``open_event``."""

    config: EventConfig
    paths: EventPaths
    store: Store

    def kit(self) -> Kit | None:
        """Return what is known of the kit from the last run, None before the first."""
        facts = self.store.newest_kit()
        return None if facts is None else Kit.from_json(facts)

    def submit(self, source: Path, name: str) -> None:
        """Copy a submission in; a running dispatcher starts it at once.

        Raises:
            UsageError: the name is taken or cannot be used.
            SubmissionUnusable: the folder holds links or is too large.
        """
        put(source, self.paths.submissions_dir, name)
        self.store.enrol([name])

    def dispatcher(
        self, listener: Listener, *, policy: RetryPolicy | None = None, rhythm: Rhythm | None = None
    ) -> Dispatcher:
        """Check what all submissions need and return a dispatcher that is ready to run.

        Args:
            listener: is told what happens.
            policy: what follows a failure; rhythm: how often the dispatcher looks. The defaults are right for users.

        Raises:
            RampCloudError: nothing can run: the worker, its environment, the kit or the data is missing.
        """
        worker = load_worker(self.config.worker.worker_type, beside=self.config.deployment_dir)
        worker_config = worker.prepare_event({**self.config.worker_config(), "event_uid": self.store.uid})
        python = worker.kit_python(worker_config)
        return Dispatcher(
            self.config,
            worker=worker,
            worker_config=worker_config,
            store=self.store,
            read_kit=lambda: None if python is None else self._read_kit(python, worker.kit_environment(worker_config)),
            listener=listener,
            policy=policy,
            rhythm=rhythm,
        )

    def status(self) -> dict[str, Any]:
        """Return the object of ``status --json``."""
        alive = any_seems_alive(self.store.open_dispatchers(), now=utc_now())
        return event_status(
            self.config.event_name, self.store.submissions(), self.store.scores(), dispatcher_lives=alive
        )

    def states(self) -> dict[str, State]:
        """Return where every submission stands."""
        return {record.name: record.state for record in self.store.submissions()}

    def rows(self, step: str = "valid") -> list[Row]:
        """Return the leaderboard by one step, ``valid`` or ``test``."""
        return leaderboard(self.store.scores(), self.kit(), step=step)

    def log(self, name: str, *, follow: bool) -> Iterator[str]:
        """Yield the text of a submission's log, with ``follow`` until the submission has ended.

        Raises:
            NoSuchSubmission: the event has none of that name.
        """
        self.store.state(name)
        pause = threading.Event()
        return follow_log(
            self.paths.log(name),
            ended=lambda: not follow or self.store.state(name).is_final,
            wait=pause.wait,
        )

    def finish(self) -> bool:
        """Write the leaderboard; return whether anything of ours failed (a submission in checking_error)."""
        write_leaderboard(self.paths.leaderboard, self.rows(), self.kit())
        return State.CHECKING_ERROR in self.states().values()

    def _read_kit(self, python: str, environment: dict[str, str] | None) -> Kit:
        key = kit_key(self.paths.kit_dir, python)
        facts = self.store.kit(key)
        if facts is None:
            kit = read_kit(self.paths.kit_dir, python, environment=environment)
            self.store.save_kit(key, kit.as_json())
            return kit
        return Kit.from_json(facts)


@contextmanager
def open_event(config: Path, *, deployment_dir: Path | None = None) -> Iterator[Event]:
    """Read an event's config, open its store, and close it at the end.

    Raises:
        ConfigError: config.yml has problems.
        StoreError: the database cannot be used.
    """
    loaded = load_config(config, deployment_dir=deployment_dir)
    paths = EventPaths.of(loaded)
    if loaded.database_url.drivername == "sqlite" and loaded.database_url.database:
        Path(loaded.database_url.database).parent.mkdir(parents=True, exist_ok=True)
    store = Store.open(loaded.database_url, event_name=loaded.event_name, submissions_dir=str(paths.submissions_dir))
    try:
        yield Event(config=loaded, paths=paths, store=store)
    finally:
        store.close()


def follow_log(path: Path, *, ended: Callable[[], bool], wait: Callable[[float], object]) -> Iterator[str]:
    """Yield a log's text as it grows until the submission has ended; one that begins anew is read from its start."""
    position, inode = 0, None
    while True:
        over = ended()
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != inode or status.st_size < position:
                    position, inode = 0, status.st_ino
                file.seek(position)
                text = file.read()
                position += len(text)
        except FileNotFoundError:
            text = b""
        if text:
            yield text.decode("utf-8", "replace")
        elif over:
            return
        else:
            wait(0.3)
