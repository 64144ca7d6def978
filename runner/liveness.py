"""Which dispatchers live: on this machine by asking the system, elsewhere by their heartbeat."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from runner.processes import host_id, is_same
from runner.records import DispatcherRecord

DEAD_AFTER = 60.0  # seconds of silence after which a dispatcher of another machine is taken for dead


def lives(dispatcher: DispatcherRecord, *, now: datetime, dead_after: float = DEAD_AFTER) -> bool:
    """Whether a dispatcher that has not said that it ended still runs."""
    if dispatcher.host == host_id():
        return is_same(dispatcher.pid, dispatcher.process_started)
    return now - dispatcher.heartbeat < timedelta(seconds=dead_after)


def any_lives(dispatchers: Iterable[DispatcherRecord], *, now: datetime) -> bool:
    """Whether the event is being run by somebody."""
    return any(lives(dispatcher, now=now) for dispatcher in dispatchers)
