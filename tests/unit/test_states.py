"""The moves of a submission as a table."""

import pytest

from runner.states import FINAL, Cause, State, can_move, sources_of

MOVES = {
    "new": "sent_to_training cancelled",
    "sent_to_training": "training new training_error checking_error cancelled",
    "training": "tested new training_error checking_error cancelled",
    "tested": "scored new training_error checking_error cancelled",
    "scored": "new",
    "training_error": "new",
    "checking_error": "new",
    "cancelled": "new",
}


def test_states_are_ramp_boards() -> None:
    assert [state.value for state in State] == list(MOVES)


@pytest.mark.parametrize("source", list(State))
@pytest.mark.parametrize("target", list(State))
def test_moves(source: State, target: State) -> None:
    allowed = target.value in MOVES[source.value].split()
    assert can_move(source, target) is allowed
    assert (source in sources_of(target)) is allowed


def test_final_states_are_left_only_by_a_rerun() -> None:
    assert {state.value for state in FINAL} == {"scored", "training_error", "checking_error", "cancelled"}
    assert all(state.is_final is (state in FINAL) for state in State)
    assert all([target for target in State if can_move(state, target)] == [State.NEW] for state in FINAL)


def test_every_state_can_reach_an_end_and_scored_only_comes_from_tested() -> None:
    for start in State:
        reached = {start}
        for _ in State:
            reached |= {target for source in reached for target in State if can_move(source, target)}
        assert reached >= FINAL
    assert sources_of(State.SCORED) == {State.TESTED}


@pytest.mark.parametrize(
    ("cause", "participants", "ours"),
    [
        (Cause.OK, False, False),
        (Cause.SUBMISSION_ERROR, True, False),
        (Cause.TIMEOUT, True, False),
        (Cause.OUT_OF_MEMORY, True, False),
        (Cause.INTERRUPTED, False, True),
        (Cause.INFRA_ERROR, False, True),
        (Cause.CANCELLED, False, False),
    ],
)
def test_whose_cause_it_is(cause: Cause, participants: bool, ours: bool) -> None:
    assert (cause.is_participants, cause.is_ours) == (participants, ours)
