"""`./inv preview`, `up` and `down`: the real engine where there is one, and trouble as Pulumi tells it everywhere."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pulumi.automation import EngineEvent

from infra.automation import EventStack, stack_name
from infra.changes import Listener
from infra.engine import StackFailed, StackStopped
from runner.aws.tags import belonging_tags
from runner.errors import ConfigError, RampCloudError, UsageError
from runner.stack import StackOutputs, read
from runner.transport.ssh import new_host_key
from tests.infra.engine import MISSING, Engine, pulumi, write_python
from tests.integration.test_tasks import invoke
from tests.rehearsing import AwsEventFolder, Cloud

ROOT = Path(__file__).parents[2]
VERSION = 'if [ "$1" = version ]; then echo v3.272.0; exit; fi\n'
# Two buckets, whose settings the test holds; what is protected is what an event's stack would protect.
PROGRAM = """
import json, time
from pathlib import Path
import pulumi, pulumi_aws as aws
knobs = json.loads(Path(__file__).with_name("knobs.json").read_text())
time.sleep(knobs.get("sleep", 0))
assert Path(__file__).parent.joinpath(pulumi.Config("ramp-cloud").require("event")).is_file()
opts = pulumi.ResourceOptions(provider=aws.Provider("aws", region=knobs["region"]))
kept = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(protect=True))
data = aws.s3.Bucket("data", bucket=knobs["data"], opts=kept)
aws.s3.Bucket("scratch", bucket=knobs["scratch"], opts=opts)
pulumi.export("region", knobs["region"])
pulumi.export("bucket", data.bucket)
pulumi.export("subnets", {"subnet-1": "eu-west-1a"})
pulumi.export("owner", "us")
pulumi.export("for people", "hello")
"""


class Said(list[str]):
    """The lines that a person saw."""

    def __contains__(self, part: object) -> bool:
        return any(str(part) in line for line in self)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An event with all that the program wants to know."""
    public = tmp_path / "key.pub"
    public.write_text(new_host_key().public)
    return write_config(tmp_path, infra={"runner_cidr": ["203.0.113.7/32"], "public_key": str(public)})


def write_config(folder: Path, **keys: Any) -> Path:
    path = folder / "config.yml"
    usual = {
        "problem_name": "toy",
        "event_name": "toy_event",
        "worker_type": "aws",
        "ami_image_name": "toy",
        "region_name": "eu-west-1",
        "remote_ramp_kit_folder": "~/ramp-kits/toy",
    }
    path.write_text(yaml.safe_dump({**usual, **keys}))
    return path


def stand_in(folder: Path, script: str) -> str:
    """Write a program that is called pulumi and return the PATH on which it is the only one."""
    program = folder / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return os.pathsep.join([str(program.parent), "/usr/bin", "/bin"])


# -- trouble, as Pulumi tells it --------------------------------------------------------------------------------------


def test_without_the_program_the_way_to_get_it_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(config.parent / "nothing"))

    with pytest.raises(StackFailed, match=r"not on PATH; get it from https://www\.pulumi\.com/docs/install/"):
        EventStack(config, say=Said().append).preview()


def test_a_program_of_unknown_version_is_not_used(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in(config.parent, "echo\n"))

    with pytest.raises(StackFailed, match="install a newer one"):
        EventStack(config, say=Said().append).preview()


def test_a_program_that_cannot_start_is_like_none(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in(config.parent, "exit 3\n"))

    with pytest.raises(StackFailed, match="get it from"):
        EventStack(config, say=Said().append).up()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("error: passphrase must be set with PULUMI_CONFIG_PASSPHRASE or", "set PULUMI_CONFIG_PASSPHRASE or"),
        ("error: incorrect passphrase", "not the stack's passphrase"),
        ("error: PULUMI_ACCESS_TOKEN must be set for login during non-interactive", "`pulumi login s3://BUCKET`"),
        ("error: the stack is currently locked by 1 lock(s)", "`pulumi cancel --stack toy_event`"),
        ("error: [409] Conflict: Another update is currently in progress.", "wait for its end"),
        ("error: the current deployment has 1 resource(s) with pending operations", "./inv up"),
        ("error: no resource plugin 'pulumi-resource-aws-v7.51.1' found", "plugin install resource aws"),
        ("error: No valid credential sources found", "log in (`aws sso login`"),
        ("error: something that nobody has seen", "mend what it says and repeat"),
    ],
)
def test_trouble_is_told_with_what_to_do(
    config: Path, monkeypatch: pytest.MonkeyPatch, words: str, advice: str
) -> None:
    monkeypatch.setenv("PATH", stand_in(config.parent, f'{VERSION}echo "{words}" >&2; exit 255\n'))

    with pytest.raises(StackFailed) as caught:
        EventStack(config, say=Said().append).up()

    assert advice in caught.value.message
    assert caught.value.exit_code == 1


def test_what_nobody_has_seen_is_shown_shortened(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'for i in $(seq 100); do echo "error: trouble $i" >&2; done; exit 1\n'
    monkeypatch.setenv("PATH", stand_in(config.parent, VERSION + script))

    with pytest.raises(StackFailed) as caught:
        EventStack(config, say=Said().append).preview()

    shown = caught.value.detail.splitlines()
    assert shown[0] == "error: trouble 1"
    assert shown[-1] == "... 80 lines more"


def test_nothing_to_take_down(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "echo \"error: no stack named 'toy_event' found\" >&2; exit 1\n"
    monkeypatch.setenv("PATH", stand_in(config.parent, VERSION + script))

    with pytest.raises(UsageError, match="there is no stack 'toy_event', so there is nothing to take down"):
        EventStack(config, say=Said().append).preview_down()


def test_problems_of_the_config_are_told_before_pulumi_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    stack = EventStack(write_config(tmp_path), say=Said().append)

    with pytest.raises(ConfigError, match="infra"):
        stack.up()


def test_ctrl_c_reaches_pulumi_once_and_it_ends_in_good_order(config: Path) -> None:
    # What the engine does: at the first signal it ends what is under way, and fails.
    script = (
        'case "$*" in *preview*) ;; *) exit 0;; esac\n'
        "trap 'echo interrupted >> heard; sleep 0.3; exit 1' INT\n"
        "echo started >> heard; while :; do sleep 0.05; done\n"
    )
    code = (
        "import sys; from pathlib import Path; from infra.automation import EventStack\n"
        "from infra.engine import StackStopped\n"
        "stack = EventStack(Path(sys.argv[1]), say=print, project=Path(sys.argv[1]).parent)\n"
        "try: stack.preview()\n"
        "except StackStopped as error: print(error.message); sys.exit(error.exit_code)\n"
    )
    environment = {**os.environ, "PATH": stand_in(config.parent, VERSION + script), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config)], env=environment, stdout=subprocess.PIPE, text=True
    )
    heard = config.parent / "heard"
    until(lambda: heard.exists(), process)

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)

    assert heard.read_text().split() == ["started", "interrupted"]
    assert said.startswith("Stopping after what is under way now")
    assert "the same command goes on from there" in said
    assert "`pulumi cancel --stack toy_event`" in said
    assert process.returncode == 130


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < end
        time.sleep(0.02)


# -- words ------------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_stack_can_be_named_after_any_event(event: str, other: str) -> None:
    names = {stack_name(event), stack_name(other)}

    assert len(names) == len({event, other})
    assert all(0 < len(name) <= 100 and set(name) <= ALLOWED for name in names)


ALLOWED = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def test_a_stack_has_the_name_of_its_event() -> None:
    assert stack_name("iris_2027.spring") == "iris_2027.spring"


def step(op: str, kind: str, name: str, **values: Any) -> dict[str, Any]:
    state = {"type": kind, "urn": name, "custom": True, "inputs": {}, "outputs": {}, "id": "", "parent": ""}
    state |= {"provider": "", **values.pop("state", {})}
    sides = {"old": state if op != "create" else None, "new": state if op != "delete" else None}
    urn = f"urn:pulumi:toy::ramp-cloud::{kind}::{name}"
    return {"metadata": {"op": op, "urn": urn, "type": kind, "provider": "", **sides, **values}}


def heard(*events: dict[str, Any]) -> tuple[Listener, Said]:
    said = Said()
    listener = Listener(said.append)
    for event in (*events, {"cancelEvent": {}}):
        listener(EngineEvent.from_json({"sequence": 1, "timestamp": 1, **event}))
    return listener, said


def test_a_plan_in_words() -> None:
    listener, said = heard(
        {"resourcePreEvent": step("create", "pulumi:pulumi:Stack", "ramp-cloud-toy")},
        {"resourcePreEvent": step("create", "ramp-cloud:infra:Network", "network", state={"custom": False})},
        {"resourcePreEvent": step("create", "aws:ec2/securityGroup:SecurityGroup", "workers")},
        {"resourcePreEvent": step("same", "aws:s3/bucket:Bucket", "data")},
        {"resourcePreEvent": step("update", "aws:ec2/launchTemplate:LaunchTemplate", "login", diffs=["tags", "name"])},
        {"resourcePreEvent": step("create-replacement", "aws:ec2/keyPair:KeyPair", "login")},
        {"resourcePreEvent": step("replace", "aws:ec2/keyPair:KeyPair", "login", keys=["publicKey"], diffs=["a"])},
        {"resourcePreEvent": step("delete-replaced", "aws:ec2/keyPair:KeyPair", "login")},
        {"resourcePreEvent": step("delete", "aws:iam/role:Role", "ci")},
        {
            "resourcePreEvent": step(
                "delete", "aws:imagebuilder/imageRecipe:ImageRecipe", "recipe", state={"retainOnDelete": True}
            )
        },
        {
            "resourcePreEvent": step(
                "delete", "aws:imagebuilder/component:Component", "kit-1", state={"inputs": {"skipDestroy": True}}
            )
        },
    )

    assert listener.plan().in_words() == [
        "create   ec2 SecurityGroup  workers",
        "update   ec2 LaunchTemplate  login  (name, tags)",
        "replace  ec2 KeyPair  login  (publicKey)",
        "delete   iam Role  ci",
        "leave    imagebuilder ImageRecipe  recipe",
        "leave    imagebuilder Component  kit-1",
        "1 to create, 1 to update, 1 to replace, 1 to delete, 2 to leave.",
    ]
    assert said == []


def test_no_change_in_words() -> None:
    listener, _ = heard({"resourcePreEvent": step("same", "aws:s3/bucket:Bucket", "data")})

    assert listener.plan().in_words() == ["Nothing changes."]


def test_what_happens_is_told_as_it_happens() -> None:
    failed = step("create", "aws:iam/role:Role", "ci")
    message = {"prefix": "", "color": "never", "streamID": 0}
    listener, said = heard(
        {"resOutputsEvent": step("create", "aws:ec2/keyPair:KeyPair", "login")},
        {"resOutputsEvent": step("same", "aws:s3/bucket:Bucket", "data")},
        {"resOutputsEvent": step("delete-replaced", "aws:ec2/keyPair:KeyPair", "login")},
        {
            "resOutputsEvent": step(
                "delete", "aws:imagebuilder/component:Component", "kit-1", state={"inputs": {"skipDestroy": True}}
            )
        },
        {"resOpFailedEvent": {**failed, "status": 1, "steps": 1}},
        {"diagnosticEvent": {**message, "severity": "warning", "message": "<{%fg 3%}>old<{%reset%}>\n"}},
        {"diagnosticEvent": {**message, "severity": "error", "message": "<{%reset%}>AccessDenied<{%reset%}>\n"}},
    )

    assert said == [
        "created          ec2 KeyPair  login",
        "old one deleted  ec2 KeyPair  login",
        "left in AWS      imagebuilder Component  kit-1",
        "FAILED           iam Role  ci",
        "warning: old",
    ]
    assert listener.errors == ["AccessDenied"]


# -- the tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["preview", "up", "down"])
def test_the_tasks_end_with_a_message_and_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    config.write_text(config.read_text().replace("worker_type: aws", "worker_type: nothing"))

    done = invoke(task, "--config", str(config))

    assert (done.returncode, done.stdout) == (2, "")
    assert "config.yml" in done.stderr
    assert "Traceback" not in done.stderr


def test_down_refuses_while_an_instance_of_the_event_runs(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    event = AwsEventFolder(tmp_path / "an event", cloud, owner="us")
    running, _ = launch(event, "toy_event"), launch(event, "another event")

    done = invoke("down", "--yes", "--config", str(event.config))

    assert done.returncode == 2
    assert done.stderr.startswith(f"{running} of this event run; let them end")
    assert len(cloud.left()) == 2


def launch(event: AwsEventFolder, name: str) -> str:
    ec2 = boto3.client("ec2")
    tags = belonging_tags(event=name, event_id=name, owner="us")
    started = ec2.run_instances(
        ImageId=ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"],
        InstanceType="t3.medium",
        MinCount=1,
        MaxCount=1,
        KeyName=event.keys["key_name"],
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
        ],
    )
    return str(started["Instances"][0]["InstanceId"])


# -- the real engine --------------------------------------------------------------------------------------------------


class Small:
    """A small project with an event, on an emulated AWS."""

    def __init__(self, folder: Path, cloud: Cloud, config: Path) -> None:
        self.folder = folder
        (folder / "__main__.py").write_text(PROGRAM)
        options = "{name: python, options: {toolchain: pip, virtualenv: .venv}}"
        (folder / "Pulumi.yaml").write_text(f"name: ramp-cloud\nruntime: {options}\n")
        write_python(folder / ".venv" / "bin")
        self.config = folder / "config.yml"
        keys = yaml.safe_load(config.read_text())
        self.config.write_text(yaml.safe_dump({**keys, "region_name": cloud.aws.environment["AWS_REGION"]}))
        self.set(region=cloud.aws.environment["AWS_REGION"], data="toy-data", scratch="toy-scratch")
        self.said = Said()
        self.stack = EventStack(self.config, say=self.said.append, project=folder)

    def set(self, **knobs: Any) -> None:
        """Change what the program makes."""
        path = self.folder / "knobs.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **knobs}))

    def buckets(self) -> list[str]:
        """Return what there is in AWS."""
        return sorted(str(bucket["Name"]) for bucket in boto3.client("s3").list_buckets()["Buckets"])


@pytest.fixture
def small(
    cloud: Cloud, engine: Callable[..., Engine], tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> Small:
    """A small project, and in the environment all that leads to the engine and the emulated AWS."""
    folder = tmp_path / "small"
    folder.mkdir()
    project = Small(folder, cloud, config)
    for name, value in engine(folder).environment.items():
        monkeypatch.setenv(name, value)
    return project


def test_up_changes_and_down(small: Small) -> None:
    before = small.buckets()

    planned = small.stack.preview().in_words()
    assert sorted(planned[:-1]) == ["create   s3 Bucket  data", "create   s3 Bucket  scratch"]
    assert planned[-1] == "2 to create."
    assert small.buckets() == before

    outputs = small.stack.up()
    assert small.buckets() == sorted([*before, "toy-data", "toy-scratch"])
    region = json.loads((small.folder / "knobs.json").read_text())["region"]
    assert read(outputs) == StackOutputs(
        region=region, bucket="toy-data", subnets={"subnet-1": "eu-west-1a"}, owner="us"
    )
    assert small.stack.owner() == "us"
    assert outputs == small.folder / "events" / "toy_event" / "stack.json"
    assert "created          s3 Bucket  scratch" in small.said
    assert "ramp-cloud:event: config.yml" in (small.folder / "Pulumi.toy_event.yaml").read_text()

    small.set(scratch="toy-other")
    assert "replace  s3 Bucket  scratch  (bucket)" in small.stack.preview().in_words()

    assert small.stack.preview_down().in_words() == ["delete   s3 Bucket  scratch", "1 to delete."]
    assert small.stack.down() == ["data"]
    assert small.buckets() == sorted([*before, "toy-data"])
    assert not outputs.exists()


def test_what_aws_refuses_is_told_in_few_words(small: Small) -> None:
    small.set(scratch="toy-data")

    with pytest.raises(StackFailed) as caught:
        small.stack.up()

    assert "mend what it says and repeat" in caught.value.message
    assert "BucketAlready" in caught.value.detail
    assert "Traceback" not in caught.value.detail
    assert not (small.folder / "events").exists()


def test_a_program_that_fails_is_told_without_its_traceback(small: Small) -> None:
    small.config.rename(small.config.with_name("elsewhere.yml"))
    stack = EventStack(small.folder / "elsewhere.yml", say=small.said.append, project=small.folder)
    small.set(data={"no": "name"})

    with pytest.raises(RampCloudError) as caught:
        stack.preview()

    assert caught.value.detail
    assert "Traceback" not in caught.value.detail
    assert 'File "' not in caught.value.detail


@pytest.mark.skipif(pulumi() is None, reason=MISSING)
def test_a_run_that_was_stopped_leaves_no_lock(small: Small) -> None:
    small.set(sleep=600)
    code = (
        "import sys; from pathlib import Path; from infra.automation import EventStack\n"
        "from infra.engine import StackStopped\n"
        "stack = EventStack(Path(sys.argv[1]), say=lambda _: None, project=Path(sys.argv[1]).parent)\n"
        "try: stack.up()\n"
        "except StackStopped as error: sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(small.config)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    state = Path(os.environ["PULUMI_BACKEND_URL"].removeprefix("file://"))
    until(lambda: any("locks" in path.parts and path.is_file() for path in state.rglob("toy_event/*")), process)

    process.send_signal(signal.SIGINT)

    assert process.wait(timeout=120) == StackStopped.exit_code
    small.set(sleep=0)
    assert small.stack.preview().in_words()[-1] == "2 to create."
