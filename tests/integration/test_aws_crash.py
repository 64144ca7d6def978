"""A dispatcher of an AWS event that is killed at any moment: the next one finds its instances, and none is left."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from runner.aws.session import AwsSession
from runner.aws.tags import belonging_tags
from runner.states import Cause, State
from tests.aws.loopback import loopback_only
from tests.rehearsing import AwsEventFolder, Cloud

ROOT = Path(__file__).parents[2]
KILLS = 30
SUBMISSIONS = 20
A_FEW_SECONDS = 8.0
STARTED: "list[subprocess.Popen[str]]" = []
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


@pytest.fixture(autouse=True)
def _in_the_cloud(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    with loopback_only():
        yield
    for process in STARTED:  # of a test that failed half-way
        if process.poll() is None:
            kill(process)
        if process.stdout:
            process.stdout.close()
    STARTED.clear()


def start(event: AwsEventFolder) -> "subprocess.Popen[str]":
    """Start run-event as its users do."""
    return invoke("run-event", "--config", str(event.config))


def invoke(*words: str) -> "subprocess.Popen[str]":
    """Start a task in a process of its own; without --write-pyc each would compile all that it imports."""
    command = [sys.executable, "-m", "invoke", "--write-pyc", "--search-root", str(ROOT), *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def fill(event: AwsEventFolder, journal: Path, dice: random.Random) -> dict[str, tuple[State, Cause]]:
    """Add twenty submissions and return how each must end."""
    expected = {}
    for number in range(SUBMISSIONS):
        name, code = f"s{number:02}", TRAIN.format(journal=str(journal), seconds=round(dice.uniform(0.05, 1.5), 2))
        expected[name] = (State.SCORED, Cause.OK)
        if number in (3, 8, 15):
            code += "raise ValueError('on purpose')"
            expected[name] = (State.TRAINING_ERROR, Cause.SUBMISSION_ERROR)
        if number == 5:
            code += "time.sleep(600)"
            expected[name] = (State.TRAINING_ERROR, Cause.TIMEOUT)
        event.add(name, code)
    return expected


def run_and_kill(event: AwsEventFolder, dice: random.Random, kills: int) -> tuple[int, str]:
    """Run an event, killing its dispatcher at random moments; return the kills that hit and the last one's output."""
    hits = 0
    while True:
        before = dispatchers(event)
        process = start(event)
        if hits == kills:
            return hits, ended(process)
        # Not while it imports its packages, which it does for most of such a short life.
        wait_for(lambda before=before, it=process: dispatchers(event) > before or it.poll() is not None)
        try:
            output, _ = process.communicate(timeout=dice.uniform(0, 2.5))
        except subprocess.TimeoutExpired:
            kill(process)
            hits += 1
            continue
        assert process.returncode == 0, output
        return hits, output


def wait_while_it_runs(process: "subprocess.Popen[str]", condition: Callable[[], Any]) -> None:
    """Wait until something is so that a process has to do, and show what it printed if it ends instead."""
    wait_for(lambda: process.poll() is not None or condition())
    assert process.poll() is None, process.communicate()[0]


def ended(process: "subprocess.Popen[str]", code: int = 0, timeout: float = 120) -> str:
    """Wait for a process's end and return what it printed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def kill(process: "subprocess.Popen[str]") -> None:
    """End a process as a power cut would."""
    process.kill()
    process.communicate()


def wait_for(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """Wait until something outside this process is so, and return it."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def dispatchers(event: AwsEventFolder) -> int:
    """Return how many dispatchers the event has had."""
    try:
        ((count,),) = rows_of(event, "SELECT count(*) FROM dispatchers")
    except sqlite3.OperationalError:  # no tables yet
        return 0
    return int(count)


def states(event: AwsEventFolder) -> list[str]:
    """Return the states of all submissions; without event.records(), which writes config.yml anew."""
    try:
        return [state for (state,) in rows_of(event, "SELECT state FROM submissions")]
    except sqlite3.OperationalError:  # no tables yet
        return []


def attempts_of(event: AwsEventFolder) -> Counter[tuple[str, str]]:
    """Return how many attempts of each submission ended for each cause."""
    query = "SELECT s.name, a.cause FROM attempts a JOIN submissions s ON s.id = a.submission_id"
    return Counter((name, cause) for name, cause in rows_of(event, query))


def rows_of(event: AwsEventFolder, query: str) -> list[Any]:
    """Ask an event's database; the store's own classes would take ten times as long."""
    with closing(sqlite3.connect(f"file:{quote(str(event.folder / 'ramp-cloud.db'))}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()


def test_thirty_kills_lose_nothing_train_nothing_twice_and_leave_nothing(cloud: Cloud, tmp_path: Path) -> None:
    """Two events side by side in one account: each is killed again and again, and neither touches the other's."""
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(kill_again_and_again, tmp_path / name, cloud, name) for name in ("on-demand", "spot")]
    assert sum(job.result() for job in jobs) == KILLS
    assert_nothing_left(cloud)


def kill_again_and_again(folder: Path, cloud: Cloud, market: str) -> int:
    """Run events until half of all kills have hit, look at what became of each, and return the kills."""
    dice = random.Random(f"{SEED} {market}")
    hits, rounds = 0, 0
    while hits < KILLS // 2:
        spot = market == "spot"
        event = AwsEventFolder(folder / str(rounds), cloud, timeout=6, n_workers=4, use_spot_instance=spot)
        journal = event.folder / "journal"
        expected = fill(event, journal, dice)

        more, output = run_and_kill(event, dice, KILLS // 2 - hits)

        hits, rounds = hits + more, rounds + 1
        story = f"seed {SEED}, {market}, event {rounds}, {more} kills\n{output}"
        assert {name: (record.state, record.cause) for name, record in event.records().items()} == expected, story
        finals = {key: count for key, count in attempts_of(event).items() if key[1] != Cause.INTERRUPTED}
        assert finals == {(name, cause): 1 for name, (_, cause) in expected.items()}, story
        assert begun(event) == dict.fromkeys(expected, 1), f"each is trained exactly once; {story}"
        owner = rows_of(event, "SELECT uid FROM events")[0][0]
        mine = [each for each in running(cloud) if each["tags"]["ramp-cloud:owner"] == owner]
        assert mine == [], story
    return hits


def running(cloud: Cloud) -> list[dict[str, Any]]:
    """Return the instances that AWS has not ended."""
    found = cloud.aws.state(processes=False)["instances"]
    return [each for each in found if each["state"] not in ("shutting-down", "terminated")]


def assert_nothing_left(cloud: Cloud, story: str = "") -> None:
    """Assert that AWS has no instance, no launch template and no process of ours any more."""
    assert running(cloud) == [], story
    templates = AwsSession(region_name=cloud.keys["region_name"]).call("ec2", "describe_launch_templates")
    assert templates["LaunchTemplates"] == [], story
    # AWS says that an instance shuts down a moment before its last process is gone.
    wait_for(lambda: not any(each["processes"] for each in cloud.instances()), timeout=10)
    assert cloud.aws.state(processes=False)["defects"] == [], story


def renewed(cloud: Cloud, **settings: Any) -> Cloud:
    """Return a cloud whose account is as new and whose settings are others, until the next test."""
    cloud.aws.reset(**settings)
    cloud.aws.seed(
        images=[{"name": cloud.keys["ami_image_name"], "created": "2026-01-01T00:00:00Z"}],
        key_name=cloud.keys["key_name"],
        public_key=cloud.login.public,
        security_group=cloud.keys["security_group"],
    )
    return cloud


def small(tmp_path: Path, cloud: Cloud, *, seconds: float = 0.5, **keys: Any) -> AwsEventFolder:
    """Return an event of three submissions that write into its journal."""
    event = AwsEventFolder(tmp_path / "an event", cloud, n_workers=3, **keys)
    for name in ("a", "b", "c"):
        event.add(name, TRAIN.format(journal=str(event.folder / "journal"), seconds=seconds))
    return event


def begun(event: AwsEventFolder) -> Counter[str]:
    """Return how often each submission began to train."""
    journal = event.folder / "journal"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return Counter(line.removeprefix("begin ") for line in lines if line.startswith("begin"))


def assert_each_trained_once(event: AwsEventFolder, output: str) -> None:
    """Assert that all three submissions were trained once and scored."""
    records = event.records()
    assert {name: (record.state, record.cause) for name, record in records.items()} == {
        name: (State.SCORED, Cause.OK) for name in ("a", "b", "c")
    }, output
    assert begun(event) == {"a": 1, "b": 1, "c": 1}, output


def test_killed_while_instances_boot(cloud: Cloud, tmp_path: Path) -> None:
    renewed(cloud, boot_seconds=1, ssh_seconds=3)
    event = small(tmp_path, cloud)
    first = start(event)
    wait_while_it_runs(first, lambda: len(running(cloud)) == 3)
    kill(first)
    assert begun(event) == {}

    output = ended(start(event))

    assert_each_trained_once(event, output)
    assert len(cloud.instances()) == 3, "those that booted already were found by their tags"
    assert_nothing_left(cloud, output)


def test_killed_between_a_launch_and_its_answer(cloud: Cloud, tmp_path: Path) -> None:
    # The trainings end after the launch that nobody waits for any more: what AWS makes later still is ended by
    # the next dispatcher, or by its own timer.
    event = small(tmp_path, cloud, seconds=5)
    cloud.aws.arm({"kind": "slow-call", "action": "RunInstances", "seconds": 3, "times": 1})
    first = start(event)
    wait_while_it_runs(first, lambda: struck(cloud))
    kill(first)
    assert running(cloud) == []

    output = ended(start(event))

    wait_for(lambda: len(cloud.aws.state(processes=False)["instances"]) >= 3)
    assert_each_trained_once(event, output)
    assert_nothing_left(cloud, output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["boot", "training"])
def test_a_stop_ends_soon_and_leaves_no_instance(
    cloud: Cloud, tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    renewed(cloud, ssh_seconds=60 if stage == "boot" else 0)
    event = small(tmp_path, cloud, seconds=600)
    process = start(event)
    wait_while_it_runs(process, lambda: (len(running(cloud)) if stage == "boot" else begun(event).total()) == 3)
    stopped = time.monotonic()

    process.send_signal(number)
    output = ended(process, code=128 + number)

    assert time.monotonic() - stopped < A_FEW_SECONDS, output
    assert "What was running is new again; the next run-event goes on." in output
    records = event.records()
    assert {name: (record.state, record.cause) for name, record in records.items()} == {
        name: (State.NEW, Cause.CANCELLED) for name in ("a", "b", "c")
    }
    assert_nothing_left(cloud, output)


def test_a_stop_in_the_middle_of_a_launch_leaves_no_instance(cloud: Cloud, tmp_path: Path) -> None:
    event = small(tmp_path, cloud)
    cloud.aws.arm({"kind": "slow-call", "action": "RunInstances", "seconds": 3, "times": 1})
    process = start(event)
    wait_while_it_runs(process, lambda: struck(cloud))

    process.send_signal(signal.SIGTERM)
    output = ended(process, code=128 + signal.SIGTERM)

    assert len(cloud.instances()) == 3, "AWS had the call already"
    assert {record.state for record in event.records().values()} == {State.NEW}
    assert_nothing_left(cloud, output)


def test_sweep_after_a_kill_finds_the_strays_and_nothing_else(cloud: Cloud, tmp_path: Path) -> None:
    event = small(tmp_path, cloud)
    go_on = event.folder / "go on"
    os.mkfifo(go_on)
    event.add("long", f"{TRAIN.format(journal=str(event.folder / 'journal'), seconds=0)}\nopen({str(go_on)!r}).read()")
    event.keys["n_workers"] = 4
    cloud.aws.arm({"kind": "call-refused", "action": "TerminateInstances", "code": "InternalError", "status": 500})
    first = start(event)
    wait_while_it_runs(first, lambda: states(event).count("scored") == 3)
    kill(first)
    cloud.aws.disarm()
    foreign = launch_for(cloud, owner="somebody else")
    with event.opened() as opened:
        (training,) = [attempt.handle["instance"] for attempt in opened.store.open_attempts() if attempt.handle]
    strays = set(cloud.left()) - {foreign, training}
    assert len(strays) == 3

    told = swept(event)

    assert told["dry_run"] is True
    assert {row["id"]: row["goes"] for row in told["found"]} == {**dict.fromkeys(strays, True), training: False}
    assert told["others"] == {"somebody else": 1}
    assert set(cloud.left()) == {*strays, training, foreign}

    done = swept(event, "--yes")

    assert done["dry_run"] is False
    assert {row["id"] for row in done["found"] if row["ended"]} == strays
    assert set(cloud.left()) == {training, foreign}
    go_on.write_text("on")
    output = ended(start(event))
    assert event.records()["long"].state is State.SCORED, output
    assert begun(event)["long"] == 1
    assert cloud.left() == [foreign]


def swept(event: AwsEventFolder, *words: str) -> Any:
    """Return what `./inv sweep --json` prints."""
    return json.loads(ended(invoke("sweep", "--json", *words, "--config", str(event.config))))


def struck(cloud: Cloud) -> bool:
    """Whether a fault has struck."""
    return any(fault["struck"] for fault in cloud.aws.state(processes=False)["faults"])


def launch_for(cloud: Cloud, *, owner: str) -> str:
    """Launch an instance for somebody with the same event in the same account, and return its id."""
    tags = [
        {"Key": key, "Value": value}
        for key, value in belonging_tags(event="toy_event", event_id="another", owner=owner).items()
    ]
    ec2 = AwsSession(region_name=cloud.keys["region_name"])
    (image,) = ec2.call("ec2", "describe_images", Owners=["self"])["Images"]
    started = ec2.call(
        "ec2",
        "run_instances",
        ImageId=image["ImageId"],
        InstanceType="t3.medium",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(started["Instances"][0]["InstanceId"])
