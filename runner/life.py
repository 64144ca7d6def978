"""One attempt at one submission, from setup to teardown, in a thread of its own."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from runner.config_worker import DEFAULT_TIMEOUT
from runner.errors import (
    Interrupted,
    LaunchStopped,
    NoRoom,
    RampCloudError,
    StoreError,
    SubmissionUnusable,
    WorkerError,
)
from runner.kit import Kit
from runner.records import Attempt, Outcome, Score
from runner.retry import Decision, RetryPolicy
from runner.scores import ScoresUnreadable, read_scores
from runner.states import Cause, State
from runner.store import Store
from runner.workers.base import TIMEOUT_CODE, BaseWorker, WorkerState

T = TypeVar("T")
logger = logging.getLogger(__name__)
_FETCH_FAILED = 2  # the predecessor's code for results that could not be fetched
_GRACE = 15.0  # seconds that a worker has for enforcing the time limit by itself before we do
_CHECK = "check with `ramp-test --submission <yours> --save-output`"
_STORE_PAUSE = 5.0  # seconds between two tries to write a result down


class Listener(Protocol):
    """Is told what happens. Called from many threads."""

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Note that a submission came to a state; with an outcome at the end of an attempt."""


class End(Enum):
    """Why a life is ended before its training is."""

    STOP = "the dispatcher stops"
    CANCEL = "the organiser cancelled"
    EXPIRED = "the attempt took longer than its limits allow"


class Lost(Exception):
    """The attempt belongs to another dispatcher by now, which took us for dead; nothing of it may be touched."""


class Life:
    """Runs an attempt. ``start`` returns at once; ``ended`` rings when all is written down.

    Args:
        attempt: what was claimed or adopted.
        make_worker: makes the worker; called in the life's thread, so that nothing it does can harm the dispatcher.
        adopted: whether another dispatcher began the attempt.
        store: where every step is written down.
        dispatcher: id of the owner.
        policy: what follows a failure.
        kit: facts about the kit, for workers that need it; nothing is blamed on a participant while the kit itself may
            be broken.
        clock: the present moment, UTC.
        listener: is told of every state.
        ended: called once, from the life's thread, at its very end.
    """

    def __init__(
        self,
        attempt: Attempt,
        make_worker: Callable[[], BaseWorker],
        *,
        adopted: bool,
        store: Store,
        dispatcher: str,
        policy: RetryPolicy,
        kit: "Future[Kit | None] | None",
        clock: Callable[[], datetime],
        listener: Listener,
        ended: Callable[[], None],
    ) -> None:
        self.attempt = attempt
        self.worker: BaseWorker | None = None
        self.limit = attempt.time_limit or DEFAULT_TIMEOUT
        self._make_worker = make_worker
        self._adopted = adopted
        self._begun = time.monotonic()
        self._store = store
        self._dispatcher = dispatcher
        self._policy = policy
        self._kit = kit
        self._clock = clock
        self._listener = listener
        self._ended = ended
        self._end: End | None = None
        self._leave = threading.Event()
        self._over = threading.Event()
        self.launch_stopped: LaunchStopped | None = None  # nothing can be launched any more, for no submission
        self._retry_after: float | None = None  # seconds until there may be room for the submission
        self._training_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"life-{attempt.run[:8]}", daemon=True)

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; return whether it is over."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def end(self, why: End) -> None:
        """Ask the life to end soon; the first reason counts. Called by the dispatcher's thread."""
        self._end = self._end or why
        if why is End.STOP:
            self._leave.set()
        try:
            if self.worker is not None:
                self.worker.wake()
        except Exception as error:  # noqa: BLE001 - part of the guard: this is the dispatcher's thread
            logger.warning("%s: its worker could not be woken: %s", self.attempt.name, error)

    @property
    def is_over(self) -> bool:
        """Whether the thread has come to its end."""
        return self._over.is_set()

    @property
    def seconds(self) -> float:
        """Seconds since the life began, setup included."""
        return time.monotonic() - self._begun

    @property
    def ending(self) -> End | None:
        """Why the life was asked to end, if it was."""
        return self._end

    @property
    def folds_done(self) -> int | None:
        """Folds that the training has done, None where that is not known."""
        try:
            return None if self.worker is None else self.worker.folds_done()
        except Exception as error:  # noqa: BLE001 - part of the guard: asked by the view, never worth an end
            logger.debug("%s: its folds could not be counted: %s", self.attempt.name, error)
            return None

    @property
    def training_seconds(self) -> float | None:
        """Seconds since the training started, None before."""
        return None if self._training_since is None else time.monotonic() - self._training_since

    def abandon(self) -> None:
        """Write off a life whose thread hangs: end the attempt, so that its late words count for nothing."""
        outcome = Outcome(
            cause=Cause.INFRA_ERROR,
            message="the worker did not answer within the time limit and a margin; it will be tried again",
            detail=f"{self.worker!r} hangs; its thread was given up",
        )
        # Lost: it has ended meanwhile, and only its teardown hangs. A store that is away must not make the dispatcher
        # wait here; the attempt then stays open and is found again by the next reconciliation.
        with contextlib.suppress(Lost, StoreError):
            self._leave.set()
            self._finish(outcome, [])

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._live()
        except Lost:
            logger.warning("%s was taken over by another dispatcher", self.attempt.name)
        except StoreError as error:
            # The run is left as it is: the next dispatcher finds it, collects it and writes it down.
            logger.error("%s is left for the next start: %s", self.attempt.name, error.message)  # noqa: TRY400
        finally:
            self._over.set()
            self._ended()

    def _live(self) -> None:
        try:
            outcome, scores = self._train()
        except (Lost, StoreError):
            raise
        # SystemExit is a worker's sys.exit(): it would end this thread without a word, and the submission never.
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - the guard: nobody ends the dispatcher
            # Who was asked to end may say so by raising; that is no failure.
            asked = self._end is not None and isinstance(error, RampCloudError)
            outcome, scores = self._ended_early() if asked else self._outcome_of(error), []
        if outcome.cause is Cause.OK or outcome.cause.is_participants:
            self._finish(outcome, scores)  # first, so that a crash in between does not lose the result
            self._tear_down()
        else:
            self._tear_down()  # first, so that a submission that waits again is not still running
            self._finish(outcome, scores)

    def _train(self) -> tuple[Outcome, list[Score]]:
        worker = self.worker = self._make_worker()
        worker.run, worker.attempt = self.attempt.run, self.attempt.number
        if self.attempt.handle is not None:
            worker.resume(self.attempt.handle)
        elif self.attempt.state is not State.SENT_TO_TRAINING or self.attempt.launched:
            msg = "the worker cannot find its training again; the submission will be tried again"
            raise Interrupted(msg)
        else:
            worker.setup()
            self._check_status(worker, "prepared")
            self._keep(worker.state())
            if self._end:
                return self._ended_early(), []
            worker.launch_submission()
            self._check_status(worker, "started")
        self._training_since = time.monotonic()
        handle = worker.state()
        self._mark(State.TRAINING, lambda: self._store.begin_training(self._dispatcher, self.attempt.run, handle))
        self._wait(worker)
        if worker.status == "running":
            return self._ended_early(), []
        if worker.status == "retry":
            msg = "the machine that trained the submission is gone; it will be tried again"
            raise Interrupted(msg)
        return self._collect(worker)

    @staticmethod
    def _check_status(worker: BaseWorker, what: str) -> None:
        if worker.status == "retry":
            msg = f"the submission could not be {what} now; it will be tried again"
            raise Interrupted(msg)
        if worker.status == "error":
            msg = f"the submission could not be {what}; it will be tried again"
            raise WorkerError(msg)

    def _wait(self, worker: BaseWorker) -> None:
        """Wait for the training's end, our own end, or the time limit that a worker failed to enforce."""
        begun = self.attempt.launched
        already = (self._clock() - begun).total_seconds() if begun else 0.0
        limit = time.monotonic() + max(self.limit + _GRACE - already, _GRACE)
        while worker.status == "running" and not self._end:
            remaining = limit - time.monotonic()
            if remaining <= 0:
                worker.status = "timeout"
                return
            worker.wait(remaining)

    def _ended_early(self) -> Outcome:
        if self._end is End.EXPIRED:
            return Outcome(cause=Cause.INFRA_ERROR, message=f"{End.EXPIRED.value}; the submission will be tried again")
        return Outcome(cause=Cause.CANCELLED, message=self._end.value if self._end else "")

    def _collect(self, worker: BaseWorker) -> tuple[Outcome, list[Score]]:
        timed_out = worker.status == "timeout"
        collected = worker.collect_results()
        if collected is None:
            msg = "the results could not be collected; the submission will be tried again"
            raise WorkerError(
                msg,
                detail=f"{type(worker).__name__}.collect_results returned nothing; it must return (code, message)",
            )
        code, message = collected
        usage = worker.usage()
        cause = usage.cause or _cause_of(code)
        if timed_out or cause is Cause.TIMEOUT:
            cause, code = Cause.TIMEOUT, TIMEOUT_CODE
            message = message or f"The training was killed at its time limit of {self.limit:g} s."
        elif _is_memory_error(message) and code:
            cause = Cause.OUT_OF_MEMORY
        scores: list[Score] = []
        if cause is Cause.OK:
            self._mark(State.TESTED, lambda: self._store.mark_tested(self._dispatcher, self.attempt.run))
            try:
                scores = read_scores(Path(worker.config["predictions_dir"]) / self.attempt.name)
            except ScoresUnreadable as error:
                cause, message = Cause.SUBMISSION_ERROR, f"{error}; {_CHECK}"
        outcome = Outcome(
            cause=cause,
            message=message,
            detail=usage.detail,
            returncode=code,
            cpu_seconds=usage.cpu_seconds,
            peak_memory_mb=usage.peak_memory_mb,
        )
        return self._unless_the_kit_is_broken(outcome), scores

    def _unless_the_kit_is_broken(self, outcome: Outcome) -> Outcome:
        """Do not blame a participant while the kit is still being read, or when it cannot be."""
        if self._kit is None or not outcome.cause.is_participants or self._kit.exception() is None:
            return outcome
        waits = "the kit cannot be read; the submission waits"
        return Outcome(cause=Cause.CANCELLED, message=waits, detail=outcome.message)

    def _outcome_of(self, error: BaseException) -> Outcome:
        if isinstance(error, SubmissionUnusable):
            return Outcome(cause=Cause.SUBMISSION_ERROR, message=error.message, detail=error.detail)
        if isinstance(error, LaunchStopped):
            self.launch_stopped = error
            waits = "no machine can be launched any more; the submission waits"
            return Outcome(cause=Cause.CANCELLED, message=waits, detail=error.for_organiser())
        if isinstance(error, NoRoom):
            self._retry_after = error.retry_after
        if isinstance(error, Interrupted | NoRoom):
            return Outcome(cause=Cause.INTERRUPTED, message=error.message, detail=error.for_organiser())
        if isinstance(error, RampCloudError):
            logger.warning("%s: %s", self.attempt.name, error.for_organiser())
            return Outcome(cause=Cause.INFRA_ERROR, message=error.message, detail=error.for_organiser())
        logger.exception("%s: the worker raised", self.attempt.name, exc_info=error)
        return Outcome(
            cause=Cause.INFRA_ERROR,
            message="the worker failed; this is not the submission's fault, and it will be tried again",
            detail=f"{type(error).__name__}: {error}",
        )

    def _finish(self, outcome: Outcome, scores: list[Score]) -> None:
        # That a dispatcher died before the training began says nothing about the submission or its machine.
        began = self._training_since is not None or self.attempt.launched is not None
        counts = (began or not self._adopted or outcome.cause is not Cause.INTERRUPTED) and self._retry_after is None
        state = self._patiently(
            lambda: self._store.finish(
                self._dispatcher,
                self.attempt.run,
                outcome,
                decide=lambda failures: self._decide(failures, outcome),
                scores=scores,
                counts=counts,
            )
        )
        if state is None:
            raise Lost
        self._listener.moved(self.attempt.name, state, outcome)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Write something down, however long the store is away: a training is too dear to lose to that."""
        while True:
            try:
                return work()
            except StoreError as error:
                if self._leave.is_set():
                    raise
                logger.warning("%s waits for the store: %s", self.attempt.name, error.message)
                self._leave.wait(_STORE_PAUSE)

    def _decide(self, failures: int, outcome: Outcome) -> Decision:
        if outcome.cause is Cause.CANCELLED and self._end is not End.CANCEL:
            return Decision(state=State.NEW)
        if self._retry_after is not None and self._end is None:
            return Decision(state=State.NEW, not_before=self._clock() + timedelta(seconds=self._retry_after))
        return self._policy.decide(failures=failures, cause=outcome.cause, now=self._clock())

    def _tear_down(self) -> None:
        if self.worker is None:
            return
        try:
            self.worker.teardown()
        except Exception as error:  # noqa: BLE001 - part of the guard; what could not be released is swept later
            logger.warning("%s: %r could not be torn down: %s", self.attempt.name, self.worker, error)

    def _keep(self, handle: WorkerState | None) -> None:
        if not self._patiently(lambda: self._store.save_handle(self._dispatcher, self.attempt.run, handle)):
            raise Lost

    def _mark(self, state: State, write: Callable[[], bool]) -> None:
        if not self._patiently(write):
            raise Lost
        self._listener.moved(self.attempt.name, state, None)


def _cause_of(code: int) -> Cause:
    if code == 0:
        return Cause.OK
    if code == TIMEOUT_CODE:
        return Cause.TIMEOUT
    return Cause.INFRA_ERROR if code == _FETCH_FAILED else Cause.SUBMISSION_ERROR


def _is_memory_error(message: str) -> bool:
    lines = message.strip().splitlines()
    return bool(lines) and lines[-1].split(":")[0].endswith("MemoryError")  # numpy's is called _ArrayMemoryError
