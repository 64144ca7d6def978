"""EC2's calls as moto lacks them: once per token, in pools with capacity, states with delays, AWS's own error codes."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.rehearsal.conftest import CREDENTIALS, World


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def tagged(kind: str, **tags: str) -> dict[str, Any]:
    return {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def test_the_same_token_launches_once(world: World) -> None:
    first = world.launch(2, ClientToken="token")
    assert world.launch(2, ClientToken="token") == first
    assert len(world.rehearsal.state()["instances"]) == 2
    assert code_of(lambda: world.launch(3, ClientToken="token")) == "IdempotentParameterMismatch"
    assert set(world.launch(2, ClientToken="another")).isdisjoint(first)


def test_a_token_that_was_refused_is_free(world: World) -> None:
    world.rehearsal.arm({"kind": "no-capacity", "times": 3})  # one for each zone
    assert code_of(lambda: world.launch(ClientToken="token")) == "InsufficientInstanceCapacity"
    assert len(world.launch(ClientToken="token")) == 1


def test_instances_are_counted_from_zero_and_described_as_launched(world: World) -> None:
    answer = world.run(
        3,
        MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        TagSpecifications=[tagged("instance", Name="one two", other="<&>"), tagged("volume", Name="disk")],
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"Encrypted": True, "VolumeSize": 20}}],
        SubnetId=world.subnets["eu-west-3b"],
        InstanceMarketOptions={"MarketType": "spot"},
        ClientToken="t",
    )
    assert [instance["AmiLaunchIndex"] for instance in answer["Instances"]] == [0, 1, 2]
    assert {instance["State"]["Name"] for instance in answer["Instances"]} == {"pending"}
    instance = answer["Instances"][1]["InstanceId"]
    world.wait_for(instance, "running")
    described = world.describe(instance)
    assert described["InstanceLifecycle"] == "spot"
    assert described["Placement"]["AvailabilityZone"] == "eu-west-3b"
    assert described["SubnetId"] == world.subnets["eu-west-3b"]
    assert described["MetadataOptions"]["HttpTokens"] == "required"
    assert described["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert {tag["Key"]: tag["Value"] for tag in described["Tags"]} == {"Name": "one two", "other": "<&>"}
    assert described["SecurityGroups"] == [{"GroupId": world.group, "GroupName": "ssh"}]
    assert described["KeyName"] == "key"
    assert described["ImageId"] == world.image
    assert described["ClientToken"] == "t"
    volume = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    (disk,) = world.ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert (disk["Encrypted"], disk["Size"], disk["Tags"]) == (True, 20, [{"Key": "Name", "Value": "disk"}])


def test_addresses_are_loopback_addresses_of_this_rehearsal(world: World) -> None:
    instances = [world.launch(SubnetId=subnet)[0] for subnet in world.subnets.values()]
    for instance in instances:
        world.wait_for(instance, "running")
        described = world.describe(instance)
        assert described["PublicIpAddress"] == described["PrivateIpAddress"]
        assert described["PrivateIpAddress"].startswith(f"{world.rehearsal.network}.")
    assert len({world.describe(instance)["PrivateIpAddress"] for instance in instances}) == 3
    assert code_of(world.ec2.allocate_address) == "UnsupportedOperation"


def test_without_a_public_address_there_is_none(world: World) -> None:
    interface = {
        "DeviceIndex": 0,
        "SubnetId": world.subnets["eu-west-3a"],
        "Groups": [world.group],
        "AssociatePublicIpAddress": False,
    }
    answer = world.ec2.run_instances(
        ImageId=world.image, InstanceType="c5.large", MinCount=1, MaxCount=1, NetworkInterfaces=[interface]
    )
    instance = answer["Instances"][0]["InstanceId"]
    world.wait_for(instance, "running")
    assert "PublicIpAddress" not in world.describe(instance)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"ImageId": "ami-00000000000000000"}, "InvalidAMIID.NotFound"),
        ({"ImageId": "nonsense"}, "InvalidAMIID.Malformed"),
        ({"InstanceType": "c5.gigantic"}, "InvalidParameterValue"),
        ({"InstanceType": "mac1.metal"}, "Unsupported"),
        ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
        ({"SecurityGroupIds": ["sg-00000000"]}, "InvalidGroup.NotFound"),
        ({"SubnetId": "subnet-00000000"}, "InvalidSubnetID.NotFound"),
        ({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue"),
        ({"UserData": "x" * 16_385}, "InvalidParameterValue"),
        ({"TagSpecifications": [tagged("instance", a="v" * 257)]}, "InvalidParameterValue"),
        ({"TagSpecifications": [tagged("instance", **{f"t{n}": "" for n in range(51)})]}, "TagLimitExceeded"),
        ({"ClientToken": "x" * 65}, "InvalidParameterValue"),
        ({"MinCount": 2, "MaxCount": 1}, "InvalidParameterValue"),
        ({"LaunchTemplate": {"LaunchTemplateName": "none"}}, "InvalidLaunchTemplateName.NotFoundException"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_a_wrong_launch_is_refused_and_launches_nothing(world: World, wrong: dict[str, Any], code: str) -> None:
    assert code_of(lambda: world.run(**wrong)) == code
    assert world.rehearsal.state()["instances"] == []
    assert world.rehearsal.state()["calls"][-1]["error"] == code


def test_images_of_others_and_unfinished_ones_cannot_be_launched(world: World) -> None:
    made = world.rehearsal.seed(
        images=[
            {"name": "iris 2026-03-01", "owner": "999999999999"},
            {"name": "iris 2026-02-01", "state": "pending"},
            {"name": "iris2 2026-01-01", "created": "2026-01-01T10:00:00Z"},
        ]
    )["images"]
    assert code_of(lambda: world.run(ImageId=made["iris 2026-03-01"])) == "InvalidAMIID.NotFound"
    assert code_of(lambda: world.run(ImageId=made["iris 2026-02-01"])) == "InvalidAMIID.Unavailable"
    mine = world.ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": ["iris *"]}])["Images"]
    assert {image["Name"]: image["State"] for image in mine} == {
        "iris 2026-01-02": "available",
        "iris 2026-02-01": "pending",
    }
    sibling = world.ec2.describe_images(ImageIds=[made["iris2 2026-01-01"]])["Images"][0]
    assert sibling["CreationDate"].startswith("2026-01-01T10:00:00")


def test_some_are_launched_when_there_is_no_room_for_all(world: World) -> None:
    world.rehearsal.arm({"kind": "no-capacity", "instance_type": "c5.*", "zone": "eu-west-3a", "free": 2})
    subnet = world.subnets["eu-west-3a"]
    assert len(world.launch(5, SubnetId=subnet)) == 2
    assert code_of(lambda: world.run(5, MinCount=3, SubnetId=subnet)) == "InsufficientInstanceCapacity"
    elsewhere = world.run(5, MinCount=3)["Instances"]
    assert {instance["Placement"]["AvailabilityZone"] for instance in elsewhere} == {"eu-west-3b"}


def test_the_vcpu_quota_counts_what_runs(make_world: Callable[..., World]) -> None:
    world = make_world(vcpus_on_demand=4, vcpus_spot=2)
    running = world.launch(5)
    assert len(running) == 2  # c5.large has two vCPUs
    assert code_of(world.run) == "VcpuLimitExceeded"
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    assert len(world.launch(**spot)) == 1
    assert code_of(lambda: world.run(**spot)) == "MaxSpotInstanceCountExceeded"
    world.ec2.terminate_instances(InstanceIds=running[:1])
    assert len(world.launch()) == 1


def test_quotas_can_be_asked_for(make_world: Callable[..., World], clients: Callable[[str], Any]) -> None:
    make_world(vcpus_on_demand=4)
    quotas = clients("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")["Quota"]["Value"] == 4
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-34B43A08")["Quota"]["Value"] > 1000
    assert clients("sts").get_caller_identity()["Account"] == "123456789012"


def test_a_price_below_the_market_is_refused(make_world: Callable[..., World]) -> None:
    world = make_world(spot_prices={"c5.large": 0.04})
    market = {"MarketType": "spot", "SpotOptions": {"MaxPrice": "0.03"}}
    assert code_of(lambda: world.run(InstanceMarketOptions=market)) == "SpotMaxPriceTooLow"
    market = {"MarketType": "spot", "SpotOptions": {"MaxPrice": "0.05"}}
    assert len(world.launch(InstanceMarketOptions=market)) == 1


def test_terminating_twice_is_fine_and_an_unknown_id_is_not(world: World) -> None:
    (instance,) = world.launch()
    first = world.ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
    assert first[0]["PreviousState"]["Name"] in {"pending", "running"}
    assert first[0]["CurrentState"]["Name"] in {"shutting-down", "terminated"}
    world.wait_for(instance, "terminated")
    again = world.ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
    assert again[0]["CurrentState"]["Name"] == "terminated"
    described = world.describe(instance)
    assert described["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert "PrivateIpAddress" not in described
    (other,) = world.launch()
    unknown = ["i-00000000000000000", other]
    assert code_of(lambda: world.ec2.terminate_instances(InstanceIds=unknown)) == "InvalidInstanceID.NotFound"
    assert world.describe(other)["State"]["Name"] in {"pending", "running"}
    World.wait(lambda: world.ec2.describe_volumes()["Volumes"], lambda volumes: len(volumes) == 1)


def test_states_take_their_time(make_world: Callable[..., World]) -> None:
    world = make_world(boot_seconds=0.3, ssh_seconds=0.6, status_seconds=0.9, shutdown_seconds=0.3)
    (instance,) = world.launch()
    assert world.describe(instance)["State"]["Name"] == "pending"
    assert "PublicIpAddress" not in world.describe(instance)
    assert world.ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"] == []
    known = world.wait_for(instance, "running")
    assert known["stages"]["boot"] - known["launched"] >= 0.3
    (status,) = world.ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    assert status["InstanceStatus"]["Status"] == "initializing"
    with pytest.raises(OSError, match="Unable to connect"):
        world.connect_to(known["address"])
    world.connect(instance).close()
    assert world.rehearsal.instance(instance)["stages"]["connect"] - known["launched"] >= 0.6
    world.wait(
        lambda: world.ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"],
        lambda found: found[0]["InstanceStatus"]["Status"] == "ok",
    )
    world.ec2.terminate_instances(InstanceIds=[instance])
    assert world.describe(instance)["State"]["Name"] == "shutting-down"
    world.wait_for(instance, "terminated")


def test_a_new_instance_is_not_known_at_once(make_world: Callable[..., World]) -> None:
    world = make_world(consistency_seconds=0.3)
    (instance,) = world.launch()
    assert code_of(lambda: world.describe(instance)) == "InvalidInstanceID.NotFound"
    assert code_of(lambda: world.ec2.terminate_instances(InstanceIds=[instance])) == "InvalidInstanceID.NotFound"
    assert world.ec2.describe_instances()["Reservations"] == []
    World.wait(lambda: world.ec2.describe_instances()["Reservations"], lambda found: len(found) == 1)


def test_what_is_stopped_can_be_started(world: World) -> None:
    (instance,) = world.launch()
    world.wait_for(instance, "running")
    world.ec2.stop_instances(InstanceIds=[instance])
    world.wait_for(instance, "stopped")
    assert "PublicIpAddress" not in world.describe(instance)
    world.ec2.start_instances(InstanceIds=[instance])
    world.wait_for(instance, "running")
    world.connect(instance).close()


def test_instances_are_found_by_tag_page_by_page(world: World) -> None:
    world.launch(7, TagSpecifications=[tagged("instance", event="iris")])
    world.launch(4, TagSpecifications=[tagged("instance", event="iris")])
    world.launch(2, TagSpecifications=[tagged("instance", event="iris2")])
    pages = world.ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": "tag:event", "Values": ["iris"]}], PaginationConfig={"PageSize": 5}
    )
    sizes, found = [], []
    for page in pages:
        ids = [instance["InstanceId"] for reservation in page["Reservations"] for instance in reservation["Instances"]]
        sizes.append(len(ids))
        found += ids
    assert sizes == [5, 5, 1]
    assert len(set(found)) == 11
    assert code_of(lambda: world.ec2.describe_instances(MaxResults=4)) == "InvalidParameterValue"
    assert (
        code_of(lambda: world.ec2.describe_instances(MaxResults=5, InstanceIds=found[:1]))
        == "InvalidParameterCombination"
    )
    assert code_of(lambda: world.ec2.describe_instances(NextToken="nonsense")) == "InvalidNextToken"


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("tag:event", "iri?", 1),
        ("tag:event", "iri*", 2),
        ("tag:event", r"a\*b", 1),
        ("tag-key", "event", 3),
        ("instance-lifecycle", "spot", 1),
        ("instance-type", "c5.*", 3),
        ("client-token", "mine", 1),
        ("instance-state-name", "stopped", 0),
        ("availability-zone", "eu-west-3a", 3),
    ],
)
def test_filters(world: World, name: str, value: str, count: int) -> None:
    world.launch(TagSpecifications=[tagged("instance", event="iris")], ClientToken="mine")
    world.launch(TagSpecifications=[tagged("instance", event="iris2")], InstanceMarketOptions={"MarketType": "spot"})
    world.launch(TagSpecifications=[tagged("instance", event="a*b")])
    found = world.ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])["Reservations"]
    assert len(found) == count


def test_an_unknown_filter_is_refused(world: World) -> None:
    wrong = [{"Name": "colour", "Values": ["red"]}]
    assert code_of(lambda: world.ec2.describe_instances(Filters=wrong)) == "InvalidParameterValue"


def test_in_other_regions_there_are_images_and_nothing_else(world: World, clients: Callable[[str], Any]) -> None:
    elsewhere = boto3.client(
        "ec2",
        endpoint_url=world.rehearsal.url,
        region_name="us-east-1",
        **CREDENTIALS,
    )
    assert elsewhere.describe_images(Owners=["self"])["Images"] == []
    assert elsewhere.describe_instances()["Reservations"] == []
    launch = {"ImageId": world.image, "InstanceType": "c5.large", "MinCount": 1, "MaxCount": 1}
    assert code_of(lambda: elsewhere.run_instances(**launch)) == "AuthFailure"
    assert code_of(lambda: elsewhere.create_security_group(GroupName="a", Description="b")) == "AuthFailure"
    assert code_of(clients("batch").describe_job_queues) != ""


def test_s3_works_through_the_port(world: World, clients: Callable[[str], Any], tmp_path: Path) -> None:
    s3, content = clients("s3"), b"\0\xff kit" * 1_000_000
    s3.create_bucket(Bucket="kits", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    assert code_of(lambda: s3.head_object(Bucket="kits", Key="a/b.tar.gz")) == "404"
    (tmp_path / "kit").write_bytes(content)
    s3.upload_file(str(tmp_path / "kit"), "kits", "a/b.tar.gz")
    with (tmp_path / "kit").open("rb") as file:
        s3.put_object(Bucket="kits", Key="a/c.tar.gz", Body=file)
    assert s3.head_object(Bucket="kits", Key="a/b.tar.gz")["ContentLength"] == len(content)
    s3.download_file("kits", "a/c.tar.gz", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content
    assert [each["Key"] for each in s3.list_objects_v2(Bucket="kits", Prefix="a/")["Contents"]] == [
        "a/b.tar.gz",
        "a/c.tar.gz",
    ]
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "kits", "Key": "a/b.tar.gz"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url) as answer:
        assert answer.read() == content
    calls = world.rehearsal.state(processes=False)["calls"]
    assert {"PutObject", "GetObject", "HeadObject", "PutBucket", "GetBucket"} <= {call["action"] for call in calls}


def test_secrets_parameters_and_logs_work_through_the_port(world: World, clients: Callable[[str], Any]) -> None:
    secrets, ssm, logs = clients("secretsmanager"), clients("ssm"), clients("logs")
    arn = secrets.create_secret(Name="iris/osf", SecretString="{}")["ARN"]
    assert secrets.get_secret_value(SecretId=arn)["SecretString"] == "{}"
    assert code_of(lambda: secrets.get_secret_value(SecretId="none")) == "ResourceNotFoundException"
    ssm.put_parameter(Name="/iris", Value="v", Type="SecureString")
    assert ssm.get_parameter(Name="/iris", WithDecryption=True)["Parameter"]["Value"] == "v"
    assert code_of(lambda: ssm.get_parameter(Name="/none")) == "ParameterNotFound"
    assert code_of(lambda: logs.get_log_events(logGroupName="a", logStreamName="b")) == "ResourceNotFoundException"
    logs.create_log_group(logGroupName="a")
    logs.create_log_stream(logGroupName="a", logStreamName="b")
    first = logs.get_log_events(logGroupName="a", logStreamName="b", startFromHead=True)
    event = {"timestamp": int(time.time() * 1000), "message": "line"}
    logs.put_log_events(logGroupName="a", logStreamName="b", logEvents=[event])
    token = first["nextForwardToken"]
    page = logs.get_log_events(logGroupName="a", logStreamName="b", nextToken=token, startFromHead=True)
    assert [each["message"] for each in page["events"]] == ["line"]
    assert world.rehearsal.state(processes=False)["calls"][-1]["action"] == "GetLogEvents"
