"""Runs an event: takes submissions from the store, gives each a life of its own, and sees to what others left behind.

One thread (the caller's) decides; one thread per running submission works. The dispatcher sleeps until something rings:
a life that ended, a new folder, a signal; and it looks at the store every two seconds for what other processes asked.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runner.config import EventConfig
from runner.errors import KitError, LaunchStopped, StoreError
from runner.inbox import Inbox
from runner.kit import Kit
from runner.life import End, Life, Listener
from runner.liveness import DEAD_AFTER, Hearts
from runner.processes import host_id, started_at
from runner.records import Attempt
from runner.retry import RetryPolicy
from runner.states import State
from runner.store import Store, utc_now
from runner.workers.base import BaseWorker, WorkerState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often the dispatcher looks, and how long it waits, in seconds."""

    tick: float = 2.0  # store: cancel requests, what another process submitted
    heartbeat: float = 10.0
    dead_after: float = DEAD_AFTER  # of a dispatcher of another host
    reconcile: float = 20.0  # adopt and sweep; several times within dead_after
    margin: float = 900.0  # beyond the time limit: for setup and collection together
    hang: float = 30.0  # for a life that was asked to end
    stop: float = 4.0  # for all lives together when the dispatcher stops


@dataclass(kw_only=True)
class _Next:
    """When each thing is due again, by the monotonic clock; 0 is at once."""

    heartbeat: float = 0.0
    reconcile: float = 0.0
    scan: float = 0.0


class Dispatcher:
    """Runs the submissions of one event until none is left, or until ``stop``.

    Args:
        config: the event.
        worker: class of its workers; ``worker_config`` is what ``worker.prepare_event`` returned.
        store: the event's truth.
        read_kit: reads problem.py, in a thread; its KitError stops the event when the worker needs the kit.
        listener: is told what happens.
        policy, clock, rhythm: for tests and for platforms that are slower than this one.
    """

    def __init__(
        self,
        config: EventConfig,
        *,
        worker: type[BaseWorker],
        worker_config: dict[str, Any],
        store: Store,
        read_kit: Callable[[], Kit | None],
        listener: Listener,
        policy: RetryPolicy | None = None,
        clock: Callable[[], datetime] = utc_now,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._config = config
        self._worker = worker
        self._worker_config = worker_config
        self._store = store
        self._read_kit = read_kit
        self._listener = listener
        self._policy = policy or RetryPolicy()
        self._clock = clock
        self._rhythm = rhythm or Rhythm()
        self._inbox = Inbox(config.ramp.submissions_dir)
        self._kit: Future[Kit | None] = Future()
        self._id = ""
        self._lives: dict[str, Life] = {}
        # A SimpleQueue can be rung from a signal handler; an Event cannot, its lock might be held by the same thread.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._no_more: LaunchStopped | None = None  # why nothing can be launched any more
        self._next = _Next()
        self._hearts = Hearts(dead_after=self._rhythm.dead_after)
        self._arriving = True  # whether the inbox may hold something that is not enrolled yet
        self._give_up: dict[str, float] = {}  # when a life that was asked to end is given up, by run
        self.n_workers = config.dispatcher.workers_on(_cores())

    # -- from outside --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until no submission is left (hunger_policy exit) or until ``stop``.

        Raises:
            KitError: the kit cannot be read; what ran was put back to new.
            LaunchStopped: the worker can launch nothing more; what ran has ended, what waited is still new.
            StoreError: the store could not be reached when the dispatcher started.
        """
        pid = os.getpid()
        self._id = self._store.begin_dispatcher(host=host_id(), pid=pid, process_started=started_at(pid) or 0.0)
        watching = threading.Event()
        threading.Thread(target=self._learn_kit, name="kit", daemon=True).start()
        try:
            self._inbox.watch(self._ring_for_inbox, watching)
            while not self._stopping:
                pause = self._guarded_step()
                if self._is_done():  # asked after the step that released the last life, not a tick later
                    break
                self._sleep(pause)
        finally:
            watching.set()
            self._shut_down()
        if self._worker.needs_kit and self._kit.done() and (error := self._kit.exception()):
            raise error
        if self._no_more is not None and not self._stopping:
            raise self._no_more

    def stop(self) -> None:
        """End what runs, put it back to new, and let ``run`` return. May be called from a signal handler."""
        self._stopping = True
        self.ring()

    def ring(self) -> None:
        """Wake the dispatcher. Callable from any thread and from a signal handler."""
        self._bell.put(None)

    def lives(self) -> list[Life]:
        """Return the attempts that are under way."""
        return list(self._lives.values())

    # -- the loop ------------------------------------------------------------------------------------------------

    def step(self) -> float:
        """Reconcile, enrol, claim and launch, steer; return the seconds until something may be due again."""
        now = time.monotonic()
        if now >= self._next.reconcile:
            self._reconcile()
            self._next.reconcile = now + self._rhythm.reconcile
        if now >= self._next.heartbeat:
            self._store.heartbeat(self._id)
            self._next.heartbeat = now + self._rhythm.heartbeat
        if now >= self._next.scan:
            self._enrol(now)
        self._release()
        self._launch()
        self._steer(now)
        return max(min(self._rhythm.tick, self._next.scan - now), 0.0)

    def _reconcile(self) -> None:
        """Adopt what dead dispatchers left, and sweep what no live attempt has."""
        others = [other for other in self._store.open_dispatchers() if other.id != self._id]
        living = self._hearts.living(others, now=self._clock())
        for other in others:
            if other.id not in living:
                self._store.end_dispatcher(other.id)
        for attempt in self._store.adopt(self._id, alive=living):
            if attempt.run not in self._lives:
                logger.info("found %s again, attempt %d", attempt.name, attempt.number)
                self._begin(attempt, adopted=True)
        self._sweep()

    def _sweep(self) -> None:
        try:
            swept = self._worker.sweep(self._worker_config, self._live_runs)
        except Exception as error:  # noqa: BLE001 - part of the guard: a worker's code does not end the dispatcher
            logger.warning("the sweep failed and will be tried again: %s", error)
        else:
            for what in swept:
                logger.warning("swept: %s", what)

    def _live_runs(self) -> dict[str, WorkerState | None]:
        # Our own lives count to their end: a result is stored before its run is released.
        live = {run: life.attempt.handle for run, life in self._lives.copy().items()}
        return live | {attempt.run: attempt.handle for attempt in self._store.open_attempts()}

    def _enrol(self, now: float) -> None:
        # Set before the scan, so that what arrives during it rings for another one.
        self._next.scan = now + self._rhythm.reconcile
        names, wait = self._inbox.scan()
        for name in self._store.enrol(names) if names else []:
            self._listener.moved(name, State.NEW, None)
        self._arriving = wait is not None
        if wait is not None:
            self._next.scan = now + wait

    def _release(self) -> None:
        for run, life in self._lives.copy().items():
            if life.is_over:
                del self._lives[run]
                self._give_up.pop(run, None)
                if life.launch_stopped is not None and self._no_more is None:
                    self._no_more = life.launch_stopped
                    logger.error("nothing more is launched: %s", self._no_more.for_organiser())

    def _launch(self) -> None:
        while len(self._lives) < self.n_workers and not self._kit_is_broken() and self._no_more is None:
            worker_type = self._config.worker.worker_type
            attempt = self._store.claim(self._id, worker=worker_type, time_limit=self._config.worker.timeout)
            if attempt is None:
                return
            self._begin(attempt)

    def _begin(self, attempt: Attempt, *, adopted: bool = False) -> None:
        life = Life(
            attempt,
            lambda: self._worker(dict(self._worker_config), attempt.name),
            adopted=adopted,
            store=self._store,
            dispatcher=self._id,
            policy=self._policy,
            kit=self._kit if self._worker.needs_kit else None,
            clock=self._clock,
            listener=self._listener,
            ended=self.ring,
        )
        self._lives[attempt.run] = life
        life.start()

    def _steer(self, now: float) -> None:
        """Pass on what was asked from outside, and end what takes too long."""
        asked = self._store.cancel_requests(self._id) if self._lives else set()
        for run, life in self._lives.copy().items():
            if run in asked:
                life.end(End.CANCEL)
            if life.seconds > life.limit + self._rhythm.margin:
                life.end(End.EXPIRED)
            if life.ending and now >= self._give_up.setdefault(run, now + self._rhythm.hang):
                logger.error("%s does not end; its slot is given to another submission", life.attempt.name)
                del self._lives[run]
                life.abandon()

    def _is_done(self) -> bool:
        if self._kit_is_broken():
            return True
        if self._no_more is not None:
            return not self._lives
        if self._config.dispatcher.hunger_policy != "exit" or self._lives or self._arriving:
            return False
        if not self._kit.done():  # the leaderboard wants it; whoever reads it rings, and has a time limit
            return False
        return self._store.count_open() == 0

    def _guarded_step(self) -> float:
        try:
            return self.step()
        except StoreError as error:
            logger.warning("%s; the event goes on when it answers", error.message)
            return self._rhythm.tick

    def _sleep(self, seconds: float) -> None:
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            return

    def _ring_for_inbox(self) -> None:
        self._arriving = True
        self._next.scan = 0.0
        self.ring()

    def _kit_is_broken(self) -> bool:
        return self._worker.needs_kit and self._kit.done() and self._kit.exception() is not None

    def _learn_kit(self) -> None:
        try:
            self._kit.set_result(self._read_kit())
        except KitError as error:
            if not self._worker.needs_kit:
                logger.warning("the leaderboard cannot rank: %s", error.message)
            self._kit.set_exception(error)
        except StoreError as error:
            logger.warning("what was read of the kit could not be kept: %s", error.message)
            self._kit.set_exception(KitError(error.message))
        finally:
            if not self._kit.done():  # a defect of ours must not leave lives waiting for an answer
                self._kit.set_exception(KitError("problem.py could not be read; please report this"))
            self.ring()

    def _shut_down(self) -> None:
        give_up = time.monotonic() + self._rhythm.stop
        for life in self.lives():
            life.end(End.STOP)
        for life in self.lives():
            if not life.join(max(give_up - time.monotonic(), 0.0)):
                logger.warning("%s is left for the next start; its worker does not end", life.attempt.name)
        self._store.lose_patience()  # who stops has seconds, not the minute that a store may be waited for
        try:
            self._store.end_dispatcher(self._id)
        except StoreError as error:
            logger.warning("the end could not be written down: %s", error.message)
        # Once more: what somebody else made for us may show up late, such as a launch whose answer never came.
        self._sweep()
        try:
            self._worker.close_event(self._worker_config)
        except Exception as error:  # noqa: BLE001 - part of the guard: a worker's code does not end the dispatcher
            logger.warning("the worker could not be closed: %s", error)


def _cores() -> int:
    """Return the cores that this process may use; a container or batch job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
