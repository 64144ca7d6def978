"""Kits of many kinds give the same predictions and scores, byte for byte, however their submissions are started."""

import csv
import io
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner import fence
from runner.event import open_event
from runner.preload_keeper import PreloadKeeper
from runner.records import Outcome
from tests.event_folder import Heard, settle

ROOT = Path(__file__).parents[2]
KITS = {path.parent.name: path.parent for path in sorted((ROOT / "tests" / "kits").glob("*/problem.py"))}
KITS["iris"] = ROOT / "examples" / "iris" / "ramp-kits" / "iris"
RAMP_TEST = Path(sys.executable).with_name("ramp-test")
pytestmark = [pytest.mark.skipif(not RAMP_TEST.exists(), reason="ramp-workflow is not installed")]


class Trained:
    """A kit whose starting kit was trained by plain ramp-test, and is trained by events."""

    def __init__(self, folder: Path, kit: Path) -> None:
        self._folder = folder
        self.forked: int | str | None = None
        self.kit = folder / "kit"
        shutil.copytree(kit, self.kit)
        (self.kit / "data").mkdir(exist_ok=True)
        self.plain = folder / "plain" / "s"
        shutil.copytree(self.kit / "submissions" / "starting_kit", self.plain)

    def train_plainly(self) -> None:
        """Train as a participant does at home."""
        words = ["--submission=s", f"--ramp-kit-dir={self.kit}", f"--ramp-data-dir={self.kit}"]
        words += [f"--ramp-submission-dir={self.plain.parent}", "--save-output", "--ignore-warning"]
        done = subprocess.run([RAMP_TEST, *words], cwd=self.kit, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def train(self, **keys: Any) -> tuple[Path, str]:
        """Train by an event with these keys; return the predictions and the log."""
        folder = self._folder / f"event {len(list(self._folder.iterdir()))}"
        submission = folder / "events" / "e" / "submissions" / "s"
        shutil.copytree(self.kit / "submissions" / "starting_kit", submission)
        settle(submission)
        config = {"problem_name": "k", "event_name": "e", "kit_dir": str(self.kit), "data_dir": str(self.kit)}
        config |= {"worker_type": "local", "hunger_policy": "exit", "timeout": 120, "n_workers": 1, **keys}
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        heard = Heard()
        with open_event(folder / "config.yml") as event, pytest.MonkeyPatch.context() as patch:

            def ask(keeper: PreloadKeeper, *more: Any, really: Any = PreloadKeeper.ask) -> Any:
                self.forked = really(keeper, *more)
                return self.forked

            patch.setattr(PreloadKeeper, "ask", ask)
            event.dispatcher(heard).run()
        (outcome,) = [each for _, _, each in heard.moves if each is not None]
        assert isinstance(outcome, Outcome)
        log = (folder / "events/e/logs/s/log").read_text()
        assert outcome.returncode == 0, log
        return folder / "events" / "e" / "predictions" / "s", log


def content(folder: Path) -> dict[str, Any]:
    """Return every file of a training's output, tables without the columns that tell how long something took."""
    return {str(path.relative_to(folder)): read(path) for path in sorted(folder.rglob("*")) if is_result(path)}


def is_result(path: Path) -> bool:
    """Whether a path is a file that does not just tell how long something took."""
    return path.is_file() and not path.name.endswith("_time")


def read(path: Path) -> Any:
    """Return a file's bytes, or a table without times."""
    if path.suffix != ".csv":
        return path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return [{name: value for name, value in row.items() if "time" not in name} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Return every kit, trained plainly."""
    kits = {name: Trained(tmp_path_factory.mktemp(name), kit) for name, kit in KITS.items()}
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(Trained.train_plainly, kits.values()))
    return kits


@pytest.mark.xdist_group("kits")
@pytest.mark.parametrize("kit", KITS)
def test_a_fork_of_the_preloader_gives_what_plain_ramp_test_gives(trained: dict[str, Trained], kit: str) -> None:
    can_fence = not fence.missing({"writable": [], "readable": [sys.prefix]})
    predictions, log = trained[kit].train(fence=can_fence)

    found, expected = content(predictions), content(trained[kit].plain / "training_output")
    assert len(expected) >= 7
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert isinstance(trained[kit].forked, int), log


@pytest.mark.xdist_group("kits")
def test_random_numbers_that_nobody_seeded_differ(trained: dict[str, Trained]) -> None:
    kit = trained["regressor"]
    source = kit.kit / "submissions" / "starting_kit" / "regressor.py"
    source.write_text(
        source.read_text() + "\nimport random\nimport numpy\nprint('DRAWN', numpy.random.rand(), random.random())\n"
    )

    drawn = [line for _ in range(2) for line in kit.train()[1].splitlines() if line.startswith("DRAWN")]

    assert len(drawn) >= 2
    assert len(set(drawn)) == len(drawn)
