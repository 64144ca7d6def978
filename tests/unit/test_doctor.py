"""What doctor says of an event on EC2, asked of moto in this process: when all is well, and when one thing is not."""

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from runner.aws.doctor import AwsDoctor
from runner.aws.session import AwsSession, classified
from runner.errors import AwsError, LaunchStopped
from runner.findings import Finding, State, check_by, report
from runner.stack import StackOutputs, write
from runner.transport.ssh import new_host_key

REGION = "eu-west-1"
OUR_ADDRESS = "203.0.113.7"


# Made once, since boto3 reads a megabyte of EC2's model for each; what is in moto's AWS is new for every test.
CLIENT = lru_cache(lambda: boto3.client("ec2", region_name=REGION))
SESSION = lru_cache(lambda: AwsSession(region_name=REGION))


class Sessions:
    """Makes the ways to AWS: moto's, but for what moto does not have."""

    def __init__(self) -> None:
        self.make: Callable[[], AwsSession] = SESSION
        self.quotas: dict[str, float] = {"L-1216C47A": 32, "L-34B43A08": 32}
        self.refused: dict[str, AwsError | LaunchStopped] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, config: Mapping[str, Any]) -> AwsSession:
        real = self.make()
        sessions = self

        class Session(AwsSession):
            def call(self, service: str, operation: str, *, repeats: bool = True, **parameters: Any) -> dict[str, Any]:
                sessions.asked.append((operation, parameters))
                if operation in sessions.refused:
                    raise sessions.refused[operation]
                if service == "service-quotas":
                    return {"Quota": {"Value": sessions.quotas[parameters["QuotaCode"]]}}
                if operation == "run_instances":
                    parameters["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = 8  # moto does not take the image's
                return real.call(service, operation, repeats=repeats, **parameters)

        return Session(region_name=config["region_name"])


class Event:
    """An event on EC2 in which all is well, until a test changes it."""

    def __init__(self, folder: Path) -> None:
        self.ec2 = CLIENT()
        self.folder = folder
        self.sessions = Sessions()
        key = new_host_key()
        self.key = folder / "iris.pem"
        self.key.write_text(key.private)
        self.key.chmod(0o600)
        self.ec2.import_key_pair(KeyName="iris", PublicKeyMaterial=key.public.encode())
        self.vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = self.ec2.create_security_group(GroupName="ramp", Description="x", VpcId=self.vpc)
        self.group = group["GroupId"]
        self.allow("203.0.113.0/24")
        started = self.ec2.run_instances(ImageId="ami-0123abcd", MinCount=1, MaxCount=1)["Instances"][0]
        name = "iris 2026-11-02T10-00-00.000Z"
        self.image = self.ec2.create_image(InstanceId=started["InstanceId"], Name=name)["ImageId"]
        self.ec2.terminate_instances(InstanceIds=[started["InstanceId"]])
        self.config: dict[str, Any] = {
            "event_name": "iris",
            "event_uid": "0123",
            "timeout": 7200,
            "access_key_id": None,
            "secret_access_key": None,
            "profile_name": None,
            "region_name": REGION,
            "ami_image_name": "iris",
            "ami_image_id": None,
            "require_accepted": False,
            "instance_type": "t3.medium",
            "use_spot_instance": False,
            "on_demand_fallback": True,
            "subnets": [],
            "zones": [],
            "security_group": "ramp",
            "key_name": "iris",
            "key_path": str(self.key),
            "instance_profile": None,
            "launch_template": None,
            "owner": None,
            "ssh_port": 22,
            "remote_ramp_kit_folder": "/home/ubuntu/iris",
            "max_event_cost": None,
            "instances_reused": 1,
            "keep_failed_minutes": 0,
            "prices": {},
            "stack_outputs": str(folder / "stack.json"),
        }

    def allow(self, network: str, port: int = 22) -> None:
        """Let a network in."""
        ranges = {"Ipv6Ranges": [{"CidrIpv6": network}]} if ":" in network else {"IpRanges": [{"CidrIp": network}]}
        rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **ranges}
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[rule])

    def allow_nobody(self) -> None:
        """Take every rule away."""
        rules = self.ec2.describe_security_groups(GroupIds=[self.group])["SecurityGroups"][0]["IpPermissions"]
        self.ec2.revoke_security_group_ingress(GroupId=self.group, IpPermissions=rules)

    def findings(self, **options: Any) -> list[Finding]:
        """Ask the doctor."""
        given = {"address": ipaddress.ip_address(OUR_ADDRESS), "n_workers": 4, **options}
        return list(AwsDoctor(self.config, connect=self.sessions, **given).findings())

    def of(self, name: str, **options: Any) -> Finding:
        """Return the first finding of one check."""
        return next(finding for finding in self.findings(**options) if finding.name == name)


@pytest.fixture
def event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with mock_aws():
        yield Event(tmp_path)


NAMES = [
    "stack outputs",
    "credentials",
    "region",
    "image",
    "key file",
    "key pair",
    "subnets",
    "security group",
    "instance types",
    "quota",
    "rights",
    "cost",
    "kit folder",
]


def states(findings: list[Finding]) -> dict[str, State]:
    return {finding.name: finding.state for finding in findings}


# -- all is well -----------------------------------------------------------------------------------------------------


def test_an_event_in_which_all_is_well(event: Event) -> None:
    findings = event.findings()

    assert [finding.name for finding in findings] == NAMES
    assert {finding.state for finding in findings[:-1]} == {State.OK}
    found = {finding.name: finding.found for finding in findings}
    assert found["credentials"] == "account 123456789012, arn:aws:sts::123456789012:user/moto"
    assert found["region"] == "eu-west-1, zones eu-west-1a, eu-west-1b, eu-west-1c"
    assert f"{event.image}, 'iris 2026-11-02T10-00-00.000Z'" in found["image"]
    assert found["key pair"].endswith("; key_path is its private key")
    assert found["security group"] == (
        f"{event.group} (ramp) lets in on port 22: 203.0.113.0/24; this machine is 203.0.113.7"
    )
    assert found["quota"] == (
        "on-demand: n_workers 4 x t3.medium = 8 vCPUs, of 32 for all that runs in the account (L-1216C47A)"
    )
    assert found["cost"].startswith("4 x USD 0.0456 an hour on demand: at most USD 0.36 for trainings ")
    assert findings[-1].state is State.UNKNOWN
    assert findings[-1].next == "--launch starts one, and ends it"


def test_it_launches_nothing_and_changes_nothing(event: Event) -> None:
    event.findings()

    alive = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    assert event.ec2.describe_instances(Filters=alive)["Reservations"] == []
    changing = [(operation, given) for operation, given in event.sessions.asked if not operation.startswith(READING)]
    assert [(operation, given["DryRun"]) for operation, given in changing] == [("run_instances", True)]
    assert list(event.folder.iterdir()) == [event.key]


READING = ("describe_", "get_")


def test_the_report(event: Event) -> None:
    found = report("iris", event.findings())

    assert (found["event"], found["ok"]) == ("iris", True)
    assert found["checks"][1] == {
        "name": "credentials",
        "state": "ok",
        "found": "account 123456789012, arn:aws:sts::123456789012:user/moto",
        "next": None,
    }
    wrong = Finding(name="x", state=State.WRONG, found="y", next="z")
    assert report(None, [wrong]) == {
        "event": None,
        "ok": False,
        "checks": [{"name": "x", "state": "wrong", "found": "y", "next": "z"}],
    }


def test_a_look_that_fails_is_wrong() -> None:
    def look() -> str:
        msg = "there is no kit; give one"
        raise AwsError(msg, detail="looked in /x", code="X")

    assert check_by("worker", look) == Finding(
        name="worker", state=State.WRONG, found="there is no kit; give one\nlooked in /x"
    )
    assert check_by("worker", lambda: "all is there").state is State.OK


# -- one thing is not ------------------------------------------------------------------------------------------------


def broken_stack(event: Event) -> None:
    Path(event.config["stack_outputs"]).write_text("{")


def other_pair(event: Event) -> None:
    event.ec2.delete_key_pair(KeyName="iris")
    event.ec2.import_key_pair(KeyName="iris", PublicKeyMaterial=new_host_key().public.encode())


def elsewhere(event: Event) -> None:
    vpc = event.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = event.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24", AvailabilityZone="eu-west-1a")
    event.config["subnets"] = [subnet["Subnet"]["SubnetId"]]


def two_networks(event: Event) -> None:
    elsewhere(event)
    default = event.ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][0]
    event.config["subnets"].append(default["SubnetId"])


def refuse(operation: str, code: str, text: str) -> Callable[[Event], None]:
    def change(event: Event) -> None:
        event.sessions.refused[operation] = classified(code, text, operation)  # type: ignore[assignment]

    return change


def set_keys(**keys: Any) -> Callable[[Event], None]:
    return lambda event: event.config.update(keys)


WRONG = [
    pytest.param(broken_stack, "stack outputs", "stack.json: is no JSON; write it anew", id="stack is no JSON"),
    pytest.param(
        refuse("get_caller_identity", "ExpiredToken", "The token has expired"),
        "credentials",
        "AWS does not accept the credentials (ExpiredToken)",
        id="expired token",
    ),
    pytest.param(set_keys(zones=["eu-west-1z"]), "region", "eu-west-1 has no zone eu-west-1z for", id="no such zone"),
    pytest.param(set_keys(ami_image_name="iri"), "image", "has no available image named 'iri'", id="no image"),
    pytest.param(
        set_keys(key_path=None), "key file", "key_path is not set; set it to the private key file", id="no key file"
    ),
    pytest.param(lambda event: event.key.chmod(0o644), "key file", "can be read by others; run: chmod", id="open key"),
    pytest.param(lambda event: event.key.unlink(), "key file", "cannot be found; set key_path", id="key file gone"),
    pytest.param(set_keys(key_name=None), "key pair", "key_name is not set; set it to the name of", id="no key name"),
    pytest.param(set_keys(key_name="nobody"), "key pair", "InvalidKeyPair.NotFound", id="no such key pair"),
    pytest.param(other_pair, "key pair", "key_path is the private key of another pair", id="another key pair"),
    pytest.param(
        set_keys(security_group=None), "security group", "security_group is not set; set it to a", id="no group"
    ),
    pytest.param(set_keys(security_group="nobody"), "security group", "has no group 'nobody'", id="no such group"),
    pytest.param(lambda event: event.allow_nobody(), "security group", "on port 22: nobody", id="closed group"),
    pytest.param(set_keys(ssh_port=2222), "security group", "on port 2222: nobody", id="other port"),
    pytest.param(elsewhere, "security group", "has no group 'ramp'", id="subnet of another network"),
    pytest.param(two_networks, "security group", "they lie in several VPCs", id="subnets of two networks"),
    pytest.param(
        set_keys(subnets=["subnet-0123abcd"]), "subnets", "has no subnet subnet-0123abcd", id="no such subnet"
    ),
    pytest.param(
        set_keys(instance_type="t3.huge"), "instance types", "t3.huge does not exist in eu-west-1", id="no such type"
    ),
    pytest.param(
        set_keys(instance_type="t4g.medium"), "instance types", "t4g.medium is arm64, the image x86_64", id="arm"
    ),
    pytest.param(
        lambda event: event.sessions.quotas.update({"L-1216C47A": 5}), "quota", "= 8 vCPUs, of 5 for all", id="quota"
    ),
    pytest.param(
        refuse("run_instances", "UnauthorizedOperation", "You are not authorized"),
        "rights",
        "these credentials may not call run_instances (UnauthorizedOperation)",
        id="no rights",
    ),
    pytest.param(
        set_keys(max_event_cost=5.0, instance_type="a1.medium"),
        "cost",
        "the price of a1.medium is not known, so max_event_cost cannot hold",
        id="cost without a price",
    ),
]


@pytest.mark.parametrize(("break_it", "name", "said"), WRONG)
def test_one_thing_is_wrong_and_the_others_are_still_looked_at(
    event: Event, break_it: Callable[[Event], None], name: str, said: str
) -> None:
    break_it(event)

    findings = event.findings()

    wrong = [finding for finding in findings if finding.name == name and finding.state is State.WRONG]
    assert said in wrong[0].found
    assert wrong[0].next or ";" in wrong[0].found, "a trouble says what to do"
    assert [each for each in dict.fromkeys(finding.name for finding in findings)] == NAMES
    told = [finding.found for finding in findings if finding.state is State.WRONG]
    assert len(told) == len(set(told)), "one trouble is told once"


def test_what_depends_on_a_trouble_points_to_it(event: Event) -> None:
    event.config["security_group"] = "nobody"
    findings = {finding.name: finding for finding in event.findings()}

    assert findings["security group"].state is State.WRONG
    assert findings["subnets"].state is State.OK
    assert findings["rights"].state is State.UNKNOWN
    assert findings["rights"].found == "could not be looked at; see security group"


def test_without_a_region_nothing_is_asked(event: Event) -> None:
    event.config["region_name"] = None
    findings = event.findings()

    assert "region_name is not set; set it to a region" in next(
        each.found for each in findings if "redent" in each.name
    )
    assert states(findings)["key file"] is State.OK
    assert event.sessions.asked == []


def test_without_credentials_all_else_points_there(event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    event.sessions.make = lambda: AwsSession(region_name=REGION)
    findings = {finding.name: finding for finding in event.findings()}

    assert "AWS credentials are missing or have expired" in findings["credentials"].found
    assert findings["image"].found == "could not be looked at; see credentials"
    assert findings["key file"].state is State.OK
    assert [name for name, finding in findings.items() if finding.state is State.WRONG] == ["credentials"]


# -- the way in ------------------------------------------------------------------------------------------------------


def networks(*texts: str) -> list[Any]:
    return [ipaddress.ip_address(text) for text in texts]


def test_a_group_that_is_open_to_the_world(event: Event) -> None:
    event.allow("0.0.0.0/0")
    found = event.of("security group")
    assert found.state is State.WARNING
    assert "0.0.0.0/0, 203.0.113.0/24, which is the whole world" in found.found
    assert found.next.startswith(f"aws ec2 authorize-security-group-ingress --group-id {event.group} ")


def test_an_address_that_the_group_does_not_know(event: Event) -> None:
    found = event.of("security group", address=ipaddress.ip_address("198.51.100.1"))
    assert found.state is State.WRONG
    assert found.next.endswith("--protocol tcp --port 22 --cidr YOUR.PUBLIC.ADDRESS/32")


def test_without_an_address_the_machines_own_are_tried(event: Event) -> None:
    assert event.of("security group", address=None, local_addresses=networks("10.0.0.1", "203.0.113.9")).found.endswith(
        "this machine is 203.0.113.9"
    )
    unknown = event.of("security group", address=None, local_addresses=networks("10.0.0.1", "2001:db8::1"))
    assert unknown.state is State.UNKNOWN
    assert unknown.next == "give --address YOUR.PUBLIC.ADDRESS"


def test_networks_of_both_kinds(event: Event) -> None:
    event.allow("2001:db8::/32")
    assert event.of("security group", address=ipaddress.ip_address("2001:db8::7")).state is State.OK
    assert event.of("security group", address=ipaddress.ip_address("2001:db9::7")).state is State.WRONG


def test_other_groups_and_ports_are_no_way_in(event: Event) -> None:
    event.allow_nobody()
    event.allow("203.0.113.0/24", port=80)
    assert event.of("security group").state is State.WRONG
    pairs = [{"GroupId": event.group}]
    rule = {"IpProtocol": "tcp", "FromPort": 20, "ToPort": 30, "UserIdGroupPairs": pairs}
    event.ec2.authorize_security_group_ingress(GroupId=event.group, IpPermissions=[rule])
    found = event.of("security group", address=None)
    assert found.state is State.UNKNOWN
    assert f"on port 22: members of {event.group};" in found.found


def test_a_rule_for_everything_counts(event: Event) -> None:
    event.allow_nobody()
    rule = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    event.ec2.authorize_security_group_ingress(GroupId=event.group, IpPermissions=[rule])
    assert event.of("security group").state is State.OK


# -- room and cost ---------------------------------------------------------------------------------------------------


def test_spot_and_its_fallback_have_a_quota_each(event: Event) -> None:
    event.config["use_spot_instance"] = True
    event.sessions.quotas["L-1216C47A"] = 6
    found = [finding for finding in event.findings() if finding.name == "quota"]
    assert [(finding.state, finding.found.split(":")[0]) for finding in found] == [
        (State.OK, "spot"),
        (State.WARNING, "on-demand"),
    ]
    assert found[1].next == "n_workers: 3, or ask for more in Service Quotas"
    event.config["on_demand_fallback"] = False
    assert [finding.state for finding in event.findings() if finding.name == "quota"] == [State.OK]


def test_a_quota_below_one_instance(event: Event) -> None:
    event.sessions.quotas["L-1216C47A"] = 1
    assert event.of("quota").next == "another instance type, or ask for more in Service Quotas"


def test_types_of_several_families_count_apart(event: Event) -> None:
    event.config["instance_type"] = ["t3.medium", "c5.large", "g4dn.xlarge", "m5.xlarge"]
    event.sessions.quotas["L-DB2E81BA"] = 0
    found = {
        finding.found.partition(" = ")[0]: finding.state for finding in event.findings() if finding.name == "quota"
    }
    assert found == {
        "on-demand: n_workers 4 x t3.medium": State.OK,
        "on-demand: n_workers 4 x c5.large": State.OK,
        "on-demand: n_workers 4 x g4dn.xlarge": State.WRONG,
        "on-demand: n_workers 4 x m5.xlarge": State.OK,
    }


def test_a_quota_that_cannot_be_read_is_no_failure(event: Event) -> None:
    refuse("get_service_quota", "AccessDeniedException", "no")(event)
    found = event.of("quota")
    assert found.state is State.UNKNOWN
    assert "the quota L-1216C47A could not be read" in found.found


def test_one_type_that_works_is_enough(event: Event) -> None:
    event.config["instance_type"] = ["t3.huge", "t3.medium", "t4g.medium"]
    found = [
        (finding.state, finding.found.split()[0]) for finding in event.findings() if finding.name == "instance types"
    ]
    assert found == [(State.OK, "t3.medium"), (State.WARNING, "t3.huge"), (State.WARNING, "t4g.medium")]


def test_cost_with_a_limit_and_prices_of_ones_own(event: Event) -> None:
    event.config.update(max_event_cost=20.0, prices={"t3.medium": 0.5}, timeout=3600)
    assert event.of("cost") == Finding(
        name="cost",
        state=State.OK,
        # 110 minutes: 10 to boot, 60 to train, 15 for transfers, 10 to spare; 10 before the timer, 5 to shut down
        found="4 x USD 0.5 an hour on demand: at most USD 2.00 for trainings up to the time limit, USD 3.67 if only "
        "their timers end the instances; max_event_cost: USD 20",
    )


@pytest.mark.parametrize(
    ("limit", "state", "advice"),
    [
        (3.67, State.OK, ""),
        (3.0, State.WARNING, "it lets 3 instances run at once; raise it to 3.67 or more"),
        (0.9, State.WRONG, "it lets no instances run at once; raise it to 3.67 or more"),
    ],
)
def test_a_limit_that_is_too_low(event: Event, limit: float, state: State, advice: str) -> None:
    event.config.update(max_event_cost=limit, prices={"t3.medium": 0.5}, timeout=3600)
    assert (event.of("cost").state, event.of("cost").next) == (state, advice)


def test_longer_timers_cost_more(event: Event) -> None:
    event.config.update(prices={"t3.medium": 0.5}, timeout=3600, instances_reused=2, keep_failed_minutes=60)
    # 245 minutes: 10 + 2 x (60 + 15) + 60 + 10, and 15 around
    assert "USD 8.17 if only their timers end the instances; max_event_cost sets no limit" in event.of("cost").found


def test_a_price_that_is_not_known_matters_only_with_a_limit(event: Event) -> None:
    event.config["instance_type"] = "a1.medium"
    assert event.of("cost").state is State.UNKNOWN


# -- the stack, and a launch -----------------------------------------------------------------------------------------


def test_what_the_stack_exports_is_used_and_told(event: Event) -> None:
    event.config.update(region_name=None, security_group=None, key_name=None)
    stack = StackOutputs(region=REGION, security_group=event.group, key_name="iris")
    write(Path(event.config["stack_outputs"]), stack)
    findings = {finding.name: finding for finding in event.findings()}
    assert findings["region"].found.startswith("eu-west-1 (from the stack outputs), zones ")
    assert findings["key pair"].found.startswith("'iris' (from the stack outputs), ")
    assert findings["security group"].found.startswith(f"{event.group} (ramp) (from the stack outputs) lets in ")
    assert {finding.state for finding in findings.values()} == {State.OK, State.UNKNOWN}


def test_a_stack_of_another_region(event: Event) -> None:
    write(Path(event.config["stack_outputs"]), StackOutputs(region="us-west-2", security_group="sg-1"))
    found = event.of("stack outputs")
    assert found.state is State.WARNING
    assert "is of us-west-2 and region_name is eu-west-1, so nothing is taken from it" in found.found


def test_a_launch_says_what_only_an_instance_can_show(event: Event) -> None:
    assert event.of("kit folder", try_launch=lambda: "all is there") == Finding(
        name="kit folder", state=State.OK, found="all is there"
    )

    def fails() -> str:
        msg = "the image has no folder /home/ubuntu/iris; build it anew"
        raise LaunchStopped(msg)

    found = event.of("kit folder", try_launch=fails)
    assert (found.state, found.found) == (State.WRONG, "the image has no folder /home/ubuntu/iris; build it anew")
