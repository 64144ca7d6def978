"""What follows an attempt, as tables."""

from datetime import UTC, datetime, timedelta

import pytest

from runner.retry import Decision, RetryPolicy
from runner.states import Cause, State, can_move

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cause", "failures", "state", "delay"),
    [
        (Cause.OK, 0, State.SCORED, None),
        (Cause.OK, 99, State.SCORED, None),
        (Cause.CANCELLED, 0, State.CANCELLED, None),
        (Cause.CANCELLED, 99, State.CANCELLED, None),
        (Cause.SUBMISSION_ERROR, 0, State.TRAINING_ERROR, None),
        (Cause.TIMEOUT, 0, State.TRAINING_ERROR, None),
        (Cause.OUT_OF_MEMORY, 2, State.TRAINING_ERROR, None),
        (Cause.INFRA_ERROR, 1, State.NEW, 5),
        (Cause.INFRA_ERROR, 2, State.NEW, 10),
        (Cause.INFRA_ERROR, 3, State.CHECKING_ERROR, None),
        (Cause.INFRA_ERROR, 4, State.CHECKING_ERROR, None),
        (Cause.INTERRUPTED, 1, State.NEW, 5),
        (Cause.INTERRUPTED, 3, State.CHECKING_ERROR, None),
    ],
)
def test_default_policy(cause: Cause, failures: int, state: State, delay: float | None) -> None:
    expected = Decision(state=state, not_before=None if delay is None else NOW + timedelta(seconds=delay))
    assert RetryPolicy().decide(failures=failures, cause=cause, now=NOW) == expected


@pytest.mark.parametrize(("failures", "seconds"), [(0, 5), (1, 5), (2, 10), (6, 160), (7, 300), (8, 300), (10**6, 300)])
def test_delays_double_up_to_the_largest(failures: int, seconds: float) -> None:
    decision = RetryPolicy(max_attempts=10**9).decide(failures=failures, cause=Cause.INFRA_ERROR, now=NOW)
    assert decision.not_before == NOW + timedelta(seconds=seconds)


def test_one_attempt_only() -> None:
    policy = RetryPolicy(max_attempts=1)
    assert policy.decide(failures=1, cause=Cause.INTERRUPTED, now=NOW).state is State.CHECKING_ERROR


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.OK])
def test_every_decision_is_a_legal_move_of_a_training(cause: Cause) -> None:
    for failures in range(5):
        decision = RetryPolicy().decide(failures=failures, cause=cause, now=NOW)
        assert can_move(State.TRAINING, decision.state)
        assert can_move(State.SENT_TO_TRAINING, decision.state)
        assert (decision.not_before is not None) is (decision.state is State.NEW)
