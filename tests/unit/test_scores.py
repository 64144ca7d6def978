"""From the files that ramp-test writes to scores and the leaderboard."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.kit import Kit, ScoreType
from runner.records import Score
from runner.scores import ScoresUnreadable, as_json, leaderboard, mean_scores, read_scores

FOLD = "step,acc,time\ntrain,0.9,1.5\nvalid,0.8,0.5\ntest,0.7,0.25\n"


def write(output: Path, *, folds: int = 2, fold: str = FOLD, bagged: str | None = None) -> Path:
    """Write a training_output folder as ramp-test does."""
    for number in range(folds):
        (output / f"fold_{number}").mkdir(parents=True)
        (output / f"fold_{number}" / "scores.csv").write_text(fold)
    if bagged is None:
        rows = (f"{step},{bag},0.{5 + bag}\n" for step in ("valid", "test") for bag in range(folds))
        bagged = "step,n_bag,acc\n" + "".join(rows)
    (output / "bagged_scores.csv").write_text(bagged)
    return output


def kit(*, lower: bool = False, name: str = "acc") -> Kit:
    score = ScoreType(name=name, precision=2, lower_is_better=lower)
    return Kit(title="", scores=(score,), python="3.11", ramp_workflow="0.7")


def bagged(value: float | None, *, step: str = "valid", name: str = "acc") -> list[Score]:
    return [Score(fold=None, step=step, name=name, value=value)]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_scores_of_two_folds(tmp_path: Path) -> None:
    scores = as_json(read_scores(write(tmp_path / "out")))
    assert scores == {
        "folds": [
            {"fold": fold, "step": step, "acc": acc, "time": time}
            for fold in (0, 1)
            for step, acc, time in (("train", 0.9, 1.5), ("valid", 0.8, 0.5), ("test", 0.7, 0.25))
        ],
        "mean": {
            "train": {"acc": 0.9, "time": 1.5},
            "valid": {"acc": 0.8, "time": 0.5},
            "test": {"acc": 0.7, "time": 0.25},
        },
        "bagged": {"valid": {"acc": 0.6}, "test": {"acc": 0.6}},
    }


@pytest.mark.parametrize(
    "text",
    ["0.1", "0.30000000000000004", "1e-300", "5e-324", "1.7976931348623157e308", "-0.0", "123456789012345678", "1E5"],
)
def test_numbers_stay_exactly_as_written(tmp_path: Path, text: str) -> None:
    bagged = f"step,n_bag,acc\nvalid,0,{text}\n"
    output = write(tmp_path / "out", folds=1, fold=f"step,acc\nvalid,{text}\n", bagged=bagged)
    values = [score.value for score in read_scores(output)]
    assert [repr(value) for value in values] == [repr(float(text))] * 2


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999", ""])
def test_what_is_no_finite_number_is_none(tmp_path: Path, text: str) -> None:
    bagged = f"step,n_bag,acc\nvalid,0,{text}\n"
    output = write(tmp_path / "out", folds=1, fold=f"step,acc\nvalid,{text}\n", bagged=bagged)
    scores = read_scores(output)
    assert [score.value for score in scores] == [None, None]
    assert mean_scores(scores) == {"valid": {"acc": None}}
    json.dumps(as_json(scores), allow_nan=False)


def test_folds_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    scores = read_scores(write(tmp_path / "out", folds=12))
    assert [row["fold"] for row in as_json(scores)["folds"][::3]] == list(range(12))
    assert as_json(scores)["bagged"]["valid"]["acc"] == 0.16  # bag 11, the last one


def test_a_missing_test_step_is_no_error(tmp_path: Path) -> None:
    bagged = "step,n_bag,acc\nvalid,0,1\nvalid,1,2\n"
    output = write(tmp_path / "out", fold="step,acc\ntrain,1\nvalid,0.5\n", bagged=bagged)
    found = as_json(read_scores(output))
    assert found["mean"] == {"train": {"acc": 1}, "valid": {"acc": 0.5}}
    assert found["bagged"] == {"valid": {"acc": 2}}


@pytest.mark.parametrize("name", ["précision", "F₁ score", "准确率", '"a, b"', "a b"])
def test_names_of_scores(tmp_path: Path, name: str) -> None:
    output = write(tmp_path / "out", folds=1, fold=f"step,{name}\nvalid,1\n", bagged=f"step,n_bag,{name}\nvalid,0,1\n")
    assert {score.name for score in read_scores(output)} == {name.strip('"')}


def test_other_files_and_folders_are_ignored(tmp_path: Path) -> None:
    output = write(tmp_path / "out")
    for name in ("fold_x", "fold_", "xfold_1", "fold_1_old", "model"):
        (output / name).mkdir()
    (output / "fold_7").write_text("a file")
    assert len(as_json(read_scores(output))["folds"]) == 6


def test_no_output_at_all(tmp_path: Path) -> None:
    for output in (tmp_path / "missing", tmp_path):
        with pytest.raises(ScoresUnreadable, match="ended without an error but saved no scores"):
            read_scores(output)


@pytest.mark.parametrize("name", ["fold_1/scores.csv", "bagged_scores.csv"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    output = write(tmp_path / "out")
    (output / name).unlink()
    with pytest.raises(ScoresUnreadable, match=f"{Path(name).name} is missing"):
        read_scores(output)


@pytest.mark.parametrize("extra", ["fold_5", "fold_01", "fold_99999999999999999999999"])
def test_folds_that_do_not_fit_the_bagged_scores(tmp_path: Path, extra: str) -> None:
    output = write(tmp_path / "out")
    (output / extra).mkdir()
    (output / extra / "scores.csv").write_text(FOLD)
    with pytest.raises(ScoresUnreadable, match="a fold is missing"):
        read_scores(output)


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "only a header": b"step,acc\n",
    "no step": b"acc,time\n0.5,1\n",
    "step is not first": b"acc,step\n0.5,valid\n",
    "a step twice": b"step,acc\nvalid,1\nvalid,2\n",
    "unknown step": b"step,acc\nbogus,1\n",
    "a column twice": b"step,acc,acc\nvalid,1,2\n",
    "a column without name": b"step,\nvalid,1\n",
    "a name with a line break": b'step,"a\nb"\nvalid,1\n',
    "a name with nothing in it": b"step,a\0b\nvalid,1\n",
    "text": b"step,acc\nvalid,good\n",
    "too few cells": b"step,acc,time\nvalid,1\n",
    "too many cells": b"step,acc\nvalid,1,2\n",
    "open quote": b'step,acc\nvalid,"1\n',
    "binary": bytes(range(256)),
    "not UTF-8": b"step,acc\nvalid,\xff\n",
    "a huge cell": b"step,acc\nvalid," + b"1" * 200_000 + b"\n",
    "too large": b"step,acc\nvalid," + b" " * 1_000_000 + b"1\n",
    "JSON": b'{"step": "valid"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["fold_1/scores.csv", "bagged_scores.csv"])
def test_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    output = write(tmp_path / "out")
    (output / name).write_bytes(content)
    with pytest.raises(ScoresUnreadable, match=Path(name).name) as caught:
        read_scores(output)
    assert len(str(caught.value)) < 300


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    output = write(tmp_path / "out")
    (output / "bagged_scores.csv").unlink()
    (output / "bagged_scores.csv").mkdir()
    with pytest.raises(ScoresUnreadable, match=r"bagged_scores\.csv is damaged"):
        read_scores(output)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.sampled_from('step,valid\n"\r 019.-enaif\0é'), max_size=40))
def test_any_file_gives_scores_or_a_message(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    output = write(tmp_path_factory.mktemp("any"), folds=1, fold="step,acc\n" + text)
    try:
        scores = read_scores(output)
    except ScoresUnreadable:
        return
    assert all(score.value is None or math.isfinite(score.value) for score in scores)


# -- means and the leaderboard ---------------------------------------------------------------------------------------


def test_mean_is_exact_and_none_when_a_fold_has_no_number() -> None:
    scores = [Score(fold=fold, step="valid", name="acc", value=0.1) for fold in range(10)]
    assert mean_scores(scores) == {"valid": {"acc": 0.1}}
    assert mean_scores([*scores, Score(fold=10, step="valid", name="acc", value=None)]) == {"valid": {"acc": None}}


@pytest.mark.parametrize(("lower", "order"), [(False, "cabd"), (True, "bdac")])
def test_best_comes_first_and_ties_share_a_rank(lower: bool, order: str) -> None:
    scores = {"a": bagged(0.5), "b": bagged(0.25), "c": bagged(0.75), "d": bagged(0.25)}
    rows = leaderboard(scores, kit(lower=lower))
    assert "".join(row.name for row in rows) == order
    assert [row.rank for row in rows] == ([1, 1, 3, 4] if lower else [1, 2, 3, 3])
    assert [row.official for row in rows] == [scores[name][0].value for name in order]


def test_without_a_number_there_is_no_rank_and_the_last_place() -> None:
    rows = leaderboard({"a": bagged(None), "b": [], "c": bagged(-5.0), "d": bagged(1.0, name="other")}, kit())
    assert [(row.rank, row.name) for row in rows] == [(1, "c"), (None, "a"), (None, "b"), (None, "d")]


def test_leaderboard_by_test_step() -> None:
    scores = {"a": bagged(0.1) + bagged(0.9, step="test"), "b": bagged(0.2) + bagged(0.8, step="test")}
    assert [row.name for row in leaderboard(scores, kit(), step="test")] == ["a", "b"]
    assert [row.name for row in leaderboard(scores, kit())] == ["b", "a"]


def test_without_a_kit_nothing_is_ranked() -> None:
    rows = leaderboard({"b": bagged(1.0), "a": bagged(2.0)}, None)
    assert [(row.rank, row.name, row.official) for row in rows] == [(None, "a", None), (None, "b", None)]
    assert leaderboard({}, None) == []


def test_rows_carry_all_scores() -> None:
    found: dict[str, Any] = leaderboard({"a": bagged(1.0)}, kit())[0].scores
    assert found == {"folds": [], "mean": {}, "bagged": {"valid": {"acc": 1.0}}}
