"""An event's whole life on an emulated AWS, done once, with the calls of each of its parts: for the tests of rights."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from image_builder import fetch_data
from image_builder.emulated import bring_up
from image_builder.release import Release
from infra.statements import Names
from runner import stack
from runner.aws.ec2 import Ec2
from runner.aws.session import AwsSession
from runner.aws.tags import as_list, belonging_tags
from runner.checkup import examine, sweep_event
from runner.errors import BuildFailed
from runner.event import open_event
from runner.rehearsal.client import Rehearsal
from runner.rehearsal.emulation import Emulation, emulated
from runner.rehearsal.faults import DiskFull, Fault, ImageBuildFails, Stage, SuddenDeath
from runner.rehearsal.image_machine import BUILD_KEY
from runner.retry import RetryPolicy
from tests.event_folder import PROBLEM, Heard, make_environment
from tests.image_builder.building import Notes
from tests.infra.calls import ACCOUNT, Reader, Seen
from tests.infra.evaluation import Ask

HUSH = "what nobody may tell"
ROOT = Path(__file__).parents[2]
EVENT, PREFIX = "iris_aws", "ramp-iris-aws-0a1b2c"
SECRET, PARAMETER, DATA = "ramp/iris/osf", "/ramp/iris/osf", "s3://the-data/iris"


@dataclass
class Record:
    """What AWS checked, by who asked: runner, images, up, build."""

    names: Names
    asks: dict[str, list[Ask]] = field(default_factory=dict)


class Recorder:
    """Notes the calls that are made in each part of an event's life."""

    def __init__(self, aws: Rehearsal, record: Record) -> None:
        names = record.names
        self._aws = aws
        self._record = record
        self._heard = 0
        self._reader = Reader({name: name for name in (names.worker_role, names.build_role)})

    @contextmanager
    def by(self, who: str) -> Iterator[None]:
        """Note the calls that are made meanwhile as somebody's; those of building instances are theirs."""
        self._take("nobody")
        yield
        self._take(who)

    def _take(self, who: str) -> None:
        calls = self._aws.state(processes=False)["calls"]
        new, self._heard = calls[self._heard :], len(calls)
        for call in new:
            seen = Seen.of(call)
            if who == "nobody":  # the test itself, who prepares
                continue
            theirs = self._record.asks.setdefault("build" if seen.caller == BUILD_KEY else who, [])
            theirs += [ask for ask in self._reader.asks(seen) if ask not in theirs]


def record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Live through an event, and return what AWS checked."""
    quick = {"ssh_seconds": 0.0, "status_seconds": 0.0}
    with emulated(_small_event(folder), folder=folder / "account", settings=quick, seed_image=False) as emulation:
        with open_event(emulation.config) as event:
            owner = event.store.uid
        region = emulation.aws.environment["AWS_REGION"]
        outputs = stack.read(folder / "account" / "stack.json")
        assert outputs
        assert outputs.bucket
        names = Names(
            partition="aws",
            region=region,
            account=ACCOUNT,
            event=EVENT,
            owner=owner,
            bucket=outputs.bucket,
            prefix=PREFIX,
            image="iris",
        )
        more = dataclasses.replace(
            outputs,
            instance_profile=names.worker_role,
            image_profile=names.build_role,
            launch_template=_furnish(emulation.aws, names),
            dask_security_group=_dask_group(names),
        )
        stack.write(folder / "account" / "stack.json", more)
        noted = Record(names=names)
        _live(emulation, Recorder(emulation.aws, noted), folder, monkeypatch)
        assert emulation.aws.state(processes=False)["defects"] == []
        told = json.dumps(emulation.aws.state(processes=False)["calls"])
        assert [text for text in (HUSH, "UserData", "PRIVATE KEY") if text in told] == [], "names only are told of"
        return noted


def _small_event(folder: Path) -> Path:
    """Make an event like the bundled one, whose image and trainings take no time, and return its config.yml."""
    programs = make_environment(folder / "stand-ins").parent
    with_dask = programs / "python3"
    with_dask.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    with_dask.chmod(0o755)
    kit = folder / "ramp-kits" / "iris"
    (kit / "data").mkdir(parents=True)
    (kit / "problem.py").write_text(PROBLEM)
    for place in (kit, folder / "events" / "iris"):
        submission = place / "submissions" / "starting_kit"
        submission.mkdir(parents=True)
        (submission / "main.py").write_text("SCORE = 0.5")
    home = 'home="$(getent passwd ubuntu | cut -d: -f6)/.ramp-cloud/environment"\n'
    link = f"""{home}mkdir -p "$home"\nln -s '{programs}' "$home/bin"\n"""
    scripts = {"system": "true", "environment": link, "runner": "true", "tests": "true"}
    own = []
    for name, script in scripts.items():
        own.append(folder / f"{name}.yaml")
        step = {"name": "all", "action": "ExecuteBash", "inputs": {"commands": [script]}}
        phase = {"name": "test" if name == "tests" else "build", "steps": [step]}
        own[-1].write_text(
            yaml.safe_dump({"name": name, "description": "of a test", "schemaVersion": 1.0, "phases": [phase]})
        )
    keys = yaml.safe_load((ROOT / "examples" / "iris" / "aws.yml").read_text())
    keys |= {"image": {"keep": 3, "environment": "pip", "documents": [str(path) for path in own]}}
    config = folder / "aws.yml"
    config.write_text(yaml.safe_dump(keys))
    return config


def _furnish(aws: Rehearsal, names: Names) -> str:
    """Make what a stack has and an emulated account has not, and data with their secrets; return a launch template."""
    for profile in (names.worker_role, names.build_role):
        aws.seed(instance_profile=profile)
    ec2 = boto3.client("ec2")
    groups = [each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]]
    pairs = [each["KeyPairId"] for each in ec2.describe_key_pairs()["KeyPairs"]]
    ec2.create_tags(Resources=groups + pairs, Tags=[{"Key": "ramp-cloud:owner", "Value": names.owner}])
    boto3.client("secretsmanager").create_secret(Name=SECRET, SecretString=HUSH)
    boto3.client("ssm").put_parameter(Name=PARAMETER, Value=HUSH, Type="SecureString")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="the-data", CreateBucketConfiguration={"LocationConstraint": names.region})
    s3.put_object(Bucket="the-data", Key="iris/train.csv", Body=b"1,2")
    tagged: Any = [{"ResourceType": "launch-template", "Tags": [{"Key": "ramp-cloud:owner", "Value": names.owner}]}]
    data: Any = {"InstanceInitiatedShutdownBehavior": "terminate"}
    made = ec2.create_launch_template(LaunchTemplateName="ours", LaunchTemplateData=data, TagSpecifications=tagged)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def _dask_group(names: Names) -> str:
    """Make the group in which the machines of a cluster reach one another, as a stack has it, and return its id."""
    ec2 = boto3.client("ec2")
    tagged: Any = [{"ResourceType": "security-group", "Tags": [{"Key": "ramp-cloud:owner", "Value": names.owner}]}]
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    made = ec2.create_security_group(GroupName="dask", Description="dask", VpcId=vpc, TagSpecifications=tagged)
    return str(made["GroupId"])


def _live(emulation: Emulation, recorder: Recorder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, aws = emulation.config, emulation.aws
    for who in ("nobody", "up"):  # a person makes the stack, CI brings it up to date
        with open_event(config) as event:
            release = Release(config=event.config, store=event.store)
            with recorder.by(who):
                release = bring_up(release)
            with recorder.by("images"):
                if who == "nobody":
                    release.bake(Notes())
                    aws.arm(ImageBuildFails(times=1))
                    with pytest.raises(BuildFailed):
                        release.follow(release.start(Notes()), Notes())
                _build(release)
        with (folder / "ramp-kits" / "iris" / "problem.py").open("a") as problem:
            problem.write("\n# the second edition\n")
    _run(config, aws, recorder)
    _run_on_a_cluster(config, recorder, python=folder / "stand-ins" / "bin" / "python")
    with open_event(config) as event, recorder.by("images"):
        release = Release(config=event.config, store=event.store)
        builder = release.builder
        builder.cancel(builder.start())
        assert release.listing().rows
        assert release.prune(1, really=True).done
    with recorder.by("build"):
        _fetch(folder, monkeypatch)


def _build(release: Release) -> None:
    heard = Notes()
    built = release.follow(release.start(heard), heard)
    assert release.accepted(built, heard.note)
    assert release.unchanged(heard.note)


def _run(config: Path, aws: Rehearsal, recorder: Recorder) -> None:
    """Run the event with spot instances and without, look with doctor, leave an instance and sweep it."""
    whole = json.loads(config.read_text())
    troubles: dict[bool, Fault] = {True: SuddenDeath(stage=Stage.BOOT, times=1), False: DiskFull(times=1)}
    for spot, trouble in troubles.items():
        aws.arm(trouble)
        config.write_text(json.dumps({**whole, "use_spot_instance": spot, "keep_failed_minutes": 30}))
        with open_event(config) as event, recorder.by("runner"):
            if not spot:
                event.store.rerun("starting_kit")
            event.dispatcher(Heard(), policy=RetryPolicy(backoff=timedelta(milliseconds=10))).run()
            (submission,) = event.status()["submissions"]
            assert submission["state"] == "scored", submission
    with recorder.by("runner"):
        examine(config, deployment_dir=None, bring=lambda _: None, launch=True)
        # As in an account without default subnets.
        assert Ec2(AwsSession()).security_group(whole["security_group"])
    with open_event(config) as event:
        with recorder.by("nobody"):
            uid = event.store.uid
            whose = as_list(belonging_tags(event=EVENT, event_id=uid, owner=uid))
            tagged: Any = [{"ResourceType": "instance", "Tags": whose}]
            boto3.client("ec2").run_instances(
                ImageId=boto3.client("ec2").describe_images(Owners=["self"])["Images"][0]["ImageId"],
                MinCount=1,
                MaxCount=1,
                InstanceType="t3.medium",
                TagSpecifications=tagged,
            )
        with recorder.by("runner"):
            swept = sweep_event(event, bring=lambda _: None, really=True)
            assert [row["ended"] for row in swept["found"] if row["goes"]] == [True], swept


def _run_on_a_cluster(config: Path, recorder: Recorder, *, python: Path) -> None:
    """Run the event once more, on a Dask cluster that is made for it."""
    whole = json.loads(config.read_text())
    of_cluster = ("ami_image_name", "ami_user_name", "key_name", "key_path", "security_group", "region_name")
    of_cluster += ("ssh_port", "stack_outputs", "instance_type", "use_spot_instance", "owner")
    cluster = {"provider": "ec2", "max": 1, **{name: whole[name] for name in of_cluster if name in whole}}
    of_event = ("problem_name", "event_name", "data_dir", "submissions_dir", "timeout", "database")
    of_event += ("remote_ramp_kit_folder", "hunger_policy")
    keys = {name: whole[name] for name in of_event if name in whole}
    on_dask = config.with_name("dask.yml")
    keys["fence"] = False  # the packages of an emulated machine are links to those of this one
    on_dask.write_text(json.dumps({**keys, "worker_type": "dask", "python": str(python), "cluster": cluster}))
    with open_event(on_dask) as event, recorder.by("runner"):
        event.store.rerun("starting_kit")
        event.dispatcher(Heard(), policy=RetryPolicy(backoff=timedelta(milliseconds=10))).run()
        (submission,) = event.status()["submissions"]
        assert submission["state"] == "scored", submission


def _fetch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch data as building instances do."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", BUILD_KEY)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for secret in (SECRET, f"ssm:{PARAMETER}"):
            fetch_data.read_secret(secret)
        fetch_data.download(DATA, folder / "data", {})
