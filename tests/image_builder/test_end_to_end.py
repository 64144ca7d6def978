"""The bundled event from its config to old images that go, by the tasks, on an emulated AWS."""

import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.test_tasks import invoke

ROOT = Path(__file__).parents[2]


class Organiser:
    """Works on a copy of the bundled event.

    Args:
        folder: an empty folder.
        submissions: those that stay in the event.
    """

    def __init__(self, folder: Path, *submissions: str) -> None:
        iris = ROOT / "examples" / "iris"
        (folder / "events").mkdir()
        shutil.copytree(iris / "ramp-kits", folder / "ramp-kits", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(iris / "aws.yml", folder / "aws.yml")
        for name in submissions:
            place = Path("events", "iris", "submissions", name)
            shutil.copytree(iris / place, folder / place)
        self.folder = folder
        self.event = folder / "events" / "iris_aws" / "emulated"

    def does(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a task on the event; it ends well."""
        done = invoke(*words, "--config", str(self.folder / "aws.yml"), "--emulated")
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def builds(self, *words: str) -> tuple[str, str]:
        """Build an image and return its id, which is all that standard output holds, and what was said beside."""
        done = self.does("build-image", *words)
        (image,) = done.stdout.split()
        assert image.startswith("ami-")
        return image, done.stderr

    def launched_from(self) -> list[str]:
        """Return the images of the attempts of the event's one submission, in their order."""
        with closing(sqlite3.connect(self.event / "ramp-cloud.db")) as database:
            rows = database.execute("SELECT handle FROM attempts ORDER BY number").fetchall()
        return [json.loads(handle)["image"] for (handle,) in rows]


def test_from_a_config_to_images_and_old_ones_that_go(tmp_path: Path) -> None:
    organiser = Organiser(tmp_path, "starting_kit")

    first, said = organiser.builds()
    assert "testing" in said
    organiser.does("run-event")
    status = json.loads(invoke("status", "--config", str(organiser.event / "config.yml"), "--json").stdout)
    (submission,) = status["submissions"]
    assert (submission["state"], submission["cause"]) == ("scored", "ok")
    acc = submission["scores"]["bagged"]["test"]["acc"]

    same, said = organiser.builds("--if-changed")
    assert same == first
    assert "nothing is built" in said
    assert "training" not in said, "it has passed its test already"

    with (tmp_path / "ramp-kits" / "iris" / "problem.py").open("a") as problem:
        problem.write("\n# the second edition\n")
    second, _ = organiser.builds("--if-changed")
    assert second != first
    invoke("rerun", "starting_kit", "--config", str(organiser.event / "config.yml"))
    organiser.does("run-event")
    status = json.loads(invoke("status", "--config", str(organiser.event / "config.yml"), "--json").stdout)
    assert status["submissions"][0]["attempts"] == 2
    assert status["submissions"][0]["scores"]["bagged"]["test"]["acc"] == pytest.approx(acc, abs=1e-12)
    assert organiser.launched_from() == [first, second]

    would = json.loads(organiser.does("prune-images", "--keep", "1", "--json").stdout)
    assert would["dry_run"]
    done = json.loads(organiser.does("prune-images", "--keep", "1", "--yes", "--json").stdout)
    gone = {(row["kind"], row["id"]) for row in done["found"] if row["removed"]}
    assert ("image", first) in gone
    assert {kind for kind, _ in gone} >= {"image", "snapshot"}
    (left,) = json.loads(organiser.does("images", "--json").stdout)["images"]
    assert left["id"] == second
    assert left["accepted"]
    assert left["launched"]
