"""A Dask cluster on EC2 for an event: started at its first use, as large as the queue, ended with the event."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from runner.aws.machines import Patience
from runner.dask.certificates import certificates_for
from runner.dask.cluster import connect_to
from runner.dask.ec2_cluster import EventCluster, EventWorker
from runner.dask.fleet import SCHEDULER, Fleet
from runner.dask.programs import Limits
from runner.errors import KitError, LaunchStopped, NoRoom, RampCloudError, TransportError, WorkerError

logger = logging.getLogger(__name__)
_DEATH = 120.0  # seconds that a worker waits for a scheduler that is away
_LOOK = 2.0  # seconds between two looks at who works
_FAILURES = 3  # workers in a row that did not come up, after which no more are launched
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0  # seconds after a worker that did not come up
_LAST_WORDS = 60.0  # seconds that the thread has for its end
_ASK = 20.0  # seconds that the scheduler has for an answer


def open_ec2(config: Mapping[str, Any]) -> "Ec2Dask":
    """Return the cluster that a worker's config describes under ``cluster``. Asks nothing of AWS yet.

    Raises:
        ConfigError: the event's certificates cannot be used.
    """
    return Ec2Dask(config)


@dataclass(kw_only=True)
class _Seen:
    """What is known of a worker: since when it is there, in the cluster, without a training (monotonic seconds)."""

    since: float
    joined: bool = False
    idle_since: float | None = None


@dataclass(kw_only=True)
class _Trouble:
    """Workers that did not come up, in a row, and what follows from it."""

    failures: int = 0
    not_before: float = 0.0
    stopped: RampCloudError | None = None
    last: str = field(default="")


class Ec2Dask:
    """See ``runner.dask.cluster.Cluster``. After a scheduler that is gone, ``connect`` starts another cluster.

    Args:
        config: what workers get.
        patience: how long machines may take; its ``boot`` is replaced by the config's start-up deadline.
        death: seconds that a worker waits for its scheduler before its machine ends.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        patience: Patience | None = None,
        death: float = _DEATH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cluster = config["cluster"]
        self._config = {**config, "security": "auto"}
        self._least, self._most = int(cluster["min"]), int(cluster["max"])
        self._slots = int(cluster["slots_per_machine"])
        self._idle = float(cluster["idle_minutes"]) * 60
        self._startup = float(cluster["startup_minutes"]) * 60
        self._limits = Limits(idle=self._idle, death=death, life=math.ceil(cluster["max_hours"] * 60))
        usual = patience or Patience()
        self._patience = Patience(**{**vars(usual), "boot": self._startup})
        certificates = certificates_for(self._config)
        if certificates is None:
            msg = "a cluster that is made for the event needs security: auto"
            raise ValueError(msg)
        self._certificates = certificates
        self._clock = clock
        self._lock = threading.RLock()  # one thread at a time changes the cluster
        self._fleet: Fleet | None = None
        self._cluster: EventCluster | None = None
        self._client: Client | None = None
        self._wanted = 0
        self._seen: dict[str, _Seen] = {}
        self._trouble = _Trouble()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def patience(self) -> float:
        """Seconds that the first worker may take to be there."""
        return self._startup + self._patience.settling / 10

    def connect(self) -> Client:
        """Return a new client of the scheduler; start scheduler and a first worker where there are none.

        Raises:
            WorkerError, LaunchStopped, NoRoom: there is no scheduler; the message says why.
            KitError: the image cannot be part of a cluster.
            ConfigError: something is missing or cannot be used.
            AwsError: AWS does not answer, or does not allow it.
        """
        with self._lock:
            if self._closing.is_set():
                msg = "the cluster was closed; open the event again"
                raise WorkerError(msg)
            if self._cluster is not None and self._scheduler_is_gone():
                self._end("the scheduler's machine is gone")
            if self._cluster is None:
                self._open()
            try:
                return self._new_client()
            except WorkerError:
                if not self._scheduler_is_gone(anew=True):
                    raise
                self._end("the scheduler does not answer, and its machine is gone")
                self._open()
                return self._new_client()

    def wants(self, slots: int) -> None:
        """Say how many submissions are under way or wait; machines follow in a moment. Never blocks.

        Raises:
            LaunchStopped, KitError: no worker can be launched any more, and there is none.
        """
        stopped = self._trouble.stopped
        if stopped is not None and not any(seen.joined for seen in list(self._seen.values())):
            raise stopped
        if slots != self._wanted:
            self._wanted = slots
            self._wake.set()

    def close(self, *, keep: bool) -> None:
        """Let go of the cluster; see the contract. Without ``keep`` no instance is left."""
        self._closing.set()
        self._wake.set()
        if self._fleet is not None:
            self._fleet.stop.set()  # a launch that is waited for ends
        if self._thread is not None:
            self._thread.join(_LAST_WORDS)
        with self._lock:
            self._let_go(keep=keep)

    # -- beginning and end ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Take over what an earlier dispatcher left, when its scheduler answers; otherwise start anew."""
        fleet = self._fleet = Fleet(self._config, self._certificates, limits=self._limits, patience=self._patience)
        if self._closing.is_set():
            fleet.stop.set()
        try:
            fleet.open()
            fleet.adopt()
            fleet.sweep()
            self._cluster = self._with_scheduler(fleet)
            workers = [name for name, member in fleet.members().items() if member.role != SCHEDULER]
            self._cluster.take_over(workers)
            self._client = self._new_client()
        except BaseException:
            self._let_go(keep=False)
            raise
        self._trouble = _Trouble()
        self._wanted = max(self._wanted, 1)  # the first is needed to look at kit and packages
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dask-ec2", daemon=True)
            self._thread.start()
        self._wake.set()

    def _with_scheduler(self, fleet: Fleet) -> EventCluster:
        was_there = fleet.scheduler() is not None
        try:
            return self._event_cluster(fleet)
        except WorkerError as error:
            if not was_there or self._closing.is_set():
                raise
            logger.warning("the scheduler of an earlier dispatcher does not answer: %s", error.for_organiser())
            fleet.end_all()
            return self._event_cluster(fleet)

    def _event_cluster(self, fleet: Fleet) -> EventCluster:
        security = self._certificates.security("client")
        return EventCluster(fleet, security, slots=self._slots, death=self._limits.death)

    def _new_client(self) -> Client:
        assert self._fleet is not None  # noqa: S101 - who calls has opened it
        try:
            self._fleet.reach_scheduler()
        except TransportError as error:
            msg = "the cluster's scheduler does not answer; it is tried again"
            raise WorkerError(msg, detail=error.for_organiser()) from error
        return connect_to(f"tls://127.0.0.1:{self._fleet.tunnel().port}", self._certificates.security("client"))

    def _scheduler_is_gone(self, *, anew: bool = False) -> bool:
        scheduler = self._fleet and self._fleet.scheduler()
        return not (self._fleet and scheduler) or self._fleet.why_gone(scheduler.name, anew=anew) is not None

    def _end(self, why: str) -> None:
        logger.warning("the Dask cluster is ended: %s", why)
        self._let_go(keep=False)

    def _let_go(self, *, keep: bool) -> None:
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        fleet, self._fleet = self._fleet, None
        if client is not None:
            client.close(timeout=2)
        if cluster is not None:
            cluster.keep = keep
            cluster.close()
        if fleet is not None:
            fleet.close(keep=keep)
        self._seen.clear()

    # -- the thread that looks after the workers -----------------------------------------------------------------

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_LOOK)
            self._wake.clear()
            with self._lock:
                if self._cluster is None or self._closing.is_set():
                    continue
                try:
                    self.look_after()
                except RampCloudError as error:
                    logger.warning("the cluster is looked after again in a moment: %s", error.for_organiser())
                except Exception:
                    logger.exception("looking after the cluster failed")  # and on: nobody else would end its machines

    def look_after(self) -> None:
        """Replace workers that are gone, launch those that are wanted, retire those that are not. One round."""
        assert self._cluster is not None  # noqa: S101 - who calls has looked
        busy = self._busy()
        if busy is None:
            return  # no word from the scheduler: connect() finds out what that means
        now = self._clock()
        workers = self._cluster.known_workers()
        failed = {name: why for name, worker in workers.items() if (why := self._failure(name, worker, busy, now))}
        for name, why in failed.items():
            logger.warning("worker %s is given up: %s", name, why)
        self._drop(failed)
        there = [name for name in workers if name not in failed]
        wanted = min(max(math.ceil(self._wanted / self._slots), self._least), self._most)
        if len(there) < wanted and now >= self._trouble.not_before and self._trouble.stopped is None:
            self._cluster.grow(wanted - len(there))
        elif len(there) > wanted:
            self._drop(self._idlest(there, now)[: len(there) - wanted])

    def _busy(self) -> dict[str, int] | None:
        """Return how many trainings each worker of the cluster has, None when the scheduler does not answer."""
        try:
            if self._client is None or self._client.status != "running":
                if self._client is not None:
                    self._client.close(timeout=1)
                self._client = self._new_client()
            found: dict[str, int] = self._client.sync(_work_of_all, self._client, callback_timeout=_ASK)
        except (RampCloudError, OSError, TimeoutError, ValueError, AttributeError) as error:
            logger.info("the scheduler does not say who works: %s", error)
            return None
        return found

    def _failure(self, name: str, worker: EventWorker, busy: Mapping[str, int], now: float) -> str:
        """Return why a worker is of no use any more, "" while it may be."""
        assert self._fleet is not None  # noqa: S101 - who calls has looked
        seen = self._seen.setdefault(name, _Seen(since=now))
        if worker.error is not None:
            self._note(worker.error, now)
            return worker.error.for_organiser()
        if worker.member is not None and (gone := self._fleet.why_gone(name)):
            return f"its machine is gone: {gone}"
        if name in busy:
            if not seen.joined:
                seen.joined, self._trouble.failures = True, 0
            seen.idle_since = None if busy[name] else (seen.idle_since or now)
        elif worker.member is not None and not seen.joined and now - seen.since > self._startup * 2:
            words = self._fleet.said(name)
            msg = f"it did not join the cluster within {self._startup:.0f} s of its machine's start"
            self._note(WorkerError(msg, detail=words), now)
            return f"{msg}\n{words}"
        return ""

    def _note(self, error: RampCloudError, now: float) -> None:
        """Remember a worker that did not come up: the next one waits, and after several there is none."""
        trouble = self._trouble
        if isinstance(error, NoRoom):
            trouble.not_before = now + error.retry_after
            return
        trouble.failures += 1
        pause = min(_FIRST_PAUSE * 2 ** (trouble.failures - 1), _LONGEST_PAUSE)
        trouble.not_before = now + pause
        if isinstance(error, LaunchStopped | KitError):
            trouble.stopped = error
        elif trouble.failures >= _FAILURES:
            msg = f"{trouble.failures} worker machines in a row did not come up, so no more are launched: "
            trouble.stopped = LaunchStopped(f"{msg}{error.message}", detail=error.detail)
        if trouble.stopped is not None:
            logger.warning("the cluster stays as large as it is: %s", trouble.stopped.for_organiser())

    def _idlest(self, names: list[str], now: float) -> list[str]:
        since = {name: self._seen[name].idle_since for name in names}
        long_enough = [(when, name) for name, when in since.items() if when is not None and now - when >= self._idle]
        return [name for _, name in sorted(long_enough)]

    def _drop(self, names: Mapping[str, str] | list[str]) -> None:
        assert self._cluster is not None  # noqa: S101 - who calls has looked
        if names:
            self._cluster.shrink(list(names))
            for name in names:
                self._seen.pop(name, None)


async def _work_of_all(client: Client) -> dict[str, int]:
    """Return the number of tasks of each worker, by name."""
    scheduler: Any = client.scheduler
    who = await scheduler.identity(n_workers=-1)
    tasks = await scheduler.processing(workers=None)
    return {str(each["name"]): len(tasks.get(address, ())) for address, each in who["workers"].items()}
