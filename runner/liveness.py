"""Which dispatchers live: on this machine the system tells, of another one its heartbeat does."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runner.processes import host_id, is_same
from runner.records import DispatcherRecord

DEAD_AFTER = 60.0  # seconds of silence after which a dispatcher of another machine is taken for dead


@dataclass(kw_only=True)
class Hearts:
    """Listens to the hearts of other dispatchers; one that is silent for ``dead_after`` seconds is dead.

    Only silence that we listened to counts: neither other machines' clocks matter, nor a time in which the store was
    away (or we slept), when no heart could be heard.
    """

    dead_after: float = DEAD_AFTER
    _heard: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)  # last beat, since when we know it
    _listened: datetime | None = None

    def living(self, dispatchers: Iterable[DispatcherRecord], *, now: datetime) -> list[str]:
        """Return the ids of those that live. Call it several times within ``dead_after``."""
        if self._listened is None or now - self._listened > timedelta(seconds=self.dead_after / 2):
            self._heard.clear()
        self._listened = now
        return [dispatcher.id for dispatcher in dispatchers if self._lives(dispatcher, now)]

    def _lives(self, dispatcher: DispatcherRecord, now: datetime) -> bool:
        if dispatcher.host == host_id():
            return is_same(dispatcher.pid, dispatcher.process_started)
        beat, since = self._heard.get(dispatcher.id, (None, now))
        if beat != dispatcher.heartbeat:
            since = now
        self._heard[dispatcher.id] = (dispatcher.heartbeat, since)
        return now - since < timedelta(seconds=self.dead_after)


def any_seems_alive(dispatchers: Iterable[DispatcherRecord], *, now: datetime) -> bool:
    """Whether the event seems to be run by somebody, at one look: a heartbeat that is not old counts."""
    recent = now - timedelta(seconds=DEAD_AFTER)
    return any(
        is_same(dispatcher.pid, dispatcher.process_started)
        if dispatcher.host == host_id()
        else dispatcher.heartbeat > recent
        for dispatcher in dispatchers
    )
