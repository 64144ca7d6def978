"""An event's way into its Dask cluster: connects, and connects again; checks workers; gets slots; asks the agents.

One session serves all submissions of a dispatcher. Beside distributed's own it has one thread, which sees to it that
there is a connection. What changes for a submission is told by its claim's ``ring``.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.versions import get_versions

from runner import supervise
from runner.dask.admission import Reference, versions_of
from runner.dask.claims import Claim
from runner.dask.cluster import Cluster
from runner.dask.travel import Errand, Traveller
from runner.errors import ConfigError, KitError, LaunchStopped, RampCloudError, TransportError, WorkerError

logger = logging.getLogger(__name__)

LEASE = 120.0  # seconds that a training goes on when no worker process is left on its host
_FIRST_WORKER = 30.0  # seconds to wait for the first worker of a cluster
_LOOK = 2.0  # seconds between two looks whether there is a connection
_PAUSES = (0.2, 10.0)  # seconds between two tries to connect, at first and at last
_ANSWER = 60.0  # seconds for an answer that is no long poll
_CHECK = 180.0  # seconds for all workers to tell their facts
_GATHER = 0.02  # seconds for which releases are gathered into one call
_HOLD, _ASK = Errand("hold"), Errand("ask")
_BAD = (
    OSError,
    RuntimeError,
    AttributeError,
    ValueError,
    TimeoutError,
    asyncio.TimeoutError,
)  # of a client that is lost


class DaskSession:
    """The connection of one event to its cluster.

    Args:
        config: the worker's keys.
        cluster: see ``runner.dask.cluster``.
        lease: see ``LEASE``.
    """

    def __init__(self, config: Mapping[str, Any], cluster: Cluster, *, lease: float = LEASE) -> None:
        event = str(config.get("event_uid") or config["event_name"])
        self._name = f"ramp-cloud-{event}"
        self._mark = f"ramp-{event}"
        self._cluster = cluster
        self._settings = {
            "name": self._name,
            "topic": self._name,
            "event": event,
            "mark": self._mark,
            "supervisor": Path(supervise.__file__).read_text(encoding="utf-8"),
            "lease": lease,
            "kit": {
                "kit": str(config["worker_kit_dir"]),
                "data": str(config["worker_data_dir"]),
                "python": config.get("python"),
                "conda_env": config.get("conda_env"),
            },
        }
        self._reference = Reference.of_this_machine(str(config["kit_dir"]))
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()
        self._claims: dict[str, Claim] = {}
        self._workers: dict[str, dict[str, Any]] = {}  # facts by address, of those whose versions are ours
        self._admitted: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathered: dict[str, list[str]] = {}
        self._flushes: dict[str, asyncio.Task[None]] = {}
        self._trouble = threading.Event()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self.connection = 0
        """Counts connections: what was asked over an earlier one is never answered."""
        self.broken: RampCloudError | None = None
        """Why there will be no connection any more."""

    # -- once per event ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, bring the agent to every worker, and check them.

        Raises:
            ConfigError, WorkerError, LaunchStopped: there is no cluster, or it has no worker.
            KitError: a worker differs from the others or lacks something; the message names it.
        """
        try:
            self._connect()
            self._cluster.wants(1)
            self._wait_for_a_worker()
            problems = self._run(self._admit(self._addresses()), _CHECK)
        except BaseException:
            self.close()
            raise
        if problems:
            self.close()
            said = "\n".join(f"{where}: {'; '.join(what)}" for where, what in sorted(problems.items()))
            msg = f"workers of the Dask cluster cannot run this event's submissions; mend or stop them:\n{said}"
            raise KitError(msg)
        self._keeper = threading.Thread(target=self._keep, name="dask-session", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Let go of the cluster; what trains there goes on."""
        self._closing.set()
        self._trouble.set()
        if self._keeper is not None:
            self._keeper.join(5)
        with self._lock:
            keep = any(claim.is_started for claim in self._claims.values())
        self._disconnect()
        self._cluster.close(keep=keep)

    def hosts(self) -> list[dict[str, Any]]:
        """Return the facts of each worker, with its address and whether it is used."""
        with self._lock:
            return [{**facts, "address": at, "used": at in self._admitted} for at, facts in self._workers.items()]

    @property
    def waiting(self) -> int:
        """How many submissions wait for a slot."""
        with self._lock:
            return sum(1 for claim in self._claims.values() if not claim.is_started)

    # -- slots ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> None:
        """Ask for a slot; its training starts by itself when there is one, if its parcel came along.

        Raises:
            LaunchStopped: the cluster cannot grow any more.
        """
        with self._lock:
            self._claims[claim.run] = claim
            count = len(self._claims)
            self._submit(claim)
        self._cluster.wants(count)

    def find(self, claim: Claim) -> None:
        """Look for a run that was started before; its claim has an address if a worker has it."""
        with self._lock:
            self._claims[claim.run] = claim
            count = len(self._claims)
        with contextlib.suppress(TransportError, LaunchStopped):
            self._cluster.wants(count)
            self._run(self._find_again(list(self._workers)), _ANSWER)

    def drop(self, claim: Claim) -> None:
        """Ask for a slot no longer."""
        with self._lock:
            if self._claims.pop(claim.run, None) is None:
                return
            claim.is_over = True
            claim.let_go()
            count = len(self._claims)
        with contextlib.suppress(LaunchStopped):
            self._cluster.wants(count)

    def release(self, run: str, address: str) -> "futures.Future[None]":
        """End a run and remove what it left; without an address every worker is told."""
        return self._start(self._release(run, address))

    def ask(self, address: str, method: str, **words: Any) -> "futures.Future[dict[str, Any]]":
        """Call a method of the agent at an address; may fail with TransportError, or never answer (``connection``)."""
        return self._start(self._ask_one(address, method, words))

    def runs(self) -> dict[str, str]:
        """Return every run of the event that a worker has, and the address.

        Raises:
            TransportError: the cluster is away.
        """
        found = self._run(self._all_runs(list(self._workers)), _ANSWER)
        return {run: address for run, (address, _, _) in found.items()}

    # -- connecting ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        client = self._cluster.connect()
        try:
            with self._lock:
                self._client, self._loop = client, getattr(client.loop, "asyncio_loop")  # noqa: B009 - tornado's types lack it
                self.connection += 1
            client.subscribe_topic(self._name, self._heard)
            client.subscribe_topic("all", self._heard_of_workers)
            client.register_plugin(Traveller(self._settings), name=self._name)
        except _BAD as error:
            self._disconnect()
            msg = "the Dask scheduler went away; it is looked for again"
            raise WorkerError(msg, detail=repr(error)) from error

    def _disconnect(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            self._workers.clear()
            self._admitted.clear()
            for claim in self._claims.values():
                claim.future = None
        if client is not None:
            with contextlib.suppress(*_BAD):
                client.close(timeout=2)

    def _wait_for_a_worker(self) -> None:
        patience = float(getattr(self._cluster, "patience", _FIRST_WORKER))
        give_up = time.monotonic() + patience
        while not self._addresses():
            if time.monotonic() >= give_up:
                msg = "the Dask cluster has no worker; start some (`./inv dask-worker`), and try again"
                raise WorkerError(msg)
            self._closing.wait(0.1)

    def _addresses(self) -> list[str]:
        if self._client is None:
            return []
        return list(self._client.scheduler_info(n_workers=-1)["workers"])

    def _keep(self) -> None:
        """Connect again whenever the connection is lost; the only thing that this thread does."""
        while not self._closing.is_set():
            self._trouble.wait(_LOOK)
            client = self._client
            if self._closing.is_set() or (client is not None and client.status == "running"):
                self._trouble.clear()
                continue
            self._trouble.clear()
            logger.warning("the connection to the Dask scheduler is lost; it is made again")
            self._disconnect()
            self._lose(lambda _: True)
            self._connect_again()

    def _connect_again(self) -> None:
        pause = _PAUSES[0]
        while not self._closing.is_set():
            try:
                self._connect()
                problems = self._run(self._admit(self._addresses()), _CHECK)
            except (LaunchStopped, ConfigError) as error:
                self.broken = error
                self._lose(lambda _: True)
                return
            except (WorkerError, TransportError, *_BAD) as error:
                logger.info("the Dask scheduler is still away: %s", error)
                self._closing.wait(pause)
                pause = min(2 * pause, _PAUSES[1])
            else:
                self._warn(problems)
                logger.warning("the Dask scheduler is there again")
                return

    # -- workers -------------------------------------------------------------------------------------------------

    async def _admit(self, addresses: list[str]) -> dict[str, list[str]]:
        """Check workers and let those run submissions that may; return what is wrong with the others, by address."""
        client = self._at_work()
        problems: dict[str, list[str]] = {}
        said = await client.run(get_versions, workers=addresses, on_error="return", asynchronous=True)
        ours = []
        for address, versions in said.items():
            if isinstance(versions, BaseException):
                problems[address] = [f"it does not answer ({versions})"]
            elif different := self._reference.differences(versions_of(versions)):
                problems[address] = different
            else:
                ours.append(address)
        answers = await self._ask_all(ours, "facts", {})
        for address in set(ours) - answers.keys():
            problems[address] = ["ramp-cloud's agent did not start there"]
        self._reference = self._reference.completed(answers)
        for address, facts in answers.items():
            if different := self._reference.differences(facts):
                problems[address] = [f"{facts['host']}: {each}" for each in different]
        with self._lock:
            self._workers.update(answers)
        await self._find_again(list(answers))  # first, so that the slots of what trains there are not given to others
        good = [address for address in answers if address not in problems]
        admitted = await self._ask_all(good, "admit", {})
        with self._lock:
            were_none = not self._admitted
            self._admitted.update(admitted)
            if were_none and admitted:  # Dask does not look again at what no worker could take
                for claim in self._claims.values():
                    if not claim.is_started:
                        self._submit(claim)
        return problems

    async def _find_again(self, addresses: list[str]) -> None:
        """Tell claims where their runs are."""
        for run, (address, host, state) in (await self._all_runs(addresses)).items():
            with self._lock:
                claim = self._claims.get(run)
                if claim is None or (claim.address and claim.is_started) or state in ("unknown", "arriving"):
                    continue
                claim.address, claim.host, claim.is_started = address, host, True
                if state == "running":
                    self._submit(claim)
            claim.ring()

    async def _all_runs(self, addresses: list[str]) -> dict[str, tuple[str, str, str]]:
        """Return address, host and state of every run."""
        answers = await self._ask_all(addresses, "runs", {})
        return {
            run: (address, said["host"], state)
            for address, said in answers.items()
            for run, state in said["runs"].items()
        }

    def _heard_of_workers(self, event: tuple[float, Any]) -> None:
        said = event[1]
        if not isinstance(said, dict) or self._closing.is_set():
            return
        if said.get("action") == "add-worker":
            task = asyncio.get_running_loop().create_task(self._admit_later(str(said["worker"])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif said.get("action") == "remove-worker":
            address = str(said["worker"])
            with self._lock:
                self._workers.pop(address, None)
                self._admitted.discard(address)
            self._lose(lambda claim: claim.address == address)

    async def _admit_later(self, address: str) -> None:
        try:
            self._warn(await self._admit([address]))
        except (TransportError, *_BAD) as error:
            logger.info("the worker at %s could not be checked: %s", address, error)

    @staticmethod
    def _warn(problems: Mapping[str, list[str]]) -> None:
        for address, what in problems.items():
            logger.warning("the worker at %s is not used: %s", address, "; ".join(what))

    def _lose(self, which: Callable[[Claim], bool]) -> None:
        """Note that the workers of some claims are gone; another one of the same host will do."""
        with self._lock:
            lost = [claim for claim in self._claims.values() if which(claim)]
            others = {facts["host"]: address for address, facts in self._workers.items()}
            for claim in lost:
                claim.address = others.get(claim.host, "") if claim.is_started else ""
        for claim in lost:
            claim.ring()

    # -- slots, inside -------------------------------------------------------------------------------------------

    def _submit(self, claim: Claim) -> None:
        """Ask the scheduler for a slot: any, or the one that the run has. Called with the lock held."""
        if self._client is None or claim.is_over or (not claim.is_started and not self._admitted):
            return
        claim.let_go()
        claim.asked += 1
        words = (None, None) if claim.is_started else (claim.orders, claim.parcel)
        try:
            claim.future = self._client.submit(
                _HOLD,
                self._name,
                claim.run,
                *words,
                key=f"ramp-{claim.run}-{claim.asked}",
                resources={"ramp": 1} if claim.is_started else {"ramp": 1, self._mark: 1},
                workers=[claim.address] if claim.is_started else None,
                pure=False,
            )
        except _BAD:
            self._trouble.set()  # asked again with the next connection
            return
        claim.future.add_done_callback(partial(self._ended, claim))

    @staticmethod
    def _ended(claim: Claim, future: Any) -> None:
        is_current = claim.future is future
        if is_current and future.status == "error" and not claim.is_started:
            claim.error = {"error": f"Dask gave it up: {future.exception()!r}"}
            claim.ring()

    def _heard(self, event: tuple[float, Any]) -> None:
        """An agent says what became of a run."""
        said = event[1]
        with self._lock:
            claim = self._claims.get(said["run"])
            if claim is None:
                return
            if claim.is_started and claim.host != said["host"]:
                # Its worker was lost, and Dask started it once more: that is for the store to decide.
                self._start(self._release(claim.run, said["address"]))
                return
            if said["what"] in ("slot", "started"):
                claim.address, claim.host = said["address"], said["host"]
                claim.is_started = claim.is_started or said["what"] == "started"
                claim.parcel = None if claim.is_started else claim.parcel
            else:
                claim.error = {"error": said["what"], **said}
        claim.ring()

    async def _release(self, run: str, address: str) -> None:
        self._gathered.setdefault(address, []).append(run)
        if len(self._gathered[address]) == 1:
            self._flushes[address] = asyncio.get_running_loop().create_task(self._flush(address))
        await self._flushes[address]

    async def _flush(self, address: str) -> None:
        await asyncio.sleep(_GATHER)
        with self._lock:
            everywhere = list(self._workers)
        await self._ask_all([address] if address else everywhere, "release", {"runs": self._gathered.pop(address)})

    # -- asking --------------------------------------------------------------------------------------------------

    async def _ask_one(self, address: str, method: str, words: dict[str, Any]) -> dict[str, Any]:
        is_there = address in self._workers  # Dask would try for half a minute to reach one that is not
        answers = await self._ask_all([address], method, words) if is_there else {}
        if address not in answers:
            msg = "the Dask worker does not answer"
            raise TransportError(msg, address=address)
        found: dict[str, Any] = answers[address]
        return found

    async def _ask_all(self, addresses: list[str], method: str, words: dict[str, Any]) -> dict[str, Any]:
        """Return the answers by address, of those that answer."""
        if not addresses:
            return {}
        try:
            said: dict[str, Any] = await self._at_work().run(
                _ASK, self._name, method, words, workers=addresses, on_error="return", asynchronous=True
            )
        except _BAD as error:
            self._trouble.set()
            msg = "the Dask scheduler does not answer; it is looked for again"
            raise TransportError(msg, detail=repr(error)) from error
        for address, answer in said.items():
            if isinstance(answer, Exception):
                logger.info("%s at %s: %r", method, address, answer)
        return {at: answer for at, answer in said.items() if answer is not None and not isinstance(answer, Exception)}

    def _at_work(self) -> Client:
        if self._client is None:
            msg = "the Dask scheduler is away; it is looked for again"
            raise TransportError(msg)
        return self._client

    def _start(self, work: Any) -> "futures.Future[Any]":
        if self._loop is None or self._client is None:
            work.close()
            failed: futures.Future[Any] = futures.Future()
            failed.set_exception(TransportError("the Dask scheduler is away; it is looked for again"))
            return failed
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Any, seconds: float) -> Any:
        try:
            return self._start(work).result(seconds)
        except (futures.TimeoutError, futures.CancelledError) as error:
            msg = f"the Dask cluster did not answer within {seconds:g} s"
            raise TransportError(msg) from error
