"""The dispatcher with workers that fail in every way, a real store and a clock that the test moves."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runner.dispatcher import Rhythm
from runner.errors import Interrupted, KitError, LaunchStopped, NoRoom, SubmissionUnusable
from runner.records import Outcome
from runner.retry import Decision, RetryPolicy
from runner.states import Cause, State
from runner.store import Store
from runner.testing import (
    PATIENCE,
    DyingWorker,
    ErrorAfterSetup,
    FailingWorker,
    FakeWorker,
    FetchFails,
    FinishedWithoutResults,
    GoodWorker,
    LosesMachineTwice,
    NeverEndingWorker,
    Platform,
    RaisesInCollect,
    RaisesInLaunch,
    RaisesInSetup,
    RaisesInTeardown,
    RetryAfterSetup,
    ReturnsNothing,
    SlowWorker,
    Way,
)
from runner.workers.base import BaseWorker, LiveRuns
from tests.dispatching import Bench, Running, running


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return an event with nothing in it."""
    made = Bench(tmp_path)
    yield made
    made.close()


# -- how attempts end ------------------------------------------------------------------------------------------------


def _describe(way: Way) -> str:
    other = [(name, value) for name, value in vars(way).items() if value != getattr(Way(), name)]
    return " ".join(f"{name}={value!a}" for name, value in other)


CHECKING, TRAINING = State.CHECKING_ERROR, State.TRAINING_ERROR


@pytest.mark.parametrize(
    ("worker", "end"),
    [
        (GoodWorker, (State.SCORED, Cause.OK, 1)),
        (FailingWorker, (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        (FinishedWithoutResults, (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        (RaisesInSetup, (CHECKING, Cause.INFRA_ERROR, 3)),
        (ErrorAfterSetup, (CHECKING, Cause.INFRA_ERROR, 3)),
        pytest.param(RetryAfterSetup, (CHECKING, Cause.INTERRUPTED, 3)),
        (RaisesInLaunch, (CHECKING, Cause.INFRA_ERROR, 3)),
        (RaisesInCollect, (CHECKING, Cause.INFRA_ERROR, 3)),
        (ReturnsNothing, (CHECKING, Cause.INFRA_ERROR, 3)),
        (FetchFails, (CHECKING, Cause.INFRA_ERROR, 3)),
        (RaisesInTeardown, (State.SCORED, Cause.OK, 1)),
        (DyingWorker, (CHECKING, Cause.INTERRUPTED, 3)),
        (LosesMachineTwice, (State.SCORED, Cause.OK, 3)),
    ],
)
def test_each_failure_ends_in_its_own_state(
    bench: Bench, worker: type[BaseWorker], end: tuple[State, Cause, int]
) -> None:
    bench.add("a")

    Running(bench.dispatcher(worker)).result()

    assert bench.ends() == {"a": end}
    assert bench.platform.running() == []
    assert bench.records()["a"].message or end[1] is Cause.OK
    assert bench.platform.calls.count(("a", "teardown")) == end[2]


@pytest.mark.parametrize(
    ("way", "end"),
    [
        (Way(code=124), (TRAINING, Cause.TIMEOUT, 1)),
        (Way(code=1, message="x\nMemoryError: 1 GB"), (TRAINING, Cause.OUT_OF_MEMORY, 1)),
        (Way(code=1, message="numpy._core._exceptions._ArrayMemoryError: 1 GB"), (TRAINING, Cause.OUT_OF_MEMORY, 1)),
        (Way(code=-9), (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        (Way(code=2**70), (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        (Way(code=1, message="\0 \ud800"), (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        (Way(raises_in="state"), (CHECKING, Cause.INFRA_ERROR, 3)),
        (Way(raises_in="wait"), (CHECKING, Cause.INFRA_ERROR, 3)),
        (Way(status_after_launch="error"), (CHECKING, Cause.INFRA_ERROR, 3)),
        pytest.param(Way(status_after_launch="retry"), (CHECKING, Cause.INTERRUPTED, 3)),
        (Way(raises_in="setup", error=SubmissionUnusable("send it again")), (TRAINING, Cause.SUBMISSION_ERROR, 1)),
        pytest.param(Way(raises_in="setup", error=Interrupted("no machine")), (CHECKING, Cause.INTERRUPTED, 3)),
        (Way(raises_in="collect_results", error=Interrupted("gone")), (CHECKING, Cause.INTERRUPTED, 3)),
        (Way(raises_in="setup", error=SystemExit(3)), (CHECKING, Cause.INFRA_ERROR, 3)),
        (Way(raises_in="wait", error=KeyboardInterrupt()), (CHECKING, Cause.INFRA_ERROR, 3)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else _describe(value),
)
def test_each_way_to_end_has_its_own_state(bench: Bench, way: Way, end: tuple[State, Cause, int]) -> None:
    bench.ways["a"] = way
    bench.add("a")

    Running(bench.dispatcher()).result()

    assert bench.ends() == {"a": end}
    assert bench.platform.running() == []


def test_a_participant_reads_the_own_traceback_and_an_organiser_the_workers(bench: Bench) -> None:
    bench.ways |= {"theirs": FailingWorker.way, "ours": RaisesInSetup.way}
    bench.add("theirs", "ours")

    Running(bench.dispatcher()).result()

    records = bench.records()
    assert records["theirs"].message.endswith("ValueError: no idea")
    assert "not the submission's fault" in records["ours"].message
    assert records["ours"].detail == "ValueError: setup of a fake was told to fail"


def test_a_worker_that_forgets_its_time_limit_is_ended_by_the_life(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.life._GRACE", 0.02)
    bench.add("a")

    Running(bench.dispatcher(NeverEndingWorker, timeout=0.02)).result()

    assert bench.ends() == {"a": (TRAINING, Cause.TIMEOUT, 1)}
    assert "time limit of 0.02 s" in bench.records()["a"].message
    assert bench.platform.running() == []


# -- repeating -------------------------------------------------------------------------------------------------------


def test_a_back_off_is_honoured_and_grows(bench: Bench) -> None:
    policy = RetryPolicy(max_attempts=4, backoff=timedelta(seconds=10))
    bench.add("a")
    with running(bench.dispatcher(DyingWorker, policy=policy, hunger_policy="sleep")):
        for attempt, seconds in enumerate((10, 20, 40), start=1):
            bench.heard.wait_for("a", State.NEW, times=attempt + 1)  # enrolled, then once per failure
            bench.clock.forward(seconds - 1)
            assert bench.open_store().claim("nobody", worker="x", time_limit=None) is None
            assert bench.ends()["a"] == (State.NEW, Cause.INTERRUPTED, attempt)
            bench.clock.forward(1)
        bench.heard.wait_for("a", State.CHECKING_ERROR)
    assert bench.ends() == {"a": (CHECKING, Cause.INTERRUPTED, 4)}


def test_rerun_gives_all_attempts_anew(bench: Bench) -> None:
    bench.add("a")
    Running(bench.dispatcher(DyingWorker)).result()

    bench.platform = Platform()
    bench.open_store().rerun("a")
    Running(bench.dispatcher(LosesMachineTwice)).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 6)}


# -- stop and cancel -------------------------------------------------------------------------------------------------


def test_stop_puts_back_to_new_and_counts_nothing(bench: Bench) -> None:
    bench.add("a")
    for _ in range(5):  # more often than a submission may fail
        with running(bench.dispatcher(SlowWorker)):
            bench.platform.wait_until_running("a")
            bench.heard.wait_for("a", State.TRAINING, times=1)
        assert bench.platform.running() == []
        assert bench.records()["a"].state is State.NEW
        bench.heard.moves.clear()

    Running(bench.dispatcher(LosesMachineTwice)).result()

    assert bench.ends()["a"][:2] == (State.SCORED, Cause.OK)


@pytest.mark.parametrize("stage", ["setup", "launch_submission", "wait", "collect_results"])
def test_cancel_ends_a_submission_in_every_stage(bench: Bench, stage: str) -> None:
    way = Way(ends=False, hangs_in=stage) if stage != "collect_results" else Way(hangs_in=stage)
    bench.ways["a"] = way
    bench.add("a")
    with running(bench.dispatcher()):
        bench.platform.wait_until_hanging("a")
        bench.open_store().request_cancel("a")
        bench.platform.let_go("a")
        last = State.SCORED if stage == "collect_results" else State.CANCELLED  # what has ended cannot be undone
        bench.heard.wait_for("a", last)
    assert bench.platform.running() == []
    assert bench.ends()["a"][0] is last


def test_cancel_wakes_a_training_that_runs(bench: Bench) -> None:
    bench.add("a", "b")
    with running(bench.dispatcher(SlowWorker, n_workers=2)) as run:
        bench.platform.wait_until_running("a")
        bench.platform.wait_until_running("b")
        bench.open_store().request_cancel("a")
        bench.heard.wait_for("a", State.CANCELLED)
        assert bench.platform.running() == ["b"]
        bench.platform.end("b")
        run.result()
    assert bench.ends() == {
        "a": (State.CANCELLED, Cause.CANCELLED, 1),
        "b": (State.SCORED, Cause.OK, 1),
    }


def test_cancel_of_one_that_waits_out_a_back_off_is_final(bench: Bench) -> None:
    policy = RetryPolicy(max_attempts=3, backoff=timedelta(hours=1))
    bench.add("a")
    with running(bench.dispatcher(DyingWorker, policy=policy)) as run:
        bench.heard.wait_for("a", State.NEW, times=2)
        assert bench.open_store().request_cancel("a") is State.CANCELLED
        run.result()
    assert bench.ends()["a"][0] is State.CANCELLED


# -- nobody delays another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["setup", "state", "launch_submission", "wait", "collect_results"])
def test_a_hanging_worker_delays_nobody_and_loses_its_slot(bench: Bench, stage: str) -> None:
    bench.ways["hangs"] = Way(hangs_in=stage)
    bench.add("hangs", "b", "c", "d")
    rhythm = Rhythm(tick=0.01, reconcile=60, margin=0.01, hang=0.01, stop=PATIENCE)
    with running(bench.dispatcher(n_workers=1, rhythm=rhythm, timeout=0.1)) as run:
        bench.platform.wait_until_hanging("hangs")
        run.result()
        assert bench.ends() == {
            "hangs": (CHECKING, Cause.INFRA_ERROR, 3),
            **dict.fromkeys("bcd", (State.SCORED, Cause.OK, 1)),
        }
        bench.platform.let_go("hangs")
    assert bench.ends()["hangs"] == (CHECKING, Cause.INFRA_ERROR, 3)  # late words count for nothing


def test_a_worker_that_hangs_in_teardown_keeps_its_result_and_loses_its_slot(bench: Bench) -> None:
    bench.ways["hangs"] = Way(hangs_in="teardown")
    bench.add("hangs", "b")
    rhythm = Rhythm(tick=0.01, margin=0.01, hang=0.01, stop=0.01)
    with running(bench.dispatcher(n_workers=1, rhythm=rhythm, timeout=0.1)) as run:
        run.result()
    bench.platform.let_go("hangs")
    assert bench.ends() == dict.fromkeys(["hangs", "b"], (State.SCORED, Cause.OK, 1))


class RaisesWhenMade(FakeWorker):
    """Reads a key in its constructor that only some configs have."""

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        if submission == "a":
            msg = "a key that is not there"
            raise KeyError(msg)


class HasNoTimeLimit(FakeWorker):
    """Computes its time limit and gets it wrong."""

    @property
    def timeout(self) -> float:
        """Fail."""
        if self.submission == "a":
            msg = "no number"
            raise TypeError(msg)
        return super().timeout


class CannotBeWoken(FakeWorker):
    """Raises where the dispatcher's own thread calls it."""

    way = Way(ends=False)

    def wake(self) -> None:
        """Fail, after the base class has done its part."""
        super().wake()
        msg = "the other side is gone"
        raise OSError(msg)


@pytest.mark.parametrize("worker", [RaisesWhenMade, HasNoTimeLimit])
def test_what_a_worker_raises_outside_its_life_is_no_ones_end_but_its_own(
    bench: Bench, worker: type[BaseWorker]
) -> None:
    bench.add("a", "b")

    Running(bench.dispatcher(worker, n_workers=1)).result()

    assert bench.ends() == {"a": (CHECKING, Cause.INFRA_ERROR, 3), "b": (State.SCORED, Cause.OK, 1)}


def test_a_worker_that_cannot_be_woken_does_not_end_the_dispatcher(bench: Bench) -> None:
    bench.add("a")
    with running(bench.dispatcher(CannotBeWoken)):
        bench.heard.wait_for("a", State.TRAINING)
        bench.open_store().request_cancel("a")
        bench.heard.wait_for("a", State.CANCELLED)


class SweepRaises(FakeWorker):
    """Cannot sweep."""

    @classmethod
    def sweep(cls, config: dict[str, Any], live_runs: Any) -> list[str]:
        """Fail."""
        msg = "a tag"
        raise KeyError(msg)


def test_a_sweep_that_raises_does_not_end_the_dispatcher(bench: Bench) -> None:
    bench.add("a")

    Running(bench.dispatcher(SweepRaises)).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 1)}


def test_two_lives_share_no_config(bench: Bench) -> None:
    class Scribbles(FakeWorker):
        def setup(self) -> None:
            assert "mine" not in self.config
            self.config["mine"] = self.submission
            super().setup()

    bench.add("a", "b", "c")

    Running(bench.dispatcher(Scribbles, n_workers=3)).result()

    assert set(bench.ends().values()) == {(State.SCORED, Cause.OK, 1)}


# -- machines that cannot be had -------------------------------------------------------------------------------------


class OutOfMoney(FakeWorker):
    """Cannot launch anything for anybody, but for the submission that already trains."""

    way = Way(raises_in="setup", error=LaunchStopped("the event's money is spent; raise max_event_cost"))


def test_when_nothing_can_be_launched_the_event_ends_with_one_message_and_nobody_is_blamed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.ways["runs"] = Way(ends=False)
    bench.add("runs")
    dispatcher = bench.dispatcher(OutOfMoney, n_workers=3, hunger_policy="sleep")
    run = Running(dispatcher)
    bench.heard.wait_for("runs", State.TRAINING)
    bench.add("a", "b", "c")
    bench.heard.wait_for("a", State.NEW, times=2)
    bench.platform.end("runs")

    with pytest.raises(LaunchStopped, match="raise max_event_cost"):
        run.result()

    ends = bench.ends()
    assert ends.pop("runs") == (State.SCORED, Cause.OK, 1)
    assert {state for state, _, _ in ends.values()} == {State.NEW}
    assert {record.message for record in bench.records().values() if record.cause is Cause.CANCELLED} == {
        "no machine can be launched any more; the submission waits"
    }
    assert caplog.text.count("raise max_event_cost") == 1


class HasNoRoom(FakeWorker):
    """Has no machine for anybody, and says when to ask again."""

    way = Way(raises_in="setup", error=NoRoom("no machine to be had in any zone", retry_after=600))


def test_a_submission_without_a_machine_waits_and_is_not_counted(bench: Bench) -> None:
    bench.add("a")
    with running(bench.dispatcher(HasNoRoom)):
        for attempts in range(1, 6):
            bench.heard.wait_for("a", State.NEW, times=attempts + 1)
            record = bench.records()["a"]
            assert (record.state, record.cause, record.attempts) == (State.NEW, Cause.INTERRUPTED, attempts)
            assert bench.open_store().next_due() == bench.clock() + timedelta(seconds=600)
            bench.clock.forward(601)


def test_an_attempt_that_raises_because_it_was_stopped_has_not_failed(bench: Bench) -> None:
    waits = threading.Event()

    class Gives(FakeWorker):
        """Waits for a machine and raises when it is woken, as it must."""

        def setup(self) -> None:
            waits.set()
            self._woken.wait()
            msg = "no longer wanted"
            raise Interrupted(msg)

    bench.add("a")
    dispatcher = bench.dispatcher(Gives)
    with running(dispatcher):
        assert waits.wait(PATIENCE)

    assert bench.ends() == {"a": (State.NEW, Cause.CANCELLED, 1)}


def test_a_worker_is_closed_once_when_the_dispatcher_ends(bench: Bench) -> None:
    class Counts(FakeWorker):
        """Counts how often it is closed."""

        closed: ClassVar[list[str]] = []

        @classmethod
        def close_event(cls, config: dict[str, Any]) -> None:
            cls.closed.append(config["event_name"])
            msg = "already gone"
            raise OSError(msg)

    bench.add("a")

    Running(bench.dispatcher(Counts)).result()

    assert Counts.closed == ["toy_event"]


def test_sweep_is_told_the_handles_of_what_runs(bench: Bench) -> None:
    told: list[Mapping[str, Any]] = []
    saw_a_handle = threading.Event()

    class Looks(FakeWorker):
        """Notes what runs."""

        @classmethod
        def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
            del config
            told.append(live_runs())
            if any(told[-1].values()):
                saw_a_handle.set()
            return []

    bench.ways["a"] = Way(ends=False)
    bench.add("a")
    with running(bench.dispatcher(Looks)):
        bench.heard.wait_for("a", State.TRAINING)
        (attempt,) = bench.open_store().open_attempts()
        assert saw_a_handle.wait(PATIENCE)
        assert told[-1] == {attempt.run: {"key": attempt.run}}


# -- after a crash ---------------------------------------------------------------------------------------------------


def dead_dispatcher(store: Store) -> str:
    """Register a dispatcher whose process has ended."""
    from runner.processes import host_id

    return store.begin_dispatcher(host=host_id(), pid=2**22 + 1, process_started=1.0)


def test_a_training_that_outlived_its_dispatcher_is_collected_and_not_repeated(bench: Bench) -> None:
    store = bench.open_store()
    store.enrol(["a"])
    dead = dead_dispatcher(store)
    attempt = store.claim(dead, worker="fake", time_limit=30)
    assert attempt
    bench.platform.start("of the dead", "a", Way())
    store.begin_training(dead, attempt.run, {"key": "of the dead"})

    Running(bench.dispatcher()).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 1)}
    assert ("a", "setup") not in bench.platform.calls
    assert ("a", "resume") in bench.platform.calls


def test_a_claim_whose_dispatcher_died_before_the_training_counts_nothing(bench: Bench) -> None:
    bench.ways["a"] = LosesMachineTwice.way
    store = bench.open_store()
    store.enrol(["a"])
    for _ in range(4):
        dead = dead_dispatcher(store)
        attempt = store.claim(dead, worker="fake", time_limit=30)
        assert attempt
        store.save_handle(dead, attempt.run, {"key": "never started"})
        store.finish(
            dead,
            attempt.run,
            Outcome(cause=Cause.INTERRUPTED),
            decide=lambda _: Decision(state=State.NEW),
            counts=False,
        )

    Running(bench.dispatcher()).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 7)}


def test_a_training_that_cannot_be_found_again_is_repeated(bench: Bench) -> None:
    bench.ways["a"] = Way(can_resume=False)
    store = bench.open_store()
    store.enrol(["a"])
    dead = dead_dispatcher(store)
    attempt = store.claim(dead, worker="fake", time_limit=30)
    assert attempt
    store.begin_training(dead, attempt.run, None)

    Running(bench.dispatcher()).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 2)}


def test_a_living_dispatcher_keeps_what_it_has(bench: Bench) -> None:
    bench.add("a")
    with running(bench.dispatcher(SlowWorker)):
        bench.heard.wait_for("a", State.TRAINING)
        with running(bench.dispatcher(SlowWorker)):
            bench.add("b")
            bench.heard.wait_for("b", State.TRAINING)
        bench.platform.end("a")
        bench.heard.wait_for("a", State.SCORED)
    assert bench.ends()["a"] == (State.SCORED, Cause.OK, 1)


def test_a_dispatcher_of_another_host_counts_as_alive_until_its_heart_stops(bench: Bench) -> None:
    store = bench.open_store()
    store.enrol(["a"])
    other = store.begin_dispatcher(host="elsewhere/1", pid=1, process_started=1.0)
    attempt = store.claim(other, worker="fake", time_limit=30)
    assert attempt
    bench.platform.start("there", "a", Way(ends=False))
    store.begin_training(other, attempt.run, {"key": "there"})
    rounds = threading.Semaphore(0)

    class Counts(FakeWorker):
        """Tells of every round of the dispatcher, after it has listened to the others."""

        @classmethod
        def sweep(cls, config: dict[str, Any], live_runs: LiveRuns) -> list[str]:
            del config, live_runs
            rounds.release()
            return []

    rhythm = Rhythm(tick=0.01, reconcile=0, heartbeat=0.01, dead_after=60, stop=PATIENCE)
    with running(bench.dispatcher(Counts, rhythm=rhythm)) as run:
        for seconds in (0, 25, 25, 25):
            assert ("a", "resume") not in bench.platform.calls
            bench.clock.forward(seconds)
            while rounds.acquire(blocking=False):
                pass
            for _ in range(2):  # the first of them may have listened before the clock moved
                assert rounds.acquire(timeout=PATIENCE)
        bench.platform.wait_until_running("a")
        bench.platform.end("a")
        bench.heard.wait_for("a", State.SCORED)
        run.result()
    assert bench.ends()["a"] == (State.SCORED, Cause.OK, 1)
    assert not store.save_handle(other, attempt.run, {"key": "late"})


def test_dispatchers_that_lost_the_store_together_do_not_take_each_other_for_dead(bench: Bench) -> None:
    store = bench.open_store()
    store.enrol(["theirs"])
    other = store.begin_dispatcher(host="elsewhere/1", pid=1, process_started=1.0)
    attempt = store.claim(other, worker="fake", time_limit=3600)
    assert attempt
    rhythm = Rhythm(tick=0.01, reconcile=0.02, heartbeat=0.01, dead_after=60, stop=PATIENCE)
    with running(bench.dispatcher(rhythm=rhythm, hunger_policy="sleep")):
        bench.add("first")
        bench.heard.wait_for("first", State.SCORED)
        with away(bench):
            bench.clock.forward(600)  # nobody's heart could beat meanwhile
        bench.add("second")
        bench.heard.wait_for("second", State.SCORED)
        assert store.save_handle(other, attempt.run, {"key": "there"})


# -- the store is away -----------------------------------------------------------------------------------------------


@contextmanager
def away(bench: Bench) -> Iterator[None]:
    """Take the store's folder away for a while."""
    hidden = bench.database.parent.with_name("hidden")
    bench.database.parent.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(bench.database.parent)


@pytest.fixture
def store_tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make lives try their store again at once, and return what tells that one has failed to write something."""
    monkeypatch.setattr("runner.life._STORE_PAUSE", 0.02)
    failed = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot be used" in record.getMessage():
                failed.set()

    handler = Watch()
    logging.getLogger("runner.life").addHandler(handler)
    yield failed
    logging.getLogger("runner.life").removeHandler(handler)


def test_a_result_outlasts_a_store_that_is_away(bench: Bench, store_tried: threading.Event) -> None:
    bench.add("a")
    with running(bench.dispatcher(SlowWorker)) as run:
        bench.heard.wait_for("a", State.TRAINING)
        with away(bench):
            bench.platform.end("a", code=1, message="ValueError: mine")
            assert store_tried.wait(PATIENCE)
        run.result()
    assert bench.ends() == {"a": (TRAINING, Cause.SUBMISSION_ERROR, 1)}
    assert bench.records()["a"].message == "ValueError: mine"


@pytest.mark.parametrize(
    "can_resume",
    [True, False],
)
def test_a_store_that_is_away_while_a_training_starts_does_not_start_it_twice(
    bench: Bench, store_tried: threading.Event, can_resume: bool
) -> None:
    bench.ways["a"] = Way(hangs_in="launch_submission", ends=False, can_resume=can_resume)
    bench.add("a")
    with running(bench.dispatcher()) as run:
        bench.platform.wait_until_hanging("a")
        with away(bench):
            bench.platform.let_go("a")
            bench.platform.wait_until_running("a")
            assert store_tried.wait(PATIENCE)
        bench.heard.wait_for("a", State.TRAINING)
        assert bench.platform.running() == ["a"]
        bench.platform.end("a")
        run.result()
    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 1)}
    assert bench.platform.calls.count(("a", "launch_submission")) == 1


def test_stop_while_the_store_is_away_leaves_the_training_for_the_next_start(
    bench: Bench, store_tried: threading.Event
) -> None:
    bench.add("a")
    with running(bench.dispatcher(SlowWorker)) as run:
        bench.heard.wait_for("a", State.TRAINING)
        with away(bench):
            bench.platform.end("a")
            assert bench.heard.states_of("a")[-1] is State.TRAINING
            run.dispatcher.stop()
            run.result()

    store = bench.open_store()
    for left in store.open_dispatchers():
        store.end_dispatcher(left.id)  # its process would be gone; here it is ours
    Running(bench.dispatcher(SlowWorker)).result()

    assert bench.ends() == {"a": (State.SCORED, Cause.OK, 1)}
    assert bench.platform.calls.count(("a", "setup")) == 1


# -- the kit ---------------------------------------------------------------------------------------------------------


class NeedsKit(FakeWorker):
    """Runs in the kit's environment, like the local worker."""

    needs_kit = True


def test_a_broken_kit_blames_nobody(bench: Bench) -> None:
    bench.ways |= {"fails": Way(code=1), "trains": Way(ends=False)}
    bench.add("fails", "trains", "waits")
    dispatcher = bench.dispatcher(NeedsKit, kit=KitError("problem.py is broken"), n_workers=2)

    with pytest.raises(KitError, match=r"problem\.py is broken"):
        Running(dispatcher).result()

    assert {record.state for record in bench.records().values()} <= {State.NEW}
    assert bench.platform.running() == []


def test_an_event_goes_on_when_only_its_leaderboard_needs_the_kit(bench: Bench) -> None:
    bench.ways["fails"] = Way(code=1)
    bench.add("fails", "good")

    Running(bench.dispatcher(FakeWorker, kit=KitError("not importable here"))).result()

    assert bench.ends() == {
        "fails": (TRAINING, Cause.SUBMISSION_ERROR, 1),
        "good": (State.SCORED, Cause.OK, 1),
    }


# -- bells -----------------------------------------------------------------------------------------------------------


def test_stop_and_ring_can_come_from_a_signal_handler_at_any_moment(bench: Bench) -> None:
    bench.add("a")
    dispatcher = bench.dispatcher(SlowWorker, rhythm=Rhythm(tick=0.001, reconcile=0.01, stop=PATIENCE))
    rung = 0

    def ring(*_: object) -> None:
        nonlocal rung
        rung += 1
        if rung < 500:
            dispatcher.ring()
        else:
            dispatcher.stop()

    before = signal.signal(signal.SIGUSR1, ring)
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            over.wait(0.0005)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        dispatcher.run()  # in the main thread, where handlers run
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert rung >= 500
    assert bench.records()["a"].state is State.NEW


def test_a_submission_that_arrives_later_is_taken_at_once(bench: Bench) -> None:
    with running(bench.dispatcher(hunger_policy="sleep", rhythm=Rhythm(reconcile=3600, stop=PATIENCE))):
        bench.add("late")
        bench.heard.wait_for("late", State.SCORED)


def test_ended_submissions_are_not_run_again_by_the_next_dispatcher(bench: Bench) -> None:
    bench.ways["fails"] = Way(code=1)
    bench.add("good", "fails")
    Running(bench.dispatcher()).result()
    bench.platform.calls.clear()

    Running(bench.dispatcher()).result()

    assert bench.platform.calls == []
