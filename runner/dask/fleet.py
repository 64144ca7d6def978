"""The machines of a Dask cluster on EC2: launched, made ready and ended by what launches the machines of an event.

Which of them belong to the cluster stands in ``events/<event>/dask-cluster.json``, for the dispatcher that comes after
one that died; whatever is tagged as the event's and does not stand there is ended.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runner.aws.cluster_keys import dask_groups, machine_keys
from runner.aws.event import Ec2Event, open_event
from runner.aws.launcher import Request
from runner.aws.machines import Machine, Patience
from runner.aws.tags import DASK, EXPIRES
from runner.dask.certificates import Certificates
from runner.dask.programs import PORT, Limits, check, last_words, start
from runner.errors import AwsError, RampCloudError, TransportError, WorkerError
from runner.transport.ssh import SshTransport, Tunnel
from runner.transport.ssh.tunnel import Pipe

logger = logging.getLogger(__name__)
SCHEDULER = "scheduler"
_SPARE = 10  # minutes that the first timer of a machine has beyond its start-up
_PAUSE = 0.3  # seconds between two looks whether a scheduler listens


@dataclass(kw_only=True)
class Member:
    """A machine of the cluster, by the name that it has in Dask."""

    name: str
    role: str
    machine: Machine


class Fleet:
    """Machines for scheduler and workers. Thread-safe. Nothing is asked of AWS before ``open``.

    Args:
        config: what workers get, with ``cluster`` and ``worker_kit_dir``.
        certificates: of the event; each role gets its own.
        limits: when programs end by themselves.
        patience: how long things may take; its ``boot`` is the start-up deadline.
    """

    def __init__(
        self, config: Mapping[str, Any], certificates: Certificates, *, limits: Limits, patience: Patience
    ) -> None:
        self._config = config
        self._cluster: Mapping[str, Any] = config["cluster"]
        self._certificates = certificates
        self._limits = limits
        self._patience = patience
        self._events: dict[str, Ec2Event] = {}
        self._members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._tunnel: Tunnel | None = None
        self._file = Path(config["deployment_dir"], "events", config["event_name"], "dask-cluster.json")
        self.stop = threading.Event()

    def open(self) -> None:
        """Check key, images, subnets and groups. Launches nothing.

        Raises:
            ConfigError: something is missing or cannot be used.
            AwsError: AWS does not answer, or does not allow it.
        """
        cluster = self._cluster
        of_scheduler = {"instance_type": cluster["scheduler_instance_type"], "use_spot_instance": False}
        for role, own in ((SCHEDULER, of_scheduler), ("worker", {})):
            if role in self._events:
                continue
            config = machine_keys(self._config) | own
            self._events[role] = open_event(
                config,
                patience=self._patience,
                minutes=round(self._patience.boot / 60 + self._limits.idle / 60) + _SPARE,
                tags={DASK: role},
                more_groups=dask_groups(config),
            )

    # -- members -------------------------------------------------------------------------------------------------

    def launch(self, name: str, role: str, arguments: Callable[[Machine], list[str]], stop: threading.Event) -> Member:
        """Launch a machine, check it, and start its program. Blocks until that is done, or ``stop`` is set.

        Args:
            name: of the member, at most 32 characters.
            role: scheduler or worker.
            arguments: of the program, once the machine is known.

        Raises:
            NoRoom, LaunchStopped, WorkerError, Interrupted: as ``Machines.acquire``.
            KitError: the image cannot run the kit, or cannot be part of the cluster.
        """
        event = self._events[role]
        machine = event.machines.acquire(Request(run=name, submission=f"dask {role}", attempt=1), stop)
        member = Member(name=name, role=role, machine=machine)
        with self._lock:
            self._members[name] = member
        try:
            self._write()  # before its program starts: what runs is known
            python = event.image_of(machine).python
            check(machine.transport, python)
            self._prolong_tags(event, machine)
            files = self._certificates.of(role)
            start(
                machine.transport, role, python=python, files=files, limits=self._limits, arguments=arguments(machine)
            )
        except BaseException:
            self.end(name)
            raise
        return member

    def adopt(self) -> dict[str, Member]:
        """Connect again to the machines of a dispatcher that died; those that are gone or deaf are ended.

        Returns {} when there is no scheduler among them: its workers are then ended, too.
        """
        for name, known in self._read().items():
            role = known["role"]
            try:
                machine = self._events[role].machines.adopt(
                    known["instance"], address=known["address"], host_key=known["host_key"], stop=self.stop
                )
            except RampCloudError as error:
                logger.info("%s of an earlier dispatcher is not there any more: %s", name, error.message)
                continue
            with self._lock:
                self._members[name] = Member(name=name, role=role, machine=machine)
        if self.scheduler() is None:
            self.end_all()
        return self.members()

    def members(self) -> dict[str, Member]:
        """Return the machines that there are, by name."""
        with self._lock:
            return dict(self._members)

    def scheduler(self) -> Member | None:
        """Return the scheduler's machine."""
        return next((member for member in self.members().values() if member.role == SCHEDULER), None)

    def why_gone(self, name: str, *, anew: bool = False) -> str | None:
        """Return why a machine does not run any more, as far as AWS told lately, or tells now; None while it does."""
        member = self.members().get(name)
        if member is None:
            return "it was ended"
        machines = self._events[member.role].machines
        return machines.lost(member.machine) if anew or machines.gone(member.machine.instance.id) else None

    def said(self, name: str) -> str:
        """Return the end of what a member's program printed, "" when it cannot be read."""
        member = self.members().get(name)
        return last_words(member.machine.transport) if member else ""

    def end(self, name: str) -> None:
        """End a machine. Ending one that is gone changes nothing."""
        with self._lock:
            member = self._members.pop(name, None)
        if member is not None:
            self._events[member.role].machines.release(member.machine)
            self._write()

    def end_all(self) -> None:
        """End every machine of the cluster, and those that are the event's and nobody's."""
        ends = [threading.Thread(target=self.end, args=(name,), daemon=True) for name in self.members()]
        for end in ends:
            end.start()
        for end in ends:
            end.join(self._patience.end * 2)
        self.sweep()

    def sweep(self) -> None:
        """End what is tagged as the event's and is no member; a launch that is under way is spared."""
        handles = {name: {"instance": member.machine.instance.id} for name, member in self.members().items()}
        for event in list(self._events.values())[:1]:  # any of them sees all
            try:
                for swept in event.machines.sweep(lambda: handles):
                    logger.warning("ended: %s", swept)
            except AwsError as error:
                logger.warning("what is left of a cluster could not be looked for: %s", error.message)

    def close(self, *, keep: bool) -> None:
        """Let go of everything. With ``keep`` the machines go on, for the next dispatcher; they know their limits."""
        self.stop.set()
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None
        if not keep and self._events:
            self.end_all()
        for member in self.members().values():
            member.machine.transport.close()
        for event in self._events.values():
            event.machines.close()
        self._events.clear()

    # -- the way to the scheduler --------------------------------------------------------------------------------

    def tunnel(self) -> Tunnel:
        """Return a port of this machine that leads to the scheduler, wherever that is at the moment.

        Raises:
            WorkerError: no port is free.
        """
        if self._tunnel is None:
            try:
                self._tunnel = Tunnel(self._pipe)
            except OSError as error:
                msg = "no port of this machine is free for the way to the scheduler; end other programs"
                raise WorkerError(msg, detail=str(error)) from error
        return self._tunnel

    def reach_scheduler(self) -> None:
        """Return when the scheduler takes a connection; asks once.

        Raises:
            RampCloudError: it does not, or its machine does not answer.
        """
        self._pipe().close()

    def await_scheduler(self) -> None:
        """Return when the scheduler takes connections.

        Raises:
            WorkerError: it does not within the start-up deadline; the detail is what it printed.
        """
        deadline = time.monotonic() + self._patience.boot
        said = ""
        while time.monotonic() < deadline and not self.stop.is_set():
            try:
                self.reach_scheduler()
            except RampCloudError as error:
                said = error.for_organiser()
                if (member := self.scheduler()) is None or self.why_gone(member.name):
                    break
                self.stop.wait(_PAUSE)
            else:
                return
        member = self.scheduler()
        words = self.said(member.name) if member else ""
        msg = "the scheduler's machine is up, and its scheduler did not start in time; see what it said"
        raise WorkerError(msg, detail=f"{said}\n{words}".strip())

    def _pipe(self) -> Pipe:
        member = self.scheduler()
        if member is None:
            msg = "the cluster has no scheduler; connect again to start one"
            raise TransportError(msg)
        machine = member.machine
        with self._connecting:  # one at a time makes a broken connection anew
            if not machine.transport.is_open:
                self._events[SCHEDULER].machines.reconnect(machine, self.stop)
        transport = machine.transport
        if not isinstance(transport, SshTransport):
            msg = "a cluster on EC2 needs SSH"
            raise TransportError(msg)
        return transport.pipe(inner_address(machine), PORT)

    # -- inside --------------------------------------------------------------------------------------------------

    def _prolong_tags(self, event: Ec2Event, machine: Machine) -> None:
        """Let the tags say when the machine ends itself, before its timer is set so."""
        expires = datetime.now(UTC) + timedelta(minutes=self._limits.life)
        event.ec2.tag([machine.instance.id], {EXPIRES: expires.isoformat(timespec="seconds")})

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            members = json.loads(self._file.read_text(encoding="utf-8"))["members"]
            return {str(name): {key: str(known[key]) for key in _KEPT} for name, known in members.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be read, so a new cluster is started: %s", self._file, error)
            return {}

    def _write(self) -> None:
        members = {
            name: {
                "role": member.role,
                "instance": member.machine.instance.id,
                "address": member.machine.address,
                "host_key": member.machine.host_key,
            }
            for name, member in self.members().items()
        }
        partial = self._file.with_name(f".{self._file.name}.{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                partial.write_text(json.dumps({"members": members}, indent=1), encoding="utf-8")
                partial.replace(self._file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            msg = f"{self._file} cannot be written; make room, or make its folder writable"
            raise WorkerError(msg, detail=str(error)) from error


_KEPT = ("role", "instance", "address", "host_key")


def inner_address(machine: Machine) -> str:
    """Return the address by which the other machines of the cluster reach one."""
    return machine.instance.private_address or machine.address
