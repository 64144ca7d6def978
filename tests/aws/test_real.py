"""What must hold on AWS itself. Every step also runs against the emulation, by the same code and by default.

`AWS_REAL=1 AWS_REAL_CONFIG=path/to/config.yml pytest -m aws tests/aws` runs it on a real account: the config is that of
an event which `./inv doctor` finds no fault with; its kit's starting kit is what is trained. Credentials are found as
boto3 finds them.

What it costs: 7 instances (doctor 1, an event 2, a kill 1, spot 1, a cancel 1, a stray 1), each for about 5 minutes at
the price of the config's instance_type: 7 x 5/60 h x USD 0.0416 (t3.medium, eu-west-1: 0.0456) = about USD 0.03, and
with disks and addresses less than USD 0.05. ``max_event_cost`` is set to USD 1.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.aws.event import filled, open_session
from runner.config import load_config
from tests.aws.loopback import loopback_only
from tests.event_folder import settle
from tests.rehearsing import AwsEventFolder, Cloud

ROOT = Path(__file__).parents[2]
# Read before any fixture hides the environment from the tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
IS_REAL = ENVIRONMENT.get("AWS_REAL") == "1"
OWNER = f"ramp-cloud-test-{uuid.uuid4().hex[:12]}"
BUDGET = 1.0  # USD
_GONE = {"shutting-down", "terminated"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """An account with all that an event needs: AWS itself or the emulation.

    Attributes:
        config: of an event that can run there.
        patience: seconds within which an instance boots and a starting kit is trained.
        training: seconds that a submission goes on which is to be caught in the middle.
    """

    config: Path
    folder: Path
    patience: float
    training: float
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def event(self, **keys: Any) -> "Event":
        """Return a new event, of an owner that nobody else is, with the kit and the machines of the config."""
        loaded = load_config(self.config)
        sections = (loaded.ramp, loaded.dispatcher, loaded.worker)
        known = {key: value for section in sections for key, value in section.model_dump(mode="json").items()}
        folder = self.folder / f"event {uuid.uuid4().hex[:6]}"
        submissions = folder / "submissions"
        submissions.mkdir(parents=True)
        known |= {
            "event_name": "ramp-cloud-test",
            "owner": OWNER,
            "hunger_policy": "exit",
            "n_workers": 2,
            "use_spot_instance": False,
            "instances_reused": 1,
            "keep_failed_minutes": 0,
            "max_event_cost": BUDGET,
            "submissions_dir": str(submissions),
            "predictions_dir": str(folder / "predictions"),
            "logs_dir": str(folder / "logs"),
            "timeout": self.patience,
            **keys,
        }
        config = folder / "config.yml"
        config.write_text(yaml.safe_dump({key: value for key, value in known.items() if value is not None}))
        starting_kit = loaded.ramp.kit_dir / "submissions" / loaded.ramp.sandbox_dir
        return Event(account=self, config=config, submissions=submissions, starting_kit=starting_kit)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of the suite and the tasks on it."""

    account: Account
    config: Path
    submissions: Path
    starting_kit: Path

    def add(self, name: str, *, seconds: float = 0) -> None:
        """Put a copy of the starting kit among the submissions, which trains for so many seconds longer."""
        folder = shutil.copytree(self.starting_kit, self.submissions / name)
        if seconds:
            code = sorted(folder.glob("*.py"))[0]
            code.write_text(f"{code.read_text()}\nimport time\ntime.sleep({seconds})\n")
        settle(folder)

    def start(self, task: str, *words: str) -> "subprocess.Popen[str]":
        """Start a task in a process of its own."""
        command = [
            sys.executable,
            "-m",
            "invoke",
            "--write-pyc",
            "--search-root",
            str(ROOT),
            task,
            "--config",
            str(self.config),
        ]
        process = subprocess.Popen(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.account.started.append(process)
        return process

    def do(self, task: str, *words: str) -> str:
        """Run a task to its end and return what it printed."""
        return self.ended(self.start(task, *words))

    def ended(self, process: "subprocess.Popen[str]") -> str:
        """Wait for a task's end and return what it printed."""
        out, err = process.communicate(timeout=3 * self.account.patience)
        assert process.returncode == 0, out + err
        return out

    def look(self, task: str, *words: str) -> Any:
        """Return the object that a task prints with --json."""
        return json.loads(self.do(task, "--json", *words))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the submissions as ``status`` tells them."""
        return {row["name"]: row for row in self.look("status")["submissions"]}

    def wait_until(self, is_so: Callable[[], Any], what: str) -> None:
        """Wait until something is so that AWS and a booting machine need their time for."""
        end = time.monotonic() + self.account.patience
        while not is_so():
            assert time.monotonic() < end, what
            time.sleep(0.2)

    def wait_for_training(self, name: str) -> None:
        """Wait until a submission trains."""
        states = ("training", "tested", "scored", "training_error")
        self.wait_until(lambda: self.rows().get(name, {}).get("state") in states, f"{name} does not train")
        assert self.rows()[name]["state"] == "training", "it must be caught in the middle; let it sleep for longer"

    def instances(self) -> list[dict[str, Any]]:
        """Return what AWS itself says of the owner's instances, the ended ones too."""
        mine = [{"Name": "tag:ramp-cloud:owner", "Values": [OWNER]}]
        pages = self._ec2().get_paginator("describe_instances").paginate(Filters=mine)
        return [each for page in pages for group in page["Reservations"] for each in group["Instances"]]

    def running(self) -> list[str]:
        """Return the ids of the owner's instances that are not ended."""
        return [each["InstanceId"] for each in self.instances() if each["State"]["Name"] not in _GONE]

    def templates(self) -> list[str]:
        """Return the owner's launch templates."""
        mine = [{"Name": "tag:ramp-cloud:owner", "Values": [OWNER]}]
        pages = self._ec2().get_paginator("describe_launch_templates").paginate(Filters=mine)
        return [each["LaunchTemplateName"] for page in pages for each in page["LaunchTemplates"]]

    def _ec2(self) -> Any:
        return open_session(filled(load_config(self.config).worker_config())).client("ec2")


@pytest.fixture(
    params=[
        "emulated",
        pytest.param(
            "real",
            marks=[
                pytest.mark.aws,
                pytest.mark.skipif(not IS_REAL, reason="real AWS not asked for: AWS_REAL=1"),
            ],
        ),
    ]
)
def account(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Yield an account, and see to it that nothing of ours is left there, whatever a test did."""
    if request.param == "real":
        found, environment = _real_account(tmp_path), ENVIRONMENT
    else:
        cloud: Cloud = request.getfixturevalue("cloud")
        found, environment = _emulated_account(tmp_path, cloud), cloud.aws.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if request.param == "real" else loopback_only():
        yield found
        for process in found.started:  # of a test that failed half-way; it would launch again
            if process.poll() is None:
                process.kill()
            process.communicate()
        last = found.event()
        left, templates = last.running(), last.templates()
        last.do("sweep", "--yes", "--all")  # before anything can fail: what is left costs money
        assert (left, templates) == ([], [])


def _real_account(folder: Path) -> Account:
    if not ENVIRONMENT.get("AWS_REAL_CONFIG"):
        pytest.fail("AWS_REAL=1 needs AWS_REAL_CONFIG too: the config.yml of an event that can run on your account")
    return Account(config=Path(ENVIRONMENT["AWS_REAL_CONFIG"]).resolve(), folder=folder, patience=900, training=90)


def _emulated_account(folder: Path, cloud: Cloud) -> Account:
    users = AwsEventFolder(folder / "the user's", cloud)
    starting_kit = users.kit / "submissions" / "starting_kit"
    starting_kit.mkdir(parents=True)
    (starting_kit / "main.py").write_text("SCORE = 0.5\n")
    return Account(config=users.config, folder=folder, patience=60, training=10)


def test_doctor_finds_nothing_wrong_and_tries_a_machine(account: Account) -> None:
    event = account.event()

    found = event.look("doctor", "--launch")

    assert found["ok"] is True
    assert {check["state"] for check in found["checks"]} <= {"ok", "warning", "unknown"}
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert [states[name] for name in ("credentials", "image", "key pair", "kit folder")] == ["ok"] * 4, found
    assert len(event.instances()) >= 1


def test_an_event_of_two_submissions(account: Account) -> None:
    event = account.event()
    before = len(event.instances())
    event.add("one")
    event.add("two")

    event.do("run-event")

    rows = event.rows()
    assert {name: (row["state"], row["attempts"]) for name, row in rows.items()} == {
        "one": ("scored", 1),
        "two": ("scored", 1),
    }
    board = event.look("leaderboard")
    assert {row["name"] for row in board["rows"]} == {"one", "two"}
    assert all(row["score"] is not None for row in board["rows"])
    assert event.look("logs", "one")["log"]
    assert len(event.instances()) - before == 2


def test_after_a_kill_the_next_start_collects_what_goes_on(account: Account) -> None:
    event = account.event()
    before = len(event.instances())
    event.add("long", seconds=account.training)
    first = event.start("run-event")
    event.wait_for_training("long")

    first.send_signal(signal.SIGKILL)
    first.communicate()

    (instance,) = event.running()
    event.do("run-event")

    row = event.rows()["long"]
    assert (row["state"], row["attempts"]) == ("scored", 1)
    assert len(event.instances()) - before == 1, "nothing was launched, so nothing trained, a second time"
    assert instance not in event.running()


def test_a_spot_instance(account: Account) -> None:
    event = account.event(use_spot_instance=True, on_demand_fallback=False)
    before = {each["InstanceId"] for each in event.instances()}
    event.add("cheap")

    event.do("run-event")

    assert event.rows()["cheap"]["state"] == "scored"
    (used,) = [each for each in event.instances() if each["InstanceId"] not in before]
    assert used["InstanceLifecycle"] == "spot"


def test_cancel_ends_the_instance(account: Account) -> None:
    event = account.event()
    event.add("unwanted", seconds=10 * account.training)
    running = event.start("run-event")
    event.wait_for_training("unwanted")
    assert len(event.running()) == 1

    event.do("cancel", "unwanted")

    event.ended(running)
    assert event.rows()["unwanted"]["state"] == "cancelled"
    assert event.running() == []


def test_sweep_finds_and_ends_a_stray(account: Account) -> None:
    event = account.event()
    event.add("forgotten", seconds=10 * account.training)
    assert event.rows() == {}
    databases = list(event.config.parent.glob("*.db*"))
    saved = {path: path.read_bytes() for path in databases}
    first = event.start("run-event")
    event.wait_for_training("forgotten")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    for path in event.config.parent.glob("*.db*"):  # a backup from before the launch is put back
        path.unlink()
    for path, content in saved.items():
        path.write_bytes(content)
    (stray,) = event.running()

    told = event.look("sweep")

    assert [(row["id"], row["goes"], row["ended"]) for row in told["found"]] == [(stray, True, False)]
    assert told["dry_run"] is True
    assert event.running() == [stray]

    done = event.look("sweep", "--yes")

    assert [(row["id"], row["ended"]) for row in done["found"]] == [(stray, True)]
    assert event.running() == []
