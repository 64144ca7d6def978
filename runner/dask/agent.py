"""What ramp-cloud has inside a Dask worker process: it holds slots, starts trainings there, and tells how they go.

It is sent to every worker as text, with host_files.py, preload_keeper.py, host_runs.py and host_kit.py before it in the
same namespace (see travel.py: imports of ours are one line each), so that ramp-cloud need not be installed there, and
no other version of Python misreads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin

from runner.dask.host_files import Packed
from runner.dask.host_kit import HostKit
from runner.dask.host_runs import Runs

logger = logging.getLogger("distributed.worker.ramp_cloud")

_RENEW = 5.0  # seconds between two renewals of the leases
_CLEAN = 3600.0  # seconds between two looks for what nobody asks for any more
_UNCLAIMED = 60.0  # seconds that a slot waits for its submission
_LOOK = 0.2  # seconds between two looks at a log
_MOST_LOG = 1 << 20  # bytes of a log in one answer
_MOST_RESULTS = 1 << 20  # bytes of results that come with the end
_REMEMBERED = 600.0  # seconds for which a run that was given up is not started


class Agent(WorkerPlugin):
    """The agent of one event in one worker process.

    Args:
        name: of the plugin.
        topic: where events are logged for the dispatcher.
        event: id of the event.
        mark: the resource that says that this worker was checked.
        programs: see ``Runs``.
        preload: whether trainings are forked from a process that has imported what the kit needs.
        threads: environment variables for the packages' threads.
        fence: what supervise.py is told of the fence, without the folders of this host.
        kit: keywords of ``HostKit``.
        lease: seconds for which a training goes on when no worker process of its host is there.
    """

    def __init__(
        self,
        *,
        name: str,
        topic: str,
        event: str,
        mark: str,
        programs: dict[str, str],
        preload: bool,
        threads: dict[str, str],
        fence: dict[str, Any],
        kit: dict[str, Any],
        lease: float,
    ) -> None:
        self.name = name
        self._topic = topic
        self._event = event
        self._mark = mark
        self._programs = programs
        self._preload = preload
        self._threads = threads
        self._fence = fence
        self._kit = HostKit(**kit)
        self._lease = lease
        self._trouble = ""
        self._held: dict[str, asyncio.Event] = {}  # by run: set when its slot is to be given back
        self._over: dict[str, float] = {}  # runs that were given up, and when
        self._packed: dict[str, Packed] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def setup(self, worker: Worker) -> None:
        """Find the runs of this host again, and keep them alive from now on."""
        self._worker = worker
        # Beside Dask's own scratch space: that of a worker process ends with it.
        base = Path(worker.local_directory).parent.parent / f"ramp-cloud-{_user()}"
        self._runs = Runs(base, self._event, self._programs)
        try:
            self._runs.open()
            if self._preload and self._kit.python is not None:
                self._runs.preload(
                    python=self._kit.python,
                    ramp_test=self._kit.ramp_test,
                    kit=self._kit.kit,
                    environment=self._kit.environment(self._threads),
                )
            self._runs.prepare_spare()
        except OSError as error:  # told with the facts; the worker may serve others
            self._trouble = f"its folder for runs cannot be used: {error}"
            return
        if "ramp" not in worker.state.total_resources:  # a worker that knows nothing of us
            await worker.set_resources(ramp=worker.state.nthreads)
        # Who holds a slot needs no thread, but Dask counts one for it.
        worker.state.nthreads = max(worker.state.nthreads, int(worker.state.total_resources["ramp"]))
        self._renewing = asyncio.create_task(self._renew())

    async def teardown(self, worker: Worker) -> None:
        """Let go; trainings go on under their lease, and slots stay held by those who hold them."""
        del worker
        if self._renewing is not None:
            self._renewing.cancel()
            self._runs.close()

    # -- the slot ------------------------------------------------------------------------------------------------

    async def hold(self, run: str, orders: dict[str, Any] | None, parcel: bytes | None) -> None:
        """Start a run, unless it runs here already, and return when it has ended."""
        let_go = self._held[run] = asyncio.Event()
        try:
            state = await asyncio.to_thread(self._runs.state, run)
            if run in self._over or (orders is None and state == "unknown"):
                return
            if state in ("unknown", "arriving"):
                if parcel is None:
                    self._say(run, "slot")
                    if not await self._has_come(run, let_go):
                        return
                elif not await self._has_started(run, orders, parcel):
                    return
            self._say(run, "started")
            await _first(self._runs.ended(run), let_go.wait())
        finally:
            self._held.pop(run, None)

    async def _has_come(self, run: str, let_go: asyncio.Event) -> bool:
        """Wait for a submission that is too large to come with its task."""
        give_up = time.monotonic() + _UNCLAIMED
        size = 0
        while time.monotonic() < give_up and not let_go.is_set():
            state = await asyncio.to_thread(self._runs.state, run)
            if state not in ("unknown", "arriving"):
                return True
            if state == "arriving" and (now := self._runs.arrived(run)) != size:
                size, give_up = now, time.monotonic() + _UNCLAIMED
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(let_go.wait(), _LOOK)
        if not let_go.is_set():
            self._say(run, "unclaimed")
        return False

    async def _has_started(self, run: str, orders: dict[str, Any] | None, parcel: bytes | None) -> bool:
        answer = await self.start(run, orders or {}, parcel)
        if "error" in answer:
            self._say(run, "refused", **answer)
        return "error" not in answer

    def _say(self, run: str, what: str, **more: Any) -> None:
        address = self._worker.address
        self._worker.log_event(
            self._topic, {"run": run, "what": what, "address": address, "host": self._runs.host, **more}
        )

    # -- what is asked of it; every answer can be sent as it is ----------------------------------------------------

    async def facts(self) -> dict[str, Any]:
        """Return versions and what is missing here."""
        found: dict[str, Any] = await asyncio.to_thread(self._kit.facts)
        if self._trouble:
            found["problems"] = [*found["problems"], self._trouble]
        slots = self._worker.state.total_resources.get("ramp", 0)
        return {**found, "host": self._runs.host, "name": str(self._worker.name), "slots": int(slots)}

    async def admit(self) -> bool:
        """Take runs of this event from now on."""
        if self._mark not in self._worker.state.total_resources:
            await self._worker.set_resources(**{self._mark: 1_000_000})
        return True

    async def room(self) -> dict[str, Any]:
        """Return how many slots are free, and the keys of the tasks that wait for one here."""
        state = self._worker.state
        return {
            "free": int(state.available_resources.get("ramp", 0)),
            "waiting": [str(t.key) for t in state.constrained],
        }

    async def runs(self) -> dict[str, Any]:
        """Return the host and every run that it has, with its state."""
        return {"host": self._runs.host, "runs": await asyncio.to_thread(self._runs.all), "held": list(self._held)}

    async def receive(self, run: str, offset: int, data: bytes) -> dict[str, Any]:
        """Take a part of a submission."""
        try:
            return {"size": await asyncio.to_thread(self._runs.receive, run, offset, data)}
        except OSError as error:
            return _failure(error)

    async def start(self, run: str, orders: dict[str, Any], parcel: bytes | None) -> dict[str, Any]:
        """Start a run; nothing happens when it has been started before."""
        spec = {
            "command": self._kit.command(orders["submission"]),
            "env": self._kit.environment(self._threads),
            "cwd": str(self._kit.kit),
            "lease": self._lease,
            "nice": 5,  # what serves the cluster stays responsive while every core trains
            "oom_score": 500,  # the training is to end for want of memory, not the worker
            **self._fence,
            **{key: orders[key] for key in ("timeout", "max_output", "max_log", "memory")},
        }
        if "fence" in spec:
            spec["fence"] = {
                **spec["fence"],
                "readable": [*spec["fence"]["readable"], str(self._kit.kit), str(self._kit.data / "data")],
            }
        try:
            await asyncio.to_thread(self._runs.start, run, parcel, orders["submission"], spec)
        except OSError as error:
            return _failure(error)
        self._worker.loop.call_later(_LOOK, self._prepare_spare)
        return {"host": self._runs.host}

    async def follow(self, run: str, offset: int, folds: int, seconds: float) -> dict[str, Any]:
        """Return what is new: the log from ``offset`` on, folds, and the outcome with the first of the results.

        Returns at once at the end, soon after the log has grown or another fold is done, else after ``seconds``.
        """
        give_up = time.monotonic() + seconds
        end = asyncio.create_task(self._runs.ended(run))
        try:
            while (left := give_up - time.monotonic()) > 0 and not end.done():
                grown = self._runs.log_size(run) > offset or self._runs.folds(run, folds) > folds
                await asyncio.wait([end], timeout=min(_LOOK, left))
                if grown:
                    break
        finally:
            end.cancel()
        return await asyncio.to_thread(self._tell, run, offset, folds)

    def _tell(self, run: str, offset: int, folds: int) -> dict[str, Any]:
        state = self._runs.state(run)
        log = self._runs.log(run, offset, _MOST_LOG)
        answer: dict[str, Any] = {"state": state, "log": log, "free": self._runs.free_bytes()}
        answer["folds"] = self._runs.folds(run, folds)
        if state == "ended" and len(log) < _MOST_LOG:
            answer["outcome"] = self._runs.outcome(run)
            answer.update(self._read_results(run, 0, _MOST_RESULTS))
        return answer

    async def results(self, run: str, position: int, size: int) -> dict[str, Any]:
        """Return a part of the archive of training_output."""
        return await asyncio.to_thread(self._read_results, run, position, size)

    def _read_results(self, run: str, position: int, size: int) -> dict[str, Any]:
        packed = self._packed.pop(run, None)
        if packed is None or packed.position != position:
            output = self._runs.output(run)
            if output is None:
                return {"results": bytes(1024), "is_whole": True, "position": 0}  # an archive of nothing
            packed = Packed(output)
            while packed.position < position and packed.read(min(_MOST_RESULTS, position - packed.position)):
                pass  # the connection was lost on the way; what was sent is passed over
        answer = {"position": packed.position, "results": packed.read(size), "is_whole": packed.is_whole}
        if not packed.is_whole:
            self._packed[run] = packed
        return answer

    async def release(self, runs: list[str]) -> bool:
        """End runs and remove what they left. "Already gone" is success."""
        now = time.monotonic()
        self._over = {run: since for run, since in self._over.items() if now - since < _REMEMBERED}
        self._over.update(dict.fromkeys(runs, now))
        for run in runs:
            self._packed.pop(run, None)
            if run in self._held:
                self._held[run].set()
        await asyncio.gather(*(asyncio.to_thread(self._runs.release, run) for run in runs))
        return True

    # -- in the background ---------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        next_cleaning = time.monotonic()
        while True:
            try:
                await asyncio.to_thread(self._runs.renew)
                if time.monotonic() >= next_cleaning:
                    next_cleaning = time.monotonic() + _CLEAN
                    await asyncio.to_thread(self._runs.clean)
            except OSError as error:
                logger.warning("the runs of %s cannot be looked after: %s", self._event, error)
            await asyncio.sleep(_RENEW)

    def _prepare_spare(self) -> None:
        with contextlib.suppress(OSError):  # then the next start makes its own, and tells what is wrong
            self._runs.prepare_spare()


async def _first(*awaitables: Any) -> None:
    """Return when one of them has returned."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _failure(error: OSError) -> dict[str, Any]:
    return {"error": str(error), "is_full": error.errno in (errno.ENOSPC, errno.EDQUOT)}


def _user() -> int:
    import os

    return os.getuid()
