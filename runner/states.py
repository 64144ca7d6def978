"""The life of a submission, in ramp-board's words: its states, the moves between them, and how an attempt can end."""

from enum import StrEnum


class State(StrEnum):
    """Where a submission stands. The values are those that ramp-board stores and shows."""

    NEW = "new"
    SENT_TO_TRAINING = "sent_to_training"
    TRAINING = "training"
    TESTED = "tested"
    SCORED = "scored"
    TRAINING_ERROR = "training_error"
    CHECKING_ERROR = "checking_error"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the submission unless somebody asks for it."""
        return self in FINAL


class Cause(StrEnum):
    """Why an attempt ended. One attempt has exactly one cause."""

    OK = "ok"
    SUBMISSION_ERROR = "submission_error"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"
    INFRA_ERROR = "infra_error"
    CANCELLED = "cancelled"

    @property
    def is_participants(self) -> bool:
        """Whether the submission itself brought the attempt to this end; such an attempt is not repeated."""
        return self in {Cause.SUBMISSION_ERROR, Cause.TIMEOUT, Cause.OUT_OF_MEMORY}

    @property
    def is_ours(self) -> bool:
        """Whether a machine, a network or this program brought the attempt to this end; it is repeated."""
        return self in {Cause.INTERRUPTED, Cause.INFRA_ERROR}


FINAL = frozenset({State.SCORED, State.TRAINING_ERROR, State.CHECKING_ERROR, State.CANCELLED})

# A submission goes back to new when its attempt was ours to lose, or when somebody reruns it.
_TRANSITIONS = {
    State.NEW: {State.SENT_TO_TRAINING, State.CANCELLED},
    State.SENT_TO_TRAINING: {
        State.TRAINING,
        State.NEW,
        State.TRAINING_ERROR,
        State.CHECKING_ERROR,
        State.CANCELLED,
    },
    State.TRAINING: {State.TESTED, State.NEW, State.TRAINING_ERROR, State.CHECKING_ERROR, State.CANCELLED},
    State.TESTED: {State.SCORED, State.NEW, State.TRAINING_ERROR, State.CHECKING_ERROR, State.CANCELLED},
    State.SCORED: {State.NEW},
    State.TRAINING_ERROR: {State.NEW},
    State.CHECKING_ERROR: {State.NEW},
    State.CANCELLED: {State.NEW},
}


def can_move(source: State, target: State) -> bool:
    """Whether a submission may go from ``source`` to ``target`` in one step."""
    return target in _TRANSITIONS[source]


def sources_of(target: State) -> frozenset[State]:
    """Return the states that a submission may come from when it enters ``target``."""
    return frozenset(source for source, targets in _TRANSITIONS.items() if target in targets)
