"""A dispatcher that is killed at any moment loses nothing: the next one finds what runs, what ended, and what died."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from runner.processes import RUN_VARIABLE
from runner.states import Cause, State
from tests.event_folder import EventFolder

ROOT = Path(__file__).parents[2]
KILLS = 50
SEED = int(os.environ.get("RAMP_CLOUD_SEED", "20261123"))

TRAIN = """
import os, time
def note(what):
    with open({journal!r}, "a") as file:
        file.write(what + " " + os.path.basename(FOLDER) + chr(10))
note("begin")
time.sleep({seconds})
note("end")
"""


def start(event: EventFolder) -> "subprocess.Popen[str]":
    """Start run-event as its users do."""
    command = [
        sys.executable,
        "-m",
        "invoke",
        "--write-pyc",
        "--search-root",
        str(ROOT),
        "run-event",
        "--config",
        str(event.config),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def processes_under(folder: Path) -> list[list[str]]:
    """Return the command lines of the processes that belong to an event's trainings."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) and str(folder) in " ".join(process.cmdline()):
                found.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


def fill(event: EventFolder, journal: Path, dice: random.Random) -> dict[str, tuple[State, Cause]]:
    """Add twelve submissions and return how each must end."""
    expected = {}
    for number in range(12):
        name, code = f"s{number:02}", TRAIN.format(journal=str(journal), seconds=round(dice.uniform(0.05, 1.2), 2))
        expected[name] = (State.SCORED, Cause.OK)
        if number in (3, 7):
            code += "raise ValueError('on purpose')"
            expected[name] = (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
        if number == 5:
            code += "time.sleep(600)"
            expected[name] = (State.TRAINING_ERROR, Cause.TIMEOUT)
        if number == 9:
            code += "if os.fork() == 0: time.sleep(600)"
        event.add(name, code)
    return expected


def run_and_kill(event: EventFolder, dice: random.Random, kills: int) -> tuple[int, str]:
    """Run an event, killing its dispatcher at random moments; return the kills that hit and the last one's output."""
    hits = 0
    while True:
        process = start(event)
        try:
            output, _ = process.communicate(timeout=dice.uniform(0.2, 2.2) if hits < kills else 120)
        except subprocess.TimeoutExpired:
            assert hits < kills, "the event did not end"
            process.kill()
            process.communicate()
            hits += 1
            continue
        assert process.returncode == 0, output
        return hits, output


def attempts_of(event: EventFolder) -> Counter[tuple[str, str]]:
    """Return how many attempts of each submission ended for each cause."""
    engine = create_engine(f"sqlite:///{event.folder / 'ramp-cloud.db'}")
    query = "SELECT s.name, a.cause FROM attempts a JOIN submissions s ON s.id = a.submission_id"
    try:
        with engine.connect() as connection:
            return Counter((name, cause) for name, cause in connection.execute(text(query)))
    finally:
        engine.dispose()


def test_fifty_kills_lose_nothing_and_train_nothing_twice(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    hits, rounds = 0, 0
    while hits < KILLS:
        event = EventFolder(tmp_path / f"event {rounds}", timeout=6)
        journal = event.folder / "journal"
        expected = fill(event, journal, dice)

        more, output = run_and_kill(event, dice, KILLS - hits)

        hits, rounds = hits + more, rounds + 1
        story = f"seed {SEED}, event {rounds}, {more} kills\n{output}"
        assert {name: (record.state, record.cause) for name, record in event.records().items()} == expected, story
        ended = {key: count for key, count in attempts_of(event).items() if key[1] != Cause.INTERRUPTED}
        assert ended == {(name, cause): 1 for name, (_, cause) in expected.items()}, story
        began = Counter(line for line in journal.read_text().splitlines() if line.startswith("begin"))
        assert began == {f"begin {name}": 1 for name in expected}, f"each is trained exactly once; {story}"
        assert processes_under(event.folder) == [], story
        assert list((event.folder / "events/toy_event/runs").iterdir()) == [], story


def test_what_ended_while_nobody_watched_is_collected(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder()
    go, begun = event.folder / "go", event.folder / "begun"
    os.mkfifo(go)
    event.add("late", f"open({str(begun)!r}, 'w').close()\nopen({str(go)!r}).read()\nSCORE = 0.625")
    first = start(event)
    wait_for(begun.exists)
    first.kill()
    first.communicate()
    supervisors = processes_under(event.folder)
    assert supervisors, "the training goes on without its dispatcher"
    go.write_text("on")
    wait_for(lambda: processes_under(event.folder) == [])

    second = start(event)
    output, _ = second.communicate(timeout=60)

    assert second.returncode == 0, output
    record = event.records()["late"]
    assert (record.state, record.attempts) == (State.SCORED, 1)


def test_what_died_while_nobody_watched_is_trained_again(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder()
    begun = event.folder / "begun"
    first_time = f"if not os.path.exists({str(begun)!r}):\n    open({str(begun)!r}, 'w').close()\n    time.sleep(600)"
    code = f"import os, time\n{first_time}"
    event.add("unlucky", code)
    first = start(event)
    wait_for(begun.exists)
    first.kill()
    first.communicate()
    for process in psutil.process_iter():
        try:
            if str(event.folder) in " ".join(process.cmdline()):
                process.kill()  # as if the machine had been switched off
        except psutil.NoSuchProcess:
            continue

    second = start(event)
    output, _ = second.communicate(timeout=60)

    assert second.returncode == 0, output
    record = event.records()["unlucky"]
    assert (record.state, record.attempts) == (State.SCORED, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_puts_back_what_runs_and_ends(event_folder: Callable[..., EventFolder], number: signal.Signals) -> None:
    event = event_folder()
    begun = event.folder / "begun"
    event.add("long", f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)")
    process = start(event)
    wait_for(begun.exists)

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 128 + number, output
    assert "What was running is new again; the next run-event goes on." in output
    record = event.records()["long"]
    assert (record.state, record.cause) == (State.NEW, Cause.CANCELLED)
    assert processes_under(event.folder) == []


def wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    """Wait until something outside this process is so."""
    import time

    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
