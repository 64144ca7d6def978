"""Counts on how many machines a training runs at once."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

_LOOK = 0.1  # seconds between two looks at the supervisors


class Trainings:
    """The machines on which supervise.py has a live child, now and over time. May be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[str] = set()  # by machines whose trainings are simulated
        self._seen: set[str] = set()  # on machines whose processes are real
        self.highest = 0
        self.timeline: list[tuple[float, int]] = []  # (seconds since 1970, machines that train from then on)

    def began(self, machine: str) -> None:
        """Note that a training began on a machine."""
        with self._lock:
            self._told.add(machine)
            self._note()

    def ended(self, machine: str) -> None:
        """Note that the training of a machine ended."""
        with self._lock:
            self._told.discard(machine)
            self._note()

    def observe(self, machines: Collection[str]) -> None:
        """Note which machines train now, of those whose processes are real."""
        with self._lock:
            self._seen = set(machines)
            self._note()

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._told, self._seen, self.highest, self.timeline = set(), set(), 0, []

    def _note(self) -> None:
        count = len(self._told | self._seen)
        if count != (self.timeline[-1][1] if self.timeline else 0):
            self.highest = max(self.highest, count)
            self.timeline.append((time.time(), count))


class Lookout:
    """A thread that looks every tenth of a second at the supervisors of machines whose processes are real.

    Args:
        homes: gives the home folder of every machine that is on, by its id.
    """

    def __init__(self, trainings: Trainings, homes: Callable[[], dict[str, Path]]) -> None:
        self._trainings = trainings
        self._homes = homes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="lookout", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            homes = self._homes()
            self._trainings.observe({machine for machine, home in homes.items() if _trains(home)})


def _trains(home: Path) -> bool:
    # A home may be removed while we look.
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        for run in home.glob(".ramp-cloud/runs/*"):
            if (run / "pid").exists() and not (run / "outcome.json").exists():
                supervisor = psutil.Process(int((run / "pid").read_text()))
                if any(word.endswith("supervise.py") for word in supervisor.cmdline()) and supervisor.children():
                    return True
    return False
