"""What the store gives and takes: attempts, their outcomes, scores, submissions, dispatchers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runner.states import Cause, State


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at one submission, owned by one dispatcher until it ends.

    ``run`` is unique in the world. ``handle`` is what the worker's ``state()`` gave last, None before the first.
    ``time_limit`` is in seconds.
    """

    run: str
    submission_id: int
    name: str
    number: int
    state: State
    handle: dict[str, Any] | None
    time_limit: float | None
    started: datetime
    launched: datetime | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended. Times in seconds, memory in MB of 10⁶ bytes, None where not known."""

    cause: Cause
    message: str = ""
    detail: str = ""
    returncode: int | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number. ``fold`` is None for bagged predictions, ``value`` None where it is not a finite number."""

    fold: int | None
    step: str
    name: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """A submission with its newest attempt, as status shows it."""

    name: str
    state: State
    submitted: datetime
    attempts: int
    cause: Cause | None
    worker: str | None
    started: datetime | None
    ended: datetime | None
    cpu_seconds: float | None
    peak_memory_mb: float | None
    time_limit: float | None
    message: str
    detail: str
    run: str | None


@dataclass(frozen=True, kw_only=True)
class DispatcherRecord:
    """A dispatcher that has not said that it ended."""

    id: str
    host: str
    pid: int
    process_started: float
    heartbeat: datetime
