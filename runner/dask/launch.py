"""`./inv dask-scheduler` and `./inv dask-worker`: a scheduler and workers that run for as long as the task does.

What runs is described by a ``Plan``; a keeper (keeper.py) runs it on this machine or, see hosts.py, on others.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from runner.config_dask import is_this_machine
from runner.dask import keeper
from runner.dask.certificates import Certificates, RoleFiles, certificates_for
from runner.errors import RampCloudError, UsageError, WorkerError

WORKER_PORT = 8790
LEASE = 120.0  # seconds; a keeper on another machine ends when it has heard nothing of us for so long
KEEPER = Path(keeper.__file__)
_DEATH_SECONDS = 60  # a worker that finds no scheduler for so long ends, and is started again
_HIGHEST_PORT = 65_535
_ENDING = 15.0  # seconds that a keeper has to end what it keeps
_NO_DASHBOARD = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]  # its server is there all the same
_SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING_INTERVAL": "100ms",
    "DASK_LOGGING__DISTRIBUTED": "info",  # what the keeper listens for
}
_TLS_SETTINGS = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
    "DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION": "1.3",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scheduler or workers as they are to run, wherever that is.

    ``command`` has names in braces that a keeper fills in where it runs; ``address`` None is the one that leads to the
    scheduler, ``slots`` None the machine's cores. ``files`` is None for plain tcp.
    """

    role: str
    scheduler: str
    command: Sequence[str]
    ready: str
    port: int
    address: str | None = None
    slots: int | None = None
    files: RoleFiles | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By which a keeper knows an earlier one of the same task, whose connection broke, and takes its place."""

    def spec(self, *, files: RoleFiles | None, lease: float | None) -> str:
        """Return spec.json for a keeper.

        Args:
            files: where the certificates are on its machine.
            lease: seconds; None on this machine, where a pipe tells that we are gone.
        """
        tls = ["--tls-ca-file", files.ca, "--tls-cert", files.cert, "--tls-key", files.key] if files else []
        spec = {
            "role": self.role,
            "command": [*self.command, *map(str, tls)],
            "tls": [str(files.ca), str(files.cert), str(files.key)] if files else [],
            "environment": {**_SETTINGS, **(_TLS_SETTINGS if files else {})},
            "slots": self.slots,
            "address": self.address,
            "scheduler": self.scheduler,
            "ready": self.ready,
            "id": self.id,
            "lease": lease,
            "temporary": True,
        }
        return json.dumps(spec)


class Place(Protocol):
    """A machine that something is kept running on."""

    @property
    def name(self) -> str:
        """What people call it."""

    def keep(self, plan: Plan, hear: Callable[[str], None], stop: threading.Event) -> None:
        """Keep the plan's process running until ``stop`` is set; then end it and wait for its end.

        Args:
            plan: what runs.
            hear: is given each line that is said.
            stop: says when to end.

        Raises:
            RampCloudError: it cannot run there.
        """


def scheduler_plan(config: Mapping[str, Any], *, address: str | None = None, port: int | None = None) -> Plan:
    """Return how the scheduler of an event runs: at the address that config.yml names, or another one of its machine.

    Raises:
        UsageError: config.yml names no scheduler of its own, or ``port`` is none.
        ConfigError: the certificates cannot be used.
    """
    scheme, host, named_port = _scheduler_of(config)
    certificates = certificates_for(config, make=True)
    port = _checked(port if port is not None else named_port)
    command = ["{python}", "-P", "-m", "distributed.cli.dask_scheduler", "--protocol", scheme, "--host", "{address}"]
    command += ["--port", str(port), *_NO_DASHBOARD]
    return Plan(
        role="scheduler",
        scheduler=config["dask_scheduler"],
        command=command,
        ready="Scheduler at:",
        port=port,
        address=address or host,
        slots=1,
        files=certificates.of("scheduler") if certificates else None,
    )


def worker_plan(
    config: Mapping[str, Any],
    *,
    address: str | None = None,
    port: int | None = None,
    slots: int | None = None,
    elsewhere: bool = False,
) -> Plan:
    """Return how the workers of a machine run: one process that has all slots of its machine.

    Args:
        config: the worker's dict.
        address: by which the scheduler reaches the machine. Default: the one that leads to the scheduler.
        port: on which the scheduler reaches it; 0 is any that is free.
        slots: submissions at once. Default: the machine's cores.
        elsewhere: whether other machines run it, which then get their certificates from this one.

    Raises:
        UsageError: config.yml names no scheduler of its own, or a number cannot be.
        ConfigError: the certificates cannot be used.
    """
    _scheduler_of(config)
    if slots is not None and slots < 1:
        msg = f"--slots cannot be {slots}; give how many submissions a machine trains at once, at least 1"
        raise UsageError(msg)
    makes = elsewhere or is_this_machine(config["dask_scheduler"])
    certificates: Certificates | None = certificates_for(config, make=makes)
    port = _checked(WORKER_PORT if port is None else port, least=0)
    command = ["{python}", "-P", "-m", "distributed.cli.dask_worker", config["dask_scheduler"]]
    command += ["--host", "{address}", "--worker-port", str(port), "--nworkers", "1", "--no-nanny"]
    command += ["--nthreads", "{slots}", "--resources", "ramp={slots}"]
    # Trainings are processes of their own, with limits of their own.
    command += ["--memory-limit", "0", "--death-timeout", str(_DEATH_SECONDS), *_NO_DASHBOARD]
    return Plan(
        role="worker",
        scheduler=config["dask_scheduler"],
        command=command,
        ready="Registered to:",
        port=port,
        address=address,
        slots=slots,
        files=certificates.of("worker") if certificates else None,
    )


def firewall_rules(plan: Plan, config: Mapping[str, Any], hosts: Sequence[str] = ()) -> list[str]:
    """Return what a firewall must let through for a plan, in words and as UFW's commands. Nothing is changed.

    Args:
        plan: what runs.
        config: the worker's dict.
        hosts: machines that are known to have workers.
    """
    _, scheduler, scheduler_port = _scheduler_of(config)
    if is_this_machine(config["dask_scheduler"]):
        return ["Everything is on this machine's loopback: no port has to be opened."]
    rules = [
        "Ports that must be open; nothing was changed. On the scheduler's machine, for each machine with workers and "
        "the one that runs the event:",
        *(_rule(host, scheduler_port) for host in hosts or ["ADDRESS"]),
    ]
    if plan.role == "worker":
        rules += ["On each machine with workers:"]
        rules += (
            [_rule(scheduler, plan.port)] if plan.port else ["    (port 0 takes any port: give --port to open one)"]
        )
    else:
        rules += [f"On each machine with workers (their port is {WORKER_PORT} unless --port says otherwise):"]
        rules += [_rule(scheduler, WORKER_PORT)]
    return rules


def keep_all(plan: Plan, places: Sequence[Place], say: Callable[[str], None], stop: threading.Event) -> list[str]:
    """Keep a plan running on every place until ``stop`` is set; return the places where it could not run.

    What is said is told by ``say`` with the place's name, from several threads. Returns early when it runs nowhere.
    """
    failed: list[str] = []
    threads = [
        threading.Thread(target=_keep_at, args=(plan, place, say, stop, failed), name=place.name) for place in places
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def _keep_at(plan: Plan, place: Place, say: Callable[[str], None], stop: threading.Event, failed: list[str]) -> None:
    def hear(line: str) -> None:
        line = line.replace(keeper.READY, f"the {plan.role} runs, ", 1) if line.startswith(keeper.READY) else line
        say(f"{place.name}: {line.removeprefix(keeper.GONE)}")

    try:
        place.keep(plan, hear, stop)
    except RampCloudError as error:
        failed.append(place.name)
        say(f"{place.name}: {error.for_organiser()}")


class Here:
    """This machine: a keeper under this process, told by a pipe when this process is gone."""

    name = "this machine"

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable

    def keep(self, plan: Plan, hear: Callable[[str], None], stop: threading.Event) -> None:
        """Keep it running; see ``Place``."""
        folder = tempfile.mkdtemp(prefix=keeper.PREFIX)
        try:
            Path(folder, keeper.SPEC_FILE).write_text(plan.spec(files=plan.files, lease=None))
            try:
                process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                    [self._python, "-I", str(KEEPER), folder],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, who then end it
                )
            except OSError as error:
                raise no_python(self._python, str(error)) from error
            code = _follow(process, hear, stop)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if code:
            raise gave_up(plan)


def _follow(process: "subprocess.Popen[bytes]", hear: Callable[[str], None], stop: threading.Event) -> int:
    """Pass on what a keeper says until it ends; have it end when ``stop`` is set."""
    assert process.stdout is not None  # noqa: S101 - for mypy
    ended = threading.Event()

    def end() -> None:
        stop.wait()
        if not ended.is_set():
            process.terminate()

    # A daemon: where the keeper gives up by itself, nobody may ever set ``stop``.
    threading.Thread(target=end, daemon=True).start()
    _pass_on(process.stdout, hear)
    try:
        return process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        process.kill()  # and the kernel ends what it kept
        return process.wait()
    finally:
        ended.set()
        process.stdout.close()


def _pass_on(source: IO[bytes], hear: Callable[[str], None]) -> None:
    for line in source:
        hear(line.decode("utf-8", "replace").rstrip())


def no_python(python: str, detail: str) -> WorkerError:
    """Return the error of a Python interpreter that does not start."""
    msg = f"{python} does not start there; give the interpreter of a checkout or environment with --python"
    return WorkerError(msg, detail=detail)


def gave_up(plan: Plan) -> WorkerError:
    """Return the error of a process that cannot run as things are; its own words were passed on."""
    msg = (
        f"the {plan.role} does not start there (see the lines above); where a module is missing, --python names an "
        "interpreter that has distributed; where an address is in use, give another --port"
    )
    return WorkerError(msg)


def _scheduler_of(config: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return scheme, host and port of the scheduler that config.yml names."""
    if config.get("worker_type") != "dask" or config.get("cluster") or config["dask_scheduler"] == "local":
        msg = (
            "this event's config.yml names no scheduler to start: set dask_scheduler to tls://HOST:PORT, with the "
            "address of the machine that is to run it"
        )
        raise UsageError(msg)
    scheme, _, rest = config["dask_scheduler"].partition("://")
    host, _, port = rest.rpartition(":")
    return scheme, host, int(port)


def _checked(port: int, *, least: int = 1) -> int:
    if not least <= port <= _HIGHEST_PORT:
        msg = f"--port cannot be {port}; give a number from {least} to {_HIGHEST_PORT}"
        raise UsageError(msg)
    return port


def _rule(source: str, port: int) -> str:
    return f"    sudo ufw allow from {source.strip('[]')} to any port {port} proto tcp"
