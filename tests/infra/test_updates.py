"""What `pulumi up` changes when something has changed: the real engine, over the emulated AWS."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.pending import with_made
from runner.errors import ImageError
from tests.infra.declaring import StackEvent
from tests.infra.engine import Engine, EngineFailed
from tests.infra.updating import BEHAVIOURS, UpEvent, wait
from tests.rehearsing import Cloud

# Of the components only the kit's; what is deleted only leaves the stack.
CHANGED = [
    ("create", "Component"),
    ("create", "ImageRecipe"),
    ("delete", "Component"),
    ("delete", "ImageRecipe"),
    ("update", "DistributionConfiguration"),
    ("update", "ImagePipeline"),
]
# What can be made in more than one way, and what only some events have.
MUCH: dict[str, Any] = {
    "egress": "open",
    "budget_usd": 20.0,
    "budget_mail": "me@example.org",
    "github": "me/iris",
    "make_secret": True,
    "dask": True,
}

Make = Callable[..., UpEvent]


@pytest.fixture
def make(tmp_path: Path, cloud: Cloud, engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a maker of events: make("what-is-used-stays", keys of the section infra)."""

    def made(behaviour: str = "what-is-used-stays", **infra: Any) -> UpEvent:
        cloud.aws.reset(**BEHAVIOURS[behaviour])
        for name, value in cloud.aws.environment.items():
            monkeypatch.setenv(name, value)
        event = UpEvent(tmp_path / "event", cloud, engine, **infra)
        for name, value in event.stack.environment.items():
            monkeypatch.setenv(name, value)
        return event

    return made


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_every_change_is_one_up(make: Make, behaviour: str) -> None:
    event = make(behaviour)
    event.quick()
    assert {op for op, _ in event.up()} == {"create"}
    event.check()
    (settings,) = event.session.call("imagebuilder", "list_infrastructure_configurations")[
        "infrastructureConfigurationSummaryList"
    ]
    whole = event.session.call(
        "imagebuilder", "get_infrastructure_configuration", infrastructureConfigurationArn=settings["arn"]
    )
    assert whole["infrastructureConfiguration"]["terminateInstanceOnFailure"] is True
    assert event.tasks.preview().in_words() == ["Nothing changes."]
    image = event.built()

    event.write_document("kit", "echo changed")
    event.image["volume_gb"] = 40
    with pytest.raises(ImageError, match=r"it builds version .* run `pulumi up` first"):
        event.check()
    with event.building():
        assert event.up() == CHANGED
    event.check()
    event.write_document("kit")
    del event.image["volume_gb"]
    assert event.up() == CHANGED, "the old content again"
    event.check()
    assert event.counts("iris-kit") == [0, 1, 2]

    event.keys["ami_image_name"] = "iris2"
    event.infra["force"] = True  # the bucket goes with the event's name
    gone = [kind for op, kind in event.up() if op == "delete"]
    assert {"ImagePipeline", "InfrastructureConfiguration", "LogGroup"} <= {*gone}
    event.check()
    event.keys |= {"ami_image_name": "iris", "event_name": "iris2"}
    gone = [kind for op, kind in event.up() if op == "delete"]
    assert {"ImagePipeline", "Bucket", "SecurityGroup"} <= {*gone}
    event.check()
    assert event.counts("iris-kit") == [0, 1, 2, 3], "none that was there is made again"

    event.stack.destroy()
    own = event.session.call("ec2", "describe_images", Owners=["self"])["Images"]
    assert image in {each["ImageId"] for each in own}
    # What images were made with stays, so that neither way in which Image Builder deletes can get in the way.
    assert event.cloud.calls("DeleteImageRecipe", "DeleteComponent") == 0


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_run_that_was_killed_is_ended_by_the_next(make: Make, behaviour: str) -> None:
    event = make(behaviour, **MUCH)
    event.image |= {"keep": 3, "schedule": "weekly", "data": "osf", "data_secret": "ramp/iris/osf"}
    event.write()
    process = event.started(event.pulumi_up())
    process.kill()
    process.wait()
    wait(lambda: event.versions("image_recipe") != [])  # what it had asked for is still made
    event.cloud.aws.disarm()
    assert event.pending()
    with pytest.raises(EngineFailed, match="currently locked"):
        event.stack.up()

    outputs = event.tasks.up()

    assert outputs.exists()
    assert "An earlier run was broken off; looking at what became of it." in event.said
    assert event.pending() == []
    assert len(event.versions("image_recipe")) == 1
    assert {*event.counts()} == {0}, "nothing is there twice"
    event.check()
    assert event.tasks.preview().in_words() == ["Nothing changes."]

    # Whatever had been under way, it would have been found.
    deployment = event.stack.export()["deployment"]
    begun = [each for each in deployment["resources"] if each["type"].startswith("aws:")]
    others = [each for each in deployment["resources"] if each not in begun]
    # Older states do not say the region of each.
    asked = [{key: value for key, value in each["inputs"].items() if key != "region"} for each in begun]
    pending = [
        {"type": "creating", "resource": {**each, "id": "", "inputs": inputs}}
        for each, inputs in zip(begun, asked, strict=True)
    ]
    found = with_made({"resources": others, "pending_operations": pending}, event.session)["resources"]
    assert {each["urn"]: each["id"] for each in found[len(others) :]} == {each["urn"]: each["id"] for each in begun}


def test_a_run_that_was_stopped_and_what_somebody_deleted_by_hand(make: Make) -> None:
    event = make()
    code = (
        "import sys; from pathlib import Path; from infra.automation import EventStack\n"
        "from infra.engine import StackStopped\n"
        "stack = EventStack(Path(sys.argv[1]), say=lambda _: None, project=Path(sys.argv[2]))\n"
        "try: stack.up()\n"
        "except StackStopped as error: sys.exit(error.exit_code)\n"
    )
    process = event.started([sys.executable, "-P", "-c", code, str(event.write()), str(event.stack.program)])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    event.cloud.aws.disarm()

    event.tasks.up()

    assert len(event.versions("image_recipe")) == 1
    assert {*event.counts()} == {0}, "nothing is there twice"
    event.check()

    pipeline = event.stack.stack_outputs()["image_pipeline"]
    event.session.call("imagebuilder", "delete_image_pipeline", imagePipelineArn=pipeline)
    event.session.call("logs", "delete_log_group", logGroupName="/aws/imagebuilder/iris")
    assert sorted(step.type.rpartition(":")[2] for step in event.stack.refresh().steps if step.op == "delete") == [
        "ImagePipeline",
        "LogGroup",
    ]
    assert event.up() == [("create", "ImagePipeline"), ("create", "LogGroup")]
    event.check()


def test_what_may_hold_results_goes_by_force_only(make: Make) -> None:
    event = make(make_secret=True)
    event.image |= {"data": "osf", "data_secret": "ramp/iris/osf"}
    event.write()
    event.tasks.up()
    bucket = event.stack.stack_outputs()["bucket"]
    event.session.call("s3", "put_object", Bucket=bucket, Key="kits/kit.tar.gz", Body=b"kit")
    with pytest.raises(EngineFailed, match="protect"):
        event.stack.destroy()

    left = event.tasks.down()

    assert {"bucket", "data"} <= {name.rpartition("-")[2] for name in left}
    assert event.session.call("s3", "list_objects_v2", Bucket=bucket)["KeyCount"] == 1
    event.infra["force"] = True
    event.write()
    event.tasks.up()
    assert event.tasks.down() == []
    assert event.session.call("s3", "list_buckets")["Buckets"] == []
    resources = event.stack.export()["deployment"].get("resources") or []
    assert [each["urn"] for each in resources if not each["type"].startswith("pulumi:")] == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "infra.vpc: the account has no default network in eu-west-3; set `vpc` to the id of another"),
        ({"vpc": "vpc-00000000"}, "infra.vpc: vpc-00000000 is not in eu-west-3 of this account; correct it"),
        ({"subnets": ["subnet-00000000"]}, "infra.subnets: subnet-00000000 not in vpc-"),
    ],
)
def test_a_network_that_is_not_there_is_told_in_one_line(make: Make, keys: dict[str, Any], told: str) -> None:
    event = make(**keys)
    if not keys:
        _without_network(event)
    with pytest.raises(EngineFailed) as failed:
        event.stack.preview()
    assert told in str(failed.value)
    assert "Traceback" not in str(failed.value)


def _without_network(event: StackEvent) -> None:
    """Delete the account's default network."""
    assert isinstance(event, UpEvent)
    (vpc,) = event.session.call("ec2", "describe_vpcs")["Vpcs"]
    for subnet in event.session.call("ec2", "describe_subnets")["Subnets"]:
        event.session.call("ec2", "delete_subnet", SubnetId=subnet["SubnetId"])
    for gateway in event.session.call("ec2", "describe_internet_gateways")["InternetGateways"]:
        name = gateway["InternetGatewayId"]
        event.session.call("ec2", "detach_internet_gateway", InternetGatewayId=name, VpcId=vpc["VpcId"])
    event.session.call("ec2", "delete_vpc", VpcId=vpc["VpcId"])
