"""A small event on disk for tests: a kit whose submissions train in hundredths of a second."""

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from runner.event import Event, open_event
from runner.records import Outcome, SubmissionRecord
from runner.retry import RetryPolicy
from runner.states import State

STAND_INS = Path(__file__).parent / "stand_ins"
PROBLEM = """
from types import SimpleNamespace

problem_title = "A test"
score_types = [SimpleNamespace(name="acc", precision=2, is_lower_the_better=False)]
"""


def make_environment(folder: Path) -> Path:
    """Make a folder that looks like a Python environment with ramp-workflow and return its interpreter."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    python, ramp_test = binaries / "python", binaries / "ramp-test"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_INS}" exec "{sys.executable}" -S "$@"\n')
    ramp_test.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{STAND_INS / "ramp_test.py"}" "$@"\n')
    for program in (python, ramp_test):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return python


def make_preloadable(folder: Path) -> Path:
    """Make the environment's ramp-test one that can be preloaded; return a folder whose modules it finds."""
    modules = folder / "modules"
    modules.mkdir()
    ramp_test = folder / "bin" / "ramp-test"
    lines = ["#!/usr/bin/env python3", "import sys", f"sys.path[1:1] = [{str(STAND_INS)!r}, {str(modules)!r}]"]
    lines += ["from ramp_test import main", "", "sys.exit(main())", ""]
    ramp_test.write_text("\n".join(lines))
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_INS}:{modules}" exec "{sys.executable}" -S "$@"\n')
    return modules


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, State, Outcome | None]] = []

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Note a move; see ``runner.life.Listener``."""
        self.moves.append((name, state, outcome))


class EventFolder:
    """An event that can be run: ``add`` submissions, then ``run``.

    Args:
        folder: an empty folder; becomes the deployment folder.
        keys: keys of config.yml beside the usual ones, or in their place.
    """

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder = folder
        python = make_environment(folder / "environment")
        self.kit = folder / "ramp-kits" / "toy"
        self.submissions = folder / "events" / "toy_event" / "submissions"
        for path in (self.kit / "data", self.submissions):
            path.mkdir(parents=True)
        (self.kit / "problem.py").write_text(PROBLEM)
        self.keys: dict[str, Any] = {
            "problem_name": "toy",
            "event_name": "toy_event",
            "data_dir": "ramp-kits/toy",
            "worker_type": "local",
            "python": str(python),
            "hunger_policy": "exit",
            "n_workers": 2,
            "timeout": 60,
            **keys,
        }
        if self.keys["worker_type"] != "aws":
            self.keys.setdefault("fence", False)  # what tests are about is told by files outside

    @property
    def config(self) -> Path:
        """The event's config.yml, written anew."""
        path = self.folder / "config.yml"
        path.write_text(yaml.safe_dump(self.keys))
        return path

    def add(self, name: str, code: str = "SCORE = 0.5") -> Path:
        """Put a submission whose training is to run ``code`` and return its folder. It counts as complete at once."""
        hidden = self.submissions / ".arriving"
        hidden.mkdir()
        (hidden / "main.py").write_text(code)
        settle(hidden)
        return hidden.rename(self.submissions / name)

    @contextmanager
    def opened(self) -> Iterator[Event]:
        """Open the event."""
        with open_event(self.config) as event:
            yield event

    def run(self) -> Heard:
        """Run the event to its end in this process and return what the listener heard."""
        heard = Heard()
        with self.opened() as event:
            event.dispatcher(heard, policy=RetryPolicy(backoff=timedelta(milliseconds=10))).run()
        return heard

    def records(self) -> dict[str, SubmissionRecord]:
        """Return every submission as the store knows it."""
        with self.opened() as event:
            return {record.name: record for record in event.store.submissions()}


def settle(folder: Path) -> None:
    """Date everything in a folder back by a minute, so that it is not taken for one that is still arriving."""
    moment = time.time() - 60
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (moment, moment))
