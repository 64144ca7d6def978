"""Follows what a build says over its whole life, through the times in which AWS does not answer."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from image_builder.build_log import BuildLog
from image_builder.builds import is_unknown
from runner.aws.session import Unanswered
from runner.errors import AwsError, Throttled

_NOT_YET = timedelta(seconds=60)  # in which AWS may not know a build yet that it has just started
_REATTACH = "the build itself goes on in AWS; `./inv follow-build` shows it again"


class Heard(Protocol):
    """Who follows a build. Called from the thread that follows."""

    def phase(self, name: str, seconds: float) -> None:
        """Hear the phase, one of ``PHASES`` or how it ended; at every look, ``seconds`` after the build's start."""

    def line(self, text: str) -> None:
        """Hear a line of the build's log."""

    def note(self, text: str) -> None:
        """Hear of a hindrance that may pass, such as AWS not answering."""


class Waiting:
    """Lets AWS be away for a while: what it raises in a ``with`` passes until that is over."""

    def __init__(self, clock: Callable[[], datetime], away: timedelta, heard: Heard) -> None:
        self._clock = clock
        self._away = away
        self._heard = heard
        self._since: datetime | None = None
        self._answered = False

    def __enter__(self) -> None:
        """Begin a look."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Swallow what may pass by itself."""
        if error is None:
            self._since, self._answered = None, True
            return False
        if not isinstance(error, AwsError):
            return False
        now = self._clock()
        if self._since is None and self._limit(error):
            self._since = now
            self._heard.note(f"{error.message}; trying on")
        if self._since is None or now - self._since >= self._limit(error):
            raise _still_going(error) from error
        return True

    def _limit(self, error: AwsError) -> timedelta:
        """Return how long an error may last; zero for what does not pass by itself."""
        if isinstance(error, Throttled | Unanswered):
            return self._away
        return min(_NOT_YET, self._away) if is_unknown(error) and not self._answered else timedelta(0)


class Told:
    """Passes a log on, and notes once when it cannot be read: phases and images count more."""

    def __init__(self, log: BuildLog, heard: Heard) -> None:
        self._log = log
        self._heard = heard
        self._closed = False

    def tell(self) -> int:
        """Pass on what is new, and return how many lines that were."""
        count = 0
        if self._closed:
            return count
        try:
            for text in self._log.fresh():
                self._heard.line(text)
                count += 1
        except (Throttled, Unanswered):
            pass  # the next look reads it; whether AWS is away, the look at the build itself tells
        except AwsError as error:
            self._closed = True
            self._heard.note(f"the log cannot be read: {error.message}")
        return count

    def lines(self) -> list[str]:
        """Return all lines, also those that came too late to be passed on in their place; none if unreadable."""
        try:
            return [] if self._closed else self._log.whole()
        except AwsError as error:
            self._heard.note(f"the log cannot be read: {error.message}")
            return []


def _still_going(error: AwsError) -> AwsError:
    return type(error)(f"{error.message}; {_REATTACH}", detail=error.detail, **error.fields)
