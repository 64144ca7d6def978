"""The bundled event with the real ramp-test: the main job, on real input."""

import csv
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.test_tasks import ROOT, answer, invoke

# One process runs the event once for all of these tests.
pytestmark = pytest.mark.xdist_group("iris")
GOOD = ["nearest_neighbours", "petals_only", "small_tree", "starting_kit"]


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundled event, run once by the task."""
    folder = tmp_path_factory.mktemp("iris") / "event"
    inputs = shutil.ignore_patterns("logs", "predictions", "runs", "*.db*", "leaderboard.csv", "training_output")
    shutil.copytree(ROOT / "examples" / "iris", folder, ignore=inputs)
    done = invoke("run-event", "--config", str(folder / "config.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def plain_ramp_test(iris: Path, name: str, into: Path) -> Path:
    """Train a submission with nothing but ramp-test and return its training_output."""
    shutil.copytree(iris / "events/iris/submissions" / name, into / name)
    command = [str(Path(sys.executable).parent / "ramp-test"), "--submission", name, "--save-output"]
    kit = iris / "ramp-kits/iris"
    folders = ["--ramp-kit-dir", str(kit), "--ramp-data-dir", str(kit), "--ramp-submission-dir", str(into)]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    return into / name / "training_output"


def numbers(path: Path) -> list[dict[str, str]]:
    """Return a score table without its timings."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)]


def test_every_submission_ends_as_it_should(iris: Path) -> None:
    found = answer("status", "--config", str(iris / "config.yml"))

    rows = {row["name"]: row for row in found["submissions"]}
    assert found["state"] == "done"
    assert {name: row["state"] for name, row in rows.items()} == {
        **dict.fromkeys(GOOD, "scored"),
        "raises": "training_error",
        "never_ends": "training_error",
    }
    assert rows["raises"]["message"].startswith("Traceback (most recent call last)")
    assert rows["raises"]["message"].endswith("ValueError: cannot learn from 78 flowers")
    assert rows["never_ends"]["cause"] == "timeout"
    assert rows["never_ends"]["message"] == "The training was killed at its time limit of 30 s."


def test_scores_are_exactly_those_of_plain_ramp_test(iris: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        plain = dict(zip(GOOD, pool.map(lambda name: plain_ramp_test(iris, name, tmp_path), GOOD), strict=True))

    rows = {row["name"]: row for row in answer("status", "--config", str(iris / "config.yml"))["submissions"]}
    for name, output in plain.items():
        kept = iris / "events/iris/predictions" / name
        for table in ("fold_0/scores.csv", "fold_1/scores.csv", "bagged_scores.csv"):
            assert numbers(kept / table) == numbers(output / table), name
        folds = {(fold["fold"], fold["step"]): fold for fold in rows[name]["scores"]["folds"]}
        for fold in range(2):
            for row in numbers(output / f"fold_{fold}/scores.csv"):
                told = folds[fold, row["step"]]
                assert {"acc": told["acc"], "nll": told["nll"]} == {"acc": float(row["acc"]), "nll": float(row["nll"])}


def test_the_leaderboard_is_ranked_and_written(iris: Path) -> None:
    rows = answer("leaderboard", "--config", str(iris / "config.yml"))["rows"]

    assert len({row["score"] for row in rows}) == 4, "the four submissions score differently"
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    with (iris / "events/iris/leaderboard.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["submission"] for row in written] == [row["name"] for row in rows]
    assert [json.loads(row["bagged valid acc"]) for row in written] == [row["score"] for row in rows]


def test_what_participants_sent_is_as_they_sent_it(iris: Path) -> None:
    sent = sorted(path.name for path in (iris / "events/iris/submissions").rglob("*") if path.is_file())

    assert sent == ["classifier.py"] * 6
