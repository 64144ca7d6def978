"""The power switch: finds every process of a machine, also one that hid in a session of its own, and ends it.

A process belongs to a machine when it carries the machine's brand or mark, works in the machine's folder, or its parent
does. The brand is a resource limit that means nothing to Linux (RLIMIT_LOCKS) and that every descendant inherits: also
one in a session of its own, without environment, in the root folder, whose parent is gone. The mark is a variable of
the environment, for systems that have no such limit.
"""

import contextlib
import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path

import psutil

MARK = "RAMP_REHEARSAL_MACHINE"
_LIMIT: int | None = getattr(resource, "RLIMIT_LOCKS", 10 if sys.platform == "linux" else None)
_SERIAL_BITS = 24  # of a brand; the rest is the server's pid, so that two servers' brands differ
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0  # seconds until processes that were killed must be gone


class Power:
    """Switches machines off, many with one look at the process table. Methods may be called from any thread.

    Args:
        machines: the folder that holds the folder of every machine, named by its id.
    """

    def __init__(self, machines: Path) -> None:
        self._machines = f"{machines.resolve()}/"
        self._brands: dict[int, str] = {}
        self.awaited: set[int] = set()  # children of ours that others wait for; all others are adopted orphans
        _adopt_orphans()
        self._orders: queue.SimpleQueue[tuple[str, Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="power", daemon=True)
        self._thread.start()

    def brand(self, machine: str) -> None:
        """Let the next process that is started from this thread, and its descendants, carry the machine's brand."""
        if _LIMIT is None:
            return
        brand = next((brand for brand, known in self._brands.items() if known == machine), 0)
        if not brand:
            brand = (os.getpid() << _SERIAL_BITS) + len(self._brands) + 1
            self._brands[brand] = machine
        _, hard = resource.getrlimit(_LIMIT)
        if hard == resource.RLIM_INFINITY:
            resource.setrlimit(_LIMIT, (brand, hard))

    def off(self, machine: str) -> "Future[None]":
        """Kill everything that runs on a machine; the future is done when nothing is left."""
        done: Future[None] = Future()
        self._orders.put((machine, done))
        return done

    def tell(self, machine: str) -> None:
        """Send SIGTERM to everything that runs on a machine, as an orderly shutdown does. Looks at all processes."""
        for process in self.processes({machine}).get(machine, []):
            _send(process, signal.SIGTERM)

    def close(self) -> None:
        """End the thread once all orders are carried out."""
        self._orders.put(None)
        self._thread.join()

    def processes(self, machines: Collection[str]) -> dict[str, list[psutil.Process]]:
        """Return the live processes of each of these machines that has any."""
        return self._look(machines)[0]

    def _look(self, machines: Collection[str]) -> tuple[dict[str, list[psutil.Process]], list[int]]:
        """Return the live processes by machine, and the pids of those that have ended but are still in the table."""
        owners: dict[int, str] = {}
        parents: dict[int, int] = {}
        strangers: dict[int, psutil.Process] = {}
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        ended: list[int] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                owner = self._owner(process)
                if owner in machines:
                    if process.status() == psutil.STATUS_ZOMBIE:
                        ended.append(process.pid)
                        continue
                    owners[process.pid] = owner
                    found[owner].append(process)
                elif not owner and process.pid != os.getpid():
                    strangers[process.pid] = process
                    parents[process.pid] = process.ppid()
        for pid, process in strangers.items():
            ancestor = pid
            while ancestor in parents:
                ancestor = parents[ancestor]
            if ancestor in owners:
                found[owners[ancestor]].append(process)
        return dict(found), ended

    def _owner(self, process: psutil.Process) -> str:
        """Return the id of the machine that shows on a process, "" when none does."""
        if process.pid == os.getpid():
            return ""
        if _LIMIT is not None:
            brand, _ = process.rlimit(_LIMIT)
            if brand in self._brands:
                return self._brands[brand]
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        mark = process.environ().get(MARK, "")
        if mark:
            return mark
        folder = process.cwd()
        return folder.removeprefix(self._machines).partition("/")[0] if folder.startswith(self._machines) else ""

    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            orders = [order]
            last = False
            with contextlib.suppress(queue.Empty):
                while True:
                    more = self._orders.get_nowait()
                    if more is None:
                        last = True
                        break
                    orders.append(more)
            self._end({machine for machine, _ in orders})
            for _, done in orders:
                if done.set_running_or_notify_cancel():  # who waited may have given up
                    done.set_result(None)
            if last:
                return

    def _end(self, machines: set[str]) -> None:
        """Stop all processes until a look finds no further one, so that none can start another meanwhile; then kill."""
        give_up = time.monotonic() + _PATIENCE
        stopped: set[psutil.Process] = set()
        while time.monotonic() < give_up:
            processes = {process for found in self.processes(machines).values() for process in found}
            fresh = processes - stopped
            if not fresh:
                break
            for process in fresh:
                _send(process, signal.SIGSTOP)
            stopped |= fresh
        for process in stopped:
            _send(process, signal.SIGKILL)
        while any(map(_lives, stopped)) and time.monotonic() < give_up:
            time.sleep(0.005)
        for pid in self._look(machines)[1]:
            if pid not in self.awaited:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _adopt_orphans() -> None:
    """Ask Linux to make us the parent of who lost its own, so that we can clear it away: not every init does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
