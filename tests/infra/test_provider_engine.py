"""The emulated `aws` provider through Pulumi: its real engine, and its mocks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime import MockResourceArgs

from runner.rehearsal.faults import CallRefused
from tests.infra.engine import Engine, EngineFailed
from tests.infra.mocks import EmulatedMocks
from tests.infra.provider.services.base import Refused
from tests.infra.wire import client
from tests.rehearsing import Cloud

PROGRAM = """
import pulumi
import pulumi_aws as aws

config = pulumi.Config()
way = aws.Provider("aws", region="eu-west-3", default_tags={"tags": {"ramp-cloud:event": "iris"}})
mine = pulumi.ResourceOptions(provider=way)
bucket = aws.s3.Bucket("bucket", bucket="an-event", opts=mine)
aws.s3.BucketPublicAccessBlock("private", bucket=bucket.id, block_public_acls=True, opts=mine)
aws.ssm.Parameter(
    "parameter", name="/ramp/iris", type="SecureString", value=config.require_secret("planted"), opts=mine
)
if config.get_bool("more"):
    aws.cloudwatch.LogGroup("log", retention_in_days=30, opts=mine)
if config.get("wrong"):
    aws.s3.BucketPolicy("wrong", bucket="no-such-bucket", policy='{"Version": "2012-10-17"}', opts=mine)
pulumi.export("bucket", bucket.bucket)
pulumi.export("arn", bucket.arn)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return the folder of a small program."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "Pulumi.yaml").write_text("name: small\nruntime: python\n")
    (folder / "__main__.py").write_text(PROGRAM)
    return folder


def test_life_of_a_stack_with_the_real_engine(engine: Callable[..., Engine], program: Path, cloud: Cloud) -> None:
    pulumi = engine(program)
    pulumi.configure("planted", "a planted secret", secret=True)

    assert pulumi.preview().counts == {"create": 3}
    assert client(cloud, "s3").list_buckets()["Buckets"] == []
    assert pulumi.up().counts == {"create": 3}

    assert pulumi.stack_outputs() == {"bucket": "an-event", "arn": "arn:aws:s3:::an-event"}
    assert client(cloud, "ssm").get_parameter(Name="/ramp/iris", WithDecryption=True)["Parameter"]["Value"] == (
        "a planted secret"
    )
    assert "a planted secret" not in json.dumps(pulumi.export())

    pulumi.configure("more", "true")
    assert pulumi.up().counts == {"create": 1}
    client(cloud, "s3").delete_public_access_block(Bucket="an-event")
    assert pulumi.refresh().counts["delete"] == 1
    assert [step.name for step in pulumi.up().steps if step.op == "create"] == ["private"]

    pulumi.configure("wrong", "true")
    with pytest.raises(EngineFailed, match="NoSuchBucket"):
        pulumi.up()

    assert pulumi.destroy().counts == {"delete": 4}
    assert client(cloud, "s3").list_buckets()["Buckets"] == []


def test_what_was_half_made_is_known_and_finished_by_the_next_up(
    engine: Callable[..., Engine], program: Path, cloud: Cloud
) -> None:
    pulumi = engine(program)
    pulumi.configure("planted", "a planted secret", secret=True)
    pulumi.configure("more", "true")
    cloud.aws.arm(CallRefused(action="PutRetentionPolicy", code="ThrottlingException", message="Rate exceeded"))
    with pytest.raises(EngineFailed, match="Rate exceeded"):
        pulumi.up()
    cloud.aws.disarm()

    assert [step.name for step in pulumi.up().steps if step.op == "update"] == ["log"]

    (group,) = client(cloud, "logs").describe_log_groups()["logGroups"]
    assert group["retentionInDays"] == 30


def test_a_program_with_mocks_makes_its_resources_in_the_emulated_aws(cloud: Cloud) -> None:
    mocks = EmulatedMocks(cloud.aws.environment)
    bucket = mocks.new_resource(resource("aws:s3/bucket:Bucket", {"forceDestroy": True}))

    assert client(cloud, "s3").list_buckets()["Buckets"][0]["Name"] == bucket[0]
    assert mocks.made["aws:s3/bucket:Bucket", "thing"]["forceDestroy"] is True
    with pytest.raises(ValueError, match="colour: the emulated provider knows no such input"):
        mocks.new_resource(resource("aws:s3/bucket:Bucket", {"colour": "red"}))
    with pytest.raises(Refused, match="knows no resource type aws:ec2/instance:Instance"):
        mocks.new_resource(resource("aws:ec2/instance:Instance", {}))


def resource(kind: str, inputs: dict[str, Any]) -> MockResourceArgs:
    """Return what Pulumi tells its mocks of a resource."""
    return MockResourceArgs(typ=kind, name="thing", inputs=inputs, provider="", resource_id="", custom=True)
