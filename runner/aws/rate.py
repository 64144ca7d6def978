"""How often launches may be asked for: a token bucket that slows down when AWS says so."""

from collections.abc import Callable

CAPACITY = 3.0  # calls at once
PER_SECOND = 2.0  # calls per second after that; CAPACITY + PER_SECOND = 5 calls in any one second, AWS's own bucket
FIRST_PAUSE = 1.0  # seconds without a call after AWS throttled; doubles while it goes on
LONGEST_PAUSE = 60.0
_SLOWEST = 0.1  # calls per second
_RECOVERY = 1.25  # each call that went through raises a lowered rate by this factor


class TokenBucket:
    """Says when the next call may be made. Used by one thread.

    Args:
        clock: seconds that only grow, such as ``time.monotonic``.
        capacity: calls that may be made at once after a rest.
        per_second: calls per second otherwise. In no second are there more than ``capacity + per_second`` calls.
    """

    def __init__(
        self, clock: Callable[[], float], *, capacity: float = CAPACITY, per_second: float = PER_SECOND
    ) -> None:
        self._clock = clock
        self._capacity = capacity
        self._full_rate = self._rate = per_second
        self._tokens = capacity
        self._counted = clock()
        self._not_before = self._counted
        self._pause = FIRST_PAUSE

    def take(self) -> float:
        """Take leave for one call and return 0, or return the seconds to wait before asking again."""
        now = self._clock()
        self._count(now)
        if now < self._not_before:
            return self._not_before - now
        if self._tokens < 1:
            # A hair more, or rounding could leave the bucket short of a whole token for ever.
            return (1 - self._tokens) / self._rate + 1e-6
        self._tokens -= 1
        return 0.0

    def throttled(self) -> float:
        """Note that AWS refused a call for its rate; return the seconds for which no call will be made."""
        now = self._clock()
        self._count(now)
        pause = self._pause
        self._not_before = now + pause
        self._tokens = 1.0  # after the pause one call, not a burst
        self._rate = max(self._rate / 2, _SLOWEST)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return pause

    def went_through(self) -> None:
        """Note that AWS took a call: a lowered rate recovers."""
        self._count(self._clock())
        self._rate = min(self._rate * _RECOVERY, self._full_rate)
        self._pause = FIRST_PAUSE

    def _count(self, now: float) -> None:
        # Nothing is gained during a pause: what AWS refused was too much already.
        since = max(self._counted, min(self._not_before, now))
        self._tokens = min(self._capacity, self._tokens + max(now - since, 0.0) * self._rate)
        self._counted = now
