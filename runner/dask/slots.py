"""Which submissions have a slot of the cluster, and which wait for one; Dask's own queue decides who is next."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from runner.dask.agents import LOST, Agents
from runner.dask.claims import Claim
from runner.dask.travel import Errand

_HOLD = Errand("hold")


class Slots:
    """The claims of one event. What changes for a claim is told by its ``ring``.

    Args:
        agents: who are asked.
        name: of the plugin that they are.
        mark: the resource that says that a worker was checked.
        trouble: called when a connection turns out to be lost, from any thread.
    """

    def __init__(self, agents: Agents, *, name: str, mark: str, trouble: Callable[[], None]) -> None:
        self._agents = agents
        self._name, self._mark = name, mark
        self._trouble = trouble
        self._lock = threading.RLock()
        self._claims: dict[str, Claim] = {}
        self._admitted: set[str] = set()  # addresses of workers that may have any

    # -- claims --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def waiting(self) -> int:
        """How many submissions wait for a slot."""
        with self._lock:
            return sum(1 for claim in self._claims.values() if not claim.is_started)

    @property
    def has_started(self) -> bool:
        """Whether a submission trains, as far as is known."""
        with self._lock:
            return any(claim.is_started for claim in self._claims.values())

    def add(self, claim: Claim, *, ask: bool) -> None:
        """Remember a claim, and ask the scheduler for its slot unless it may have one already."""
        with self._lock:
            self._claims[claim.run] = claim
            if ask:
                self._submit(claim)

    def remove(self, claim: Claim) -> bool:
        """Forget a claim; returns whether it was there."""
        with self._lock:
            if self._claims.pop(claim.run, None) is None:
                return False
            claim.is_over = True
            claim.let_go()
            return True

    # -- workers -------------------------------------------------------------------------------------------------

    def is_admitted(self, address: str) -> bool:
        """Whether a worker may have submissions."""
        return address in self._admitted

    def admit(self, addresses: list[str]) -> None:
        """Let workers have submissions."""
        with self._lock:
            were_none = not self._admitted
            self._admitted.update(addresses)
            if were_none and addresses:  # Dask does not look again at what no worker could take
                for claim in self._claims.values():
                    if not claim.is_started:
                        self._submit(claim)

    async def find(self, addresses: list[str]) -> None:
        """Tell claims where their runs are."""
        for run, (address, host, state) in (await self._agents.runs(addresses)).items():
            with self._lock:
                claim = self._claims.get(run)
                if claim is None or (claim.address and claim.is_started) or state in ("unknown", "arriving"):
                    continue
                claim.address, claim.host, claim.is_started = address, host, True
                if state == "running":
                    self._submit(claim)
            claim.ring()

    def lose(self, address: str) -> None:
        """Note that a worker is gone; another one of the same host will do."""
        with self._lock:
            self._admitted.discard(address)
        self._move(lambda claim: claim.address == address)

    def disconnected(self) -> None:
        """Note that nobody can be reached, and that the scheduler may have forgotten what it was asked."""
        with self._lock:
            self._admitted.clear()
            for claim in self._claims.values():
                claim.future = None

    def lose_all(self) -> None:
        """Tell every claim that it is out of reach."""
        self._move(lambda _: True)

    def _move(self, which: Callable[[Claim], bool]) -> None:
        with self._lock:
            lost = [claim for claim in self._claims.values() if which(claim)]
            for claim in lost:
                claim.address = self._agents.address_on(claim.host) if claim.is_started else ""
        for claim in lost:
            claim.ring()

    async def spread(self) -> None:
        """Move what waits behind others to where a slot is free.

        Dask does so by itself as long as each worker has as many threads as slots; it looks at threads only.
        """
        rooms = await self._agents.ask_all(sorted(self._admitted), "room")
        stuck = {key for room in rooms.values() for key in room["waiting"]}
        free = [at for at, room in rooms.items() for _ in range(room["free"] - len(room["waiting"]))]
        with self._lock:
            for claim in self._claims.values():
                if free and not claim.is_started and claim.future is not None and claim.future.key in stuck:
                    self._submit(claim, at=free.pop())

    # -- Dask's queue --------------------------------------------------------------------------------------------

    def _submit(self, claim: Claim, *, at: str = "") -> None:
        """Ask the scheduler for a slot: the one that the run has, one at an address, or any. The lock must be held."""
        client = self._agents.client
        if client is None or claim.is_over or (not claim.is_started and not self._admitted):
            return
        claim.let_go()
        claim.asked += 1
        words = (None, None) if claim.is_started else (claim.orders, claim.parcel)
        try:
            claim.future = client.submit(
                _HOLD,
                self._name,
                claim.run,
                *words,
                key=f"ramp-{claim.run}-{claim.asked}",
                resources={"ramp": 1} if claim.is_started else {"ramp": 1, self._mark: 1},
                workers=[place] if (place := claim.address if claim.is_started else at) else None,
                pure=False,
            )
        except LOST:
            self._trouble()  # asked again with the next connection
            return
        claim.future.add_done_callback(partial(self._ended, claim))

    @staticmethod
    def _ended(claim: Claim, future: Any) -> None:
        is_current = claim.future is future
        if is_current and future.status == "error" and not claim.is_started:
            claim.error = {"error": f"Dask gave it up: {future.exception()!r}"}
            claim.ring()

    def heard(self, event: tuple[float, Any]) -> None:
        """Take an agent's word on what became of a run."""
        said = event[1]
        with self._lock:
            claim = self._claims.get(said["run"])
            if claim is None:
                return
            if claim.is_started and claim.host != said["host"]:
                # Its worker was lost, and Dask started it once more: that is for the store to decide.
                self._agents.release(claim.run, said["address"])
                return
            if said["what"] in ("slot", "started"):
                claim.address, claim.host = said["address"], said["host"]
                claim.is_started = claim.is_started or said["what"] == "started"
                claim.parcel = None if claim.is_started else claim.parcel
            else:
                claim.error = {"error": said["what"], **said}
        claim.ring()
