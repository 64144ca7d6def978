"""One submission's talk with the agent on its host: what is sent, what is heard, and for how long nothing was heard."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

from runner.dask.claims import Claim
from runner.dask.session import DaskSession
from runner.errors import Interrupted, TransportError, WorkerError

POLL = 15.0  # seconds of silence before the agent answers that there is nothing new
PAUSE = 1.0  # seconds between two questions to a worker that does not answer
PART = 4 << 20  # bytes of a submission, or of results, in one call
_OVERDUE = 15.0  # seconds beyond ``POLL`` after which an answer does not count as under way any more
_ANSWER = 60.0  # seconds
_NO_ANSWER = (TransportError, futures.TimeoutError, futures.CancelledError)


class Dialogue:
    """Questions and answers about one run. Used by one thread.

    Args:
        session: the event's connection.
        claim: of the run.
        bell: rung when there may be news.
        log_size: bytes of the log that are here.

    Attributes:
        folds: that were scored there when it was last heard of.
    """

    def __init__(
        self, session: DaskSession, claim: Claim, *, bell: threading.Event, log_size: Callable[[], int]
    ) -> None:
        self._session, self._claim = session, claim
        self._bell = bell
        self._log_size = log_size
        self.folds = 0
        self._pending: tuple[tuple[int, str], float, futures.Future[dict[str, Any]]] | None = None
        self._lost_since: float | None = None
        self._ask_after = 0.0

    # -- hearing -------------------------------------------------------------------------------------------------

    @property
    def silence(self) -> float:
        """Seconds since the host got out of reach; 0 while it is in reach."""
        return 0.0 if self._lost_since is None else time.monotonic() - self._lost_since

    @property
    def pause(self) -> float:
        """Seconds after which it is worth to look for news again without the bell."""
        return PAUSE if self._pending is None else POLL

    def news(self) -> dict[str, Any] | None:
        """Return what the agent answered, if it has; else see to it that it is asked."""
        now = time.monotonic()
        if self._pending is not None:
            whom, since, asked = self._pending
            is_current = whom == (self._session.connection, self._claim.address)
            if is_current and not asked.done() and now < since + POLL + _OVERDUE:
                return None
            self._pending = None
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                self._lost_since = None
                return self._noted(asked.result())
            asked.cancel()
            self._lost_since = self._lost_since or (now if asked.done() else since)
            if is_current:
                self._ask_after = now + PAUSE
        if not self._claim.address:
            self._lost_since = self._lost_since or now
            return None
        if now >= self._ask_after:
            whom = self._session.connection, self._claim.address
            asked = self._follow(POLL)
            self._pending = whom, now, asked
            asked.add_done_callback(lambda _: self._bell.set())
        return None

    def look(self) -> dict[str, Any] | None:
        """Ask once and do not wait for news; None when nobody answers."""
        if not self._claim.address:
            return None
        with contextlib.suppress(*_NO_ANSWER):
            return self._noted(self._answer(self._follow(0.0)))
        return None

    def _follow(self, seconds: float) -> "futures.Future[dict[str, Any]]":
        return self._ask("follow", offset=self._log_size(), folds=self.folds, seconds=seconds)

    def _noted(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.folds = int(answer["folds"])
        return answer

    # -- sending and fetching ------------------------------------------------------------------------------------

    def tell(self, method: str, **words: Any) -> dict[str, Any]:
        """Ask what must succeed before the training can start.

        Raises:
            Interrupted: the host is away.
            WorkerError: it refuses.
        """
        try:
            answer = self._answer(self._ask(method, **words))
        except _NO_ANSWER as error:
            msg = "the submission could not be sent to its Dask worker; it will be tried again"
            raise Interrupted(msg, detail=str(error), address=self._claim.address) from error
        if "error" in answer:
            raise refusal({**answer, "host": self._claim.host})
        return answer

    def results(self, position: int, *, patience: float, is_over: Callable[[], bool]) -> tuple[bytes, bool]:
        """Return the archive of the results from ``position`` on, and whether that is all.

        The results lie on the host until the run is released: when its worker is away, it is waited for.

        Args:
            position: in bytes.
            patience: seconds to wait for a worker process of that host.
            is_over: whether waiting has become pointless.

        Raises:
            TransportError: the host stays away.
        """
        give_up = time.monotonic() + patience
        while True:
            try:
                answer = self._answer(self._ask("results", position=position, size=PART))
            except _NO_ANSWER as error:
                left = give_up - time.monotonic()
                if left <= 0 or is_over():
                    msg = "the Dask worker does not answer"
                    raise TransportError(msg, detail=str(error), host=self._claim.host) from error
                self._bell.clear()
                self._bell.wait(min(left, PAUSE))
            else:
                return answer["results"], bool(answer["is_whole"])

    def _ask(self, method: str, **words: Any) -> "futures.Future[dict[str, Any]]":
        return self._session.ask(self._claim.address, method, run=self._claim.run, **words)

    def _answer(self, asked: "futures.Future[dict[str, Any]]") -> dict[str, Any]:
        """Return an answer, unless its connection is lost meanwhile: then there will be none."""
        connection, give_up = self._session.connection, time.monotonic() + _ANSWER
        while True:
            try:
                return asked.result(PAUSE)
            except futures.TimeoutError:
                if asked.done() or self._session.connection != connection or time.monotonic() > give_up:
                    asked.cancel()
                    raise


class Results:
    """The archive of the results as a stream; asks for the next part when it is wanted.

    Args:
        first: what came with the end of the training: bytes, and whether they are all.
        fetch: gives the part that begins at a position.
    """

    def __init__(self, first: tuple[bytes, bool], fetch: Callable[[int], tuple[bytes, bool]]) -> None:
        self._part, self._is_whole = first
        self._position = len(self._part)
        self._fetch = fetch

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes."""
        while not self._part and not self._is_whole:
            self._part, self._is_whole = self._fetch(self._position)
            self._position += len(self._part)
        data, self._part = self._part[:size], self._part[size:]
        return data


def refusal(said: dict[str, Any]) -> WorkerError:
    """Return what an agent's refusal means."""
    if said.get("is_full"):
        msg = "the disk of the Dask worker's host is full; make room there; the submission will be tried again"
        return WorkerError(msg, detail=str(said["error"]), host=said.get("host"))
    msg = "the training could not be started on its Dask worker; it will be tried again"
    return WorkerError(msg, detail=str(said["error"]), host=said.get("host"))
