"""All machines of a rehearsal, the event loop they live in, and the faults that wait for them."""

import asyncio
import functools
import shutil
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil

from runner.errors import UsageError
from runner.rehearsal import furniture
from runner.rehearsal.computer import RealComputer
from runner.rehearsal.faults import (
    Armed,
    AtStage,
    ConnectionFault,
    DiskFull,
    Fault,
    MachineFault,
    NeverBoots,
    ResultsCut,
    SpotInterruption,
    SshDropped,
    SshHanging,
    SshRefused,
    Stage,
)
from runner.rehearsal.homes import Homes
from runner.rehearsal.machine import ITSELF, USER, Birth, Computer, Machine, Reason
from runner.rehearsal.openssh import OpensshComputer
from runner.rehearsal.power import Power
from runner.rehearsal.settings import Settings
from runner.rehearsal.simulated import SimulatedComputer
from runner.rehearsal.trainings import Lookout, Trainings

T = TypeVar("T")
ACTIONS = ("kill", "stop", "shutdown", "notice", "drop-ssh", "hang-ssh")
_COPIES = 4  # images that are made at once
_SEEN_BY_OPENSSH = {Stage.BOOT, Stage.CONNECT}


class Hall:
    """Makes machines and ends them. All methods may be called from any thread.

    Args:
        root: folder for the machines' own folders, the images' and what all machines share.

    Attributes:
        homes: what the images hold.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.settings = settings
        self.faults = Armed(settings.seed)
        self.trainings = Trainings()
        self._folder = root.resolve() / "machines"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stand_ins = root.resolve() / "stand-ins"
        furniture.build(self._stand_ins)
        self.homes = Homes(root.resolve() / "images")
        self._working = ThreadPoolExecutor(_COPIES, thread_name_prefix="images")
        self._work: list[Future[None]] = []
        self._hurry = threading.Event()
        self._machines: dict[str, Machine] = {}
        self._power = Power(self._folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="machines", daemon=True)
        self._thread.start()
        self._lookout = Lookout(self.trainings, self._homes)

    def add(self, birth: Birth, moved: Callable[[Machine], None]) -> Machine:
        """Make a machine and let it boot. ``moved`` is told its states, from any thread."""

        def is_meant(fault: MachineFault) -> bool:
            if isinstance(fault, SpotInterruption) and birth.market != "spot":
                return False
            return fault.covers(birth.id, birth.instance_type, birth.market)

        machine = Machine(
            birth,
            self.settings,
            self._computer(birth),
            faults=self.faults.strike(MachineFault, is_meant),
            loop=self._loop,
            moved=moved,
        )
        self._machines[birth.id] = machine
        self._loop.call_soon_threadsafe(lambda: machine.switch_on(first=True))
        return machine

    def machines(self) -> list[Machine]:
        """Return all machines since the last reset, in the order of their launch."""
        return list(self._machines.values())

    def find(self, instance: str) -> Machine | None:
        """Return a machine by the instance's id."""
        return self._machines.get(instance)

    def get(self, instance: str) -> Machine:
        """Return a machine by the instance's id.

        Raises:
            UsageError: there is none.
        """
        machine = self.find(instance)
        if machine is None:
            msg = f"no instance {instance} in this rehearsal; GET /rehearsal/state lists them"
            raise UsageError(msg)
        return machine

    def start(self, machine: Machine) -> None:
        """Boot a machine that was stopped."""
        self._loop.call_soon_threadsafe(machine.restart)

    def act(self, instance: str, what: str, seconds: float) -> None:
        """Do something to a machine now.

        Args:
            what: one of ``ACTIONS``: kill (terminated from outside), stop, shutdown (by itself), notice (a spot notice
                ``seconds`` before the end), drop-ssh (all connections break), hang-ssh (new ones too get no answer).

        Raises:
            UsageError: there is no such machine, or no such action.
        """
        machine = self.get(instance)
        if what == "kill":
            machine.end(Reason(code="Server.InternalError", message="Server.InternalError: killed by the rehearsal"))
        elif what == "stop":
            machine.end(USER, stop=True)
        elif what == "shutdown":
            machine.end(ITSELF, stop=not machine.birth.ends_on_shutdown)
        elif what == "notice":
            self.run_in_loop(lambda: machine.interrupt(seconds))
        elif what == "drop-ssh":
            self.run_in_loop(machine.computer.drop_connections)
        elif what == "hang-ssh":
            self.arm([SshHanging(instance=instance)])
            self.run_in_loop(machine.computer.drop_connections)
        else:
            msg = f"{what} cannot be done to a machine; choose from {', '.join(ACTIONS)}"
            raise UsageError(msg)

    def arm(self, faults: list[Fault]) -> None:
        """Arm faults; one that names an instance which is there strikes it.

        Raises:
            UsageError: OpenSSH's own sshd does not tell what it is asked to do, so that fault cannot happen; or the
                machine that it names is past the moment.
        """
        for fault in faults:
            if self.settings.sshd == "openssh" and _needs_our_sshd(fault):
                msg = f"{type(fault).__name__}: not with sshd openssh, which does not tell; use sshd emulated"
                raise UsageError(msg)
            if isinstance(fault, SshRefused | NeverBoots) and self.find(fault.instance):
                msg = f"{type(fault).__name__} strikes a machine when it boots, and {fault.instance} has; arm it before"
                raise UsageError(msg)
        for fault in faults:
            machine = self.find(fault.instance) if isinstance(fault, MachineFault) else None
            if machine and isinstance(fault, MachineFault):
                self.run_in_loop(functools.partial(machine.add_fault, fault))
            else:
                self.faults.arm([fault])

    def processes(self, *instances: str) -> dict[str, list[dict[str, Any]]]:
        """Return the live processes of these machines, or of all, as pid and command. Looks at the whole host."""
        if self.settings.trainings == "simulated":
            return {}
        found = self._power.processes(set(instances or self._machines))
        return {machine: [_described(process) for process in processes] for machine, processes in found.items()}

    def work(self, machine: Machine, work: Callable[[], None]) -> None:
        """Do something with a machine in a thread of its own; a defect in it is the machine's."""

        def do() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told among the defects
                machine.failure = error

        self._work.append(self._working.submit(do))

    def wait(self, seconds: float) -> None:
        """Wait, within ``work``; shorter when all ends."""
        self._hurry.wait(seconds)

    def power_cycle(self, machine: Machine, meanwhile: Callable[[], None]) -> None:
        """Switch a machine off, do something, and let it boot again; its state stays what it is. Within ``work``."""
        self._in_loop(machine.down())
        try:
            meanwhile()
        finally:
            self._loop.call_soon_threadsafe(machine.up)

    def reset(self, settings: Settings) -> None:
        """End all machines, and forget them and all faults. Returns when nothing of them is left.

        Args:
            settings: for the machines that come.
        """
        self.faults.clear()
        for machine in self.machines():
            machine.end(USER)
        self._in_loop(self._all_off())
        self._hurry.set()
        for work in self._work:
            work.result()
        self._work.clear()
        self._hurry.clear()
        self._machines.clear()
        self.trainings.forget()
        self.settings = settings
        self.faults = Armed(settings.seed)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """End everything: no machine and no thread is left."""
        self.reset(self.settings)
        self._working.shutdown()
        self._lookout.close()
        self._power.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run_in_loop(self, work: Callable[[], T]) -> T:
        """Do something in the machines' event loop and return what it gives."""

        async def call() -> T:
            return work()

        return self._in_loop(call())

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _all_off(self) -> None:
        await asyncio.gather(*(machine.is_over.wait() for machine in self.machines()))

    def _computer(self, birth: Birth) -> Computer:
        if self.settings.trainings == "simulated":
            return SimulatedComputer(self._folder / birth.id, self.trainings)
        kind = OpensshComputer if self.settings.sshd == "openssh" else RealComputer
        return kind(self._folder / birth.id, self._power, self.homes, self._stand_ins)

    def _homes(self) -> dict[str, Path]:
        return {
            machine.birth.id: machine.computer.home
            for machine in self.machines()
            if machine.is_on and isinstance(machine.computer, RealComputer)
        }


def _needs_our_sshd(fault: Fault) -> bool:
    if isinstance(fault, AtStage):
        return fault.stage not in _SEEN_BY_OPENSSH or (isinstance(fault, SshDropped) and fault.after_bytes is not None)
    return isinstance(fault, ConnectionFault | DiskFull | ResultsCut)


def _described(process: psutil.Process) -> dict[str, Any]:
    try:
        return {"pid": process.pid, "command": process.cmdline()}
    except (OSError, psutil.Error):
        return {"pid": process.pid, "command": []}
