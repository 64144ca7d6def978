"""An event from its folders to its scores, with real processes."""

from collections.abc import Callable

from runner.states import Cause, State
from tests.event_folder import EventFolder


def test_every_submission_ends_in_its_own_state(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder(timeout=5)
    event.add("good", "SCORE = 0.875")
    event.add("better", "SCORE = 0.9375")
    event.add("raises", "raise ValueError('no idea')")
    event.add("endless", "while True: pass")

    event.run()

    records = event.records()
    assert {name: (record.state, record.cause) for name, record in records.items()} == {
        "good": (State.SCORED, Cause.OK),
        "better": (State.SCORED, Cause.OK),
        "raises": (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR),
        "endless": (State.TRAINING_ERROR, Cause.TIMEOUT),
    }
    assert records["raises"].message.startswith("Traceback (most recent call last)")
    assert records["raises"].message.endswith("ValueError: no idea")
    assert "time limit of 5 s" in records["endless"].message
    with event.opened() as opened:
        assert {score.value for score in opened.store.scores()["better"] if score.name == "acc"} == {0.9375}
