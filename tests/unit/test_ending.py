"""What a supervisor wrote at the end of a training, and what a submission may have written in its place."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.ending import Ending
from runner.errors import Interrupted, WorkerError
from runner.states import Cause

WRITTEN = {
    "returncode": 0,
    "ending": "",
    "cpu_seconds": 2.5,
    "peak_memory_bytes": 150_000_000,
    "log_lost": "",
    "oom_kills": 0,
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def ending(**written: Any) -> Ending:
    """Return the ending of a training with limits of a minute and a megabyte."""
    return Ending(written={**WRITTEN, **written}, timeout=60, max_output_mb=1)


@pytest.mark.parametrize(
    ("written", "code", "cause", "verdict"),
    [
        ({}, 0, None, ""),
        ({"returncode": 3}, 3, Cause.SUBMISSION_ERROR, ""),
        ({"returncode": -15}, 143, Cause.SUBMISSION_ERROR, "The training was killed by signal 15."),
        ({"returncode": -9, "oom_kills": 1}, 137, Cause.OUT_OF_MEMORY, "The training was killed because the machine"),
        ({"returncode": -9, "ending": "timeout"}, 124, Cause.TIMEOUT, "The training was killed at its time limit of"),
        ({"ending": "output"}, 1, None, "The training was killed because it wrote more than 1 MB."),
    ],
)
def test_what_the_supervisor_writes(written: dict[str, Any], code: int, cause: Cause | None, verdict: str) -> None:
    found = ending(**written)
    found.check()
    assert (found.code, found.usage().cause) == (code, cause)
    assert found.verdict.startswith(verdict)
    assert bool(found.verdict) == bool(verdict)
    assert (found.usage().cpu_seconds, found.usage().peak_memory_mb) == (2.5, 150.0)


def test_a_training_that_was_not_started_says_why() -> None:
    with pytest.raises(WorkerError) as told:
        Ending(written={"not_started": "no such program"}, timeout=60, max_output_mb=1).check()
    assert told.value.detail == "no such program"


@pytest.mark.parametrize(
    "written",
    [
        {"returncode": "0"},
        {"returncode": [0]},
        {"ending": None},
        {"cpu_seconds": "long"},
        {"cpu_seconds": math.nan},
        {"peak_memory_bytes": math.inf},
        {"peak_memory_bytes": 10**400},
        {"not_started": {"why": 1}},
    ],
    ids=str,
)
def test_what_no_supervisor_writes_is_an_interruption_and_no_defect(written: dict[str, Any]) -> None:
    found = ending(**written)
    with pytest.raises(Interrupted, match="what the training's supervisor wrote cannot be read") as told:
        found.check()
    assert told.value.detail.startswith("outcome.json: {")
    assert (found.usage("on i-1").cause, found.usage("on i-1").detail) == (None, "on i-1")


@given(st.dictionaries(st.sampled_from([*WRITTEN, "not_started", "other"]), ANYTHING))
def test_whatever_is_written_ends_in_our_words(written: dict[str, Any]) -> None:
    found = Ending(written=written, timeout=60, max_output_mb=1)
    usage = found.usage()
    assert usage.cpu_seconds is None or math.isfinite(usage.cpu_seconds)
    with contextlib.suppress(WorkerError):
        found.check()
        assert isinstance(found.code, int)
        assert isinstance(found.verdict, str)
