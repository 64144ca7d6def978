"""Every resource as somebody would find it in AWS's console, with the defaults and with every option."""

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.errors import ConfigError
from tests.infra.declaring import ACCOUNT, PUBLIC_KEY, SUBNETS, VPC, Declared, Made, StackEvent, run

EXPIRES = datetime.date(2099, 6, 30)
TAGS = {
    "ramp-cloud:project": "ramp-cloud",
    "ramp-cloud:event": "iris",
    "ramp-cloud:owner": f"iris/{ACCOUNT}",
    "ramp-cloud:expires": EXPIRES.isoformat(),
}
INGRESS, EGRESS = (
    "vpc/securityGroupIngressRule:SecurityGroupIngressRule",
    "vpc/securityGroupEgressRule:SecurityGroupEgressRule",
)
Declare = Callable[..., Declared]


@pytest.fixture(scope="module")
def event(tmp_path_factory: pytest.TempPathFactory) -> StackEvent:
    return StackEvent(tmp_path_factory.mktemp("stack") / "event")


@pytest.fixture
def declare(event: StackEvent) -> Iterator[Declare]:
    """Return what declares the event with keys of `infra`, and of `image` under that name."""
    kept = (dict(event.infra), dict(event.image))

    def with_keys(image: dict[str, Any] | None = None, keys: dict[str, Any] | None = None, **infra: Any) -> Declared:
        event.infra = {**kept[0], "expires": EXPIRES, **infra}
        event.image = {**kept[1], **(image or {})}
        return event.declare(**(keys or {}))

    yield with_keys
    event.infra, event.image = kept


@pytest.fixture(scope="module")
def plain(event: StackEvent) -> Declared:
    """What an event gets that sets nothing but who may come in."""
    return event.declare()


def rules(declared: Declared, kind: str, of: str) -> list[Made]:
    """Return the rules of the group of workers, builders or Dask."""
    return [each for each in declared.all(kind) if each["securityGroupId"].endswith(f"-{of}-id")]


# -- network ---------------------------------------------------------------------------------------------------------


def test_only_the_runner_comes_in_and_only_by_ssh(declare: Declare) -> None:
    made = declare(runner_cidr=["203.0.113.7", "198.51.100.0/24", "2001:db8::/64"])
    found = rules(made, INGRESS, "workers")
    assert {(each["ipProtocol"], each["fromPort"], each["toPort"]) for each in found} == {("tcp", 22, 22)}
    assert [each.inputs.get("cidrIpv4") or each["cidrIpv6"] for each in found] == [
        "203.0.113.7/32",
        "198.51.100.0/24",
        "2001:db8::/64",
    ]
    assert len(found) == len(made.all(INGRESS)), "nothing comes in to the instances that build"


def test_nothing_goes_out_of_workers_unless_it_is_asked_for(plain: Declared, declare: Declare) -> None:
    assert rules(plain, EGRESS, "workers") == []
    found = rules(declare(egress="open"), EGRESS, "workers")
    assert {each.inputs.get("cidrIpv4") or each["cidrIpv6"] for each in found} == {"0.0.0.0/0", "::/0"}
    assert {each["ipProtocol"] for each in found} == {"-1"}


def test_builds_fetch_packages_and_the_kit(plain: Declared, declare: Declare) -> None:
    assert [each["toPort"] for each in rules(plain, EGRESS, "build")] == [443, 80]
    by_ssh = declare(image={"kit": "git@example.org:kit.git", "kit_ref": "1" * 40})
    assert [each["toPort"] for each in rules(by_ssh, EGRESS, "build")] == [443, 80, 22]


def test_groups_have_no_rules_in_themselves_and_lie_in_the_network(plain: Declared) -> None:
    groups = plain.all("ec2/securityGroup:SecurityGroup")
    assert {group.name.rpartition("-")[2] for group in groups} == {"workers", "build"}
    for group in groups:
        assert group["vpcId"] == VPC
        assert "ingress" not in group.inputs
        assert "egress" not in group.inputs
        assert group["description"] != "Managed by Pulumi"
        assert "name" not in group.inputs, "an explicit name would delete the group before there is another"


def test_the_default_network_is_taken_or_a_given_one(plain: Declared, declare: Declare) -> None:
    asked = dict(plain.calls)
    assert asked["aws:ec2/getVpcs:getVpcs"] == {"filters": [{"name": "is-default", "values": ["true"]}]}
    assert plain.outputs["subnets"] == SUBNETS
    given = declare(vpc="vpc-22222222", subnets=["subnet-bbbbbbbb"])
    assert dict(given.calls)["aws:ec2/getVpcs:getVpcs"] == {"filters": [{"name": "vpc-id", "values": ["vpc-22222222"]}]}
    assert given.outputs["subnets"] == {"subnet-bbbbbbbb": "eu-west-1b"}
    assert given.outputs["vpc"] == "vpc-22222222"


def test_names_of_config_are_the_names_in_aws(declare: Declare) -> None:
    made = declare(keys={"security_group": "mine", "key_name": "my key", "launch_template": "my template"})
    assert made.one("ec2/securityGroup:SecurityGroup", "workers")["name"] == "mine"
    assert made.one("ec2/keyPair:KeyPair")["keyName"] == made.outputs["key_name"] == "my key"
    assert made.one("ec2/launchTemplate:LaunchTemplate")["name"] == "my template"
    ids = {"security_group": "sg-01234567", "launch_template": "lt-0123456789"}
    by_id = declare(keys=ids)
    assert "name" not in by_id.one("ec2/securityGroup:SecurityGroup", "workers").inputs
    assert "name" not in by_id.one("ec2/launchTemplate:LaunchTemplate").inputs


# -- login -----------------------------------------------------------------------------------------------------------


def test_the_key_pair_is_made_from_the_public_key(plain: Declared) -> None:
    assert plain.one("ec2/keyPair:KeyPair")["publicKey"] == PUBLIC_KEY


def test_whoever_launches_from_the_template_gets_what_the_runner_would(declare: Declare) -> None:
    template = declare().one("ec2/launchTemplate:LaunchTemplate")
    assert template["metadataOptions"] == {
        "httpEndpoint": "enabled",
        "httpTokens": "required",
        "httpPutResponseHopLimit": 1,
    }
    assert template["instanceInitiatedShutdownBehavior"] == "terminate"
    assert template["blockDeviceMappings"] == [
        {"deviceName": "/dev/sda1", "ebs": {"encrypted": "true", "deleteOnTermination": "true", "volumeType": "gp3"}}
    ]
    assert template["updateDefaultVersion"] is True
    assert len(template["vpcSecurityGroupIds"]) == 1
    assert template["vpcSecurityGroupIds"][0].endswith("-workers-id")
    assert {each["resourceType"]: each["tags"] for each in template["tagSpecifications"]} == {
        "instance": TAGS,
        "volume": TAGS,
        "network-interface": TAGS,
    }
    # The runner chooses subnet, type, image and user data of each launch; the template must not.
    for absent in ("networkInterfaces", "imageId", "instanceType", "userData", "iamInstanceProfile"):
        assert absent not in template.inputs


# -- image -----------------------------------------------------------------------------------------------------------


def test_each_document_is_a_component_of_its_version(plain: Declared, event: StackEvent) -> None:
    place = event.settings().place(account=ACCOUNT, partition="aws")
    plan = event.settings().plan(place)
    assert plan is not None
    # By name: the engine hears of resources that do not need each other in any order.
    components = {each["name"]: each for each in plain.all("imagebuilder/component:Component")}
    assert components.keys() == {f"iris-{document.name}" for document in plan.documents}
    for document in plan.documents:
        component = components[f"iris-{document.name}"]
        assert component["data"] == document.text
        version = f"{document.version.rpartition('.')[0]}.0"
        assert component["version"] == version
        assert component.name == f"iris-{document.name}-{version}"
        assert component["skipDestroy"] is True
    assert f"s3://{plain.outputs['bucket']}/kits/" in components["iris-kit"]["data"]


def test_the_recipe_names_the_components_in_order_and_stays_in_aws(plain: Declared, event: StackEvent) -> None:
    recipe = plain.one("imagebuilder/imageRecipe:ImageRecipe")
    plan = event.settings().plan(event.settings().place(account=ACCOUNT, partition="aws"))
    assert plan is not None
    named = [each["componentArn"].rpartition(":")[2] for each in recipe["components"]]
    assert [name.rpartition("-")[0] for name in named] == [f"iris-{document.name}" for document in plan.documents]
    assert sorted(named) == sorted(each.name for each in plain.all("imagebuilder/component:Component"))
    assert recipe["version"].endswith(".x")
    assert recipe.name == f"iris-recipe-{recipe['version']}"
    assert recipe.retained
    assert recipe["parentImage"].startswith("ssm:/aws/service/canonical/ubuntu/server/24.04/")
    assert recipe["blockDeviceMappings"] == [
        {
            "deviceName": "/dev/sda1",
            "ebs": {"volumeSize": 30, "volumeType": "gp3", "encrypted": "true", "deleteOnTermination": "true"},
        }
    ]


def test_the_root_device_of_a_base_by_id_is_asked(declare: Declare) -> None:
    base = "ami-0123456789abcdef0"
    made = declare(image={"base": base})
    asked = dict(made.calls)["aws:ec2/getAmi:getAmi"]
    assert asked == {"filters": [{"name": "image-id", "values": [base]}]}
    assert made.one("imagebuilder/imageRecipe:ImageRecipe")["blockDeviceMappings"][0]["deviceName"] == "/dev/xvdz"


def test_instances_that_build_are_ended_and_closed(declare: Declare) -> None:
    made = declare()
    found = made.one("imagebuilder/infrastructureConfiguration:InfrastructureConfiguration")
    assert found["terminateInstanceOnFailure"] is True
    assert found["instanceMetadataOptions"] == {"httpTokens": "required", "httpPutResponseHopLimit": 1}
    assert found["instanceProfileName"] == made.outputs["image_profile"]
    assert found["securityGroupIds"][0].endswith("-build-id")
    assert found["subnetId"] == "subnet-aaaaaaaa"
    assert found["instanceTypes"] == ["t3.large"]
    assert found["resourceTags"] == TAGS


def test_images_go_to_every_region_with_name_and_tags(declare: Declare) -> None:
    made = declare(image={"regions": ["eu-west-1", "us-east-1"]})
    found = made.one("imagebuilder/distributionConfiguration:DistributionConfiguration")["distributions"]
    assert [each["region"] for each in found] == ["eu-west-1", "us-east-1"]
    for each in found:
        image = each["amiDistributionConfiguration"]
        assert image["name"] == "iris {{ imagebuilder:buildDate }}"
        assert TAGS.items() <= image["amiTags"].items()
        assert image["amiTags"]["ramp-cloud:image"] == "iris"
        assert len(image["amiTags"]["ramp-cloud:content"]) == 16


def test_the_pipeline_ties_it_together(declare: Declare) -> None:
    made = declare(log_days=7)
    pipeline = made.one("imagebuilder/imagePipeline:ImagePipeline")
    assert pipeline["name"] == "iris"
    assert pipeline["imageRecipeArn"].endswith(made.one("imagebuilder/imageRecipe:ImageRecipe").name)
    assert pipeline["infrastructureConfigurationArn"].endswith("iris-infrastructure")
    assert pipeline["distributionConfigurationArn"].endswith("iris-distribution")
    assert pipeline["imageTestsConfiguration"] == {"imageTestsEnabled": True}
    assert pipeline["loggingConfiguration"] == {"imageLogGroupName": "/aws/imagebuilder/iris"}
    assert "schedule" not in pipeline.inputs
    log = made.one("cloudwatch/logGroup:LogGroup")
    assert (log["name"], log["retentionInDays"]) == ("/aws/imagebuilder/iris", 7)
    kinds = [each.kind for each in made.made]
    assert kinds.index("aws:cloudwatch/logGroup:LogGroup") < kinds.index("aws:imagebuilder/imagePipeline:ImagePipeline")


@pytest.mark.parametrize(
    ("asked", "expression"),
    [
        ("weekly", "cron(0 3 ? * sun *)"),
        ("monthly", "cron(0 3 1 * ? *)"),
        ("cron(0 5 ? * mon-fri *)", "cron(0 5 ? * mon-fri *)"),
    ],
)
def test_aws_builds_by_itself_when_it_is_asked_to(declare: Declare, asked: str, expression: str) -> None:
    made = declare(image={"schedule": asked})
    assert made.one("imagebuilder/imagePipeline:ImagePipeline")["schedule"] == {
        "scheduleExpression": expression,
        "pipelineExecutionStartCondition": "EXPRESSION_MATCH_ONLY",
        "timezone": "Etc/UTC",
    }
    rules = made.one("s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration")["rules"]
    assert [rule["id"] for rule in rules] == ["half-sent"], "the kit is needed for as long as there are builds"


def test_aws_removes_old_images_when_some_are_to_be_kept(declare: Declare) -> None:
    made = declare(image={"keep": 3})
    policy = made.one("imagebuilder/lifecyclePolicy:LifecyclePolicy")
    (detail,) = policy["policyDetails"]
    assert detail["action"] == {"type": "DELETE", "includeResources": {"amis": True, "snapshots": True}}
    assert detail["filter"] == {"type": "COUNT", "value": 3}
    assert detail["exclusionRules"]["amis"] == {"isPublic": False, "lastLaunched": {"unit": "DAYS", "value": 30}}
    assert policy["resourceSelection"] == {"recipes": [{"name": "iris", "semanticVersion": "x.x.x"}]}
    assert policy["resourceType"] == "AMI_IMAGE"
    role = made.one("iam/role:Role", "lifecycle")
    assert "imagebuilder.amazonaws.com" in role["assumeRolePolicy"]
    assert policy["executionRole"].endswith(role.name)
    assert declare(image={"keep": None}).all("imagebuilder/lifecyclePolicy:LifecyclePolicy") == []


def test_another_name_makes_all_of_it_anew_beside_the_old(declare: Declare) -> None:
    names = [
        {each.name for each in made.made if each.kind.startswith(("aws:imagebuilder", "aws:cloudwatch"))}
        for made in (declare(), declare(keys={"ami_image_name": "iris2"}))
    ]
    assert names[0] & names[1] == set()


def test_without_an_image_nothing_builds_one(event: StackEvent) -> None:
    event.has_image = False
    try:
        made = event.declare()
    finally:
        event.has_image = True
    assert [each for each in made.of_aws() if each.kind.startswith(("aws:imagebuilder", "aws:cloudwatch"))] == []
    assert [each.name.rpartition("-")[2] for each in made.all("ec2/securityGroup:SecurityGroup")] == ["workers"]
    assert not {"image_pipeline", "image_profile", "log_group"} & made.outputs.keys()


# -- storage ---------------------------------------------------------------------------------------------------------


def test_the_bucket_is_closed_and_kept(plain: Declared) -> None:
    bucket = plain.one("s3/bucket:Bucket")
    assert bucket["bucket"] == plain.outputs["bucket"]
    assert bucket.protected
    assert bucket["forceDestroy"] is False
    closed = plain.one("s3/bucketPublicAccessBlock:BucketPublicAccessBlock")
    flags = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    assert [closed[flag] for flag in flags] == [True] * 4
    assert plain.one("s3/bucketOwnershipControls:BucketOwnershipControls")["rule"] == {
        "objectOwnership": "BucketOwnerEnforced"
    }
    encrypted = plain.one("s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration")
    assert encrypted["rules"][0]["applyServerSideEncryptionByDefault"] == {"sseAlgorithm": "AES256"}
    policy = json.loads(plain.one("s3/bucketPolicy:BucketPolicy")["policy"])
    (statement,) = policy["Statement"]
    arn = f"arn:aws:s3:::{bucket['bucket']}"
    assert statement["Resource"] == [arn, f"{arn}/*"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_what_is_in_the_bucket_expires(declare: Declare) -> None:
    rules = declare(bucket_days=14).one("s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration")["rules"]
    assert {rule["id"]: rule["status"] for rule in rules} == {"half-sent": "Enabled", "old": "Enabled"}
    assert rules[1]["expiration"] == {"days": 14}
    assert rules[0]["abortIncompleteMultipartUpload"] == {"daysAfterInitiation": 7}


def test_a_secret_has_a_place_and_no_value(declare: Declare, plain: Declared) -> None:
    assert plain.all("secretsmanager/secret:Secret") == []
    image = {"data": "osf", "data_secret": "ramp/iris/osf"}
    secret = declare(image=image, make_secret=True).one("secretsmanager/secret:Secret")
    assert (secret["name"], secret["recoveryWindowInDays"], secret.protected) == ("ramp/iris/osf", 30, True)
    made = declare(image=image, make_secret=True, force=True)
    secret = made.one("secretsmanager/secret:Secret")
    assert (secret["recoveryWindowInDays"], secret.protected) == (0, False)
    assert made.all("secretsmanager/secretVersion:SecretVersion") == []


def test_force_lets_everything_go(declare: Declare) -> None:
    made = declare(force=True)
    assert made.one("s3/bucket:Bucket")["forceDestroy"] is True
    assert [each.name for each in made.of_aws() if each.protected] == []


# -- options ---------------------------------------------------------------------------------------------------------


def test_a_budget_tells_by_mail(declare: Declare, plain: Declared) -> None:
    assert plain.all("budgets/budget:Budget") == []
    budget = declare(budget_usd=25.5, budget_mail="me@example.org").one("budgets/budget:Budget")
    assert (budget["limitAmount"], budget["limitUnit"], budget["timeUnit"]) == ("25.50", "USD", "MONTHLY")
    assert budget["costFilters"] == [{"name": "TagKeyValue", "values": ["user:ramp-cloud:event$iris"]}]
    alarms = {(each["notificationType"], each["threshold"]): each for each in budget["notifications"]}
    assert alarms.keys() == {("ACTUAL", 80), ("FORECASTED", 100)}
    assert {each["subscriberEmailAddresses"][0] for each in alarms.values()} == {"me@example.org"}


def test_dask_reaches_itself_alone(declare: Declare, plain: Declared) -> None:
    assert plain.all("ecs/cluster:Cluster") == []
    made = declare(dask=True)
    group = made.outputs["dask_security_group"]
    (inside,) = rules(made, INGRESS, "dask")
    assert inside["referencedSecurityGroupId"] == inside["securityGroupId"] == group
    assert not {"cidrIpv4", "cidrIpv6"} & inside.inputs.keys()
    (out,) = rules(made, EGRESS, "dask")
    assert out["referencedSecurityGroupId"] == group
    assert not {"cidrIpv4", "cidrIpv6"} & out.inputs.keys()
    assert rules(made, INGRESS, "containers") == []
    (https,) = rules(made, EGRESS, "containers")
    assert (https["fromPort"], https["toPort"], https["cidrIpv4"]) == (443, 443, "0.0.0.0/0")
    assert made.outputs["dask_cluster"].endswith(made.one("ecs/cluster:Cluster").name)


GUARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "imdsv2": (
        "ec2/instanceMetadataDefaults:InstanceMetadataDefaults",
        {"httpTokens": "required", "httpPutResponseHopLimit": 1},
    ),
    "private-images": ("ec2/imageBlockPublicAccess:ImageBlockPublicAccess", {"state": "block-new-sharing"}),
    "allowed-images": (
        "ec2/allowedImagesSettings:AllowedImagesSettings",
        {"state": "enabled", "imageCriterions": [{"imageProviders": ["amazon", "099720109477"]}]},
    ),
    "allowed-images-audit": (
        "ec2/allowedImagesSettings:AllowedImagesSettings",
        {"state": "audit-mode", "imageCriterions": [{"imageProviders": ["amazon", "099720109477"]}]},
    ),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_account_is_guarded_only_as_config_says(declare: Declare, plain: Declared, guard: str) -> None:
    kind, expected = GUARDS[guard]
    made = declare(guards=[guard])
    assert made.one(kind).inputs.items() >= expected.items()
    kinds = {kind for kind, _ in GUARDS.values()}
    assert [each.kind for each in made.of_aws() if each.kind.removeprefix("aws:") in kinds] == [f"aws:{kind}"]
    assert [each.kind for each in plain.of_aws() if each.kind.removeprefix("aws:") in kinds] == []


def test_subnets_that_are_not_there_are_told(event: StackEvent) -> None:
    event.infra["subnets"] = ["subnet-cccccccc"]
    try:
        with pytest.raises(ConfigError, match=r"infra\.subnets: subnet-cccccccc not in vpc-\w+; correct them"):
            event.declare()
    finally:
        del event.infra["subnets"]
    with pytest.raises(ConfigError, match=r"infra\.vpc: vpc-\w+ has no subnet for instances; make one there"):
        run(event.settings(), subnets={})
    with pytest.raises(ConfigError, match=r"zones: no subnet of vpc-\w+ lies in eu-west-1c; name other zones"):
        run(event.settings(zones=["eu-west-1c"]))


def test_nothing_here_is_called_after_a_path(tmp_path: Path, plain: Declared) -> None:
    """Inputs that differ from machine to machine would be a change on each."""
    for each in plain.of_aws():
        assert str(Path(__file__).parents[2]) not in json.dumps(each.inputs), each.name
        assert str(tmp_path.parent) not in json.dumps(each.inputs), each.name
