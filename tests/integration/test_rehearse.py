"""`./inv rehearse`: an event's way through AWS on this machine, as its users start it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from invoke import Context

from runner import tasks
from runner.rehearsal.rehearse import rehearse
from tests.aws.loopback import loopback_only
from tests.event_folder import EventFolder, make_environment

ROOT = Path(__file__).parents[2]
KEYS = (
    "submissions trainings_at_once ec2_calls instances_launched instances_left makespan_s ideal_s cost_usd "
    "launched faults stopped"
)
SUBMISSION_KEYS = (
    "name state cause attempts worker started ended seconds cpu_seconds peak_memory_mb message scores"  # as in status
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder that temporary files are made in, here and by the processes that a test starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    with loopback_only():
        yield folder


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let ramp-cloud run in an environment whose ramp-test is the stand-in: what a rehearsal's machines get."""
    programs = make_environment(tmp_path / "environment").parent
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    monkeypatch.setattr(sys, "executable", str(python))
    return programs


def on_aws(event: EventFolder, **keys: Any) -> EventFolder:
    """Turn an event of this machine into one on EC2."""
    event.keys |= {
        "worker_type": "aws",
        "ami_image_name": "toy",
        "region_name": "eu-west-1",
        "instance_type": "t3.medium",
        "remote_ramp_kit_folder": "~/ramp-kits/toy",
        "n_workers": 3,
        **keys,
    }
    for key in ("python", "fence"):
        event.keys.pop(key, None)
    return event


def fill(event: EventFolder) -> dict[str, tuple[str, str]]:
    """Add submissions and return how each must end."""
    for name in ("good", "better", "best"):
        event.add(name, "import time\ntime.sleep(1)\nSCORE = 0.5")
    event.add("raises", "raise ValueError('no idea')")
    event.add("never ends", "import time\ntime.sleep(600)")
    return {
        **dict.fromkeys(("good", "better", "best"), ("scored", "ok")),
        "raises": ("training_error", "submission_error"),
        "never ends": ("training_error", "timeout"),
    }


def ends(rehearsed: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return how each submission ended."""
    return {row["name"]: (row["state"], row["cause"]) for row in rehearsed["submissions"]}


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return every file with its date and content, but for the bytecode that Python keeps beside problem.py."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def processes_that_know(folder: Path) -> list[list[str]]:
    """Return the command lines of the processes that were started with a folder or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            known = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        if process.pid != psutil.Process().pid and any(str(folder) in text for text in known):
            found.append(process.cmdline())
    return found


def invoke(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a task as `./inv` does once .venv is made."""
    command = [sys.executable, "-m", "invoke", "--write-pyc", "--search-root", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def assert_plausible(rehearsed: dict[str, Any], *, at_once: int) -> None:
    """Assert that numbers can be true of an event in which nothing went wrong."""
    count = len(rehearsed["submissions"])
    assert list(rehearsed) == KEYS.split()
    assert all(list(row) == SUBMISSION_KEYS.split() for row in rehearsed["submissions"])
    assert {row["worker"] for row in rehearsed["submissions"]} == {"aws"}
    assert {row["attempts"] for row in rehearsed["submissions"]} == {1}
    assert rehearsed["instances_launched"] == count == sum(row["count"] for row in rehearsed["launched"])
    assert rehearsed["instances_left"] == 0
    assert (rehearsed["faults"], rehearsed["stopped"]) == ({}, "")
    assert 1 <= rehearsed["trainings_at_once"] <= at_once
    assert 0 < rehearsed["ideal_s"] <= rehearsed["makespan_s"]
    # Looking at image and network, a launch and an end: at least these; at most what is due to each submission too.
    assert 6 <= rehearsed["ec2_calls"] <= 30 + 3 * count
    # AWS charges a minute at least; a t3.medium has never cost USD 0.1 an hour, nor less than 0.01.
    hours = count * max(rehearsed["makespan_s"], 60) / 3600
    assert count * 60 / 3600 * 0.01 < rehearsed["cost_usd"] < hours * 0.1


def test_the_task_in_this_process(
    event_folder: Callable[..., EventFolder], image: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = on_aws(event_folder(timeout=4))
    expected = fill(event)

    tasks.rehearse(Context(), config=str(event.config), json_=True)

    printed = capsys.readouterr()
    assert printed.err == ""
    assert len(printed.out.splitlines()) == 1
    rehearsed = json.loads(printed.out)
    assert ends(rehearsed) == expected
    assert_plausible(rehearsed, at_once=3)
    assert rehearsed["trainings_at_once"] >= 2
    # Two waves of booting, 5 s each, and the time limit of the one that never ends.
    assert rehearsed["ideal_s"] >= 9
    assert rehearsed["launched"][0]["instance_type"] == "t3.medium"
    assert rehearsed["launched"][0]["zone"].startswith("eu-west-1")
    assert list(temporary.iterdir()) == []
    assert processes_that_know(temporary) == []
    assert image.is_dir()


def test_nothing_of_the_event_is_touched(event_folder: Callable[..., EventFolder], image: Path) -> None:
    event = event_folder(worker_type="local")
    event.add("trained already", "SCORE = 0.25")
    event.run()
    on_aws(event)
    config = event.config
    before = files_of(event.folder)

    rehearsed = rehearse(config, settings={"ssh_seconds": 0, "status_seconds": 0})

    assert ends(rehearsed) == {"trained already": ("scored", "ok")}
    assert files_of(event.folder) == before
    assert event.records()["trained already"].attempts == 1
    assert image.is_dir()


def test_faults_change_nothing_of_the_ends(
    event_folder: Callable[..., EventFolder], image: Path, temporary: Path
) -> None:
    types = ["t3.medium", "t3a.medium", "t2.medium"]
    event = on_aws(event_folder(timeout=5), use_spot_instance=True, instance_type=types, n_workers=5)
    # Long enough that whatever strikes the machines launched first strikes a training.
    expected = {f"long {number}": ("scored", "ok") for number in range(8)}
    for name in expected:
        event.add(name, "import time\ntime.sleep(3)")
    event.add("raises", "raise ValueError('no idea')")
    expected["raises"] = ("training_error", "submission_error")

    rehearsed = rehearse(event.config, faults="spot,capacity,ssh", settings={"ssh_seconds": 0.2, "status_seconds": 0})

    assert ends(rehearsed) == expected
    struck = rehearsed["faults"]
    surely = ("spot-interruption", "no-capacity", "ssh-refused", "ssh-hanging", "ssh-dropped")
    assert all(struck[kind] >= 1 for kind in surely), struck
    assert max(row["attempts"] for row in rehearsed["submissions"]) > 1, "AWS took a machine back"
    assert rehearsed["instances_launched"] > len(expected)
    assert rehearsed["instances_left"] == 0
    assert rehearsed["stopped"] == ""
    assert list(temporary.iterdir()) == []
    assert processes_that_know(temporary) == []
    assert image.is_dir()


def test_an_unknown_fault_is_named_with_those_there_are(event_folder: Callable[..., EventFolder]) -> None:
    event = on_aws(event_folder())

    done = invoke("rehearse", "--config", str(event.config), "--faults", "spot,flood", "--json")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "--faults: flood is not known; choose from api, boot, capacity, death, disk, spot, ssh, throttling\n"
    )


def test_an_event_that_is_not_on_aws_is_refused(event_folder: Callable[..., EventFolder]) -> None:
    done = invoke("rehearse", "--config", str(event_folder().config), "--json")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "only an event with worker_type aws can be rehearsed, this one has local\n"


def test_the_bundled_event_with_the_real_ramp_test(temporary: Path) -> None:
    before = files_of(ROOT / "examples")

    done = invoke("rehearse", "--config", str(ROOT / "examples/iris/aws.yml"), "--json")

    assert done.returncode == 0, done.stderr
    rehearsed = json.loads(done.stdout)
    assert ends(rehearsed) == {
        **dict.fromkeys(("starting_kit", "nearest_neighbours", "petals_only", "small_tree"), ("scored", "ok")),
        "raises": ("training_error", "submission_error"),
        "never_ends": ("training_error", "timeout"),
    }
    assert_plausible(rehearsed, at_once=4)
    assert rehearsed["ideal_s"] > 30, "one never ends"
    assert {row["market"] for row in rehearsed["launched"]} == {"spot"}
    assert files_of(ROOT / "examples") == before
    assert list(temporary.iterdir()) == []
    assert processes_that_know(temporary) == []
