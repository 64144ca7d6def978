"""The tasks as a person or a script uses them: what they print, what their JSON holds, how they exit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from runner import checkup, fence
from runner.aws.tags import belonging_tags
from tests.event_folder import EventFolder, settle
from tests.integration.test_crash import start, wait_for
from tests.rehearsing import AwsEventFolder, Cloud

ROOT = Path(__file__).parents[2]


def invoke(*words: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run tasks as `./inv` does once .venv is made."""
    command = [sys.executable, "-m", "invoke", "--write-pyc", "--search-root", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, stdin=subprocess.DEVNULL)


def answer(*words: str) -> Any:
    """Run a task with --json and return the one object it prints."""
    done = invoke(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture
def ended(event_folder: Callable[..., EventFolder]) -> EventFolder:
    """An event with three scored submissions, one of them failed."""
    event = event_folder()
    event.add("middle", "SCORE = 0.5")
    event.add("best", "SCORE = 0.75")
    event.add("also best", "SCORE = 0.75")
    event.add("raises", "raise ValueError('no idea')")
    event.run()
    return event


def test_status_as_json(ended: EventFolder) -> None:
    found = answer("status", "--config", str(ended.config))

    assert (found["event"], found["state"]) == ("toy_event", "done")
    rows = {row["name"]: row for row in found["submissions"]}
    assert set(rows) == {"middle", "best", "also best", "raises"}
    keys = "name state cause attempts worker started ended seconds cpu_seconds peak_memory_mb message scores"
    assert all(list(row) == keys.split() for row in rows.values())
    best = rows["best"]
    assert (best["state"], best["cause"], best["attempts"], best["worker"]) == ("scored", "ok", 1, "local")
    assert best["started"].endswith("Z")
    assert best["started"] < best["ended"]
    assert best["scores"]["folds"][0] == {"fold": 0, "step": "train", "acc": 0.75, "time": 0.5}
    assert best["scores"]["mean"]["valid"]["acc"] == 0.75
    assert best["scores"]["bagged"] == {"valid": {"acc": 0.75}, "test": {"acc": 0.75}}
    assert rows["raises"]["state"] == "training_error"
    assert rows["raises"]["message"].endswith("ValueError: no idea")
    assert rows["raises"]["scores"] is None


def test_leaderboard_as_json_and_as_a_file(ended: EventFolder) -> None:
    found = answer("leaderboard", "--config", str(ended.config))

    assert (found["event"], found["official_score"], found["lower_is_better"]) == ("toy_event", "acc", False)
    assert [(row["rank"], row["name"], row["score"]) for row in found["rows"]] == [
        (1, "also best", 0.75),
        (1, "best", 0.75),
        (3, "middle", 0.5),
    ]
    shown = invoke("leaderboard", "--config", str(ended.config), "--step", "test").stdout
    assert "Ranked by acc, bagged test (higher is better)" in shown
    wrong = invoke("leaderboard", "--config", str(ended.config), "--step", "train")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.strip() == "--step cannot be 'train'; give valid or test"


def test_tables_for_people(ended: EventFolder) -> None:
    shown = invoke("status", "--config", str(ended.config)).stdout

    assert "Event toy_event: done" in shown
    line = next(line for line in shown.splitlines() if "raises" in line)
    assert "training_error" in line
    assert "ValueError: no idea" in line


def test_logs_of_one_submission(ended: EventFolder) -> None:
    assert "ValueError: no idea" in invoke("logs", "raises", "--config", str(ended.config)).stdout
    assert answer("logs", "raises", "--config", str(ended.config))["name"] == "raises"
    missing = invoke("logs", "nobody", "--config", str(ended.config))
    assert missing.returncode == 2
    assert missing.stderr.strip() == "the event has no submission 'nobody'; `./inv status` lists them"


def test_submit_rerun_cancel_while_nobody_runs_the_event(ended: EventFolder, tmp_path: Path) -> None:
    config = str(ended.config)
    folder = tmp_path / "my idea"
    folder.mkdir()
    (folder / "main.py").write_text("SCORE = 1.0")

    assert answer("submit", str(folder), "--config", config) == {
        "event": "toy_event",
        "name": "my idea",
        "state": "new",
        "time_limit": 60.0,
    }
    taken = invoke("submit", str(folder), "--config", config)
    assert (taken.returncode, taken.stderr.strip()) == (
        2,
        "there is a submission 'my idea' already; give another --name",
    )
    assert invoke("submit", str(folder), "--name", "../escape", "--config", config).returncode == 2
    assert answer("submit", str(folder / "main.py"), "--name", "one file", "--config", config)["state"] == "new"
    assert answer("cancel", "one file", "--config", config)["state"] == "cancelled"
    assert "has ended (cancelled)" in invoke("cancel", "one file", "--config", config).stderr
    assert answer("rerun", "middle", "--config", config)["state"] == "new"
    assert "has not ended (new)" in invoke("rerun", "middle", "--config", config).stderr
    assert answer("status", "--config", config)["state"] == "idle"

    ended.run()

    states = {
        row["name"]: (row["state"], row["attempts"]) for row in answer("status", "--config", config)["submissions"]
    }
    assert states["my idea"] == ("scored", 1)
    assert states["middle"] == ("scored", 2)
    assert states["one file"] == ("cancelled", 0)


def test_steering_a_running_event(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder(hunger_policy="sleep")
    config = str(event.config)
    begun = event.folder / "begun"
    event.add("long", f"import time\nprint('hello', flush=True)\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)")
    process = start(event)
    try:
        wait_for(begun.exists)
        assert answer("status", "--config", config)["state"] == "running"
        following = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "invoke",
                "--search-root",
                str(ROOT),
                "logs",
                "long",
                "--follow",
                "--config",
                config,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        assert "fence: false" in following.stdout.readline()
        assert "Training" in following.stdout.readline()
        assert following.stdout.readline() == "hello\n", "the log can be read while it is written"
        assert answer("cancel", "long", "--config", config)["state"] == "training"
        wait_for(lambda: event.records()["long"].state == "cancelled")
        following.communicate(timeout=60)
        assert following.returncode == 0, "following ends with the submission"

        late = event.submissions / "late"
        late.mkdir()
        (late / "main.py").write_text("SCORE = 0.5")
        settle(late)
        wait_for(lambda: "late" in event.records() and event.records()["late"].state == "scored")
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + 15, output
    assert "long: cancelled" in output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["status", "--config", "nowhere.yml"], 2, "nowhere.yml: no such file", id="no config"),
        pytest.param(["status", "--nonsense"], 1, "nonsense", id="unknown flag"),
        pytest.param(["frobnicate"], 1, "No idea what 'frobnicate' is!", id="unknown task"),
        pytest.param(
            ["submit", "nowhere"], 2, "is no folder or file; give the folder or file to submit", id="nothing to submit"
        ),
    ],
)
def test_wrong_use(words: list[str], code: int, said: str, tmp_path: Path, ended: EventFolder) -> None:
    given = words if "--config" in words or words[0] == "frobnicate" else [*words, "--config", str(ended.config)]
    done = invoke(*given, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


BROKEN = [
    pytest.param(
        lambda event: (event.kit / "problem.py").unlink(), "the kit has no problem.py: looked in", id="no problem.py"
    ),
    pytest.param(
        lambda event: (event.kit / "problem.py").write_text("import nonsense_package"),
        "No module named 'nonsense_package'",
        id="problem.py fails",
    ),
    pytest.param(
        lambda event: (event.kit / "problem.py").write_text("score_types = []"),
        "name at least one score",
        id="no scores",
    ),
    pytest.param(lambda event: (event.kit / "data").rmdir(), "there is no folder data/ in", id="no data"),
    pytest.param(
        lambda event: event.keys.update(python="nowhere/python"), "there is no Python interpreter at", id="no python"
    ),
    pytest.param(
        lambda event: (event.folder / "environment/bin/ramp-test").unlink(),
        "-m pip install ramp-workflow",
        id="no ramp-test",
    ),
    pytest.param(
        lambda event: event.keys.update(submissions_dir="elsewhere"),
        "submissions_dir is not there",
        id="no submissions",
    ),
    pytest.param(
        lambda event: event.keys.update(worker_type="no.such:Worker", python=None),
        "the module no.such cannot be imported",
        id="no such worker",
    ),
]


@pytest.mark.parametrize(("break_it", "said"), BROKEN)
def test_an_event_that_cannot_run_says_why_and_touches_no_submission(
    event_folder: Callable[..., EventFolder], break_it: Callable[[EventFolder], object], said: str
) -> None:
    event = event_folder()
    event.add("innocent", "raise ValueError('because the kit is broken')")
    break_it(event)
    if event.keys["python"] is None:
        del event.keys["python"]

    done = invoke("run-event", "--config", str(event.config))

    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "defect of ramp-cloud" not in done.stderr
    states = {name: record.state for name, record in event.records().items()} if event.submissions.exists() else {}
    assert set(states.values()) <= {"new"}, "nobody is blamed for a kit that cannot be read"


def test_two_dispatchers_share_an_event_without_training_anything_twice(
    event_folder: Callable[..., EventFolder],
) -> None:
    event = event_folder(n_workers=2)
    journal = event.folder / "journal"
    for number in range(10):
        event.add(f"s{number}", f"import os\nopen({str(journal)!r}, 'a').write(os.path.basename(FOLDER) + chr(10))")
    both = [start(event), start(event)]

    outputs = [process.communicate(timeout=120)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(journal.read_text().split()) == sorted(f"s{number}" for number in range(10))


def test_the_event_may_lie_anywhere_and_home_need_not_exist(
    event_folder: Callable[..., EventFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = event_folder()
    event.add("good")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.chdir(event.folder)

    done = invoke("run-event", "--config", os.path.relpath(event.config), cwd=event.folder)

    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert f"Leaderboard written to {event.folder}" in done.stdout.replace("\n", "")


# -- AWS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_ec2(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AwsEventFolder:
    """An event on an emulated AWS, which the tasks are led to."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    event = AwsEventFolder(tmp_path / "on EC2", cloud)
    event.add("starting_kit")
    return event


def test_doctor_of_an_event_on_this_machine(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder()
    event.add("good")

    found = answer("doctor", "--config", str(event.config))

    assert (found["event"], found["ok"]) == ("toy_event", True)
    assert [(check["name"], check["state"]) for check in found["checks"]] == [
        ("config", "ok"),
        ("database", "ok"),
        ("worker", "ok"),
        ("fence", "warning"),
    ]
    assert found["checks"][-1]["found"].startswith("submissions are not fenced in (fence: false)")
    shown = invoke("doctor", "--config", str(event.config))
    assert shown.returncode == 0
    assert "Nothing is wrong." in shown.stdout
    assert event.records() == {}, "nothing is enrolled by looking"


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is for Linux")
@pytest.mark.parametrize(
    ("allowed", "wanted", "state"), [(True, None, "ok"), (False, None, "warning"), (False, True, "wrong")]
)
def test_doctor_says_whether_the_fence_can_be_whole(
    event_folder: Callable[..., EventFolder],
    monkeypatch: pytest.MonkeyPatch,
    allowed: bool,
    wanted: bool | None,
    state: str,
) -> None:
    if allowed and fence.missing({"writable": [], "readable": []}):
        pytest.skip("this machine does not allow it")
    if not allowed:
        monkeypatch.setattr(fence, "_NEW", -1)  # what no kernel knows
    event = event_folder(fence=wanted)

    found = checkup.examine(event.config, deployment_dir=None, bring=lambda _: None)

    (check,) = [each for each in found["checks"] if each["name"] == "fence"]
    assert check["state"] == state
    assert found["ok"] is (state != "wrong")
    if not allowed:
        assert "no new namespaces" in check["found"]


def test_doctor_finds_what_is_wrong(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder()
    (event.kit / "data").rmdir()

    done = invoke("doctor", "--config", str(event.config), "--json")

    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found["ok"] is False
    [wrong] = [check for check in found["checks"] if check["state"] == "wrong"]
    assert (wrong["name"], "there is no folder data/ in" in wrong["found"]) == ("worker", True)
    shown = invoke("doctor", "--config", str(event.config))
    assert shown.returncode == 1
    assert "Mend what is wrong, then run doctor again." in shown.stdout
    assert "Traceback" not in shown.stderr


def test_doctor_of_a_config_that_cannot_be_read(event_folder: Callable[..., EventFolder]) -> None:
    event = event_folder(n_workers=0)

    done = invoke("doctor", "--config", str(event.config), "--json")

    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert (found["event"], found["ok"]) == (None, False)
    assert "n_workers: cannot be 0" in found["checks"][0]["found"]


def test_doctor_of_an_event_on_ec2(on_ec2: AwsEventFolder) -> None:
    found = answer("doctor", "--config", str(on_ec2.config))

    states = {check["name"]: check["state"] for check in found["checks"]}
    assert found["ok"] is True
    assert states.pop("security group") == "warning"  # the emulated one is open to all
    assert states.pop("kit folder") == "unknown"
    assert set(states.values()) == {"ok"}
    assert on_ec2.cloud.instances() == []


def test_doctor_launches_one_instance_and_ends_it(on_ec2: AwsEventFolder) -> None:
    found = answer("doctor", "--launch", "--config", str(on_ec2.config))

    [kit] = [check for check in found["checks"] if check["name"] == "kit folder"]
    assert kit["state"] == "ok", kit
    assert "~/ramp-kits/toy is on the image" in kit["found"]
    assert len(on_ec2.cloud.instances()) == 1
    assert on_ec2.cloud.left() == []
    on_ec2.keys["remote_ramp_kit_folder"] = "/nowhere"
    done = invoke("doctor", "--launch", "--json", "--config", str(on_ec2.config))
    [kit] = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "kit folder"]
    assert (done.returncode, kit["state"]) == (1, "wrong")
    assert "/nowhere" in kit["found"]
    assert on_ec2.cloud.left() == []


def test_wrong_use_of_doctor_and_sweep(ended: EventFolder, on_ec2: AwsEventFolder) -> None:
    local, aws = str(ended.config), str(on_ec2.config)
    wrong = invoke("doctor", "--config", aws, "--address", "here")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        2,
        "--address cannot be 'here'; give this machine's public address, such as 203.0.113.7",
    )
    not_aws = invoke("sweep", "--config", local)
    assert (not_aws.returncode, "the event runs with worker_type local" in not_aws.stderr) == (2, True)
    for hours in ("-1", "nan", "inf"):
        done = invoke("sweep", "--config", aws, f"--older-than={hours}")
        assert (done.returncode, "; give hours, such as 24" in done.stderr) == (2, True)


def test_sweep_says_first_and_ends_with_yes(on_ec2: AwsEventFolder) -> None:
    with on_ec2.opened() as event:
        uid = event.store.uid
    mine, other = _leave_behind(on_ec2, owner=uid), _leave_behind(on_ec2, owner="somebody")

    told = answer("sweep", "--config", str(on_ec2.config))

    assert (told["owner"], told["dry_run"], told["others"]) == (uid, True, {"somebody": 1})
    assert [(row["id"], row["goes"], row["ended"]) for row in told["found"]] == [(mine, True, False)]
    assert set(on_ec2.cloud.left()) == {mine, other}
    shown = invoke("sweep", "--config", str(on_ec2.config)).stdout
    assert mine in shown
    assert "Left alone are the instances of other owners: somebody (1)." in shown
    assert "Nothing was done. To end what goes: the same again with --yes." in shown

    done = answer("sweep", "--yes", "--config", str(on_ec2.config))

    assert [(row["id"], row["ended"]) for row in done["found"]] == [(mine, True)]
    assert on_ec2.cloud.left() == [other]
    assert answer("sweep", "--yes", "--owner", "somebody", "--all", "--config", str(on_ec2.config))["others"] == {}
    assert on_ec2.cloud.left() == []


def _leave_behind(event: AwsEventFolder, *, owner: str) -> str:
    """Launch an instance that nobody cares for."""
    ec2 = boto3.client("ec2")
    tags = belonging_tags(event="toy_event", event_id=owner, owner=owner)
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    specification = {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
    started = ec2.run_instances(
        ImageId=image,
        InstanceType="t3.medium",
        MinCount=1,
        MaxCount=1,
        KeyName=event.keys["key_name"],
        TagSpecifications=[specification],
    )
    return str(started["Instances"][0]["InstanceId"])


def test_a_secret_in_the_config_is_told_on_standard_error(on_ec2: AwsEventFolder) -> None:
    on_ec2.keys |= {"access_key_id": "AKIAREHEARSAL0000000", "secret_access_key": "rehearsal"}
    config = str(on_ec2.config)

    done = invoke("status", "--config", config, "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["event"] == "toy_event"
    assert done.stderr.startswith(f"warning: {config}:")
    assert "secret_access_key: a secret stands in this file" in done.stderr
    assert "`aws configure`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    checks = answer("doctor", "--config", config)["checks"]
    assert [check["state"] for check in checks if check["name"] == "config"] == ["ok", "warning"]
    assert invoke("logs", "nobody", "--config", config).stderr.startswith("the event has no submission")


def test_an_event_that_can_launch_nothing_says_so_once(on_ec2: AwsEventFolder) -> None:
    on_ec2.keys |= {"key_name": "nobody"}
    on_ec2.add("second")

    done = invoke("run-event", "--config", str(on_ec2.config))

    assert done.returncode == 1
    assert "InvalidKeyPair.NotFound" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Leaderboard written to" in done.stdout
    assert {name: record.state for name, record in on_ec2.records().items()} == {"starting_kit": "new", "second": "new"}
    assert on_ec2.cloud.instances() == []
