"""The token bucket: never more than five calls in a second, slower when AWS says so, and it recovers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.aws.rate import LONGEST_PAUSE, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def take_one(bucket: TokenBucket, clock: Clock) -> float:
    """Wait as the sender does, and return when the call is made."""
    while seconds := bucket.take():
        clock.seconds += seconds
    return clock.seconds


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 2.5]) | st.sampled_from([0.0, 0.0, 1.0]) | st.floats(0, 3),
            st.sampled_from(["went through", "went through", "went through", "throttled"]),
        ),
        min_size=6,
        max_size=60,
    )
)
@settings(deadline=None)  # other work on this machine is no defect
def test_no_second_has_more_than_five_calls(steps: list[tuple[float, str]]) -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    calls = []
    for idle, answer in steps:
        clock.seconds += idle
        calls.append(take_one(bucket, clock))
        if answer == "throttled":
            bucket.throttled()
        else:
            bucket.went_through()
    for start in calls:
        assert sum(start <= call <= start + 1 for call in calls) <= 5


def test_three_at_once_then_two_a_second() -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    calls = [take_one(bucket, clock) - 1000 for _ in range(7)]
    assert [round(call, 3) for call in calls] == [0, 0, 0, 0.5, 1, 1.5, 2]


def test_pauses_double_up_to_the_longest_and_recover() -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    pauses = []
    for _ in range(8):
        take_one(bucket, clock)
        pauses.append(bucket.throttled())
        assert bucket.take() >= pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    slow = [take_one(bucket, clock) for _ in range(3)]
    assert slow[2] - slow[1] > 5
    for _ in range(30):
        take_one(bucket, clock)
        bucket.went_through()
    quick = [take_one(bucket, clock) for _ in range(3)]
    assert round(quick[2] - quick[1], 3) == 0.5
    assert bucket.throttled() == 1


def test_no_call_is_made_in_a_pause_and_none_is_saved_up() -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    for _ in range(6):
        bucket.throttled()
    clock.seconds += 31.9
    assert bucket.take() > 0
    clock.seconds += 0.1
    assert bucket.take() == 0
    assert bucket.take() > 5
