"""The instances of one event: who has which, what AWS says of them, and their end.

One thread asks AWS about all of them in one call; another ends them, as many as there are, in one call.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.aws.answers import Instance
from runner.aws.ec2 import SETTLING, Ec2
from runner.aws.launcher import Launcher, Request
from runner.aws.pools import COOL_DOWN, ON_DEMAND, Pool
from runner.aws.tags import HOST_KEY, KEEP, runs_of
from runner.errors import AwsError, Interrupted, RampCloudError, TransportError, WorkerError
from runner.transport.base import Transport

logger = logging.getLogger(__name__)

OVER = frozenset({"shutting-down", "terminated", "stopping", "stopped"})
_END_TOGETHER = 0.1  # seconds that the ender collects for
_ANSWER = 4.0  # seconds that AWS has for telling how the instances are
_LAST_WORDS = 1.0  # seconds that a thread has for its end
_CONSOLE_LINES = 40

Connect = Callable[[str, str], Transport]  # address, host key


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long things may take, in seconds. For platforms that are slower, and for tests."""

    boot: float = 600.0  # from the launch until SSH answers
    silence: float = 300.0  # that a running instance may be out of reach
    handshake: float = 15.0  # for an SSH server's first word, for the handshake, and for the login
    deaf: float = 60.0  # that an instance may answer while the watch of its training does not
    settling: float = SETTLING  # after a launch, in which AWS may not know an instance yet
    end: float = 20.0  # that a life waits for the end of its instance
    idle: float = 60.0  # that a machine may wait for another submission
    cool_down: float = COOL_DOWN  # in which a pool without capacity is left alone
    look_soon: float = 1.0  # between two looks at what AWS says, while somebody waits for news
    look: float = 15.0  # between two looks otherwise, and the longest pause after a call that failed


@dataclass(kw_only=True)
class Machine:
    """An instance that a life has, and the one connection to it."""

    instance: Instance
    address: str
    host_key: str
    transport: Transport
    uses: int = 1
    idle_since: float = 0.0


class Machines:
    """All instances of an event, for all lives. Thread-safe.

    Args:
        ec2, launcher: the way to AWS.
        connect: makes a connection to an address that shows a host key; raises TransportError.
        wait_for_ssh: repeats a connect until it works; see runner.transport.ssh.
        owner, event_id: whose instances these are.
        host_key: the public host key of what the launcher launches.
        there: what AWS knew of them just now; an attempt that is found again looks for its own among these.
        uses: submissions that one instance may serve, one after the other.
        patience: how long things may take.
    """

    def __init__(
        self,
        ec2: Ec2,
        launcher: Launcher,
        *,
        connect: Connect,
        wait_for_ssh: Callable[..., Transport],
        owner: str,
        event_id: str,
        host_key: str,
        there: Iterable[Instance] = (),
        uses: int = 1,
        patience: Patience | None = None,
    ) -> None:
        self._ec2 = ec2
        self._launcher = launcher
        self._connect = connect
        self._wait_for_ssh = wait_for_ssh
        self._owner = owner
        self._event_id = event_id
        self._host_key = host_key
        self._uses = uses
        self._patience = patience or Patience()
        self._news = threading.Condition()
        self._seen = {instance.id: instance for instance in there}
        self._looked = float("-inf")  # by the monotonic clock; when the newest answer was asked for
        self._waiting = 0  # lives that wait for news
        self._held: dict[str, float] = {}  # instances of lives, and since when
        self._idle: list[Machine] = []
        self._to_end: dict[str, threading.Event] = {}
        self._closed = False
        self._threads: list[threading.Thread] = []

    # -- for a life ----------------------------------------------------------------------------------------------

    def acquire(self, request: Request, stop: threading.Event) -> Machine:
        """Return a machine that answers, for one submission. Blocks until then; ``stop`` ends the wait.

        Raises:
            NoRoom: AWS has none now.
            LaunchStopped: there will be none.
            WorkerError: an instance did not boot, or AWS does not answer.
            Interrupted: it was taken away while it booted, or ``stop`` was set.
        """
        machine = self._take_idle()
        if machine is not None:
            return machine
        self._start_threads()
        instance, host_key = self._take_over(request.run), self._host_key
        if instance is not None:
            self._launcher.adopt([instance.id])
            host_key = instance.tags.get(HOST_KEY, "")
        else:
            instance = self._launcher.launch(request, stop)
            with self._news:
                self._held[instance.id] = time.monotonic()
        try:
            return self._boot(instance, host_key, stop)
        except BaseException:
            self._end(instance.id)
            raise

    def adopt(self, instance_id: str, *, address: str, host_key: str, stop: threading.Event) -> Machine:
        """Find an instance again that another dispatcher launched, and connect.

        Raises:
            Interrupted: it is gone or out of reach.
        """
        with self._news:
            self._held[instance_id] = time.monotonic() - self._patience.settling
        self._launcher.adopt([instance_id])
        self._start_threads()
        deadline = time.monotonic() + self._patience.silence
        try:
            instance = self._await_sight(instance_id, stop, deadline)
            transport = self._reach(instance_id, address, host_key, stop, deadline)
        except BaseException:
            self._end(instance_id)  # nobody else will: its attempt is over
            raise
        return Machine(instance=instance, address=address, host_key=host_key, transport=transport)

    def reconnect(self, machine: Machine, stop: threading.Event) -> None:
        """Make the connection anew after it broke; the training goes on meanwhile.

        Raises:
            Interrupted: the instance is gone, or out of reach for too long; or ``stop`` was set.
        """
        machine.transport.close()
        self.look()
        deadline = time.monotonic() + self._patience.silence
        machine.transport = self._reach(machine.instance.id, machine.address, machine.host_key, stop, deadline)

    def release(self, machine: Machine, *, reusable: bool = False, keep_minutes: float = 0) -> None:
        """Give a machine back: to the next submission, to be looked at for a while, or to its end."""
        instance_id = machine.instance.id
        if keep_minutes and self._keep(machine, keep_minutes):
            with self._news:
                self._held.pop(instance_id, None)
        elif reusable and machine.uses < self._uses and machine.transport.is_open and not self._closed:
            machine.idle_since = time.monotonic()
            with self._news:
                self._idle.append(machine)
                self._news.notify_all()
            return
        else:
            self._end(instance_id)
        machine.transport.close()

    def taken_away(self, machine: Machine) -> None:
        """Note that AWS takes a spot instance back: its pool is left alone for a while."""
        self._launcher.exclude(_pool_of(machine.instance), why="AWS took a spot instance back")

    def gone(self, instance_id: str) -> str | None:
        """Return why an instance does not run any more, as far as the last look tells; None while it does."""
        with self._news:
            instance = self._seen.get(instance_id)
            known_by = self._held.get(instance_id, float("-inf")) + self._patience.settling
            if instance is None:
                # Right after a launch AWS may not find its own instance yet.
                return "AWS does not know it any more" if self._looked > known_by else None
        return (instance.reason or instance.state) if instance.state in OVER else None

    def lost(self, machine: Machine) -> str | None:
        """Ask anew whether an instance runs: return why not; does what ``taken_away`` does where AWS took it back."""
        self.look()
        reason = self.gone(machine.instance.id)
        if reason and _is_taken_back(machine.instance, reason):
            self.taken_away(machine)
        return reason

    def look(self) -> None:
        """Return when AWS has been asked anew, or has not answered for a while."""
        asked = time.monotonic()
        with self._news:
            self._waiting += 1
            self._news.notify_all()
            self._news.wait_for(lambda: self._looked >= asked or self._closed, timeout=_ANSWER)
            self._waiting -= 1

    # -- for the event -------------------------------------------------------------------------------------------

    def sweep(self, live: Callable[[], Mapping[str, Mapping[str, Any] | None]]) -> list[str]:
        """End the instances of this event that belong to no attempt, and return what they were, in words.

        An attempt without a handle may be booting any instance of its batch, so these are left until it has one.
        """
        self._look()
        with self._news:
            found = [instance for instance in self._seen.values() if _is_up(instance)]
        if not found:
            return []
        attempts = live()
        with self._news:
            known = set(self._held) | {machine.instance.id for machine in self._idle} | set(self._to_end)
        known |= {str(handle.get("instance")) for handle in attempts.values() if handle}
        booting = {run for run, handle in attempts.items() if not handle}
        now = datetime.now(UTC)
        strays = [
            instance
            for instance in found
            if instance.id not in known
            and not booting.intersection(runs_of(instance.tags))
            and not _is_kept(instance, now)
        ]
        for instance in strays:
            self._end(instance.id, wait=False)
        return [f"instance {instance.id} ({instance.instance_type}), which no attempt has" for instance in strays]

    def close(self) -> None:
        """End what is idle, stop the threads, and let go of what launches needed."""
        with self._news:
            idle, self._idle = self._idle, []
        for machine in idle:
            machine.transport.close()
            self._end(machine.instance.id, wait=False)
        self._launcher.close()
        with self._news:
            self._news.wait_for(lambda: not self._to_end, timeout=self._patience.end)
            if self._to_end:
                logger.warning("not ended yet: %s; run `./inv sweep` in a while", ", ".join(sorted(self._to_end)))
            self._closed = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join(timeout=_LAST_WORDS)

    # -- a machine's beginning -----------------------------------------------------------------------------------

    def _take_over(self, run: str) -> Instance | None:
        """Return what a dispatcher that died launched for this very attempt, if it is still up; nobody else has it."""
        with self._news:
            for instance in self._seen.values():
                runs = runs_of(instance.tags)
                # A fleet numbers the instances of each pool from 0, so that only a launch for one attempt is clear.
                is_clear = instance.market == ON_DEMAND or len(runs) == 1
                if not is_clear or runs[instance.launch_index : instance.launch_index + 1] != [run]:
                    continue
                if instance.state in OVER or instance.id in self._held or instance.id in self._to_end:
                    continue
                self._held[instance.id] = time.monotonic() - self._patience.settling
                return instance
        return None

    def _take_idle(self) -> Machine | None:
        while True:
            with self._news:
                machine = self._idle.pop() if self._idle else None
            if machine is None:
                return None
            if machine.transport.is_open and self.gone(machine.instance.id) is None:
                machine.uses += 1
                return machine
            machine.transport.close()
            self._end(machine.instance.id, wait=False)

    def _boot(self, instance: Instance, host_key: str, stop: threading.Event) -> Machine:
        deadline = time.monotonic() + self._patience.boot
        try:
            # The public address comes only when it runs.
            instance = self._await_sight(
                instance.id, stop, deadline, lambda seen: seen.state == "running" and bool(seen.address)
            )
            address = str(instance.address)
            transport = self._reach(instance.id, address, host_key, stop, deadline)
        except RampCloudError as error:
            if not stop.is_set():
                self._boot_failed(instance, error)
            raise
        self._launcher.booted(ok=True)
        return Machine(instance=instance, address=address, host_key=host_key, transport=transport)

    def _await_sight(
        self,
        instance_id: str,
        stop: threading.Event,
        deadline: float,
        enough: Callable[[Instance], bool] = lambda _: True,
    ) -> Instance:
        """Wait until AWS shows an instance as it must be."""
        seen: Instance | None = None
        while time.monotonic() < deadline:
            self.look()
            if stop.is_set():
                raise self._interrupted(instance_id, "the dispatcher ended the attempt")
            if reason := self.gone(instance_id):
                raise self._interrupted(instance_id, reason)
            with self._news:
                seen = self._seen.get(instance_id)
            if seen is not None and enough(seen):
                return seen
        msg = "the machine did not start in time; the submission will be tried again"
        last = "AWS does not show it" if seen is None else f"it is {seen.state}"
        raise WorkerError(msg, detail=last, instance=instance_id)

    def _reach(
        self, instance_id: str, address: str, host_key: str, stop: threading.Event, deadline: float
    ) -> Transport:
        def why_not() -> str | None:
            return "the dispatcher ended the attempt" if stop.is_set() else self.gone(instance_id)

        try:
            return self._wait_for_ssh(
                lambda: self._connect(address, host_key),
                deadline=deadline,
                is_gone=why_not,
                sleep=lambda seconds: stop.wait(seconds),
                clock=time.monotonic,
            )
        except TransportError as error:
            if reason := why_not():
                raise self._interrupted(instance_id, reason) from error
            msg = "the machine does not answer; the submission will be tried again"
            raise Interrupted(msg, detail=error.for_organiser(), instance=instance_id, address=address) from error

    def _boot_failed(self, instance: Instance, error: RampCloudError) -> None:
        """Count it for the circuit breaker, unless AWS took the instance back, and keep what the console says."""
        reason = self.gone(instance.id) or ""
        if reason and _is_taken_back(instance, reason):
            return
        try:
            console = self._ec2.console_output(instance.id)
        except AwsError as refused:
            console = f"no console output: {refused.message}"
        tail = "\n".join(console.splitlines()[-_CONSOLE_LINES:])
        error.detail = "\n".join(part for part in (error.detail, reason, tail) if part)
        self._launcher.booted(ok=False, why=f"{instance.id}: {error.message}\n{error.detail}")

    def _interrupted(self, instance_id: str, reason: str) -> Interrupted:
        with self._news:
            instance = self._seen.get(instance_id)
        if instance is not None and instance.state in OVER and _is_taken_back(instance, reason):
            self._launcher.exclude(_pool_of(instance), why=reason)
        msg = "the machine is gone; the submission will be tried again"
        return Interrupted(msg, detail=reason, instance=instance_id)

    # -- a machine's end -----------------------------------------------------------------------------------------

    def _keep(self, machine: Machine, minutes: float) -> bool:
        """Leave a machine on for a while; False when it cannot be made sure that it ends."""
        until = datetime.now(UTC) + timedelta(minutes=minutes)
        try:
            self._ec2.tag([machine.instance.id], {KEEP: until.isoformat(timespec="seconds")})
            machine.transport.run(["sudo", "-n", "shutdown", "-c"], timeout=15)
            said = machine.transport.run(["sudo", "-n", "shutdown", "-P", f"+{max(round(minutes), 1)}"], timeout=15)
        except (AwsError, TransportError) as error:
            logger.warning("%s could not be kept and is ended: %s", machine.instance.id, error.message)
            return False
        if said.code:
            logger.warning(
                "%s could not be kept and is ended: %s", machine.instance.id, said.err.decode("utf-8", "replace")
            )
            return False
        logger.warning(
            "%s (%s) is kept until %s; it ends by itself, or by `./inv sweep`",
            machine.instance.id,
            machine.address,
            until.isoformat(timespec="minutes"),
        )
        return True

    def _end(self, instance_id: str, *, wait: bool = True) -> None:
        """Have an instance ended together with others; with ``wait`` returns when that is done, or takes too long."""
        self._start_threads()
        with self._news:
            done = self._to_end.setdefault(instance_id, threading.Event())
            self._news.notify_all()
        if wait and not done.wait(self._patience.end):
            logger.warning("%s is not ended yet; it is tried on, and the next sweep finds it", instance_id)

    # -- threads -------------------------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        with self._news:
            if self._threads or self._closed:
                return
            for target in (self._keep_looking, self._keep_ending):
                thread = threading.Thread(target=target, name=f"ec2-{target.__name__.split('_')[-1]}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _keep_looking(self) -> None:
        pause = self._patience.look_soon
        while True:
            with self._news:
                if self._closed:
                    return
                if not self._is_look_due(pause):
                    self._news.wait(self._patience.look_soon / 2)
                    continue
            try:
                self._look()
            except AwsError as error:
                pause = min(pause * 2, self._patience.look)
                logger.warning("AWS was not heard and is asked again in %g s: %s", pause, error.message)
                self._rest(pause)
                continue
            pause = self._patience.look_soon
            self._end_idle()

    def _rest(self, seconds: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._closed, seconds)

    def _look(self) -> None:
        asked = time.monotonic()
        found = self._ec2.describe(owner=self._owner, event_id=self._event_id)
        with self._news:
            if asked > self._looked:
                self._seen = {instance.id: instance for instance in found}
                self._looked = asked
            self._news.notify_all()

    def _end_idle(self) -> None:
        with self._news:
            now = time.monotonic()
            stale = [machine for machine in self._idle if now - machine.idle_since > self._patience.idle]
            self._idle = [machine for machine in self._idle if machine not in stale]
        for machine in stale:
            machine.transport.close()
            self._end(machine.instance.id, wait=False)

    def _is_look_due(self, pause: float) -> bool:
        since = time.monotonic() - self._looked
        return (bool(self._waiting) and since >= pause) or (
            bool(self._held or self._idle) and since >= self._patience.look
        )

    def _keep_ending(self) -> None:
        pause = _END_TOGETHER
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or bool(self._to_end))
                if self._closed:
                    return
            self._rest(pause)  # more may be ending at this moment
            with self._news:
                batch = dict(self._to_end)
            try:
                unknown = self._ec2.terminate(sorted(batch))
            except AwsError as error:
                pause = min(max(pause, 0.5) * 2, self._patience.look)
                logger.warning("instances could not be ended, tried again in %g s: %s", pause, error.message)
                continue
            too_young = {instance_id for instance_id in unknown if self._is_young(instance_id)}
            pause = min(max(pause, 0.5) * 2, self._patience.look) if too_young else _END_TOGETHER
            self._note_ends({key: done for key, done in batch.items() if key not in too_young})

    def _is_young(self, instance_id: str) -> bool:
        """Whether AWS may not know an instance because it was launched just now."""
        with self._news:
            return time.monotonic() - self._held.get(instance_id, float("-inf")) < self._patience.settling

    def _note_ends(self, ended: Mapping[str, threading.Event]) -> None:
        self._launcher.ended(list(ended))
        with self._news:
            for instance_id, done in ended.items():
                del self._to_end[instance_id]
                self._held.pop(instance_id, None)
                done.set()
            self._news.notify_all()


def _pool_of(instance: Instance) -> Pool:
    # A terminated instance has no subnet any more.
    return Pool(instance_type=instance.instance_type, subnet=instance.subnet or None, zone=instance.zone or None)


def _is_taken_back(instance: Instance, reason: str) -> bool:
    """Whether AWS ended a spot instance. Its reasons begin with Server, and may be told later than the end."""
    return instance.market == "spot" and "Client." not in reason


def _is_up(instance: Instance) -> bool:
    return instance.state not in {"shutting-down", "terminated"}


def _is_kept(instance: Instance, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(instance.tags.get(KEEP, "")) > now
    except ValueError:
        return False
