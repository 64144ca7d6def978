"""How a worker is found by its worker_type, and what is said when it cannot be used."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.workers import BUILT_IN, load_worker
from runner.workers.base import BaseWorker

GOOD = """
from runner.workers.base import BaseWorker

class Mine(BaseWorker):
    def launch_submission(self): ...
    def collect_results(self): ...
    def _is_submission_finished(self): ...

class Half(BaseWorker):
    def collect_results(self): ...

class Stranger: ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder for modules beside a config.yml; Python forgets them afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_worker_is_there(name: str) -> None:
    assert issubclass(load_worker(name), BaseWorker)


def test_a_worker_may_lie_beside_the_config(folder: Path) -> None:
    (folder / "lies_beside.py").write_text(GOOD)

    assert load_worker("lies_beside:Mine", beside=folder).__name__ == "Mine"


@pytest.mark.parametrize(
    ("content", "worker_type", "message"),
    [
        (GOOD, "is_broken:Yours", "has no Yours; check the spelling"),
        (GOOD, "is_broken:Half", r"Half lacks _is_submission_finished, launch_submission; see docs/workers\.md"),
        (GOOD, "is_broken:Stranger", "not a subclass of runner.workers.base.BaseWorker"),
        (GOOD, "is_not_there:Mine", "No module named 'is_not_there'; install it"),
        ("import not_installed_here", "is_broken:Mine", "No module named 'not_installed_here'; install it"),
        ("class Mine(", "is_broken:Mine", "importing is_broken raises SyntaxError"),
        ("import os; os.environ['NOT SET']", "is_broken:Mine", "importing is_broken raises KeyError"),
        ("import os; os.no_such_thing", "is_broken:Mine", "importing is_broken raises AttributeError"),
        ("", "no_colon", "cannot run submissions in this version; use .*local, conda"),
    ],
)
def test_one_that_cannot_be_used_is_told(folder: Path, content: str, worker_type: str, message: str) -> None:
    (folder / "is_broken.py").write_text(content)

    with pytest.raises(ConfigError, match=message):
        load_worker(worker_type, beside=folder)
