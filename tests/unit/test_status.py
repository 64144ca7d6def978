"""The objects of ``--json`` and the leaderboard file, exactly as documented."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.kit import Kit, ScoreType
from runner.records import Score, SubmissionRecord
from runner.scores import leaderboard
from runner.states import Cause, State
from runner.status import event_status, leaderboard_json, leaderboard_table, write_leaderboard

NEW = SubmissionRecord(
    name="a name",
    state=State.NEW,
    submitted=datetime(2024, 5, 1, 11, tzinfo=UTC),
    attempts=0,
    cause=None,
    worker=None,
    started=None,
    ended=None,
    cpu_seconds=None,
    peak_memory_mb=None,
    time_limit=None,
    message="",
    detail="",
    run=None,
)
SCORED = replace(
    NEW,
    name="b",
    state=State.SCORED,
    attempts=2,
    cause=Cause.OK,
    worker="local",
    started=datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC),
    ended=datetime(2024, 5, 1, 12, 1, tzinfo=UTC),
    cpu_seconds=61.5,
    peak_memory_mb=123.25,
    time_limit=7200,
    detail="for the organiser",
    run="0123abcd",
)
SCORES = [
    Score(fold=0, step="train", name="acc", value=0.30000000000000004),
    Score(fold=0, step="train", name="time", value=1.5),
    Score(fold=0, step="valid", name="acc", value=None),
    Score(fold=None, step="valid", name="acc", value=0.9),
]
KIT = Kit(
    title="",
    scores=(ScoreType(name="acc", precision=2, lower_is_better=False),),
    python="3.11.0",
    ramp_workflow="0.7",
)


def test_status_object() -> None:
    status = event_status("e", [NEW, SCORED], {"b": SCORES}, dispatcher_lives=True)
    nothing = ("cause", "worker", "started", "ended", "seconds", "cpu_seconds", "peak_memory_mb", "message", "scores")
    assert status == {
        "event": "e",
        "state": "running",
        "submissions": [
            {"name": "a name", "state": "new", "attempts": 0, **dict.fromkeys(nothing)},
            {
                "name": "b",
                "state": "scored",
                "cause": "ok",
                "attempts": 2,
                "worker": "local",
                "started": "2024-05-01T12:00:00.250000Z",
                "ended": "2024-05-01T12:01:00Z",
                "seconds": 59.75,
                "cpu_seconds": 61.5,
                "peak_memory_mb": 123.25,
                "message": None,
                "scores": {
                    "folds": [
                        {"fold": 0, "step": "train", "acc": 0.30000000000000004, "time": 1.5},
                        {"fold": 0, "step": "valid", "acc": None},
                    ],
                    "mean": {"train": {"acc": 0.30000000000000004, "time": 1.5}, "valid": {"acc": None}},
                    "bagged": {"valid": {"acc": 0.9}},
                },
            },
        ],
    }
    keys = ["name", "state", "cause", "attempts", "worker", "started", "ended", "seconds", "cpu_seconds"]
    assert list(status["submissions"][0]) == [*keys, "peak_memory_mb", "message", "scores"]
    assert json.loads(json.dumps(status, allow_nan=False)) == status


@pytest.mark.parametrize(
    ("records", "lives", "state"),
    [
        ([], False, "idle"),
        ([], True, "running"),
        ([NEW], False, "idle"),
        ([NEW, SCORED], True, "running"),
        ([SCORED], False, "done"),
        ([SCORED], True, "done"),
        ([replace(SCORED, state=State.CHECKING_ERROR), replace(SCORED, state=State.CANCELLED)], False, "done"),
    ],
)
def test_state_of_the_event(records: list[SubmissionRecord], lives: bool, state: str) -> None:
    assert event_status("e", records, {}, dispatcher_lives=lives)["state"] == state


def test_what_is_for_the_organiser_is_not_shown() -> None:
    assert "for the organiser" not in json.dumps(event_status("e", [SCORED], {}, dispatcher_lives=False))


def test_leaderboard_object() -> None:
    rows = leaderboard({"b": SCORES, "a": []}, KIT)
    found = leaderboard_json("e", rows, KIT)
    assert {key: found[key] for key in ("event", "official_score", "lower_is_better")} == {
        "event": "e",
        "official_score": "acc",
        "lower_is_better": False,
    }
    assert [(row["rank"], row["name"], row["score"]) for row in found["rows"]] == [(1, "b", 0.9), (None, "a", None)]
    assert {"folds", "mean", "bagged"} <= found["rows"][0].keys()
    json.dumps(found, allow_nan=False)


def test_leaderboard_object_without_a_kit() -> None:
    found = leaderboard_json("e", leaderboard({"b": SCORES}, None), None)
    assert (found["official_score"], found["lower_is_better"]) == (None, None)
    assert found["rows"][0]["rank"] is None


def test_leaderboard_file(tmp_path: Path) -> None:
    rows = leaderboard({'b, "the\nsecond"': SCORES, "é": []}, KIT)
    path = tmp_path / "not there yet" / "leaderboard.csv"
    for _ in range(2):
        write_leaderboard(path, rows, KIT)
    header, *lines = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    assert header == [
        "rank", "submission", "bagged valid acc", "bagged test acc",
        "mean train acc", "mean valid acc", "mean test acc", "train seconds",
    ]  # fmt: skip
    assert lines == [
        ["1", 'b, "the\nsecond"', "0.9", "", "0.30000000000000004", "", "", "1.5"],
        ["", "é", "", "", "", "", "", ""],
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["leaderboard.csv"]


def test_leaderboard_table_without_a_kit_takes_the_names_from_the_scores() -> None:
    header, lines = leaderboard_table(leaderboard({"b": SCORES}, None), None)
    assert header[2] == "bagged valid acc"
    assert lines[0][:3] == [None, "b", 0.9]
    assert leaderboard_table([], None)[1] == []
