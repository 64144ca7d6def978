"""The calls of the emulated API: which were made, and the ones that are refused, slow or lost on purpose."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

# Documented: RunInstances takes 5 calls at once and 2 a second; Describe* 100 and 20. CreateFleet draws on the same
# bucket as RunInstances. The others are guesses of the same kind.
BUCKETS: tuple[tuple[str, str, float, float], ...] = (
    ("RunInstances", "launch", 5, 2),
    ("CreateFleet", "launch", 5, 2),
    ("TerminateInstances", "terminate", 100, 5),
    ("Describe*", "describe", 100, 20),
    ("*", "other", 50, 5),
)
RESOURCES = (1000.0, 2.0)  # instances: at once, and a second


@dataclass
class Call:
    """One call as it was answered. ``count`` instances were launched, changed or listed by it.

    ``told``: who made it and what it names; see ``runner.rehearsal.told``.
    """

    time: float
    action: str
    count: int
    error: str
    seconds: float
    told: dict[str, Any] = field(default_factory=dict)


class CallLog:
    """Every call so far. May be used from many threads; one call is one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._current = threading.local()

    @contextmanager
    def call(self, action: str) -> Iterator[Call]:
        """Keep a call; the caller fills in its error."""
        call = Call(time=time.time(), action=action, count=0, error="", seconds=0.0)
        began = time.monotonic()
        self._current.call = call
        try:
            yield call
        finally:
            call.seconds = round(time.monotonic() - began, 4)
            with self._lock:
                self._calls.append(call)

    def count(self, instances: int) -> None:
        """Note how many instances the current call is about."""
        self._current.call.count = instances

    def listed(self) -> list[dict[str, object]]:
        """Return all calls."""
        with self._lock:
            return [asdict(call) for call in self._calls]

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._calls.clear()


class TokenBucket:
    """As AWS throttles: a number of tokens, refilled evenly. Not for several threads at once."""

    def __init__(self, size: float, refill: float) -> None:
        self._size = size
        self._refill = refill
        self._tokens = size
        self._filled: float | None = None

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take tokens if there are as many; ``now`` in seconds on any steady clock."""
        since = 0.0 if self._filled is None else now - self._filled
        self._tokens = min(self._size, self._tokens + since * self._refill)
        self._filled = now
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True


class Limits:
    """The buckets of an account, by action."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[str, TokenBucket] = {}

    def allow(self, action: str, instances: int) -> bool:
        """Whether a call for so many new instances is let through now."""
        pattern, name, size, refill = next(bucket for bucket in BUCKETS if fnmatchcase(action, bucket[0]))
        del pattern
        now = time.monotonic()
        with self._lock:
            requests = self._buckets.setdefault(name, TokenBucket(size, refill))
            resources = self._buckets.setdefault("resources", TokenBucket(*RESOURCES))
            return requests.take(now) and (instances == 0 or resources.take(now, instances))

    def forget(self) -> None:
        """Fill all buckets."""
        with self._lock:
            self._buckets.clear()
