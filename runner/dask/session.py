"""An event's way into its Dask cluster: connects, and connects again; brings the agents to the workers; gets slots.

One session serves all submissions of a dispatcher. Beside distributed's own it has one thread, which sees to it that
there is a connection. What changes for a submission is told by its claim's ``ring``.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from runner import fence, preload, supervise
from runner.dask.admission import Reference
from runner.dask.agents import ANSWER, LOST, Agents
from runner.dask.claims import Claim
from runner.dask.cluster import Cluster
from runner.dask.slots import Slots
from runner.dask.travel import Traveller
from runner.errors import ConfigError, KitError, LaunchStopped, RampCloudError, TransportError, WorkerError
from runner.orders import fence_orders
from runner.processes import thread_variables

logger = logging.getLogger(__name__)

LEASE = 120.0  # seconds that a training goes on when no worker process is left on its host
_PROGRAMS = [Path(str(module.__file__)) for module in (supervise, fence, preload)]
_FIRST_WORKER = 30.0  # seconds to wait for the first worker of a cluster
_LOOK = 2.0  # seconds between two looks whether there is a connection
_PING = 10.0  # seconds between two questions whether the scheduler still answers
_SILENT = 30.0  # seconds without an answer after which a connection counts as lost
_PAUSES = (0.2, 10.0)  # seconds between two tries to connect, at first and at last
_SPREAD = 3.0  # seconds between two looks whether a slot is free while submissions wait elsewhere
_SURE = 60.0  # seconds for which a cluster that did let us in refuses us before that is believed
_CHECK = 180.0  # seconds for all workers to tell their facts


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
        self._cluster = cluster
        mark = f"ramp-{event}"
        self._settings = {
            "name": self._name,
            "topic": self._name,
            "event": event,
            "mark": mark,
            "programs": {path.name: path.read_text(encoding="utf-8") for path in _PROGRAMS},
            "preload": bool(config.get("preload", True)),
            "threads": thread_variables(config["n_threads"]),
            "fence": fence_orders(config, writable=[], readable=[]),
            "lease": lease,
            "kit": {
                "kit": str(config["worker_kit_dir"]),
                "data": str(config["worker_data_dir"]),
                "python": config.get("python"),
                "conda_env": config.get("conda_env"),
            },
        }
        self._reference = Reference.of_this_machine(str(config["kit_dir"]))
        self._trouble = threading.Event()
        self._agents = Agents(self._name, self._trouble.set)
        self._slots = Slots(self._agents, name=self._name, mark=mark, trouble=self._trouble.set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self._ping_at, self._spread_at = 0.0, 0.0
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
            problems = self._agents.run(self._admit(self._addresses()), _CHECK)
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
        keep = self._slots.has_started
        self._disconnect()
        self._cluster.close(keep=keep)

    def hosts(self) -> list[dict[str, Any]]:
        """Return the facts of each worker, with its address and whether it is used."""
        known = self._agents.known()
        return [{**facts, "address": at, "used": self._slots.is_admitted(at)} for at, facts in known.items()]

    @property
    def connection(self) -> int:
        """Counts connections: what was asked over an earlier one is never answered."""
        return self._agents.connection

    @property
    def waiting(self) -> int:
        """How many submissions wait for a slot."""
        return self._slots.waiting

    # -- slots ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> None:
        """Ask for a slot; its training starts by itself when there is one, if its parcel came along.

        Raises:
            LaunchStopped: the cluster cannot grow any more.
        """
        self._slots.add(claim, ask=True)
        self._cluster.wants(len(self._slots))

    def find(self, claim: Claim) -> None:
        """Look for a run that was started before; its claim has an address if a worker has it."""
        self._slots.add(claim, ask=False)
        with contextlib.suppress(TransportError, LaunchStopped):
            self._cluster.wants(len(self._slots))
            self._agents.run(self._slots.find(list(self._agents.known())), ANSWER)

    def drop(self, claim: Claim) -> None:
        """Ask for a slot no longer."""
        if self._slots.remove(claim):
            with contextlib.suppress(LaunchStopped):
                self._cluster.wants(len(self._slots))

    def release(self, run: str, address: str) -> "futures.Future[None]":
        """End a run and remove what it left; without an address every worker is told."""
        return self._agents.release(run, address)

    def ask(self, address: str, method: str, **words: Any) -> "futures.Future[dict[str, Any]]":
        """Call a method of the agent at an address; may fail with TransportError, or never answer (``connection``)."""
        return self._agents.ask(address, method, **words)

    def runs(self) -> dict[str, str]:
        """Return every run of the event that a worker has, and the address; not those that are just being removed.

        Raises:
            TransportError: the cluster is away.
        """
        return self._agents.all_runs()

    # -- connecting ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        client = self._cluster.connect()
        try:
            self._agents.connected(client)
            client.subscribe_topic(self._name, self._slots.heard)
            client.subscribe_topic("all", self._heard_of_workers)
            client.register_plugin(Traveller(self._settings), name=self._name)
        except LOST as error:
            self._disconnect()
            msg = "the Dask scheduler went away; it is looked for again"
            raise WorkerError(msg, detail=repr(error)) from error

    def _disconnect(self) -> None:
        client = self._agents.disconnected()
        self._slots.disconnected()
        if client is not None:
            with contextlib.suppress(*LOST):
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
        client = self._agents.client
        if client is None:
            return []
        return list(client.scheduler_info(n_workers=-1)["workers"])

    def _keep(self) -> None:
        """Connect again whenever the connection is lost; the only thing that this thread does."""
        while not self._closing.is_set():
            self._trouble.wait(_LOOK)
            self._trouble.clear()
            if self._closing.is_set():
                return
            if self._agents.is_connected() and self._answers():
                self._spread()
                continue
            logger.warning("the connection to the Dask scheduler is lost; it is made again")
            self._disconnect()
            self._slots.lose_all()
            self._connect_again()

    def _answers(self) -> bool:
        """Whether the scheduler answers. A network that swallows everything tells nobody that it does."""
        if time.monotonic() < self._ping_at:
            return True
        asked = self._agents.start(self._agents.echo())
        give_up = time.monotonic() + _SILENT
        while not self._closing.is_set():
            try:
                asked.result(min(_LOOK, _SILENT))
            except futures.TimeoutError:
                if asked.done() or time.monotonic() >= give_up:
                    asked.cancel()
                    return False
            except (TransportError, futures.CancelledError, *LOST):
                return False
            else:
                break
        self._ping_at = time.monotonic() + _PING
        return True

    def _spread(self) -> None:
        """See to it that no slot stays empty where Dask would not: workers have other numbers of threads than slots."""
        client = self._agents.client
        if client is None or not self._slots.waiting or time.monotonic() < self._spread_at:
            return
        self._spread_at = time.monotonic() + _SPREAD
        with contextlib.suppress(TransportError, *LOST):
            said = client.scheduler_info(n_workers=-1)["workers"]
            slots = {at: facts["slots"] for at, facts in self._agents.known().items()}
            if len(slots) > 1 and any(said[at]["nthreads"] != slots[at] for at in slots if at in said):
                self._agents.run(self._slots.spread(), ANSWER)

    def _connect_again(self) -> None:
        pause = _PAUSES[0]
        refused_since: float | None = None
        while not self._closing.is_set():
            try:
                self._connect()
                problems = self._agents.run(self._admit(self._addresses()), _CHECK)
            except (LaunchStopped, ConfigError) as error:
                # What was right before is hardly wrong now: a handshake that breaks looks like a refusal.
                refused_since = refused_since or time.monotonic()
                if isinstance(error, LaunchStopped) or time.monotonic() - refused_since > _SURE:
                    self.broken = error
                    self._slots.lose_all()
                    return
                self._wait_to_connect(pause, error)
            except (WorkerError, TransportError, *LOST) as error:
                refused_since = None
                self._wait_to_connect(pause, error)
            else:
                self._warn(problems)
                logger.warning("the Dask scheduler is there again")
                return
            pause = min(2 * pause, _PAUSES[1])

    def _wait_to_connect(self, seconds: float, error: BaseException) -> None:
        logger.info("the Dask scheduler is still away: %s", error)
        self._disconnect()
        self._closing.wait(seconds)

    # -- workers -------------------------------------------------------------------------------------------------

    async def _admit(self, addresses: list[str]) -> dict[str, list[str]]:
        """Check workers and let those run submissions that may; return what is wrong with the others, by address."""
        self._reference, problems = await self._agents.check(addresses, self._reference)
        known = [address for address in addresses if address in self._agents.known()]
        await self._slots.find(known)  # first, so that the slots of what trains there are not given to others
        good = [address for address in known if address not in problems]
        self._slots.admit(list(await self._agents.ask_all(good, "admit")))
        return problems

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
            self._agents.forget(address)
            self._slots.lose(address)

    async def _admit_later(self, address: str) -> None:
        try:
            self._warn(await self._admit([address]))
        except (TransportError, *LOST) as error:
            logger.info("the worker at %s could not be checked: %s", address, error)

    @staticmethod
    def _warn(problems: Mapping[str, list[str]]) -> None:
        for address, what in problems.items():
            logger.warning("the worker at %s is not used: %s", address, "; ".join(what))
