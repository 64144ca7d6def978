"""A request for an instance while it waits, and the requests that are sent to AWS together."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from runner.aws.answers import Instance
from runner.aws.ledger import Reservation
from runner.aws.tags import Request
from runner.errors import Interrupted, RampCloudError

_LOOK = 1.0  # seconds between two looks at whether a requester has gone


class Ticket:
    """A request that waits. It is settled once: with an instance, or with an error, which may be its requester's going.

    Args:
        request: for which attempt.
        stop: whether the attempt is not wanted any more; asked from two threads.
        asked: since when it waits, by a clock that only grows.
    """

    def __init__(self, request: Request, stop: Callable[[], bool], asked: float) -> None:
        self.request = request
        self.asked = asked
        self._stop = stop
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._instance: Instance | None = None
        self._error: RampCloudError | None = None

    def waits(self) -> bool:
        """Whether its requester still waits for an instance."""
        if not self._settled.is_set() and self._stop():
            msg = "the attempt was ended before a machine was launched for it"
            self.fail(Interrupted(msg, run=self.request.run))
        return not self._settled.is_set()

    def give(self, instance: Instance) -> bool:
        """Hand an instance over; False when nobody takes it."""
        if not self.waits():
            return False
        with self._lock:
            if not self._settled.is_set():
                self._instance = instance
                self._settled.set()
        return self._instance is instance

    def fail(self, error: RampCloudError) -> None:
        """Settle it with an error; one that is settled stays as it is."""
        with self._lock:
            if not self._settled.is_set():
                self._error = _twin(error)
                self._settled.set()

    def result(self) -> Instance:
        """Wait until it is settled and return the instance, or raise the error."""
        while not self._settled.wait(_LOOK):
            self.waits()
        if self._instance is None:
            raise self._error or AssertionError("a settled ticket holds an instance or an error")
        return self._instance


@dataclass(kw_only=True)
class Batch:
    """Requests that are sent together, and what the budget said to them."""

    tickets: list[Ticket]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    refusals: list[Reservation] = field(default_factory=list)
    calls: int = 0

    def waiting(self) -> list[Ticket]:
        """Return those that still wait, in order."""
        return [ticket for ticket in self.tickets if ticket.waits()]

    def token(self) -> str:
        """Return a ClientToken for the next call; whoever repeats the call repeats its token too."""
        self.calls += 1
        return f"{self.id}-{self.calls}"


def _twin(error: RampCloudError) -> RampCloudError:
    """Return the same error as an object of its own: each thread adds its traceback to what it raises."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error
    return twin
