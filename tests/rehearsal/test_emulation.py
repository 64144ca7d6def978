"""An event on an emulated account that lasts: what is there the next time, and what is said when it cannot be."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.ec2.models import ec2_backends

from runner import stack
from runner.config import load_config
from runner.errors import UsageError
from runner.event import open_event
from runner.rehearsal.account import ACCOUNT, forget_everything
from runner.rehearsal.client import Rehearsal, RehearsalFailed
from runner.rehearsal.emulation import BUCKET, PROFILE, Emulation, emulated
from runner.rehearsal.homes import Homes
from runner.rehearsal.images import NewImage, add
from runner.rehearsal.lasting import Lasting, Stored
from runner.rehearsal.rehearse import rehearse
from tests.event_folder import EventFolder, make_environment
from tests.rehearsal.conftest import World

QUICK = {"ssh_seconds": 0, "status_seconds": 0}
BASES = {
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id": "x86_64",
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id": "arm64",
    "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id": "x86_64",
    "/aws/service/canonical/ubuntu/server/22.04/stable/current/arm64/hvm/ebs-gp2/ami-id": "arm64",
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64": "x86_64",
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64": "arm64",
}


@pytest.fixture
def event(event_folder: Callable[..., EventFolder]) -> EventFolder:
    """Return an event on EC2 that says how its image is built."""
    made = event_folder(
        worker_type="aws",
        ami_image_name="toy",
        region_name="eu-west-1",
        instance_type="t3.medium",
        remote_ramp_kit_folder="~/ramp-kits/toy",
        require_accepted=True,
        image={"base": "ubuntu-22.04", "documents": ["own.yaml"], "keep": 2},
    )
    del made.keys["python"]
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home that an image can have."""
    (tmp_path / "a home").mkdir()
    (tmp_path / "a home" / "file").write_text("kept")
    return tmp_path / "a home"


def images(ec2: Any, **filters: Any) -> dict[str, dict[str, Any]]:
    return {image["Name"]: image for image in ec2.describe_images(**filters)["Images"]}


def test_an_event_runs_on_a_lasting_account_and_its_results_stay(
    event: EventFolder, tmp_path: Path, environment: None
) -> None:
    event.add("good", "SCORE = 0.5")
    before = dict(os.environ)
    folder = tmp_path / "emulated"
    for launched in (1, 0):
        with emulated(event.config, folder=folder, settings=QUICK) as emulation, open_event(emulation.config) as opened:
            assert os.environ["AWS_ENDPOINT_URL"] == emulation.aws.url
            opened.dispatcher(Silent()).run()
            (row,) = opened.status()["submissions"]
            assert (row["state"], row["attempts"]) == ("scored", 1)
            assert len(emulation.aws.state(processes=False)["instances"]) == launched
    assert dict(os.environ) == before
    assert (folder / "predictions/good/fold_0").is_dir()
    assert not (event.folder / "predictions").exists()


def test_what_a_build_needs_is_there(event: EventFolder) -> None:
    event.keys["image"]["base"] = "ami-0123456789abcdef0"
    with emulated(event.config, settings=QUICK, seed_image=False) as emulation:
        config = load_config(emulation.config)
        original = load_config(event.config)
        assert config.image
        assert original.image
        assert config.image.model_dump() == original.image.model_dump()
        assert config.image.documents == [event.folder / "own.yaml"]
        assert config.ramp.submissions_dir == original.ramp.submissions_dir
        assert config.ramp.predictions_dir == emulation.config.parent / "predictions"
        worker: Any = config.worker
        assert (worker.ami_image_name, worker.ssh_port) == ("toy", emulation.aws.ssh_port)
        outputs = stack.read(Path(worker.stack_outputs))
        assert outputs
        assert (outputs.region, outputs.bucket, outputs.image_profile) == ("eu-west-1", BUCKET, PROFILE)
        assert Path(worker.key_path).stat().st_mode & 0o77 == 0
        ssm, ec2 = boto3.client("ssm"), boto3.client("ec2")
        for name, architecture in BASES.items():
            leads_to = ssm.get_parameter(Name=name)["Parameter"]["Value"]
            (image,) = ec2.describe_images(ImageIds=[leads_to])["Images"]
            assert (image["Architecture"], image["State"], image["Public"]) == (architecture, "available", True)
            assert image["RootDeviceName"] == ("/dev/xvda" if "amazon" in name else "/dev/sda1")
        assert ec2.describe_images(ImageIds=["ami-0123456789abcdef0"])["Images"]
        assert images(ec2, Owners=["self"]) == {}, "no image of the event until one is built"
        assert boto3.client("iam").get_instance_profile(InstanceProfileName=PROFILE)["InstanceProfile"]
        boto3.client("s3").head_bucket(Bucket=BUCKET)


def test_an_account_is_there_the_next_time(event: EventFolder, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "emulated"
    tag = "ramp-cloud:content"
    built: dict[str, Any] = {"name": "toy 2026-11-23T10-15-30.123Z", "home": str(home), "volume_gb": 30}
    with emulated(event.config, folder=folder, settings=QUICK, seed_image=False) as first:
        first.aws.seed(
            images=[built | {"tags": {tag: "1"}}, {"name": "gone", "home": str(home)}, {"name": "dropped entirely"}]
        )
        ec2 = boto3.client("ec2")
        before = images(ec2)
        ec2.deregister_image(ImageId=before["gone"]["ImageId"])
        outputs = stack.read(folder / "stack.json")
        assert outputs
        stack.write(folder / "stack.json", stack.StackOutputs(region=outputs.region, image_pipeline="arn:x"))
        launch(first, ec2, before[built["name"]]["ImageId"])
        component = boto3.client("imagebuilder").create_component(
            name="a component", semanticVersion="1.0.0", platform="Linux", data=DOCUMENT
        )["componentBuildVersionArn"]
    key = (folder / "key").read_text()

    with emulated(event.config, folder=folder, settings=QUICK, seed_image=False) as second:
        ec2 = boto3.client("ec2")
        after = images(ec2)
        assert after == {name: image for name, image in before.items() if name != "gone"}
        orphan = before["gone"]["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
        assert ec2.describe_snapshots(SnapshotIds=[orphan])["Snapshots"]
        ec2.delete_snapshot(SnapshotId=orphan)
        kept = boto3.client("imagebuilder").get_component(componentBuildVersionArn=component)["component"]
        assert kept["data"] == DOCUMENT
        assert ec2.describe_instances()["Reservations"] == [], "instances end with their server"
        assert (folder / "key").read_text() == key
        outputs = stack.read(folder / "stack.json")
        assert outputs
        assert (outputs.image_pipeline, outputs.bucket) == ("arn:x", BUCKET)
        console = launch(second, ec2, after[built["name"]]["ImageId"], "#!/bin/sh\ncat $RAMP_CLOUD_HOME/file\n")
        assert "kept" in console
        ec2.deregister_image(ImageId=after[built["name"]]["ImageId"])

    with emulated(event.config, folder=folder, settings=QUICK, seed_image=False):
        assert set(images(boto3.client("ec2"), Owners=["self"])) == {"dropped entirely"}
    assert list((folder / "aws/machines").iterdir()) == []
    assert not (folder / "aws/images" / before["gone"]["ImageId"]).exists()


def launch(emulation: Emulation, ec2: Any, image: str, user_data: str = "") -> str:
    """Launch an instance and return its console once it has booted."""
    run = ec2.run_instances(ImageId=image, InstanceType="t3.medium", MinCount=1, MaxCount=1, UserData=user_data)
    instance = run["Instances"][0]["InstanceId"]
    look = lambda: emulation.aws.instance(instance)["console"]  # noqa: E731 - shorter than a function of a line
    return str(World.wait(look, lambda console: "cloud-init: finished" in console))


DOCUMENT = """
name: a component
schemaVersion: 1.0
phases:
  - name: build
    steps:
      - name: one
        action: ExecuteBash
        inputs: {commands: [echo one]}
"""


def test_one_command_at_a_time_uses_an_account(tmp_path: Path) -> None:
    first = Lasting(tmp_path)
    with pytest.raises(UsageError, match=r"another command uses the emulated account.*wait until it has ended"):
        Lasting(tmp_path)
    first.save()
    Lasting(tmp_path).save()


def test_a_broken_account_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "account.json").write_text("{")
    with pytest.raises(RehearsalFailed) as caught:
        Rehearsal(tmp_path, {"lasting": True}).start()
    assert "JSONDecodeError" in caught.value.detail
    assert f"remove {tmp_path} and build its images again" in caught.value.detail
    assert (tmp_path / "account.json").read_text() == "{", "nothing is overwritten"


IMAGE = {"id": "ami-0", "name": "toy", "region": "eu-west-3", "home": True}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([], "TypeError"),
        ({"version": 99}, "version 99"),
        ({"version": 1, "images": {"images": [{"id": "ami-0"}]}}, "KeyError: 'region'"),
        ({"version": 1, "images": {"images": [{**IMAGE, "home": False}]}}, "KeyError: 'created'"),
        ({"version": 1, "images": {"images": [IMAGE]}}, "image ami-0 'toy' has lost its folder"),
    ],
)
def test_whatever_is_wrong_in_an_account_is_named(tmp_path: Path, content: object, why: str) -> None:
    (tmp_path / "account.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        Lasting(tmp_path).load({"images": Stored(Homes(tmp_path / "images"))})
    assert why in caught.value.message
    assert "build its images again" in caught.value.message


def empty_account(*regions: str) -> None:
    """Forget everything, Amazon's own images too: moto may have brought them along for another test of this process."""
    forget_everything()
    backends = ec2_backends[ACCOUNT]
    for region in {*regions, *backends}:
        backends[region].amis.clear()
        backends[region].snapshots.clear()


def test_images_of_every_region_come_back_as_they_were(tmp_path: Path, home: Path) -> None:
    homes = Homes(tmp_path / "images")
    empty_account("eu-west-3", "us-east-1")
    for region, name in (("eu-west-3", "here"), ("us-east-1", "there")):
        tags = {"ramp-cloud:image": name}
        made = add(region, NewImage(name=name, tags=tags, volume_gb=20, bare=True, architecture="arm64", public=True))
        homes.keep(made.id, home=home)
    pending = add("eu-west-3", NewImage(name="not yet", state="pending"))
    before = Stored(homes).dump()
    empty_account("eu-west-3", "us-east-1")

    Stored(homes).load(json.loads(json.dumps(before)))

    assert Stored(homes).dump() == before
    assert {(image["region"], image["name"]) for image in before["images"]} == {
        ("eu-west-3", "here"),
        ("us-east-1", "there"),
    }
    assert not homes.has(pending.id)
    forget_everything()


def test_what_a_killed_server_left_is_cleared(tmp_path: Path) -> None:
    for left in ("machines/i-0/home", "images/ami-0/home", "images/ami-1.partial"):
        (tmp_path / left).mkdir(parents=True)
    Lasting(tmp_path).load({"images": Stored(Homes(tmp_path / "images"))})
    assert not (tmp_path / "machines").exists()
    assert list((tmp_path / "images").iterdir()) == []


class Silent:
    """Hears of every move and says nothing."""

    def moved(self, *_: object) -> None:
        """Let it pass."""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ramp-cloud run in an environment whose ramp-test is the stand-in."""
    programs = make_environment(tmp_path / "environment").parent
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    monkeypatch.setattr(sys, "executable", str(python))


def test_only_events_on_aws_can_be_emulated(event_folder: Callable[..., EventFolder]) -> None:
    config = event_folder().config
    with pytest.raises(UsageError, match="worker_type aws"), emulated(config):
        pass
    with pytest.raises(UsageError, match="worker_type aws"):
        rehearse(config)
