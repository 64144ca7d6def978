"""One life with a fake worker and a real store: what is called in which order, and what is written down when."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from runner.kit import Kit
from runner.life import End, Life
from runner.records import Attempt
from runner.retry import RetryPolicy
from runner.states import Cause, State
from runner.store import Store
from runner.testing import PATIENCE, FakeClock, FakeWorker, Memory, Platform, Way


class Bench:
    """A store with one claimed submission, and lives for it."""

    def __init__(self, folder: Path) -> None:
        self.platform = Platform()
        self.clock = FakeClock()
        self.heard = Memory()
        self.kit: Future[Kit | None] = Future()
        self.kit.set_result(None)
        self.config: dict[str, Any] = {
            "predictions_dir": str(folder / "predictions"),
            "logs_dir": str(folder / "logs"),
            "timeout": 30,
            "platform": self.platform,
        }
        self.store = Store.open(
            URL.create("sqlite", database=str(folder / "ramp-cloud.db")),
            event_name="event",
            submissions_dir=str(folder),
            clock=self.clock,
            patience=0,
        )
        self.us = self.store.begin_dispatcher(host="here", pid=1, process_started=1.0)
        self.store.enrol(["a"])

    def claim(self) -> Attempt:
        """Claim the submission."""
        attempt = self.store.claim(self.us, worker="fake", time_limit=30)
        assert attempt
        return attempt

    def life(self, way: Way, attempt: Attempt | None = None) -> tuple[Life, threading.Event]:
        """Return a life that has begun, and what it rings at its end."""
        attempt = attempt or self.claim()
        rung = threading.Event()
        life = Life(
            attempt,
            lambda: FakeWorker({**self.config, "ways": {"a": way}}, "a"),
            adopted=attempt.handle is not None,
            store=self.store,
            dispatcher=self.us,
            policy=RetryPolicy(backoff=timedelta(seconds=8)),
            kit=self.kit,
            clock=self.clock,
            listener=self.heard,
            ended=rung.set,
        )
        life.start()
        return life, rung

    def live(self, way: Way, attempt: Attempt | None = None) -> None:
        """Run a life to its end."""
        _, rung = self.life(way, attempt)
        assert rung.wait(PATIENCE)

    def state(self) -> State:
        """Return the submission's state."""
        return self.store.submissions()[0].state


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a store with one submission."""
    made = Bench(tmp_path)
    yield made
    made.store.close()


def methods(bench: Bench) -> list[str]:
    """Return the methods that were called, in order."""
    return [method for _, method in bench.platform.calls]


def test_the_order_of_the_contract(bench: Bench) -> None:
    bench.live(Way())

    assert methods(bench) == ["setup", "state", "launch_submission", "state", "wait", "collect_results", "teardown"]
    assert bench.heard.states_of("a") == [State.TRAINING, State.TESTED, State.SCORED]
    assert {score.value for score in bench.store.scores()["a"] if score.name == "acc"} == {0.5}


@pytest.mark.parametrize(
    ("stage", "called"),
    [
        ("setup", ["setup"]),
        ("launch_submission", ["setup", "state", "launch_submission"]),
        ("wait", ["setup", "state", "launch_submission", "state", "wait"]),
        ("collect_results", ["setup", "state", "launch_submission", "state", "wait", "collect_results"]),
    ],
)
def test_teardown_follows_a_failure_in_every_stage(bench: Bench, stage: str, called: list[str]) -> None:
    bench.live(Way(raises_in=stage))

    assert methods(bench) == [*called, "teardown"]
    assert bench.heard.moves[-1][1] is State.NEW
    assert bench.store.next_due() == bench.clock() + timedelta(seconds=8)


def test_the_handle_is_kept_before_the_training_starts(bench: Bench) -> None:
    life, rung = bench.life(Way(hangs_in="launch_submission"))
    bench.platform.wait_until_hanging("a")
    try:
        kept = bench.store.open_attempts()[0].handle
        assert kept == {"key": life.attempt.run}
        assert bench.state() is State.SENT_TO_TRAINING
    finally:
        bench.platform.let_go("a")
    assert rung.wait(PATIENCE)


@pytest.mark.parametrize(("why", "state"), [(End.STOP, State.NEW), (End.CANCEL, State.CANCELLED)])
def test_what_runs_is_ended_before_the_submission_can_be_claimed_again(bench: Bench, why: End, state: State) -> None:
    life, rung = bench.life(Way(ends=False, hangs_in="teardown"))
    bench.heard.wait_for("a", State.TRAINING)
    life.end(why)
    bench.platform.wait_until_hanging("a")

    assert bench.state() is State.TRAINING

    bench.platform.let_go("a")
    assert rung.wait(PATIENCE)
    assert bench.state() is state
    assert bench.platform.running() == []
    assert bench.store.next_due() is None


def test_a_result_is_written_down_before_the_machine_is_released(bench: Bench) -> None:
    _, rung = bench.life(Way(hangs_in="teardown"))
    bench.platform.wait_until_hanging("a")

    assert bench.state() is State.SCORED

    bench.platform.let_go("a")
    assert rung.wait(PATIENCE)


def test_the_first_reason_to_end_counts(bench: Bench) -> None:
    life, rung = bench.life(Way(ends=False))
    bench.heard.wait_for("a", State.TRAINING)
    life.end(End.CANCEL)
    life.end(End.EXPIRED)

    assert rung.wait(PATIENCE)
    assert life.ending is End.CANCEL
    assert bench.state() is State.CANCELLED


def test_one_that_takes_too_long_is_tried_again(bench: Bench) -> None:
    life, rung = bench.life(Way(ends=False))
    bench.heard.wait_for("a", State.TRAINING)
    life.end(End.EXPIRED)

    assert rung.wait(PATIENCE)
    record = bench.store.submissions()[0]
    assert (record.state, record.cause) == (State.NEW, Cause.INFRA_ERROR)
    assert "longer than its limits" in record.message


def test_a_life_that_was_given_up_says_nothing_more(bench: Bench) -> None:
    life, rung = bench.life(Way(hangs_in="setup"))
    bench.platform.wait_until_hanging("a")
    life.abandon()
    bench.clock.forward(8)
    second = bench.claim()
    bench.platform.let_go("a")

    assert rung.wait(PATIENCE)
    assert bench.state() is State.SENT_TO_TRAINING
    assert [attempt.run for attempt in bench.store.open_attempts()] == [second.run]
    assert "launch_submission" not in methods(bench)


def test_giving_up_a_life_that_has_written_its_result_changes_nothing(bench: Bench) -> None:
    life, rung = bench.life(Way(hangs_in="teardown"))
    bench.platform.wait_until_hanging("a")
    life.abandon()

    assert bench.state() is State.SCORED

    bench.platform.let_go("a")
    assert rung.wait(PATIENCE)
    assert bench.state() is State.SCORED


def test_a_life_whose_attempt_was_taken_over_touches_nothing(bench: Bench) -> None:
    _, rung = bench.life(Way(ends=False))
    bench.heard.wait_for("a", State.TRAINING)
    heir = bench.store.begin_dispatcher(host="there", pid=2, process_started=2.0)
    bench.store.end_dispatcher(bench.us)
    assert [attempt.name for attempt in bench.store.adopt(heir, alive=[])] == ["a"]
    bench.platform.end("a", code=1)

    assert rung.wait(PATIENCE)
    assert bench.state() is State.TRAINING
    assert "teardown" not in methods(bench)  # the heir needs what is there


def test_a_handle_that_is_no_json_is_the_workers_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for handle in ({"folder": Path("x")}, {"seconds": float("nan")}):
        monkeypatch.setattr(FakeWorker, "state", lambda _self, handle=handle: handle)
        bench.live(Way())
        record = bench.store.submissions()[0]
        assert (record.state, record.cause) == (State.NEW, Cause.INFRA_ERROR)
        assert "JSON" in record.detail
        bench.clock.forward(60)


def test_a_resumed_training_keeps_its_time_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.life._GRACE", 0.01)
    bench.platform.start("there", "a", Way(ends=False))
    attempt = bench.claim()
    bench.store.begin_training(bench.us, attempt.run, {"key": "there"})
    bench.clock.forward(31)  # of the 30 seconds that it has

    bench.live(Way(ends=False, keeps_limit=False), bench.store.open_attempts()[0])

    record = bench.store.submissions()[0]
    assert (record.state, record.cause) == (State.TRAINING_ERROR, Cause.TIMEOUT)


def test_two_lives_share_nothing(bench: Bench) -> None:
    lives = [bench.life(Way(ends=False))[0]]
    bench.heard.wait_for("a", State.TRAINING)
    bench.store.enrol(["b"])
    lives.append(bench.life(Way(ends=False), bench.claim())[0])
    bench.heard.wait_for("b", State.TRAINING)
    for name, value in vars(lives[0].worker).items():
        if isinstance(value, (dict, list, set, threading.Event)) and value:
            assert value is not vars(lives[1].worker)[name], name
    for life in lives:
        life.end(End.STOP)
        assert life.join(PATIENCE)
