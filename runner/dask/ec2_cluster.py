"""dask-cloudprovider's EC2Cluster on machines of ours: no docker, nothing secret in user data, nothing left behind.

What stays of it is the bookkeeping of SpecCluster: which workers there are to be, their start, their retirement by the
scheduler before their machine ends. See docs/adr/0006-dask-on-ec2.md for what does not stay, and why.
"""

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from dask_cloudprovider.aws.ec2 import EC2Cluster, EC2Instance, EC2Scheduler, EC2Worker
from distributed import Security
from distributed.comm.core import CommClosedError
from distributed.deploy.cluster import Cluster as DaskCluster

from runner.aws.machines import Machine
from runner.dask.fleet import SCHEDULER, Fleet, Member, inner_address
from runner.dask.programs import PORT
from runner.errors import Interrupted, RampCloudError, WorkerError

logger = logging.getLogger(__name__)
_RETIRING = 10.0  # seconds that the scheduler has for it; the machines end in any case
_LAST_WORDS = 30.0  # seconds that a launch has for its end
# EC2Cluster wants to know them; our launches look elsewhere.
_NOT_USED = {"ami": "the event's", "instance_type": "t3.medium", "vpc": "the event's", "subnet_id": "the event's"}


class _OnOurMachine(EC2Instance):  # type: ignore[misc]  # dask-cloudprovider has no types
    """A machine that ``Fleet`` launches and ends, in place of one that EC2Instance does."""

    cluster: "EventCluster"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = threading.Event()
        self.error: RampCloudError | None = None
        self.member: Member | None = None

    async def destroy_vm(self) -> None:
        """End the machine, also one that still boots."""
        self.stop.set()
        await asyncio.to_thread(self.cluster.fleet.end, self.name)


class EventScheduler(_OnOurMachine, EC2Scheduler):  # type: ignore[misc]  # dask-cloudprovider has no types
    """The scheduler, on a machine of its own; reached through SSH alone."""

    async def create_vm(self) -> tuple[str, None]:
        """Launch the machine and start the scheduler, or take the one that a dispatcher which died has left."""
        self.name = SCHEDULER
        fleet = self.cluster.fleet
        self.member = fleet.scheduler()
        if self.member is None:
            name = f"dask-scheduler-{uuid.uuid4().hex[:8]}"
            self.member = await asyncio.to_thread(fleet.launch, name, SCHEDULER, _scheduler_arguments, fleet.stop)
        self.name = self.member.name
        return inner_address(self.member.machine), None

    async def wait_for_scheduler(self) -> None:
        """Return when it takes connections, through the tunnel that is made here; at the latest by the deadline."""
        fleet = self.cluster.fleet
        await asyncio.to_thread(fleet.await_scheduler)
        self.external_address = f"tls://127.0.0.1:{fleet.tunnel().port}"


class EventWorker(_OnOurMachine, EC2Worker):  # type: ignore[misc]  # dask-cloudprovider has no types
    """A worker. Its launch goes on when ``create_vm`` has returned, so that one that boots keeps nobody waiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.name = str(self.kwargs["name"])
        self._launch = threading.Thread(target=self._work, name=f"launch-{self.name}", daemon=True)

    async def create_vm(self) -> tuple[None, None]:
        """Begin to launch the machine, unless a dispatcher which died has left it."""
        self.member = self.cluster.fleet.members().get(self.name)
        if self.member is None:
            self._launch.start()
        return None, None

    async def destroy_vm(self) -> None:
        """End the machine, also one that still boots."""
        self.stop.set()
        if self._launch.ident is not None:
            await asyncio.to_thread(self._launch.join, _LAST_WORDS)
        await super().destroy_vm()

    def _work(self) -> None:
        try:
            self.member = self.cluster.fleet.launch(self.name, "worker", self._arguments, self.stop)
        except Interrupted as error:
            if not self.stop.is_set():
                self.error = error
        except RampCloudError as error:
            self.error = error
        except Exception as error:
            logger.exception("a worker could not be launched")  # and told, for whoever waits for it
            msg = "a worker could not be launched by a defect of ramp-cloud; please report it"
            self.error = WorkerError(msg, detail=f"{type(error).__name__}: {error}")

    def _arguments(self, machine: Machine) -> list[str]:
        slots, death = self.cluster.slots, self.cluster.death
        return [
            str(self.scheduler),
            f"--host={inner_address(machine)}",
            f"--name={self.name}",
            f"--nthreads={slots}",
            f"--resources=ramp={slots}",
            f"--death-timeout={death:g}",
            "--no-nanny",  # its keeper starts it again, and knows when not to
            "--memory-limit=0",  # trainings are processes of their own
        ]


class EventCluster(EC2Cluster):  # type: ignore[misc]  # dask-cloudprovider has no types
    """A scheduler and workers of an event. Making one launches the scheduler, and blocks until it answers.

    Args:
        fleet: what launches and ends machines.
        security: the client's.
        slots: submissions that one worker trains at once.
        death: seconds that a worker waits for its scheduler.

    Raises:
        RampCloudError: why there is no scheduler; nothing is left of it.
    """

    def __init__(self, fleet: Fleet, security: Security, *, slots: int, death: float) -> None:
        self.fleet = fleet
        self.slots = slots
        self.death = death
        self.keep = False
        self._own_security = security
        try:
            # VMCluster would write the keys' paths into the configuration of the whole process; see _start.
            super().__init__(n_workers=0, security=False, protocol="tls", region="the event's", **_NOT_USED)
        except RuntimeError as error:  # what SpecCluster makes of every failure
            if isinstance(error.__cause__, RampCloudError):
                raise error.__cause__ from None
            raise

    def grow(self, count: int) -> None:
        """Begin to launch that many workers. From any thread."""
        self.sync(self._add, [f"dask-worker-{uuid.uuid4().hex[:8]}" for _ in range(count)])

    def take_over(self, names: Iterable[str]) -> None:
        """Have workers that run already, on machines which the fleet has adopted."""
        self.sync(self._add, list(names))

    def shrink(self, names: Iterable[str]) -> None:
        """Let the scheduler retire workers, and end their machines. From any thread."""
        self.sync(self._retire, sorted(names))

    def known_workers(self) -> Mapping[str, EventWorker]:
        """Return the workers that there are or will be, by name."""
        return {str(name): worker for name, worker in list(self.workers.items())}

    # -- inside --------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.scheduler_class, self.worker_class = EventScheduler, EventWorker
        self.security = self._own_security
        await super()._start()

    async def _add(self, names: Iterable[str]) -> None:
        self.worker_spec.update({name: self.new_spec for name in names})
        await self._correct_state()

    async def _retire(self, names: list[str]) -> None:
        # SpecCluster gives the scheduler names where it wants addresses, and so retires nobody.
        with contextlib.suppress(OSError, TimeoutError, CommClosedError):
            await asyncio.wait_for(self.scheduler_comm.retire_workers(names=names, remove=True), _RETIRING)
        for name in names:
            self.worker_spec.pop(name, None)
        await self._correct_state()

    def _log(self, log: str) -> None:
        logger.info("%s", log)  # not printed

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Not SpecCluster's, which would end the machine of a worker that is away for 15 s, with its trainings.
        DaskCluster._update_worker_status(self, op, msg)  # noqa: SLF001 - of our own base

    async def _close(self) -> None:
        """Let go; without ``keep`` end every machine first, whatever the scheduler has to say about it."""
        if not self.keep:
            everyone = [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]
            self.worker_spec.clear()
            self.workers.clear()
            await asyncio.gather(*(one.close() for one in everyone), return_exceptions=True)
        await DaskCluster._close(self)  # noqa: SLF001 - of our own base


def _scheduler_arguments(machine: Machine) -> list[str]:
    return [f"--host=tls://{inner_address(machine)}", f"--port={PORT}"]
