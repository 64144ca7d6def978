"""CreateFleet of type instant, and the launch templates it goes over."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.conftest import World


@pytest.fixture
def template(world: World) -> str:
    """Return the id of a template with everything that an event puts into one."""
    answer = world.ec2.create_launch_template(
        LaunchTemplateName="mine",
        LaunchTemplateData={
            "ImageId": world.image,
            "KeyName": "key",
            "SecurityGroupIds": [world.group],
            "InstanceType": "c5.large",
            "InstanceInitiatedShutdownBehavior": "terminate",
            "UserData": base64.b64encode(b"#!/bin/sh\necho from the template\n").decode(),
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"Encrypted": True, "DeleteOnTermination": True}}
            ],
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "from", "Value": "template"}, {"Key": "a", "Value": "1"}]}
            ],
        },
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "owner", "Value": "me"}]}],
    )
    return str(answer["LaunchTemplate"]["LaunchTemplateId"])


def fleet(
    world: World, template: str, overrides: list[dict[str, Any]], count: int, **parameters: Any
) -> dict[str, Any]:
    specification = {"LaunchTemplateId": template, "Version": "$Latest"}
    answer: dict[str, Any] = world.ec2.create_fleet(
        Type="instant",
        TargetCapacitySpecification={"TotalTargetCapacity": count, "DefaultTargetCapacityType": "spot"},
        LaunchTemplateConfigs=[{"LaunchTemplateSpecification": specification, "Overrides": overrides}],
        **parameters,
    )
    return answer


def test_everything_comes_from_the_template_and_the_call(world: World, template: str) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "from", "Value": "call"}]}]
    answer = fleet(world, template, [{"InstanceType": "c5.xlarge"}], 1, TagSpecifications=tags)
    ((instance,),) = [group["InstanceIds"] for group in answer["Instances"]]
    assert answer["Instances"][0]["InstanceType"] == "c5.xlarge"
    assert answer["Instances"][0]["Lifecycle"] == "spot"
    world.wait_for(instance, "running")
    described = world.describe(instance)
    assert described["InstanceLifecycle"] == "spot"
    assert described["InstanceType"] == "c5.xlarge"
    assert described["KeyName"] == "key"
    assert described["MetadataOptions"]["HttpTokens"] == "required"
    tags_of_it = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
    assert (tags_of_it["from"], tags_of_it["a"]) == ("call", "1")
    assert tags_of_it["aws:ec2launchtemplate:id"] == template
    assert tags_of_it["aws:ec2:fleet-id"] == answer["FleetId"]
    World.wait(lambda: world.rehearsal.instance(instance)["console"], lambda said: "from the template" in said)
    world.connect(instance).close()
    world.rehearsal.act(instance, "shutdown")
    assert world.wait_for(instance, "terminated")["reason"] == "Client.InstanceInitiatedShutdown"


def test_what_one_pool_lacks_comes_from_the_next(world: World, template: str) -> None:
    zones = world.subnets
    world.rehearsal.arm(
        {"kind": "no-capacity", "instance_type": "c5.large", "zone": "eu-west-3a"},
        {"kind": "no-capacity", "instance_type": "c5.large", "zone": "eu-west-3b", "free": 2},
        {"kind": "price-too-low", "instance_type": "m5.large"},
    )
    overrides = [
        {"InstanceType": "c5.large", "SubnetId": zones["eu-west-3a"]},
        {"InstanceType": "c5.large", "SubnetId": zones["eu-west-3b"]},
        {"InstanceType": "m5.large", "SubnetId": zones["eu-west-3a"]},
        {"InstanceType": "c5.gigantic", "SubnetId": zones["eu-west-3a"]},
        {"InstanceType": "c5.xlarge", "SubnetId": zones["eu-west-3c"]},
        {"InstanceType": "c5.2xlarge", "SubnetId": zones["eu-west-3c"]},
    ]
    answer = fleet(world, template, overrides, 5)
    given = [(group["InstanceType"], len(group["InstanceIds"])) for group in answer["Instances"]]
    assert given == [("c5.large", 2), ("c5.xlarge", 3)]
    refused = [
        (error["LaunchTemplateAndOverrides"]["Overrides"]["InstanceType"], error["ErrorCode"])
        for error in answer["Errors"]
    ]
    assert refused == [
        ("c5.large", "UnfulfillableCapacity"),
        ("m5.large", "SpotMaxPriceTooLow"),
        ("c5.gigantic", "InvalidParameterValue"),
    ]
    where = answer["Instances"][0]["LaunchTemplateAndOverrides"]["Overrides"]["SubnetId"]
    assert where == zones["eu-west-3b"]


def test_no_pool_at_all_is_no_error_of_the_call(world: World, template: str) -> None:
    world.rehearsal.arm({"kind": "no-capacity", "market": "spot"})
    answer = fleet(world, template, [{"InstanceType": "c5.large"}, {"InstanceType": "m5.large"}], 2)
    assert answer["Instances"] == []
    assert [error["ErrorCode"] for error in answer["Errors"]] == ["UnfulfillableCapacity"] * 2
    assert len(world.launch()) == 1  # on demand there is room


def test_single_overrides_can_be_throttled(world: World, template: str) -> None:
    world.rehearsal.arm({"kind": "call-refused", "action": "CreateFleet/override", "code": "RequestLimitExceeded"})
    answer = fleet(world, template, [{"InstanceType": "c5.large"}], 2)
    assert [error["ErrorCode"] for error in answer["Errors"]] == ["RequestLimitExceeded"]


def test_the_same_token_launches_once(world: World, template: str) -> None:
    overrides = [{"InstanceType": "c5.large"}]
    first = fleet(world, template, overrides, 2, ClientToken="token")
    again = fleet(world, template, overrides, 2, ClientToken="token")
    assert (again["FleetId"], again["Instances"]) == (first["FleetId"], first["Instances"])
    assert len(world.rehearsal.state()["instances"]) == 2
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        fleet(world, template, overrides, 3, ClientToken="token")


def test_a_minimum_that_cannot_be_met_launches_nothing(world: World, template: str) -> None:
    world.rehearsal.arm({"kind": "no-capacity", "zone": "eu-west-3a", "free": 1})
    override = {"InstanceType": "c5.large", "SubnetId": world.subnets["eu-west-3a"]}
    least = {"SpotOptions": {"MinTargetCapacity": 2, "SingleInstanceType": True}}
    assert fleet(world, template, [override], 2, **least)["Instances"] == []
    assert world.rehearsal.state()["instances"] == []


def test_a_version_is_made_of_its_source(world: World, template: str) -> None:
    made = world.ec2.create_launch_template_version(
        LaunchTemplateId=template, SourceVersion="1", LaunchTemplateData={"InstanceType": "c5.4xlarge"}
    )["LaunchTemplateVersion"]
    assert made["VersionNumber"] == 2
    data = world.ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=["2"])
    (version,) = data["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"]["InstanceType"] == "c5.4xlarge"
    assert version["LaunchTemplateData"]["KeyName"] == "key"
    alone = world.ec2.create_launch_template_version(
        LaunchTemplateId=template, LaunchTemplateData={"InstanceType": "c5.large"}
    )
    assert "KeyName" not in alone["LaunchTemplateVersion"]["LaunchTemplateData"]


def test_run_instances_goes_over_templates_too(world: World, template: str) -> None:
    answer = world.ec2.run_instances(
        LaunchTemplate={"LaunchTemplateName": "mine"}, InstanceType="m5.large", MinCount=1, MaxCount=1
    )
    instance = answer["Instances"][0]["InstanceId"]
    described = world.describe(instance)
    assert (described["InstanceType"], described["KeyName"], described["ImageId"]) == ("m5.large", "key", world.image)
    World.wait(lambda: world.rehearsal.instance(instance)["console"], lambda said: "from the template" in said)


def test_templates_are_found_by_tag_beyond_the_first_page(world: World, template: str) -> None:
    for number in range(20):
        world.ec2.create_launch_template(
            LaunchTemplateName=f"other-{number}",
            LaunchTemplateData={"ImageId": world.image},
            TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "owner", "Value": "you"}]}],
        )
    pages = world.ec2.get_paginator("describe_launch_templates").paginate(
        Filters=[{"Name": "tag:owner", "Values": ["you"]}], PaginationConfig={"PageSize": 8}
    )
    assert [len(page["LaunchTemplates"]) for page in pages] == [8, 8, 4]


@pytest.mark.parametrize("kind", ["request", "maintain"])
def test_other_kinds_of_fleet_are_refused(world: World, template: str, kind: str) -> None:
    call: Callable[..., Any] = world.ec2.create_fleet
    with pytest.raises(ClientError, match="UnsupportedOperation"):
        call(
            Type=kind,
            TargetCapacitySpecification={"TotalTargetCapacity": 1},
            LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"}}],
        )
