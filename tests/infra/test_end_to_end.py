"""An event's whole life: from an empty account to one that is empty again, by the tasks and Pulumi's real engine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from runner.rehearsal.bases import published
from runner.rehearsal.client import Rehearsal
from runner.transport.ssh import new_host_key
from tests.image_builder.test_end_to_end import Organiser
from tests.infra.engine import MISSING, Engine, EngineFailed, clone_project, pulumi
from tests.infra.everything import KINDS, everything
from tests.integration.test_tasks import invoke as invoke_here

ROOT = Path(__file__).parents[2]
SECRET, PASSWORD, STRANGER = "ramp/iris/data", "Tr0ub4dor&3 und mehr", "AKIASTRANGER00000000/its secret key"
# What the kit fetches needs a password, and leaves a proof that it was the right one.
DOWNLOAD = """
import hashlib, os
from pathlib import Path
Path("data", "proof").write_text(hashlib.sha256(os.environ["OSF_PASSWORD"].encode()).hexdigest())
"""
# What every account has that nobody has used yet; the emulation counts snapshots of published images as everybody's.
FURNITURE = {"network", "subnet", "security group", "rule of a group", "snapshot"}


class Event(Organiser):
    """The bundled event in an account of its own, worked on from a clone.

    Args:
        folder: an empty folder.
        aws: the account.
    """

    def __init__(self, folder: Path, aws: Rehearsal) -> None:
        (folder / "event").mkdir()
        super().__init__(folder / "event", "starting_kit")
        shutil.copy(ROOT / "examples" / "iris" / "config.yml", self.folder / "config.yml")
        (self.folder / "ramp-kits" / "iris" / "download_data.py").write_text(DOWNLOAD)
        self.aws = aws
        self.login = new_host_key()  # any key pair would do
        key = self.folder / "login"
        key.touch(mode=0o600)
        key.write_text(self.login.private)
        key.with_suffix(".pub").write_text(self.login.public)
        self.config = self.folder / "aws.yml"
        keys = yaml.safe_load(self.config.read_text())
        for name in ("key_name", "security_group"):  # the stack has them
            del keys[name]
        keys |= {
            "region_name": aws.environment["AWS_REGION"],
            "key_path": "login",
            "ssh_port": aws.ssh_port,
            "remote_ramp_kit_folder": "~/ramp-kits/iris",
            "image": {"keep": 3, "data": "osf", "data_secret": SECRET},
            "infra": {
                "runner_cidr": ["127.0.0.1/32"],
                "make_secret": True,
                "force": True,
                "budget_usd": 5,
                "budget_mail": "organiser@example.org",
                "github": "organiser/iris",
                "guards": ["imdsv2", "private-images", "allowed-images-audit"],
                "dask": True,
            },
        }
        self.config.write_text(yaml.safe_dump(keys))
        self.outputs = self.folder / "events" / "iris_aws" / "stack.json"
        self.clone = clone_project(folder / "clone")
        credentials = {"HOME": str(folder), "GITHUB_TOKEN": STRANGER, "AWS_SESSION_TOKEN": STRANGER}
        self.stack = Engine(folder / "pulumi", aws.environment, self.clone, stack="iris_aws", variables=credentials)
        self.stack.furnish()
        self.said = ""

    def with_cluster(self) -> Path:
        """Write a config.yml by which the same event runs on a Dask cluster of the stack, and return it."""
        keys = yaml.safe_load(self.config.read_text())
        cluster = {"provider": "ec2", "max": 1, "instance_type": "t3.medium"}
        cluster |= {name: keys[name] for name in ("ami_image_name", "key_path", "ssh_port")}
        kept = ("problem_name", "event_name", "data_dir", "submissions_dir", "timeout", "remote_ramp_kit_folder")
        keys = {name: keys[name] for name in kept}
        config = self.folder / "dask.yml"
        keys["fence"] = False  # the packages of an emulated machine are links to those of this one
        config.write_text(yaml.safe_dump({**keys, "worker_type": "dask", "hunger_policy": "exit", "cluster": cluster}))
        return config

    def tries(self, *words: str, config: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a task in the clone."""
        command = [sys.executable, "-P", "-m", "invoke", "--write-pyc", "--search-root", str(self.clone), *words]
        done = subprocess.run(
            [*command, "--config", str(config or self.config)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.clone,
            env=self.stack.environment,
            stdin=subprocess.DEVNULL,
        )
        self.said += done.stdout + done.stderr
        return done

    def does(self, *words: str, config: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a task in the clone; it ends well."""
        done = self.tries(*words, config=config)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def answer(self, *words: str) -> Any:
        """Return the one object that a task prints."""
        return json.loads(self.does(*words, "--json").stdout)

    def in_clear(self) -> list[str]:
        """Return where a secret stands: files of the backend and the stack, what was said, the state."""
        own = [line for line in self.login.private.splitlines() if "KEY" not in line]
        assert own
        secret = [PASSWORD, json.dumps(PASSWORD)[1:-1], STRANGER, "AKIASTRANGER", own[0]]
        files = [path for folder in (self.stack.state, self.clone) for path in folder.rglob("*") if path.is_file()]
        assert "iris_aws.json" in {path.name for path in files}
        texts = {str(path): path.read_bytes() for path in [*files, self.outputs]}
        texts |= {"said": self.said.encode(), "export": json.dumps(self.stack.export()).encode()}
        texts["outputs"] = json.dumps(self.stack.stack_outputs()).encode()
        return [place for place, text in texts.items() if any(each.encode() in text for each in secret)]


@pytest.fixture
def event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Return an event whose account has nothing but what others publish."""
    if pulumi() is None:
        pytest.skip(MISSING)
    programs = {"image": {"path": [str(Path(sys.executable).parent)]}}
    with Rehearsal(tmp_path / "aws", {"region": "eu-west-1", "ssh_seconds": 0.2, **programs}) as aws:
        aws.seed(images=published(tmp_path / "published"))
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        yield Event(tmp_path, aws)
        assert aws.state(processes=False)["defects"] == [], "the emulation itself failed"


def scores(status: Any) -> Any:
    """Return the scores of the event's one submission, without how long it took."""
    (submission,) = status["submissions"]
    assert (submission["state"], submission["cause"]) == ("scored", "ok"), submission
    found = submission["scores"]
    for row in [*found["folds"], *found["mean"].values()]:
        row.pop("time", None)
    return found


def assert_it_ran_on_a_cluster(event: Event) -> None:
    """Check that there were a scheduler and a worker, launched into the stack's two groups, which ended."""
    outputs = json.loads(event.outputs.read_text())
    state = event.aws.state(processes=False)
    machines = [each for each in state["instances"] if "ramp-cloud:dask" in each["tags"]]
    assert sorted(each["tags"]["ramp-cloud:dask"] for each in machines) == ["scheduler", "worker"]
    assert {each["state"] for each in machines} <= {"shutting-down", "terminated"}
    given = [call["told"]["parameters"] for call in state["calls"] if call["action"] == "RunInstances"]
    groups = [
        {value for name, value in launch.items() if ".SecurityGroupId." in f".{name}"}
        for launch in given
        if "ramp-cloud:dask" in launch.values()
    ]
    assert groups == 2 * [{outputs["security_group"], outputs["dask_security_group"]}]


def test_from_an_empty_account_to_an_empty_one(event: Event) -> None:
    empty = everything()
    assert set(empty) <= FURNITURE

    event.does("up", "--yes")
    made = {each["type"].removeprefix("aws:") for each in event.stack.export()["deployment"]["resources"]}
    assert {kind for kind in made if "/" in kind} <= set(KINDS), "a kind that the account is not searched for"
    assert set(everything()) >= {KINDS[kind] for kind in made if "/" in kind}
    stored = json.dumps({"OSF_USERNAME": "organiser", "OSF_PASSWORD": PASSWORD})
    boto3.client("secretsmanager").put_secret_value(SecretId=SECRET, SecretString=stored)

    (image,) = event.does("build-image").stdout.split()
    event.does("run-event")
    remote = scores(event.answer("status"))
    here = ("--config", str(event.folder / "config.yml"))
    local = invoke_here("run-event", *here)
    assert local.returncode == 0, local.stdout + local.stderr
    status = invoke_here("status", *here, "--json")
    assert remote == scores(json.loads(status.stdout))
    event.does("rerun", "starting_kit")
    event.does("run-event", config=event.with_cluster())
    assert scores(event.answer("status")) == remote
    assert_it_ran_on_a_cluster(event)
    event.does("prune-images", "--keep", "1", "--yes")
    assert event.in_clear() == []

    (group,) = boto3.client("imagebuilder").list_image_pipelines()["imagePipelineList"]
    boto3.client("imagebuilder").start_image_pipeline_execution(imagePipelineArn=group["arn"])
    refused = event.tries("down", "--yes")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "a build of the event's image is under way" in refused.stderr
    assert "`./inv follow-build --cancel`" in refused.stderr
    event.does("follow-build", "--cancel")

    outputs = event.outputs.read_text()
    images = everything()["image"]  # a build leaves its AMI when it was cancelled late
    assert image in images
    assert len(images) <= 2
    event.does("down", "--yes")
    described = boto3.client("ec2").describe_images(ImageIds=sorted(images))["Images"]
    kept = {disk["Ebs"]["SnapshotId"] for each in described for disk in each["BlockDeviceMappings"] if "Ebs" in disk}
    # AWS's provider only forgets that guard; it is what new accounts begin with.
    stays = {"guard": {"images: block-new-sharing"}}
    assert everything() == empty | stays | {"image": images, "snapshot": empty["snapshot"] | kept}

    event.outputs.write_text(outputs)  # somebody kept a copy
    event.does("rerun", "starting_kit")
    late = event.tries("run-event")
    assert late.returncode == 2, late.stdout + late.stderr
    assert "Traceback" not in late.stderr
    assert f"has no group {json.loads(outputs)['security_group']!r}" in late.stderr
    assert "`./inv up` where they are the stack's" in late.stderr


def test_without_an_environment_pulumi_says_what_makes_it(tmp_path: Path, engine: Callable[..., Engine]) -> None:
    clone = clone_project(tmp_path / "clone")
    shutil.rmtree(clone / ".venv")

    with pytest.raises(EngineFailed) as caught:
        engine(clone, config={"ramp-cloud:event": "my/config.yml"}).preview()

    said = str(caught.value)
    assert "There is no .venv with Pulumi's packages: make it with `./inv preview --config CONFIG.yml`" in said
    assert "Traceback" not in said
    assert not (clone / ".venv").exists(), "an empty one would be in the way of ./inv"
