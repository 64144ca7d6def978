"""Whole events on a Dask cluster of this machine, by the task that users run, and what stays when it is killed."""

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from runner.processes import RUN_VARIABLE
from runner.states import Cause, State
from tests.dask_clusters import until
from tests.event_folder import EventFolder
from tests.integration.test_crash import SEED, attempts_of, start

KILLS = 3
MakeEvent = Callable[..., EventFolder]


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Dask's own files, and with them the run folders of this host, a place of the test's own."""
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))


@pytest.fixture
def dask_event(event_folder: MakeEvent) -> MakeEvent:
    """Return a maker of events with ``dask_scheduler: local``."""
    return lambda **keys: event_folder(worker_type="dask", dask_scheduler="local", **keys)


def seen_by_training(event: EventFolder, name: str) -> dict[str, str]:
    """Return the environment that a submission wrote to its log."""
    lines = (event.folder / "events/toy_event/logs" / name / "log").read_text().splitlines()
    return dict(line.removeprefix("SEES ").split("=", 1) for line in lines if line.startswith("SEES "))


TELL = "import os\nfor name, value in os.environ.items(): print(f'SEES {name}={value}')"


@pytest.mark.parametrize(
    ("threads", "own", "expected"), [(None, None, None), (None, "1", "1"), (3, None, "3"), (3, "1", "3")]
)
def test_threads_are_those_of_the_config_and_the_dispatchers_environment_stays_as_it_was(
    dask_event: MakeEvent, monkeypatch: pytest.MonkeyPatch, threads: int | None, own: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    event = dask_event(n_threads=threads)
    event.add("a", TELL)
    before = dict(os.environ)

    event.run()

    assert dict(os.environ) == before, "Dask would set OMP_NUM_THREADS and more for good"
    seen = seen_by_training(event, "a")
    assert seen.get("OMP_NUM_THREADS") == expected
    assert RUN_VARIABLE in seen
    assert "PYTHONHASHSEED" not in seen


# -- a dispatcher that is killed -------------------------------------------------------------------------------------

TRAIN = """
import os, time
name, folder = os.path.basename(FOLDER), {folder!r}
def note(what):
    with open(folder + "/journal", "a") as file: file.write(what + " " + name + chr(10))
note("begin")
{work}
note("end")
"""
UNTIL_TOLD = "while not os.path.exists(folder + '/go ' + name): time.sleep(0.02)"


def left_by(folder: Path) -> list[str]:
    """Return the processes that belong to an event: they know the place for Dask's files, or work there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            line, place = " ".join(process.cmdline()), process.environ().get("DASK_TEMPORARY_DIRECTORY")
            if (place == str(folder) or str(folder) in line) and process.pid != os.getpid():
                found.append(line)
    return found


def are_trainings(lines: Sequence[str], count: int) -> bool:
    """Whether processes are so many trainings, each under its supervisor, and nothing else."""
    return len(lines) == 2 * count and all("ramp_test.py" in line or "supervise" in line for line in lines)


def begun(event: EventFolder) -> list[str]:
    """Return the names of the submissions whose own code began, once for each time."""
    path = event.folder / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(line.removeprefix("begin ") for line in lines if line.startswith("begin "))


def check_scored_once(event: EventFolder, names: Sequence[str], story: str) -> None:
    """Check that each submission was trained once and scored once, and that nothing is left."""
    assert {name: record.state for name, record in event.records().items()} == dict.fromkeys(names, State.SCORED), story
    assert begun(event) == sorted(names), story
    ended = {key: count for key, count in attempts_of(event).items() if key[1] != Cause.INTERRUPTED}
    assert ended == {(name, Cause.OK): 1 for name in names}, story
    until(lambda: not left_by(event.folder.parent))
    runs = [path for path in event.folder.parent.glob("ramp-cloud-*/*/*") if path.parent.name != "bin"]
    assert runs == [], story


def test_what_trains_outlives_a_killed_dispatcher_and_its_cluster_and_the_next_one_scores_it_once(
    dask_event: MakeEvent, tmp_path: Path
) -> None:
    event = dask_event()
    for name in ("a", "b", "c"):
        event.add(name, TRAIN.format(folder=str(event.folder), work=UNTIL_TOLD))
    first = start(event)
    until(lambda: len(begun(event)) == 2)
    ended, running = begun(event)
    first.kill()
    first.communicate()
    until(lambda: are_trainings(left_by(tmp_path), 2))  # and the cluster has ended
    (event.folder / f"go {ended}").touch()
    until(lambda: are_trainings(left_by(tmp_path), 1))

    second = start(event)
    until(lambda: len(begun(event)) == 3)  # it has found what ended, and its slot is given to the next
    for name in ("a", "b", "c"):
        (event.folder / f"go {name}").touch()
    output, _ = second.communicate(timeout=120)

    assert second.returncode == 0, output
    check_scored_once(event, ("a", "b", "c"), output)
    assert attempts_of(event)[running, Cause.INTERRUPTED] == 0


def test_kills_at_any_moment_lose_nothing_and_train_nothing_twice(dask_event: MakeEvent) -> None:
    dice = random.Random(SEED)
    event = dask_event()
    names = [f"s{number}" for number in range(6)]
    for name in names:
        work = f"time.sleep({dice.uniform(0.1, 1.2)})"
        event.add(name, TRAIN.format(folder=str(event.folder), work=work))
    kills = 0
    while True:
        process = start(event)
        try:
            output, _ = process.communicate(timeout=dice.uniform(0.8, 3.0) if kills < KILLS else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        break

    assert process.returncode == 0, output
    check_scored_once(event, names, f"seed {SEED}, {kills} kills\n{output}")
