"""The contract of a worker: what runs one submission on one platform. Subclass ``BaseWorker`` for a platform of yours.

A worker written for ramp-engine works here when its import of BaseWorker names this module. docs/workers.md shows how
to write one; tests/contract holds every worker to what stands here.
"""

import contextlib
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from runner.states import Cause

WorkerState = dict[str, Any]
LiveRuns = Callable[[], Mapping[str, WorkerState | None]]
TIMEOUT_CODE = 124  # what timeout(1) gives, and what the predecessor stored


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a training used, as far as the worker could find out.

    ``cause`` overrides what the return code alone would tell, such as out of memory. Memory in MB of 10⁶ bytes.
    """

    cause: Cause | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    detail: str = ""


class BaseWorker(ABC):
    """Runs one submission once. One object is one attempt and is used by one thread, ``wake`` excepted.

    The dispatcher calls, in this order: ``prepare_event`` once per event; then per attempt ``setup``, ``state``,
    ``launch_submission``, ``state``, ``wait`` until ``status`` is no longer running, ``collect_results``, ``usage`` and
    ``teardown``. After a crash a new dispatcher makes a new object, calls ``resume`` instead of ``setup`` and
    ``launch_submission``, and goes on with ``wait``.

    Args:
        config: the event's keys as ramp-board's workers get them: kit_dir, data_dir, submissions_dir, predictions_dir,
            logs_dir, timeout, n_threads, time_between_collection, and every key of the ``worker`` section.
        submission: name of the submission, a folder in ``submissions_dir``.

    Attributes:
        status: initialized, setup, running, finished, collected, retry, error, timeout or killed. Reading it has no
            effect; ``poll`` brings it up to date.
        run: id of the attempt, unique in the world. The dispatcher sets its own; without one every object has another.
        attempt: number of the attempt at this submission, from 1.
    """

    needs_kit: ClassVar[bool] = False
    """Whether an event cannot start when problem.py cannot be read in ``kit_python``."""

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        self.config = config
        self.submission = submission
        self.status = "initialized"
        self.run = uuid.uuid4().hex
        self.attempt = 1
        self._woken = threading.Event()

    # -- once per event ------------------------------------------------------------------------------------------

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Check what all submissions need and return the config that every worker gets.

        Called once when a dispatcher starts, before any submission, and may take a while (ask conda, look up an image).

        Raises:
            RampCloudError: nothing can run; told to the organiser once, and no submission is touched.
        """
        return config

    @classmethod
    def kit_python(cls, config: dict[str, Any]) -> str | None:
        """Return a Python interpreter of this machine that can import the kit, or None."""
        return config.get("python")

    @classmethod
    def kit_environment(cls, config: dict[str, Any]) -> dict[str, str] | None:
        """Return the environment variables that ``kit_python`` runs with, None for the dispatcher's own."""
        return None

    @classmethod  # noqa: B027 - most workers have nothing open
    def close_event(cls, config: dict[str, Any]) -> None:
        """Let go of what ``prepare_event`` opened in this process; called once, when the dispatcher has ended.

        What trainings still use elsewhere stays: the next dispatcher finds it.
        """

    @classmethod
    def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
        """Release whatever crashes left behind, and return what that was, in words.

        Called when a dispatcher starts, several times a minute, and when it ends. Must not touch what belongs to
        another event or another owner.

        Args:
            config: what ``prepare_event`` returned.
            live_runs: gives the attempts under way: id (``run``) to what its worker's ``state()`` gave last, None
                before the first. Look first at what is there, then call it: an attempt is stored before anything is
                made for it, so what it does not name is left over.
        """
        return []

    # -- once per attempt ----------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Get ready for the submission: find the environment, start a machine, copy files. Call super() at the end.

        When it raises or leaves ``status`` at error or retry, the attempt ends, ``teardown`` is called all the same,
        and the submission is tried again.
        """
        self.status = "setup"

    @abstractmethod
    def launch_submission(self) -> None:
        """Start the training and return at once. Call super() at the end. Called once per object."""
        self.status = "running"

    @abstractmethod
    def collect_results(self) -> tuple[int, str] | None:
        """Bring log and predictions to ``logs_dir`` and ``predictions_dir`` and return (return code, error message).

        Code 0 is success, 124 the time limit, 2 a failure to fetch results (tried again), any other one the
        submission's own error. May be called again after a crash. Call super() first: it refuses when there is nothing
        to collect.
        """
        if self.status == "initialized":
            msg = "nothing to collect: call setup() and launch_submission() first"
            raise ValueError(msg)
        if self.status == "setup":
            msg = "nothing to collect: call launch_submission() first"
            raise ValueError(msg)
        return None

    def teardown(self) -> None:
        """End what still runs and release everything. Call super() at the end.

        Called on every path and perhaps twice; "already gone" is success.
        """
        self.status = "killed"

    @abstractmethod
    def _is_submission_finished(self) -> bool:
        """Whether the training ended, well or badly. Asked only while ``status`` is running."""

    def _is_submission_interrupted(self) -> bool:
        """Whether the training was lost with its machine, so that it must be tried again."""
        return False

    def check_timeout(self) -> bool | None:
        """Enforce ``timeout``; set ``status`` to timeout when it has passed. A dispatcher has a backstop of its own."""
        return None

    @property
    def timeout(self) -> float:
        """Time limit of the training in seconds."""
        return float(self.config.get("timeout", 7200))

    # -- finding a training again --------------------------------------------------------------------------------

    def state(self) -> WorkerState | None:
        """Return the little that ``resume`` needs, as JSON; stored before the next call. None: cannot be resumed.

        Called after ``setup`` (so that a crash before the training started leaves nothing behind) and again after
        ``launch_submission``.
        """
        return None

    def resume(self, state: Mapping[str, Any]) -> None:
        """Find the training that ``state`` describes and set ``status`` to running (also when it has ended meanwhile).

        Raises:
            Interrupted: it is gone, or never started; the submission is tried again.
        """
        msg = f"{type(self).__name__} cannot resume"
        raise NotImplementedError(msg)

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Return when the training may have ended, after ``timeout`` seconds, or when ``wake`` is called.

        This default looks every ``time_between_collection`` seconds; override it where the platform can tell.
        """
        self._woken.wait(min(timeout, float(self.config.get("time_between_collection", 1.0))))
        self.poll()

    def wake(self) -> None:
        """Make ``wait`` return soon. The only method that another thread calls."""
        self._woken.set()

    def poll(self) -> str:
        """Bring ``status`` up to date and return it."""
        if self.status == "running":
            if self._is_submission_interrupted():
                self.status = "retry"
            elif self._is_submission_finished() and self.status == "running":
                self.status = "finished"
            else:
                self.check_timeout()
        return self.status

    def usage(self) -> Usage:
        """Return what the training used; called after ``collect_results``."""
        return Usage()

    def folds_done(self) -> int | None:
        """Return how many cross-validation folds are done, None where that cannot be seen cheaply."""
        return None

    # -- without a dispatcher ------------------------------------------------------------------------------------

    def launch(self) -> tuple[int, str] | None:
        """Run the submission from setup to teardown without a dispatcher and return what was collected."""
        try:
            self.setup()
            self.launch_submission()
            while self.status == "running" and not self._woken.is_set():
                self.wait(self.timeout)
            collected = self.collect_results()
        except BaseException:
            # What went wrong first is the news; the predecessor's workers refuse a teardown before the collection.
            with contextlib.suppress(Exception):
                self.teardown()
            raise
        self.teardown()
        return collected

    @staticmethod
    def _check_config_name(config: Mapping[str, Any], param: str) -> None:
        """Raise ValueError when a key that the worker needs is not in its config."""
        if param not in config:
            msg = f"the worker needs the key {param!r}; its config has {', '.join(sorted(config))}"
            raise ValueError(msg)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.submission}): status="{self.status}"'


def _get_traceback(content: str) -> str:
    """Return a log from its first traceback on. Workers written for ramp-engine import it under this name."""
    start = content.find("Traceback")
    return content[start:] if start > 0 else content


def log_file(config: Mapping[str, Any], submission: str) -> Path:
    """Return the log of a submission, where ramp-board expects it."""
    return Path(config["logs_dir"]) / submission / "log"
