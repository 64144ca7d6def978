"""Processes of this machine: is it still the one we started, wait for its end, end it with all that it started."""

import contextlib
import os
import resource
import select
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

RUN_VARIABLE = "RAMP_CLOUD_RUN"  # in the environment of every process of a training
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_POLL = 0.2  # seconds between two looks where the system cannot tell (macOS)
_CLOCK_SLACK = 2.0  # seconds by which a start time may move when the machine's clock is set


def thread_variables(threads: int | None) -> dict[str, str]:
    """Return the environment that makes a training's packages use so many threads; None leaves it to them."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may: a connection takes one, and there may be thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower one that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def host_id() -> str:
    """Return a name for the set of processes that can see each other: the host, and the container within it."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()  # no such namespaces here


def started_at(pid: int) -> float | None:
    """Return when a process started (seconds since 1970), None when there is no such process or it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_same(pid: int, started: float) -> bool:
    """Whether the process with this pid is the one that started then, and not a later one that got its number."""
    now = started_at(pid)
    return now is not None and abs(now - started) < _CLOCK_SLACK


def has_argument(pid: int, argument: str) -> bool:
    """Whether a process runs with this word on its command line."""
    try:
        return argument in psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def wait_for_end(pid: int, timeout: float, wake: int) -> None:
    """Return when the process has ended, after ``timeout`` seconds, or when the descriptor ``wake`` can be read."""
    if hasattr(os, "pidfd_open"):
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            _readable([watched, wake], timeout)
        finally:
            os.close(watched)
        return
    remaining = timeout
    while remaining > 0 and started_at(pid) is not None:
        if _readable([wake], min(remaining, _POLL)):
            return
        remaining -= _POLL


def _readable(descriptors: list[int], timeout: float) -> bool:
    # poll, not select: with a thousand trainings the descriptors have numbers that select cannot take.
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(min(timeout, 86400) * 1000))


def processes_of_run(run: str) -> list[psutil.Process]:
    """Return the processes that carry a run's mark. Reads the environment of every process, so it takes a moment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(RUN_VARIABLE) == run:
                found.append(process)
    return found


def kill_all(processes: Iterable[psutil.Process], *, patience: float = 3.0) -> None:
    """Kill processes and their descendants and wait until they are gone."""
    doomed: set[psutil.Process] = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed |= {process, *process.children(recursive=True)}
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()
    psutil.wait_procs(list(doomed), timeout=patience)
