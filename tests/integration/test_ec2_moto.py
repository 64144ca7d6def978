"""EC2's API as we use it, against moto in this process: real boto3, real requests, no network."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import moto.settings
import pytest
from moto import mock_aws
from moto.ec2.models.instances import InstanceBackend

from runner.aws.boot import boot_minutes, user_data
from runner.aws.ec2 import Ec2
from runner.aws.pools import ON_DEMAND, SPOT, Pool
from runner.aws.session import AwsSession
from runner.aws.spec import LaunchSpec
from runner.aws.tags import OWNER, Request, batch_tags, belonging_tags, runs_of
from runner.errors import AwsError, ConfigError, LaunchStopped, NoCapacity

REGION = "eu-west-1"
KEY = "very-secret"
FIRST, SECOND = "token-1", "token-2"
WHOSE = belonging_tags(event="iris", event_id="iris", owner="me")


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ENABLE_AMI", "ENABLE_KEYPAIR", "EC2_ENABLE_INSTANCE_TYPE"):
        monkeypatch.setattr(moto.settings, f"{name}_VALIDATION", True)
    with mock_aws():
        yield


@pytest.fixture(scope="module")
def raw() -> Any:
    """Return boto3's own client, to look at what was made. One for all: reading its model takes half a second."""
    return boto3.client("ec2", region_name=REGION, aws_access_key_id="AKIA", aws_secret_access_key=KEY)


_CALLS: list[str] = []


@pytest.fixture(scope="module")
def session() -> AwsSession:
    session = AwsSession(region_name=REGION, access_key_id="AKIATEST", secret_access_key=KEY, on_call=_CALLS.append)

    def as_many_as_aws(params: dict[str, Any], **_: object) -> None:
        params["MinCount"] = params["MaxCount"]  # moto launches the fewest it may, AWS the most it can

    events = session.client("ec2", repeats=False).meta.events
    events.register("provide-client-params.ec2.RunInstances", as_many_as_aws)
    return session


@pytest.fixture
def calls() -> list[str]:
    _CALLS.clear()
    return _CALLS


@pytest.fixture
def ec2(session: AwsSession) -> Ec2:
    return Ec2(session)


def make_image(raw: Any, name: str) -> str:
    image = raw.register_image(Name=name, RootDeviceName="/dev/sda1")["ImageId"]
    next(each for each in moto_images() if each.id == image).architecture = "x86_64"  # moto drops what was said
    return str(image)


@pytest.fixture
def spec(raw: Any, ec2: Ec2) -> LaunchSpec:
    make_image(raw, "iris")
    raw.create_key_pair(KeyName="class", KeyType="ed25519")
    minutes = boot_minutes(timeout=600)
    return LaunchSpec(
        image=ec2.image(name="iris"),
        user_data=user_data("PRIVATE", "ssh-ed25519 AAAA", minutes),
        boot_minutes=minutes,
        host_key="ssh-ed25519 AAAA",
        security_groups=(ec2.security_group("default"),),
        key_name="class",
        tags={"course": "ml"},
    )


def requests(count: int) -> list[Request]:
    return [Request(run=f"{number:032x}", submission=f"team-{number}", attempt=1) for number in range(count)]


def tags_for(count: int) -> dict[str, str]:
    expires = datetime(2026, 11, 23, tzinfo=UTC)
    return WHOSE | batch_tags(requests(count), launch="b", expires=expires, host_key="ssh-ed25519 AAAA")


def attribute(raw: Any, instance: str, name: str) -> Any:
    answer = raw.describe_instance_attribute(InstanceId=instance, Attribute=name)
    return next(value["Value"] for key, value in answer.items() if key.lower() == name.lower())


def test_an_on_demand_launch_is_safe_tagged_and_ends_itself(ec2: Ec2, raw: Any, spec: LaunchSpec) -> None:
    subnet = ec2.subnets()[1]
    pool = Pool(instance_type="t3.medium", subnet=subnet.id, zone=subnet.zone)
    launched = ec2.run_instances(spec, pool, count=3, token=FIRST, tags=tags_for(3))
    assert [each.launch_index for each in launched] == [0, 1, 2]
    assert {each.market for each in launched} == {ON_DEMAND}
    for each in raw.describe_instances(InstanceIds=[each.id for each in launched])["Reservations"][0]["Instances"]:
        told = {tag["Key"]: tag["Value"] for tag in each["Tags"]}
        assert told == {"course": "ml"} | tags_for(3)
        assert runs_of(told)[each["AmiLaunchIndex"]] == f"{each['AmiLaunchIndex']:032x}"
        assert each["MetadataOptions"]["HttpTokens"] == "required"
        assert each["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert each["MetadataOptions"]["HttpEndpoint"] == "enabled"
        assert (each["KeyName"], each["SubnetId"]) == ("class", subnet.id)
        assert [group["GroupId"] for group in each["SecurityGroups"]] == list(spec.security_groups)
        (disk,) = each["BlockDeviceMappings"]
        assert (disk["DeviceName"], disk["Ebs"]["DeleteOnTermination"]) == (spec.image.root_device, True)
        (volume,) = raw.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        assert volume["Encrypted"]
        assert {"Key": OWNER, "Value": "me"} in volume["Tags"]
        assert attribute(raw, each["InstanceId"], "instanceInitiatedShutdownBehavior") == "terminate"
        assert base64.b64decode(attribute(raw, each["InstanceId"], "userData")).decode() == spec.user_data


def test_a_fleet_launches_spot_over_our_own_template(ec2: Ec2, raw: Any, spec: LaunchSpec, calls: list[str]) -> None:
    pools = [Pool(instance_type="t3.medium", subnet=place.id, zone=place.zone) for place in ec2.subnets()]
    before = len(calls)
    fleet = ec2.create_spot_fleet(spec, pools, count=3, token=FIRST, tags=tags_for(3), max_price=0.02)
    again = ec2.create_spot_fleet(spec, pools, count=1, token=SECOND, tags=tags_for(1), max_price=0.02)
    assert calls[before:] == ["create_launch_template", "create_fleet", "create_fleet"]
    assert not fleet.refused
    assert [each.launch_index for each in fleet.instances] == [0, 1, 2]
    assert {(each.subnet, each.zone) for each in fleet.instances} <= {(pool.subnet, pool.zone) for pool in pools}
    described = ec2.describe(owner="me", event_id="iris")
    assert {each.id for each in described} == {each.id for each in (*fleet.instances, *again.instances)}
    assert {each.market for each in described} == {SPOT}
    (template,) = ec2.templates(owner="me", event_id="iris")
    version = raw.describe_launch_template_versions(LaunchTemplateId=template.id)["LaunchTemplateVersions"][0]
    data = version["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    assert base64.b64decode(data["UserData"]).decode() == spec.user_data
    ec2.delete_templates()
    ec2.delete_templates()
    assert ec2.templates(owner="me") == []


def test_a_template_that_somebody_deleted_is_made_again(ec2: Ec2, spec: LaunchSpec) -> None:
    pools = [Pool(instance_type="t3.medium")]
    ec2.create_spot_fleet(spec, pools, count=1, token=FIRST, tags=tags_for(1))
    (first,) = ec2.templates()
    ec2.delete_template(first.id)
    ec2.delete_template(first.id)
    fleet = ec2.create_spot_fleet(spec, pools, count=1, token=SECOND, tags=tags_for(1))
    assert len(fleet.instances) == 1
    assert [template.id for template in ec2.templates()] != [first.id]


def test_a_stacks_template_is_the_base_of_ours_and_stays_as_it_is(
    ec2: Ec2, raw: Any, spec: LaunchSpec, session: AwsSession
) -> None:
    theirs = raw.create_launch_template(
        LaunchTemplateName="stack",
        LaunchTemplateData={"EbsOptimized": True, "MetadataOptions": {"HttpTokens": "optional"}, "KeyName": "other"},
    )["LaunchTemplate"]["LaunchTemplateId"]
    from_stack = replace(spec, launch_template="stack")
    ec2.create_spot_fleet(from_stack, [Pool(instance_type="t3.medium")], count=1, token=FIRST, tags=tags_for(1))
    (ours,) = ec2.templates(owner="me")
    data = raw.describe_launch_template_versions(LaunchTemplateId=ours.id)["LaunchTemplateVersions"][0]
    assert data["LaunchTemplateData"]["EbsOptimized"]
    assert data["LaunchTemplateData"]["KeyName"] == "class"
    assert data["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"
    assert len(raw.describe_launch_template_versions(LaunchTemplateId=theirs)["LaunchTemplateVersions"]) == 1
    assert ec2.delete_left_templates("me", "iris") == []
    assert Ec2(session).delete_left_templates("me", "iris") == [ours.name]
    assert [template.name for template in ec2.templates()] == ["stack"]


@pytest.mark.parametrize(
    ("change", "pool", "key"),
    [
        ({"key_name": "lost"}, {}, "key_name"),
        ({"security_groups": ("sg-0123",)}, {}, "security_group"),
        ({}, {"instance_type": "t9.huge"}, "instance_type"),
        ({}, {"subnet": "subnet-0123"}, "subnets"),
    ],
)
def test_a_launch_that_cannot_work_names_the_key(
    ec2: Ec2, spec: LaunchSpec, change: dict[str, Any], pool: dict[str, str], key: str
) -> None:
    wrong = replace(spec, **change)
    with pytest.raises(LaunchStopped, match=f"correct {key} in config.yml"):
        ec2.run_instances(wrong, Pool(**{"instance_type": "t3.medium", **pool}), count=1, token=FIRST, tags=tags_for(1))


def test_an_image_that_is_gone_stops_launches(ec2: Ec2, spec: LaunchSpec) -> None:
    gone = replace(spec, image=replace(spec.image, id="ami-0123"))
    with pytest.raises(LaunchStopped, match="ami_image_name"):
        ec2.run_instances(gone, Pool(instance_type="t3.medium"), count=1, token=FIRST, tags=tags_for(1))


def test_capacity_comes_through_boto3_as_such(ec2: Ec2, spec: LaunchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        code = "InsufficientInstanceCapacity"
        raise moto.ec2.exceptions.EC2ClientError(code, "none left")

    monkeypatch.setattr(InstanceBackend, "run_instances", empty)
    with pytest.raises(NoCapacity) as caught:
        ec2.run_instances(spec, Pool(instance_type="t3.medium"), count=1, token=FIRST, tags=tags_for(1))
    assert caught.value.fields["code"] == "InsufficientInstanceCapacity"


def test_describe_reads_all_pages_and_all_instances_of_a_reservation(
    ec2: Ec2, spec: LaunchSpec, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.aws.ec2._PAGE", 5)
    pool = Pool(instance_type="t3.medium")
    for number in range(11):
        ec2.run_instances(spec, pool, count=2, token=f"t{number}", tags=tags_for(2))
    ec2.run_instances(spec, pool, count=2, token=SECOND, tags={**tags_for(2), OWNER: "somebody else"})
    calls.clear()
    assert len({each.id for each in ec2.describe(owner="me", event_id="iris")}) == 22
    assert calls == ["describe_instances"] * 3
    assert len(ec2.describe(owner="somebody else")) == 2
    assert ec2.describe(owner="me", event_id="another") == []


def test_one_unknown_id_spares_nobody(ec2: Ec2, spec: LaunchSpec) -> None:
    launched = ec2.run_instances(spec, Pool(instance_type="t3.medium"), count=3, token=FIRST, tags=tags_for(3))
    ids = [each.id for each in launched]
    unknown = {"i-00000000000000001", "i-fffffffffffffffff"}
    assert {each.id for each in ec2.describe(ids={*ids, *unknown})} == set(ids)
    assert ec2.terminate([*ids, *unknown]) == unknown
    described = ec2.describe(ids=ids)
    assert {each.state for each in described} == {"terminated"}
    for each in described:
        assert each.ended is not None
        assert abs(each.ended - datetime.now(UTC)) < timedelta(minutes=1)
        assert "User" in each.reason
    assert ec2.terminate(ids) == frozenset()
    assert ec2.terminate([]) == frozenset()
    assert ec2.describe(ids=[]) == []


def test_unknown_ids_are_found_even_when_aws_does_not_name_them(
    ec2: Ec2, spec: LaunchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = ec2.run_instances(spec, Pool(instance_type="t3.medium"), count=5, token=FIRST, tags=tags_for(5))
    real = AwsSession.call

    def unnamed(self: AwsSession, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            return real(self, service, operation, **parameters)
        except AwsError as error:
            msg = "some id is wrong"
            raise AwsError(msg, code="InvalidInstanceID.NotFound") from error

    monkeypatch.setattr(AwsSession, "call", unnamed)
    assert ec2.terminate([each.id for each in launched] + ["i-0abc"]) == {"i-0abc"}
    assert {each.state for each in ec2.describe(owner="me")} == {"terminated"}


def test_console_and_later_tags(ec2: Ec2, spec: LaunchSpec) -> None:
    (launched,) = ec2.run_instances(spec, Pool(instance_type="t3.medium"), count=1, token=FIRST, tags=tags_for(1))
    assert "Linux" in ec2.console_output(launched.id)
    ec2.tag([launched.id], {"ramp-cloud:keep-until": "later"})
    assert ec2.describe(ids=[launched.id])[0].tags["ramp-cloud:keep-until"] == "later"
    with pytest.raises(AwsError, match="AWS refused create_tags"):
        ec2.tag(["i-0abc"], {"a": "b"})


# -- what an event needs -------------------------------------------------------------------------------------------


def test_the_newest_of_our_images_is_taken(ec2: Ec2, raw: Any, session: AwsSession) -> None:
    owners: list[object] = []
    session.client("ec2").meta.events.register_first(
        "before-parameter-build.ec2.DescribeImages", lambda params, **_: owners.append(params.get("Owners"))
    )
    make_image(raw, "iris 2026-11-01T10-15-30.123Z")
    newest = make_image(raw, "iris 2026-11-02T10-15-30.123Z")
    make_image(raw, "iris2 2026-11-03T10-15-30.123Z")
    make_image(raw, "iris broken")
    # moto dates images by the second: make the order certain.
    for number, image in enumerate(sorted(moto_images(), key=lambda each: str(each.name))):
        image.creation_date = datetime(2026, 11, number + 1, tzinfo=UTC)
    image = ec2.image(name="iris", types=["t3.medium", "m5.large"])
    assert (image.id, image.name) == (newest, "iris 2026-11-02T10-15-30.123Z")
    assert owners == [["self"]]


def moto_images() -> list[Any]:
    backend = moto.backends.get_backend("ec2")["123456789012"][REGION]
    return [image for image in backend.amis.values() if image.owner_id == "123456789012"]


def test_without_an_image_the_near_misses_are_told(ec2: Ec2, raw: Any) -> None:
    sibling = make_image(raw, "iris2 2026-11-01T10-15-30.123Z")
    foreign, pending = make_image(raw, "iris"), make_image(raw, "iris 2026-11-02T10-15-30.123Z")
    make_image(raw, "something-else")
    for image in moto_images():
        if image.id == foreign:
            image.owner_id = "666666666666"
            image.launch_permissions = [{"Group": "all"}]
        if image.id == pending:
            image.state = "pending"
    with pytest.raises(ConfigError) as caught:
        ec2.image(name="iris")
    lines = caught.value.message.splitlines()
    assert any(foreign in line and "belongs to account 666666666666" in line for line in lines)
    assert any(pending in line and "it is pending" in line for line in lines)
    assert any(sibling in line and "its name is neither" in line for line in lines)
    assert "something-else" not in caught.value.message
    assert "ami_image_name" in caught.value.message


def test_an_image_given_by_id(ec2: Ec2, raw: Any) -> None:
    given = make_image(raw, "whatever")
    assert ec2.image(image_id=given, name="iris").id == given
    with pytest.raises(ConfigError, match=r"t4g.medium \(arm64\) cannot run"):
        ec2.image(image_id=given, types=["t3.medium", "t4g.medium"])
    with pytest.raises(ConfigError, match="there is no image ami-0123"):
        ec2.image(image_id="ami-0123")
    for image in moto_images():
        image.state = "pending"
    with pytest.raises(ConfigError, match="is pending; wait"):
        ec2.image(image_id=given)


def test_types_subnets_and_groups_that_do_not_exist_name_their_key(ec2: Ec2, raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"instance_type: eu-west-1 has no t9\.huge"):
        ec2.instance_types(["t3.medium", "t9.huge"])
    assert [(kind.name, kind.vcpus) for kind in ec2.instance_types(["m5.large", "t3.medium"])] == [
        ("m5.large", 2),
        ("t3.medium", 2),
    ]
    zones = ["eu-west-1c", "eu-west-1a"]
    assert [place.zone for place in ec2.subnets(zones=zones)] == zones
    ids = [place.id for place in ec2.subnets()][::-1]
    assert [place.id for place in ec2.subnets(ids=ids)] == ids
    with pytest.raises(ConfigError, match="subnets: eu-west-1 has no subnet subnet-0"):
        ec2.subnets(ids=[*ids, "subnet-0"])
    with pytest.raises(ConfigError, match=r"zones: .*eu-west-9x"):
        ec2.subnets(zones=["eu-west-9x"])
    with pytest.raises(ConfigError, match=r"security_group: vpc-\w+ has no group 'lost'; it has default"):
        ec2.security_group("lost")


def test_a_group_is_looked_for_in_the_vpc_of_the_subnets(ec2: Ec2, raw: Any) -> None:
    vpc = raw.create_vpc(CidrBlock="127.16.0.0/16")["Vpc"]["VpcId"]
    subnet = raw.create_subnet(VpcId=vpc, CidrBlock="127.16.1.0/24")["Subnet"]["SubnetId"]
    elsewhere = raw.create_security_group(GroupName="ramp", Description="d")["GroupId"]
    group = raw.create_security_group(GroupName="ramp", Description="d", VpcId=vpc)["GroupId"]
    places = ec2.subnets(ids=[subnet])
    assert ec2.security_group("ramp", places) == group
    assert ec2.security_group(group, places) == group
    assert ec2.security_group("ramp") == elsewhere
    with pytest.raises(ConfigError, match="several VPCs"):
        ec2.security_group("ramp", places + ec2.subnets())
    with pytest.raises(ConfigError, match="security_group"):
        ec2.security_group(elsewhere, places)


def test_no_default_vpc_is_told_by_its_key(ec2: Ec2, raw: Any) -> None:
    vpc = raw.describe_vpcs()["Vpcs"][0]["VpcId"]
    for subnet in raw.describe_subnets()["Subnets"]:
        raw.delete_subnet(SubnetId=subnet["SubnetId"])
    raw.delete_vpc(VpcId=vpc)
    with pytest.raises(ConfigError, match="no default VPC; name subnets"):
        ec2.security_group("default")
    assert ec2.subnets() == []


def test_one_that_is_protected_spares_nobody_else(ec2: Ec2, spec: LaunchSpec) -> None:
    launched = ec2.run_instances(spec, Pool(instance_type="t3.medium"), count=3, token=FIRST, tags=tags_for(3))
    ids = sorted(each.id for each in launched)
    protect = {"InstanceId": ids[1], "DisableApiTermination": {"Value": True}}
    ec2._session.call("ec2", "modify_instance_attribute", **protect)  # noqa: SLF001 - somebody does it in the console

    with pytest.raises(AwsError) as told:
        ec2.terminate([*ids, "i-00000000000000001"])
    assert told.value.fields["code"] == "OperationNotPermitted"
    states = {each.id: each.state for each in ec2.describe(ids=ids)}
    assert states == {ids[0]: "terminated", ids[1]: "running", ids[2]: "terminated"}
