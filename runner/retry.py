"""Whether an attempt that ended is followed by another, and when. Pure: no clock, no store."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from runner.states import Cause, State


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a submission after an attempt.

    ``not_before`` is set only with ``State.NEW``: the moment (UTC) from which it may be claimed again.
    """

    state: State
    not_before: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """At most ``max_attempts`` attempts that fail for our own reasons, ``backoff`` doubling between them.

    An attempt ended by its participant's code is never repeated; one ended by the organiser (a cancel, a stop of
    the dispatcher) counts for nothing.
    """

    max_attempts: int = 3
    backoff: timedelta = timedelta(seconds=5)
    max_backoff: timedelta = timedelta(minutes=5)

    def decide(self, *, failures: int, cause: Cause, now: datetime) -> Decision:
        """Return the next state of a submission.

        Args:
            failures: attempts that ended for our own reasons since the submission was last submitted or rerun,
                this one included.
            cause: why the attempt ended.
            now: the present moment, UTC.
        """
        if cause is Cause.OK:
            return Decision(state=State.SCORED)
        if cause is Cause.CANCELLED:
            return Decision(state=State.CANCELLED)
        if cause.is_participants:
            return Decision(state=State.TRAINING_ERROR)
        if failures >= self.max_attempts:
            return Decision(state=State.CHECKING_ERROR)
        return Decision(state=State.NEW, not_before=now + self._delay(failures))

    def _delay(self, failures: int) -> timedelta:
        # The exponent is bounded so that a huge max_attempts cannot overflow timedelta.
        doublings: int = min(max(failures - 1, 0), 20)
        return min(self.backoff * float(2**doublings), self.max_backoff)
