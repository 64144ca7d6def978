"""How the dispatcher asks the agents on the workers, from any thread, over the connection of the moment."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

from distributed import Client
from distributed.versions import get_versions

from runner.dask.admission import Reference, versions_of
from runner.dask.travel import Errand
from runner.errors import TransportError

logger = logging.getLogger(__name__)

LOST = (OSError, RuntimeError, AttributeError, ValueError, TimeoutError, asyncio.TimeoutError)
"""What a client raises whose connection is lost."""
ANSWER = 60.0  # seconds for an answer that is no long poll
_GATHER = 0.02  # seconds for which releases are gathered into one call
_SETTLE = 5.0  # seconds for releases to be over before what is left is looked at
_ASK = Errand("ask")
_AWAY = "the Dask scheduler is away; it is looked for again"


class Agents:
    """The agents of one event.

    Args:
        name: of the plugin that they are.
        trouble: called when a connection turns out to be lost, from any thread.

    Attributes:
        client: the connection; None while there is none.
        connection: counts connections: what was asked over an earlier one is never answered.
    """

    def __init__(self, name: str, trouble: Callable[[], None]) -> None:
        self.client: Client | None = None
        self.connection = 0
        self._comm: object = None  # the client's own connection when it was given
        self._name = name
        self._trouble = trouble
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()
        self._known: dict[str, dict[str, Any]] = {}  # facts by address, of workers whose versions are ours
        self._gathered: dict[str, tuple[list[str], asyncio.Task[None]]] = {}
        self._releasing: set[asyncio.Task[None]] = set()

    # -- the connection ------------------------------------------------------------------------------------------

    def connected(self, client: Client) -> None:
        """Ask over a client from now on."""
        with self._lock:
            self.client, self._loop = client, getattr(client.loop, "asyncio_loop")  # noqa: B009 - tornado's types lack it
            self._comm = client.scheduler_comm
            self.connection += 1

    def is_connected(self) -> bool:
        """Whether what was asked can still be answered.

        A client whose scheduler is soon back connects again and says nothing, while the new scheduler knows nothing of
        what was asked of the old one, nor of who listens to which topic: to us that connection is lost.
        """
        with self._lock:
            client = self.client
            return client is not None and client.status == "running" and client.scheduler_comm is self._comm

    def disconnected(self) -> Client | None:
        """Ask nobody from now on; returns the client that there was."""
        with self._lock:
            client, self.client = self.client, None
            self._known.clear()
            self._gathered.clear()  # what is not released now is swept later
            self._releasing.clear()
        return client

    # -- who is there --------------------------------------------------------------------------------------------

    def known(self) -> dict[str, dict[str, Any]]:
        """Return the facts of each worker by its address."""
        with self._lock:
            return dict(self._known)

    def forget(self, address: str) -> None:
        """Note that a worker is gone."""
        with self._lock:
            self._known.pop(address, None)

    def address_on(self, host: str) -> str:
        """Return the address of a worker on a host, empty when there is none."""
        with self._lock:
            return next((address for address, facts in self._known.items() if facts["host"] == host), "")

    async def check(self, addresses: list[str], reference: Reference) -> tuple[Reference, dict[str, list[str]]]:
        """Learn the facts of workers; return what is compared from now on, and what is wrong, by address."""
        problems: dict[str, list[str]] = {}
        said = await self._at_work().run(get_versions, workers=addresses, on_error="return", asynchronous=True)
        names = await self._at_work().run(socket.gethostname, workers=addresses, on_error="return", asynchronous=True)
        ours = []
        for address, versions in said.items():
            if isinstance(versions, BaseException):
                problems[address] = [f"it does not answer ({versions})"]
            elif different := reference.differences(versions_of(versions)):
                problems[address] = [f"{names.get(address, 'its host')}: {each}" for each in different]
            else:
                ours.append(address)
        answers = await self.ask_all(ours, "facts")
        for address in set(ours) - answers.keys():
            problems[address] = ["ramp-cloud's agent did not start there"]
        reference = reference.completed(answers)
        for address, facts in answers.items():
            if different := reference.differences(facts):
                problems[address] = [f"{facts['host']}: {each}" for each in different]
        with self._lock:
            self._known.update(answers)
        return reference, problems

    # -- asking, in the connection's own thread ------------------------------------------------------------------

    async def ask_all(self, addresses: list[str], method: str, **words: Any) -> dict[str, Any]:
        """Return the answers by address, of those that answer.

        Raises:
            TransportError: the scheduler is away.
        """
        if not addresses:
            return {}
        try:
            said: dict[str, Any] = await self._at_work().run(
                _ASK, self._name, method, words, workers=addresses, on_error="return", asynchronous=True
            )
        except LOST as error:
            self._trouble()
            raise TransportError(_AWAY, detail=repr(error)) from error
        for address, answer in said.items():
            if isinstance(answer, Exception):
                logger.info("%s at %s: %r", method, address, answer)
        return {at: answer for at, answer in said.items() if answer is not None and not isinstance(answer, Exception)}

    async def runs(self, addresses: list[str]) -> dict[str, tuple[str, str, str]]:
        """Return address, host and state of every run."""
        answers = await self.ask_all(addresses, "runs")
        return {
            run: (address, said["host"], state)
            for address, said in answers.items()
            for run, state in said["runs"].items()
        }

    async def echo(self) -> None:
        """Return when the scheduler has answered."""
        scheduler = self._at_work().scheduler
        if scheduler is not None:
            await scheduler.echo(data=b"")

    async def _ask_one(self, address: str, method: str, words: Mapping[str, Any]) -> dict[str, Any]:
        is_there = address in self._known  # Dask would try for half a minute to reach one that is not
        answers = await self.ask_all([address], method, **words) if is_there else {}
        if address not in answers:
            msg = "the Dask worker does not answer"
            raise TransportError(msg, address=address)
        found: dict[str, Any] = answers[address]
        return found

    async def _release(self, run: str, address: str) -> None:
        with self._lock:
            if address not in self._gathered:
                flush = asyncio.create_task(self._flush(address))
                self._releasing.add(flush)
                flush.add_done_callback(self._releasing.discard)
                self._gathered[address] = ([], flush)
            runs, flush = self._gathered[address]
            runs.append(run)
        await flush

    async def _flush(self, address: str) -> None:
        await asyncio.sleep(_GATHER)
        with self._lock:
            runs, _ = self._gathered.pop(address, ([], None))
            everywhere = list(self._known)
        await self.ask_all([address] if address else everywhere, "release", runs=runs)

    async def _settled_runs(self) -> dict[str, tuple[str, str, str]]:
        if self._releasing:
            await asyncio.wait(set(self._releasing), timeout=_SETTLE)
        return await self.runs(list(self._known))

    def _at_work(self) -> Client:
        if self.client is None:
            raise TransportError(_AWAY)
        return self.client

    # -- asking, from any other thread ---------------------------------------------------------------------------

    def ask(self, address: str, method: str, **words: Any) -> "futures.Future[dict[str, Any]]":
        """Call a method of one agent; may fail with TransportError, or never answer (``connection``)."""
        return self.start(self._ask_one(address, method, words))

    def release(self, run: str, address: str) -> "futures.Future[None]":
        """End a run and remove what it left; without an address every worker is told."""
        return self.start(self._release(run, address))

    def all_runs(self) -> dict[str, str]:
        """Return every run of the event that a worker has, and the address; not those that are just being removed.

        Raises:
            TransportError: the cluster is away.
        """
        return {run: address for run, (address, _, _) in self.run(self._settled_runs(), ANSWER).items()}

    def start(self, work: Any) -> "futures.Future[Any]":
        """Have a coroutine run in the connection's thread."""
        if self._loop is None or self.client is None:
            work.close()
            failed: futures.Future[Any] = futures.Future()
            failed.set_exception(TransportError(_AWAY))
            return failed
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Any, seconds: float) -> Any:
        """Return what a coroutine gives.

        Raises:
            TransportError: it did not within ``seconds``.
        """
        asked = self.start(work)
        try:
            return asked.result(seconds)
        except (futures.TimeoutError, futures.CancelledError) as error:
            asked.cancel()
            msg = f"the Dask cluster did not answer within {seconds:g} s"
            raise TransportError(msg) from error
