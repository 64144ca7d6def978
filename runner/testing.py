"""Fakes for tests of workers and of what drives them: a worker per way to fail, a clock, a listener that remembers.

Nothing here starts a process or sleeps. The workers train on a ``Platform`` that exists in memory only; the test holds
it and says when a training ends, when its machine is lost, and when a worker that hangs may go on.

    platform = Platform()
    worker = SlowWorker({**config, "platform": platform}, "a_submission")
    worker.setup()
    worker.launch_submission()
    platform.end("a_submission")
    worker.wait(10)
    assert worker.status == "finished"
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from runner.errors import Interrupted
from runner.records import Outcome
from runner.states import State
from runner.workers.base import TIMEOUT_CODE, BaseWorker, log_file

PATIENCE = 20.0  # seconds after which a test that waits for something in vain fails


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a fake behaves. The defaults are a training that ends well at once.

    Attributes:
        ends: whether the training ends by itself; otherwise the test ends it with ``Platform.end``.
        code, message: what ``collect_results`` returns.
        raises_in: name of the method that raises ``error``.
        hangs_in: name of the method that does not return before ``Platform.let_go``.
        status_after_setup, status_after_launch: error or retry, where the worker reports a failure without raising.
        losses: how many attempts lose their machine before one goes well.
        has_results: whether score files are there when the worker says that all went well.
        returns_nothing: whether ``collect_results`` forgets to return anything.
        keeps_limit: whether the worker ends a training at its time limit.
        can_resume: whether the worker has a ``state``.
    """

    ends: bool = True
    code: int = 0
    message: str = ""
    raises_in: str = ""
    error: BaseException | None = None
    hangs_in: str = ""
    status_after_setup: str = ""
    status_after_launch: str = ""
    losses: int = 0
    has_results: bool = True
    returns_nothing: bool = False
    keeps_limit: bool = True
    can_resume: bool = True


@dataclass(kw_only=True)
class _Training:
    submission: str
    began: float
    code: int | None = None
    message: str = ""
    is_lost: bool = False


class Platform:
    """What the fakes train on: the test's side of them. May be used from any thread.

    ``calls`` has (submission, method) of every call, in order.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self._trainings: dict[str, _Training] = {}
        self._losses: dict[str, int] = {}
        self._gone_on: set[str] = set()
        self._hanging: dict[str, int] = {}

    # -- for the test --------------------------------------------------------------------------------------------

    def end(self, submission: str, code: int = 0, message: str = "") -> None:
        """End the training of a submission with a return code."""
        with self._changed:
            for training in self._of(submission):
                training.code, training.message = code, message
            self._changed.notify_all()

    def lose(self, submission: str) -> None:
        """Take the machine away that trains a submission."""
        with self._changed:
            for training in self._of(submission):
                training.is_lost = True
            self._changed.notify_all()

    def let_go(self, submission: str) -> None:
        """Let every worker of a submission go on that hangs, now or later."""
        with self._changed:
            self._gone_on.add(submission)
            self._changed.notify_all()

    def running(self) -> list[str]:
        """Return the submissions that train at this moment; one that trains twice is there twice."""
        with self._changed:
            return sorted(t.submission for t in self._trainings.values() if t.code is None and not t.is_lost)

    def wait_until_running(self, submission: str) -> None:
        """Return when a submission trains; AssertionError when it does not come to that."""
        self._wait(lambda: bool(self._of(submission)), f"{submission} did not start")

    def wait_until_hanging(self, submission: str) -> None:
        """Return when a worker of a submission hangs; AssertionError when it does not come to that."""
        self._wait(lambda: self._hanging.get(submission, 0) > 0, f"the worker of {submission} did not hang")

    # -- for the workers -----------------------------------------------------------------------------------------

    def note(self, submission: str, method: str) -> None:
        """Remember a call."""
        with self._changed:
            self.calls.append((submission, method))

    def hang(self, submission: str) -> None:
        """Return when the test lets the submission go on."""
        with self._changed:
            self._hanging[submission] = self._hanging.get(submission, 0) + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: submission in self._gone_on)
            self._hanging[submission] -= 1

    def start(self, key: str, submission: str, way: Way) -> None:
        """Begin a training that ends in a way."""
        with self._changed:
            training = _Training(submission=submission, began=time.monotonic())
            lost = self._losses.get(submission, 0)
            if lost < way.losses:
                self._losses[submission] = lost + 1
                training.is_lost = True
            elif way.ends:
                training.code, training.message = way.code, way.message
            self._trainings[key] = training
            self._changed.notify_all()

    def find(self, key: str) -> _Training | None:
        """Return a training, None when it never began or was released."""
        with self._changed:
            return self._trainings.get(key)

    def release(self, key: str) -> None:
        """End a training if it still runs and forget it."""
        with self._changed:
            self._trainings.pop(key, None)

    def wait(self, over: Callable[[], bool], timeout: float) -> None:
        """Return when ``over`` holds, or after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(over, min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Make everybody who waits look again."""
        with self._changed:
            self._changed.notify_all()

    def _of(self, submission: str) -> list[_Training]:
        return [t for t in self._trainings.values() if t.submission == submission and t.code is None and not t.is_lost]

    def _wait(self, holds: Callable[[], bool], otherwise: str) -> None:
        with self._changed:
            if not self._changed.wait_for(holds, PATIENCE):
                raise AssertionError(otherwise)


class FakeWorker(BaseWorker):
    """A worker that keeps the contract. Its subclasses break it, each in one way.

    Keys of its config beside the usual ones: ``platform`` (without it every worker has one of its own) and ``ways``, a
    mapping from a submission's name to the ``Way`` that it takes in place of the class's own.
    """

    way: ClassVar[Way] = Way()

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self.platform: Platform = config.get("platform") or Platform()
        self._way: Way = config.get("ways", {}).get(submission, self.way)
        self._key = ""
        self._message = ""

    def setup(self) -> None:
        """Get ready, or not; see ``Way``."""
        self._enter("setup")
        self._key = self.run
        super().setup()
        self.status = self._way.status_after_setup or self.status

    def launch_submission(self) -> None:
        """Start the training on the platform and write the first line of its log."""
        self._enter("launch_submission")
        log = log_file(self.config, self.submission)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"Training {self.submission} ...\n")
        self.platform.start(self._key, self.submission, self._way)
        super().launch_submission()
        self.status = self._way.status_after_launch or self.status

    def _is_submission_finished(self) -> bool:
        training = self.platform.find(self._key)
        return training is not None and training.code is not None

    def _is_submission_interrupted(self) -> bool:
        training = self.platform.find(self._key)
        return training is None or training.is_lost

    def check_timeout(self) -> bool:
        """End the training at its time limit, unless this is a fake that forgets to."""
        training = self.platform.find(self._key)
        if not self._way.keeps_limit or training is None or time.monotonic() - training.began < self.timeout:
            return False
        self.platform.release(self._key)
        self.status = "timeout"
        return True

    def wait(self, timeout: float) -> None:
        """Return when the platform, the time limit or ``wake`` says so."""
        self._enter("wait")
        training = self.platform.find(self._key)
        if training is not None and self._way.keeps_limit:
            timeout = min(timeout, training.began + self.timeout - time.monotonic())
        self.platform.wait(self._may_be_over, max(timeout, 0.0))
        self.poll()

    def wake(self) -> None:
        """Make ``wait`` return."""
        super().wake()
        self.platform.wake()

    def collect_results(self) -> tuple[int, str] | None:
        """Write score files like those of ramp-test when the training went well, and return what the way says."""
        super().collect_results()
        self._enter("collect_results")
        training = self.platform.find(self._key)
        code = TIMEOUT_CODE if training is None or training.code is None else training.code
        if code == 0 and self._way.has_results:
            write_results(Path(self.config["predictions_dir"]) / self.submission)
        self.status = "collected"
        return None if self._way.returns_nothing else (code, training.message if training else "")

    def teardown(self) -> None:
        """Release the training."""
        self._enter("teardown")
        self.platform.release(self._key)
        super().teardown()

    def state(self) -> dict[str, Any] | None:
        """Return the training's key on the platform."""
        self._enter("state")
        return {"key": self._key} if self._way.can_resume else None

    def resume(self, state: Mapping[str, Any]) -> None:
        """Find the training on the platform."""
        self._enter("resume")
        self._key = state["key"]
        training = self.platform.find(self._key)
        if training is None or training.is_lost:
            msg = "the platform does not know the training; it will be tried again"
            raise Interrupted(msg)
        self.status = "running"

    def _may_be_over(self) -> bool:
        # Called with the platform's lock held, which the same thread may take again.
        return self._woken.is_set() or self._is_submission_interrupted() or self._is_submission_finished()

    def _enter(self, method: str) -> None:
        self.platform.note(self.submission, method)
        if self._way.hangs_in == method:
            self.platform.hang(self.submission)
        if self._way.raises_in == method:
            raise self._way.error or ValueError(f"{method} of a fake was told to fail")


class GoodWorker(FakeWorker):
    """Ends well at once."""


class SlowWorker(FakeWorker):
    """Trains until the test ends it with ``Platform.end``."""

    way = Way(ends=False)


class NeverEndingWorker(FakeWorker):
    """Trains for ever and forgets about its time limit; only a dispatcher's backstop ends it."""

    way = Way(ends=False, keeps_limit=False)


class FailingWorker(FakeWorker):
    """Its submission raises."""

    way = Way(code=1, message="Traceback (most recent call last)\nValueError: no idea")


class RaisesInSetup(FakeWorker):
    """Cannot get ready."""

    way = Way(raises_in="setup")


class RaisesInLaunch(FakeWorker):
    """Cannot start the training."""

    way = Way(raises_in="launch_submission")


class RaisesInCollect(FakeWorker):
    """Cannot bring the results."""

    way = Way(raises_in="collect_results")


class RaisesInTeardown(FakeWorker):
    """Cannot clean up."""

    way = Way(raises_in="teardown")


class HangsInSetup(FakeWorker):
    """Does not come back from ``setup`` before ``Platform.let_go``."""

    way = Way(hangs_in="setup")


class ErrorAfterSetup(FakeWorker):
    """Leaves ``status`` at error where others raise, as the predecessor's workers did."""

    way = Way(status_after_setup="error")


class RetryAfterSetup(FakeWorker):
    """Finds no machine and asks to be tried again, as the predecessor's AWS worker did."""

    way = Way(status_after_setup="retry")


class DyingWorker(FakeWorker):
    """Loses its machine whenever it trains."""

    way = Way(losses=1_000_000)


class LosesMachineTwice(FakeWorker):
    """Loses its machine twice and then ends well."""

    way = Way(losses=2)


class FinishedWithoutResults(FakeWorker):
    """Says that all went well, but there are no score files."""

    way = Way(has_results=False)


class ReturnsNothing(FakeWorker):
    """Forgets to return anything from ``collect_results``."""

    way = Way(returns_nothing=True)


class FetchFails(FakeWorker):
    """Returns code 2: the results could not be fetched."""

    way = Way(code=2, message="the results could not be fetched", has_results=False)


class ForgetfulWorker(FakeWorker):
    """Has no ``state``; a training that outlives its dispatcher is tried again."""

    way = Way(ends=False, can_resume=False)


def write_results(folder: Path, score: float = 0.5) -> None:
    """Write the score files of two folds as ramp-test does, the score ``acc`` being the same everywhere."""
    for number in range(2):
        fold = folder / f"fold_{number}"
        fold.mkdir(parents=True, exist_ok=True)
        rows = [f"{step},{score},0.25\n" for step in ("train", "valid", "test")]
        (fold / "scores.csv").write_text("step,acc,time\n" + "".join(rows))
    bags = [f"{step},{bag},{score}\n" for step in ("valid", "test") for bag in range(2)]
    (folder / "bagged_scores.csv").write_text("step,n_bag,acc\n" + "".join(bags))


class FakeClock:
    """A clock that stands still until the test moves it. Call it for the present moment, UTC."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        """Return the present moment."""
        with self._lock:
            return self._now

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._now += timedelta(seconds=seconds)


class Memory:
    """A listener that remembers every move as (submission, state, outcome)."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, State, Outcome | None]] = []
        self._changed = threading.Condition()

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Note a move; see ``runner.life.Listener``."""
        with self._changed:
            self.moves.append((name, state, outcome))
            self._changed.notify_all()

    def states_of(self, name: str) -> list[State]:
        """Return the states that a submission went through."""
        return [state for moved, state, _ in self.moves if moved == name]

    def wait_for(self, name: str, state: State, *, times: int = 1) -> None:
        """Return when a submission has come to a state so many times; AssertionError when it does not come to that."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.states_of(name).count(state) >= times, PATIENCE):
                msg = f"{name} did not come to {state}; it went through {self.states_of(name)}"
                raise AssertionError(msg)
