"""One emulated instance from its launch to its end: states, delays, stages, and the faults that strike it."""

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runner.rehearsal.faults import (
    AtStage,
    ConnectionFault,
    MachineFault,
    NeverBoots,
    SpotInterruption,
    SshDropped,
    SshRefused,
    Stage,
    StoppedFromOutside,
    SuddenDeath,
)
from runner.rehearsal.settings import Settings

_CONSOLE = 64 * 1024  # bytes that GetConsoleOutput keeps


@dataclass(frozen=True, kw_only=True)
class Birth:
    """What the launch says about an instance."""

    id: str
    address: str
    instance_type: str
    market: str  # spot or on-demand
    zone: str
    user_data: bytes
    public_key: str  # as in authorized_keys; "" lets nobody in
    ends_on_shutdown: bool  # InstanceInitiatedShutdownBehavior is terminate
    tags: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    architecture: str = "x86_64"
    gpus: tuple[tuple[str, int], ...] = ()  # name and MiB of each
    bare: bool = False  # nothing of settings.image.path is on PATH
    imds_enabled: bool = True
    imds_needs_token: bool = True


@dataclass(frozen=True, kw_only=True)
class Reason:
    """AWS's StateReason."""

    code: str = ""
    message: str = ""


USER = Reason(code="Client.UserInitiatedShutdown", message="Client.UserInitiatedShutdown: User initiated shutdown")
ITSELF = Reason(
    code="Client.InstanceInitiatedShutdown",
    message="Client.InstanceInitiatedShutdown: Instance initiated shutdown",
)
SPOT = Reason(
    code="Server.SpotInstanceTermination", message="Server.SpotInstanceTermination: Spot instance termination"
)
NO_REASON = Reason()


class Computer(ABC):
    """What runs on a machine: real processes or the imitation of some. All methods are called in the event loop.

    Attributes:
        machine: set when the machine is made, before any call.
    """

    machine: "Machine"

    @abstractmethod
    async def start(self) -> None:
        """Get ready: called once per boot."""

    @abstractmethod
    async def first_boot(self) -> None:
        """Do what the user data asks for."""

    @abstractmethod
    async def serve(self) -> None:
        """Let others log in."""

    @abstractmethod
    def drop_connections(self) -> None:
        """Break all connections; what runs goes on."""

    @abstractmethod
    async def warn(self) -> None:
        """Tell what runs that the machine shuts down; ``off`` follows after ``shutdown_seconds``."""

    @abstractmethod
    async def off(self) -> None:
        """Cut the power: nothing runs and nothing listens afterwards. Also when it was never on."""


@dataclass
class Notice:
    """A spot notice, as the metadata service shows it."""

    action: str
    time: float  # seconds since 1970

    @property
    def time_text(self) -> str:
        """The time as AWS writes it."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Facts:
    """What is counted about a machine."""

    launched: float = field(default_factory=time.time)
    ended: float | None = None
    connections: int = 0
    stages: dict[Stage, float] = field(default_factory=dict)
    console: bytearray = field(default_factory=bytearray)


class Machine:
    """One instance. ``state`` is EC2's; methods are called in the event loop unless they say otherwise.

    Args:
        loop: the event loop that the machine lives in.
        moved: told every new state, from any thread.
    """

    def __init__(
        self,
        birth: Birth,
        settings: Settings,
        computer: Computer,
        *,
        faults: list[MachineFault],
        loop: asyncio.AbstractEventLoop,
        moved: "Callable[[Machine], None]",
    ) -> None:
        self.birth = birth
        self.settings = settings
        self.computer = computer
        computer.machine = self
        self.faults = faults
        self.facts = Facts()
        self.state = "pending"
        self.reason = NO_REASON
        self.notice: Notice | None = None
        self.noticed = asyncio.Event()
        self.failure: BaseException | None = None  # a defect of the emulation itself
        self._loop = loop
        self._moved = moved
        self._lock = threading.Lock()
        self.is_over = asyncio.Event()  # nothing of it is left; set in the event loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stage_timers: list[asyncio.TimerHandle] = []
        self._conn_faults_left = {
            id(fault): fault.connections for fault in faults if isinstance(fault, ConnectionFault)
        }

    # -- life ----------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether it boots or runs."""
        return self.state in {"pending", "running"}

    def switch_on(self, *, first: bool) -> None:
        """Boot."""
        self._spawn(self._boot(first=first))

    def restart(self) -> None:
        """Boot again after it was stopped."""
        with self._lock:
            if self.state != "stopped":
                return
            self.facts.ended = None
            self._move("pending", NO_REASON)
        self.is_over.clear()
        self.switch_on(first=False)

    def end(self, reason: Reason, *, stop: bool = False) -> None:
        """Shut down, to be terminated or only stopped. May be called from any thread, and again."""
        with self._lock:
            if self.state in {"terminated", "shutting-down"} or (stop and not self.is_on):
                return
            self._move("stopping" if stop else "shutting-down", reason)
            self.facts.ended = time.time()
        final = "stopped" if stop else "terminated"
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._power_off(final)))

    def reboot(self) -> None:
        """Switch off and on again; the state stays what it is."""
        self._spawn(self._off_and_on())

    async def down(self) -> None:
        """Cut the power, unless the machine ends; nothing runs afterwards, and the timer of `shutdown` is forgotten."""
        await asyncio.wait([self._spawn(self._down())])  # its end comes first, and cancels this

    def up(self) -> None:
        """Boot again after ``down``, unless the machine ends."""
        self._spawn(self._boot(first=False))

    def interrupt(self, seconds: float) -> None:
        """Give a spot notice, and end when it is over."""
        if not self.is_on:
            return
        self.notice = Notice(action="terminate", time=time.time() + seconds)
        self.noticed.set()
        self.say(f"rehearsal: spot notice, {seconds:g} s")
        self._stage_timers.append(self._loop.call_later(seconds, self.end, SPOT))

    def shutdown_in(self, seconds: float | None) -> None:
        """Set the timer of `shutdown`, or with None cancel it."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._shut_itself_down)

    def reach(self, stage: Stage) -> None:
        """Note that a stage is reached for the first time, and let happen what waits for it."""
        if stage in self.facts.stages or not self.is_on:
            return
        self.facts.stages[stage] = time.time()
        for fault in self.faults:
            if isinstance(fault, AtStage) and fault.stage is stage:
                if isinstance(fault, SshDropped) and fault.after_bytes is not None:
                    continue
                self._stage_timers.append(self._loop.call_later(fault.seconds, self._strike, fault))

    def add_fault(self, fault: MachineFault) -> None:
        """Let a fault strike from now on; one that waits for a stage that has passed strikes at once."""
        self.faults.append(fault)
        if isinstance(fault, ConnectionFault):
            self._conn_faults_left[id(fault)] = fault.connections
        if isinstance(fault, AtStage) and fault.stage in self.facts.stages:
            self._stage_timers.append(self._loop.call_later(fault.seconds, self._strike, fault))

    def connection_fault(self) -> ConnectionFault | None:
        """Return the fault that strikes the connection being made, if any."""
        for fault in self.faults:
            if isinstance(fault, ConnectionFault):
                left = self._conn_faults_left[id(fault)]
                if left is None or left > 0:
                    self._conn_faults_left[id(fault)] = None if left is None else left - 1
                    return fault
        return None

    def bytes_until_drop(self) -> int | None:
        """Return after how many bytes connections break, None for never; only once its stage is reached."""
        for fault in self.faults:
            if isinstance(fault, SshDropped) and fault.after_bytes is not None and fault.stage in self.facts.stages:
                return fault.after_bytes
        return None

    def forget(self, fault: MachineFault) -> None:
        """Remove a fault that has done its work."""
        with contextlib.suppress(ValueError):
            self.faults.remove(fault)

    def say(self, text: str | bytes) -> None:
        """Write to the console."""
        console = self.facts.console
        console += text if isinstance(text, bytes) else f"{text}\n".encode()
        del console[: max(0, len(console) - _CONSOLE)]

    # -- inside --------------------------------------------------------------------------------------------------

    async def _boot(self, *, first: bool) -> None:
        if not self.is_on:
            return
        never = next((fault for fault in self.faults if isinstance(fault, NeverBoots)), None)
        began = self._loop.time()
        await self.computer.start()
        await self._sleep_until(began + self.settings.boot_seconds)
        if never and never.state == "pending":
            return
        with self._lock:
            if not self.is_on:
                return
            if self.state == "pending":
                self._move("running", NO_REASON)
        self.reach(Stage.BOOT)
        if never:
            self.say("rehearsal: this machine hangs before its sshd starts")
            return
        if first:
            self._spawn(self.computer.first_boot())
        await self._serve(began)

    async def _serve(self, began: float) -> None:
        await self._sleep_until(began + self.settings.ssh_seconds)
        for fault in self.faults:
            if isinstance(fault, SshRefused):
                self.say("rehearsal: sshd does not start")
                if fault.seconds is None:
                    return
                await asyncio.sleep(fault.seconds)
        if self.is_on:
            await self.computer.serve()
            self.say("rehearsal: sshd answers")

    async def _sleep_until(self, moment: float) -> None:
        if moment > self._loop.time():
            await asyncio.sleep(moment - self._loop.time())

    async def _power_off(self, state: str) -> None:
        began = self._loop.time()
        for timer in self._stage_timers:
            timer.cancel()
        self.shutdown_in(None)
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self.reason in {USER, ITSELF, SPOT} and self.settings.shutdown_seconds:
            await self.computer.warn()
            await self._sleep_until(began + self.settings.shutdown_seconds)
        await self.computer.off()
        await self._sleep_until(began + self.settings.shutdown_seconds)
        with self._lock:
            if self.state in {"shutting-down", "stopping"}:
                self._move(state, self.reason)
        self.is_over.set()

    async def _off_and_on(self) -> None:
        await self._down()
        await self._boot(first=False)

    async def _down(self) -> None:
        if self.is_on:
            self.say("rehearsal: switched off and on again")
            self.shutdown_in(None)
            others = self._tasks - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self.computer.off()

    def _shut_itself_down(self) -> None:
        self.say("rehearsal: shutdown")
        self.end(ITSELF, stop=not self.birth.ends_on_shutdown)

    def _strike(self, fault: MachineFault) -> None:
        if isinstance(fault, SpotInterruption):
            self.interrupt(fault.notice_seconds)
        elif isinstance(fault, SuddenDeath):
            self.end(Reason(code=fault.code, message=f"{fault.code}: the rehearsal ended it"))
        elif isinstance(fault, StoppedFromOutside):
            self.end(USER, stop=True)
        elif isinstance(fault, SshDropped):
            self.computer.drop_connections()

    def _move(self, state: str, reason: Reason) -> None:
        self.state, self.reason = state, reason
        self._moved(self)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self.say(f"rehearsal: failed: {task.exception()!r}")
            self.failure = task.exception()
