"""Workers are compared with the dispatcher and with each other, and what differs is named."""

from distributed.versions import get_versions

from runner.dask.admission import Reference, versions_of

OURS = {"python": "3.11", "distributed": "2026.8.0", "ramp_workflow": "", "kit": ""}
WORKER = {"python": "3.11", "distributed": "2026.8.0", "ramp_workflow": "0.7", "kit": "abc", "problems": []}


def test_a_worker_like_the_dispatcher_is_good() -> None:
    assert Reference(facts=OURS).differences(WORKER) == []


def test_what_differs_is_told_with_both_versions() -> None:
    other = {**WORKER, "python": "3.12", "distributed": "2025.1.0"}

    assert Reference(facts=OURS).differences(other) == [
        "Python is 3.12 and not 3.11",
        "distributed is 2025.1.0 and not 2026.8.0",
    ]


def test_what_the_dispatcher_does_not_have_is_taken_from_most_workers() -> None:
    odd = {**WORKER, "ramp_workflow": "0.5", "kit": "xyz"}
    reference = Reference(facts=OURS).completed({"a": WORKER, "b": odd, "c": WORKER})

    assert reference.differences(WORKER) == []
    assert reference.differences(odd) == [
        "ramp-workflow in the kit's Python is 0.5 and not 0.7",
        "the kit's commit or problem.py is xyz and not abc",
    ]


def test_the_dispatchers_own_kit_counts_more_than_most_workers() -> None:
    reference = Reference(facts={**OURS, "kit": "ours"}).completed({"a": WORKER, "b": WORKER})

    assert reference.differences(WORKER) == ["the kit's commit or problem.py is abc and not ours"]


def test_what_is_missing_on_a_worker_is_told_first() -> None:
    problems = ["there is no problem.py in /kit"]

    assert Reference(facts=OURS).differences({**WORKER, "problems": problems, "python": "3.9"})[0] == problems[0]


def test_versions_are_read_from_what_distributed_tells() -> None:
    found = versions_of(get_versions())

    assert found["python"].count(".") == 1
    assert found["distributed"][0].isdigit()
