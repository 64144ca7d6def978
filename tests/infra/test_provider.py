"""The emulated `aws` provider: every type is made, read, changed, replaced and ended by the provider's own rules."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from botocore.exceptions import ClientError
from google.protobuf import struct_pb2
from pulumi.runtime import MockResourceArgs
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from runner.rehearsal.faults import CallRefused
from tests.infra.engine import Engine, EngineFailed
from tests.infra.mocks import EmulatedMocks
from tests.infra.provider.rules import UNKNOWN, resources
from tests.infra.provider.server import Provider, server, values
from tests.infra.provider.services.base import Account, Refused
from tests.rehearsing import Cloud

DEFAULT_TAGS = {"ramp-cloud:event": "iris"}
BASE = "ami-0123456789abcdef0"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgEA"
TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}],
    }
)


def document(word: str) -> str:
    """Return a component's document."""
    return json.dumps(
        {
            "schemaVersion": 1.0,
            "phases": [
                {
                    "name": "build",
                    "steps": [{"name": "say", "action": "ExecuteBash", "inputs": {"commands": [f"echo {word}"]}}],
                }
            ],
        }
    )


def policy(action: str) -> str:
    """Return a policy's document."""
    statement = {"Effect": "Allow", "Action": action, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class Wire:
    """The provider over gRPC, as the engine talks to it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = provider_pb2_grpc.ResourceProviderStub(channel)  # type: ignore[no-untyped-call]  # pulumi's stubs have no types here

    def configure(self, **settings: str) -> None:
        """Configure it."""
        self._stub.Configure(provider_pb2.ConfigureRequest(args=struct(settings)))

    def checked(self, kind: str, given: dict[str, Any], known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return checked inputs; ValueError with the reasons if they are refused."""
        answer = self._stub.Check(
            provider_pb2.CheckRequest(
                urn=urn(kind), news=struct(given), olds=struct(known or {}), randomSeed=b"seed of chance"
            )
        )
        if answer.failures:
            raise ValueError("; ".join(f"{each.property}: {each.reason}" for each in answer.failures))
        return values(answer.inputs)

    def diff(self, kind: str, old: dict[str, Any], new: dict[str, Any]) -> Any:
        """Return what would change."""
        return self._stub.Diff(
            provider_pb2.DiffRequest(urn=urn(kind), id="x", old_inputs=struct(old), olds=struct(old), news=struct(new))
        )

    def create(self, kind: str, inputs: dict[str, Any], *, preview: bool = False) -> tuple[str, dict[str, Any]]:
        """Make it; return id and state."""
        request = provider_pb2.CreateRequest(urn=urn(kind), properties=struct(inputs), preview=preview)
        answer = self._stub.Create(request)
        return answer.id, values(answer.properties)

    def read(
        self, kind: str, name: str, inputs: dict[str, Any], state: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return id ("" when it is gone), inputs and state."""
        answer = self._stub.Read(
            provider_pb2.ReadRequest(urn=urn(kind), id=name, inputs=struct(inputs), properties=struct(state))
        )
        return answer.id, values(answer.inputs), values(answer.properties)

    def update(
        self, kind: str, name: str, old: dict[str, Any], state: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        """Change it; return its state."""
        answer = self._stub.Update(
            provider_pb2.UpdateRequest(
                urn=urn(kind), id=name, olds=struct(state), old_inputs=struct(old), news=struct(new)
            )
        )
        return values(answer.properties)

    def delete(self, kind: str, name: str, state: dict[str, Any]) -> None:
        """End it."""
        self._stub.Delete(provider_pb2.DeleteRequest(urn=urn(kind), id=name, properties=struct(state)))

    def invoke(self, token: str, given: dict[str, Any]) -> dict[str, Any]:
        """Look something up."""
        answer = self._stub.Invoke(provider_pb2.InvokeRequest(tok=token, args=struct(given)))
        if answer.failures:
            raise ValueError("; ".join(f"{each.property}: {each.reason}" for each in answer.failures))
        return values(getattr(answer, "return"))

    def made(self, kind: str, **given: Any) -> tuple[str, dict[str, Any]]:
        """Check and make; return id and state."""
        return self.create(kind, self.checked(kind, given))


def urn(kind: str) -> str:
    """Return the name of a resource in a stack."""
    return f"urn:pulumi:test::ramp-cloud::{kind}::thing"


def struct(given: dict[str, Any]) -> struct_pb2.Struct:
    """Return values as they are sent."""
    made = struct_pb2.Struct()
    made.update(given)
    return made


@pytest.fixture(scope="module")
def _channel(_cloud: Cloud) -> Iterator[Wire]:
    running, port = server(Provider(_cloud.aws.environment))
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Wire(channel)
    finally:
        running.stop(None).wait()


@pytest.fixture
def wire(_channel: Wire, cloud: Cloud) -> Wire:
    """Return a provider with default tags in an account as new, with one base image and one profile."""
    cloud.aws.seed(images=[{"name": "base", "id": BASE}], instance_profile="builder", bucket="kept")
    _channel.configure(region="eu-west-3", defaultTags=json.dumps({"tags": DEFAULT_TAGS}))
    return _channel


# -- every type --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One type of resource: how it is made, one change in place, one that replaces."""

    kind: str
    given: dict[str, Any]
    update: dict[str, Any] = field(default_factory=dict)
    replace: dict[str, Any] = field(default_factory=dict)
    before: tuple[tuple[str, str, dict[str, Any]], ...] = ()  # (name, type, inputs): {name.property} refers to them
    stays: bool = False  # deleting it leaves it as it was


GROUP = ("group", "aws:ec2/securityGroup:SecurityGroup", {"name": "workers"})
ROLE = ("role", "aws:iam/role:Role", {"name": "worker", "assumeRolePolicy": TRUST})
BUCKET = ("bucket", "aws:s3/bucket:Bucket", {"bucket": "an-event"})
COMPONENT = (
    "component",
    "aws:imagebuilder/component:Component",
    {"name": "kit", "platform": "Linux", "version": "1.0.0", "data": document("a")},
)
RECIPE = (
    "recipe",
    "aws:imagebuilder/imageRecipe:ImageRecipe",
    {"name": "iris", "version": "1.2.x", "parentImage": BASE, "components": [{"componentArn": "{component.arn}"}]},
)
INFRASTRUCTURE = (
    "infrastructure",
    "aws:imagebuilder/infrastructureConfiguration:InfrastructureConfiguration",
    {"name": "iris", "instanceProfileName": "builder"},
)
FILTER = {"type": "COUNT", "value": 3}
CASES = [
    Case(
        kind=COMPONENT[1],
        given=COMPONENT[2] | {"tags": {"a": "b"}},
        update={"tags": {"a": "c"}},
        replace={"description": "other"},
    ),
    Case(
        kind=RECIPE[1],
        given=RECIPE[2]
        | {
            "blockDeviceMappings": [
                {
                    "deviceName": "/dev/sda1",
                    "ebs": {"volumeSize": 12, "volumeType": "gp3", "encrypted": "true", "deleteOnTermination": "true"},
                }
            ]
        },
        update={"tags": {"x": "y"}},
        replace={"version": "1.3.x"},
        before=(COMPONENT,),
    ),
    Case(
        kind=INFRASTRUCTURE[1],
        given=INFRASTRUCTURE[2] | {"instanceMetadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1}},
        update={"instanceTypes": ["t3.medium"]},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:imagebuilder/distributionConfiguration:DistributionConfiguration",
        given={
            "name": "iris",
            "distributions": [
                {
                    "region": "eu-west-3",
                    "amiDistributionConfiguration": {
                        "name": "iris {{ imagebuilder:buildDate }}",
                        "amiTags": {"k": "v"},
                    },
                }
            ],
        },
        update={"description": "now with words"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:imagebuilder/imagePipeline:ImagePipeline",
        given={
            "name": "iris",
            "imageRecipeArn": "{recipe.arn}",
            "infrastructureConfigurationArn": "{infrastructure.arn}",
            "loggingConfiguration": {"imageLogGroupName": "/aws/imagebuilder/iris"},
        },
        update={"schedule": {"scheduleExpression": "cron(0 3 ? * sun *)"}},
        replace={"name": "other"},
        before=(COMPONENT, RECIPE, INFRASTRUCTURE),
    ),
    Case(
        kind="aws:imagebuilder/lifecyclePolicy:LifecyclePolicy",
        given={
            "name": "iris",
            "executionRole": "{role.arn}",
            "resourceType": "AMI_IMAGE",
            "policyDetails": [{"action": {"type": "DELETE"}, "filter": FILTER}],
            "resourceSelection": {"recipes": [{"name": "iris", "semanticVersion": "x.x.x"}]},
        },
        update={"policyDetails": [{"action": {"type": "DELETE"}, "filter": {"type": "COUNT", "value": 5}}]},
        replace={"name": "other"},
        before=(ROLE,),
    ),
    Case(
        kind=BUCKET[1],
        given=BUCKET[2] | {"tags": {"a": "b"}},
        update={"forceDestroy": True, "tags": {"a": "c"}},
        replace={"bucket": "another"},
    ),
    Case(
        kind="aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        given={"bucket": "{bucket.bucket}", "blockPublicAcls": True},
        update={"blockPublicPolicy": True},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketPolicy:BucketPolicy",
        given={"bucket": "{bucket.bucket}", "policy": policy("s3:GetObject")},
        update={"policy": policy("s3:PutObject")},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketVersioning:BucketVersioning",
        given={"bucket": "{bucket.bucket}", "versioningConfiguration": {"status": "Enabled"}},
        update={"versioningConfiguration": {"status": "Suspended"}},
        replace={"bucket": "kept"},
        before=(BUCKET,),
        stays=True,
    ),
    Case(
        kind="aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        given={
            "bucket": "{bucket.bucket}",
            "rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}],
        },
        update={
            "rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}, "bucketKeyEnabled": True}]
        },
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        given={
            "bucket": "{bucket.bucket}",
            "rules": [
                {
                    "id": "half-sent",
                    "status": "Enabled",
                    "filter": {"prefix": ""},
                    "abortIncompleteMultipartUpload": {"daysAfterInitiation": 7},
                },
                {"id": "old", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": 90}},
            ],
        },
        update={"rules": [{"id": "old", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": 9}}]},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:s3/bucketOwnershipControls:BucketOwnershipControls",
        given={"bucket": "{bucket.bucket}", "rule": {"objectOwnership": "BucketOwnerEnforced"}},
        update={"rule": {"objectOwnership": "BucketOwnerPreferred"}},
        replace={"bucket": "kept"},
        before=(BUCKET,),
    ),
    Case(
        kind="aws:ec2/keyPair:KeyPair",
        given={"keyName": "organiser", "publicKey": KEY},
        update={"tags": {"a": "b"}},
        replace={"publicKey": OTHER_KEY},
    ),
    Case(
        kind="aws:ec2/launchTemplate:LaunchTemplate",
        given={
            "name": "workers",
            "updateDefaultVersion": True,
            "instanceInitiatedShutdownBehavior": "terminate",
            "metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
            "blockDeviceMappings": [
                {"deviceName": "/dev/sda1", "ebs": {"volumeSize": 20, "volumeType": "gp3", "encrypted": "true"}}
            ],
            "tagSpecifications": [{"resourceType": "instance", "tags": {"ramp-cloud:event": "iris"}}],
            "vpcSecurityGroupIds": ["{group.id}"],
        },
        update={"metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 2}},
        replace={"name": "other"},
        before=(GROUP,),
    ),
    Case(
        kind=GROUP[1],
        given=GROUP[2] | {"revokeRulesOnDelete": True},
        update={"tags": {"Name": "x"}},
        replace={"description": "other"},
    ),
    Case(
        kind="aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
        given={
            "securityGroupId": "{group.id}",
            "ipProtocol": "tcp",
            "fromPort": 22,
            "toPort": 22,
            "cidrIpv4": "192.0.2.0/24",
            "description": "SSH",
        },
        update={"cidrIpv4": "198.51.100.0/24"},
        replace={"cidrIpv4": None, "cidrIpv6": "2001:db8::/64"},
        before=(GROUP,),
    ),
    Case(
        kind="aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule",
        given={
            "securityGroupId": "{group.id}",
            "ipProtocol": "-1",
            "referencedSecurityGroupId": "{group.id}",
            "description": "among them",
        },
        update={"tags": {"Name": "out"}},
        replace={"referencedSecurityGroupId": None, "cidrIpv4": "0.0.0.0/0"},
        before=(GROUP,),
    ),
    Case(
        kind="aws:ec2/imageBlockPublicAccess:ImageBlockPublicAccess",
        given={"state": "block-new-sharing"},
        update={"state": "unblocked"},
        stays=True,
    ),
    Case(
        kind="aws:ec2/instanceMetadataDefaults:InstanceMetadataDefaults",
        given={"httpTokens": "required", "httpPutResponseHopLimit": 1},
        update={"httpPutResponseHopLimit": 2},
        stays=True,
    ),
    Case(
        kind="aws:ec2/allowedImagesSettings:AllowedImagesSettings",
        given={"state": "audit-mode", "imageCriterions": [{"imageProviders": ["amazon", "099720109477"]}]},
        update={"state": "enabled"},
    ),
    Case(
        kind=ROLE[1],
        given=ROLE[2] | {"description": "a"},
        update={"description": "b", "maxSessionDuration": 7200, "tags": {"a": "b"}},
        replace={"path": "/ramp/"},
    ),
    Case(
        kind="aws:iam/rolePolicy:RolePolicy",
        given={"name": "own", "role": "{role.name}", "policy": policy("s3:GetObject")},
        update={"policy": policy("s3:PutObject")},
        replace={"name": "other"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/rolePolicyAttachment:RolePolicyAttachment",
        given={"role": "{role.name}", "policyArn": "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"},
        replace={"policyArn": "arn:aws:iam::aws:policy/EC2InstanceProfileForImageBuilder"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/policy:Policy",
        given={"name": "runner", "policy": policy("ec2:DescribeInstances")},
        update={"policy": policy("ec2:DescribeImages")},
        replace={"description": "other"},
    ),
    Case(
        kind="aws:iam/instanceProfile:InstanceProfile",
        given={"name": "worker", "role": "{role.name}"},
        update={"tags": {"a": "b"}},
        replace={"path": "/ramp/"},
        before=(ROLE,),
    ),
    Case(
        kind="aws:iam/openIdConnectProvider:OpenIdConnectProvider",
        given={"url": "https://token.actions.githubusercontent.com", "clientIdLists": ["sts.amazonaws.com"]},
        update={"clientIdLists": ["sts.amazonaws.com", "other"]},
        replace={"url": "https://example.org"},
    ),
    Case(
        kind="aws:cloudwatch/logGroup:LogGroup",
        given={"name": "/aws/imagebuilder/iris", "retentionInDays": 30},
        update={"retentionInDays": 90, "tags": {"a": "b"}},
        replace={"name": "/aws/imagebuilder/other"},
    ),
    Case(
        kind="aws:secretsmanager/secret:Secret",
        given={"name": "data", "description": "a", "recoveryWindowInDays": 7},
        update={"description": "b"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:ssm/parameter:Parameter",
        given={"name": "/ramp/iris", "type": "String", "value": "a"},
        update={"value": "b"},
        replace={"name": "/ramp/other"},
    ),
    Case(
        kind="aws:budgets/budget:Budget",
        given={
            "name": "iris",
            "budgetType": "COST",
            "limitAmount": "10.00",
            "limitUnit": "USD",
            "timeUnit": "MONTHLY",
            "notifications": [
                {
                    "comparisonOperator": "GREATER_THAN",
                    "notificationType": "ACTUAL",
                    "threshold": 80,
                    "thresholdType": "PERCENTAGE",
                    "subscriberEmailAddresses": ["organiser@example.org"],
                }
            ],
        },
        update={"limitAmount": "20.00"},
        replace={"name": "other"},
    ),
    Case(
        kind="aws:ecs/cluster:Cluster",
        given={"name": "dask"},
        update={"tags": {"a": "b"}},
        replace={"name": "other"},
    ),
]


def filled(value: Any, made: dict[str, dict[str, Any]]) -> Any:
    """Return a value with its references to other resources resolved."""
    if isinstance(value, dict):
        return {key: filled(each, made) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, made) for each in value]
    if isinstance(value, str) and value.startswith("{") and value.endswith("}") and "." in value and ":" not in value:
        name, _, key = value[1:-1].partition(".")
        return made[name][key]
    return value


def test_every_type_of_the_rules_has_a_case() -> None:
    assert {case.kind for case in CASES} == set(resources())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.rpartition(":")[2])
def test_life_of_a_resource(wire: Wire, case: Case) -> None:
    made: dict[str, dict[str, Any]] = {}
    for name, kind, wanted in case.before:
        identity, state = wire.made(kind, **filled(wanted, made))
        made[name] = {**state, "id": identity}
    given = filled(case.given, made)
    inputs = wire.checked(case.kind, given)
    planned = wire.create(case.kind, inputs, preview=True)
    assert planned[0] == ""

    identity, state = wire.create(case.kind, inputs)

    assert identity
    assert UNKNOWN not in json.dumps(state)
    told = {key: value for key, value in inputs.items() if key not in ("__defaults", "version")}
    assert {key: state.get(key) for key in told} == told
    assert not wire.diff(case.kind, inputs, wire.checked(case.kind, given, inputs)).diffs
    assert wire.read(case.kind, identity, inputs, state) == (identity, inputs, state)
    if "tags" in resources()[case.kind].properties:
        assert DEFAULT_TAGS.items() <= state["tagsAll"].items()

    if case.update:
        new = wire.checked(case.kind, {**given, **filled(case.update, made)}, inputs)
        planned_change = wire.diff(case.kind, inputs, new)
        assert planned_change.diffs
        assert not planned_change.replaces
        state = wire.update(case.kind, identity, inputs, state, new)
        inputs = new
        assert wire.read(case.kind, identity, inputs, state) == (identity, inputs, state)

    if case.replace:
        other = {key: value for key, value in {**given, **filled(case.replace, made)}.items() if value is not None}
        change = wire.diff(case.kind, inputs, wire.checked(case.kind, {**other, **_kept(case, inputs)}, inputs))
        assert set(change.replaces) & case.replace.keys()

    wire.delete(case.kind, identity, state)
    wire.delete(case.kind, identity, state)  # what is gone already is no error
    assert case.stays == bool(wire.read(case.kind, identity, inputs, state)[0])


def _kept(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier update has set, so that only the replacing change is seen."""
    return {key: copy.deepcopy(inputs[key]) for key in case.update if key in inputs and key not in case.replace}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_refused(wire: Wire) -> None:
    with pytest.raises(grpc.RpcError, match="knows no resource type aws:ec2/instance:Instance"):
        wire.checked("aws:ec2/instance:Instance", {"ami": BASE})
    with pytest.raises(ValueError, match=r"corsRules: the emulated provider knows no such input"):
        wire.checked(BUCKET[1], BUCKET[2] | {"corsRules": []})
    with pytest.raises(ValueError, match=r"arn: the emulated provider knows no such input"):
        wire.checked(BUCKET[1], BUCKET[2] | {"arn": "arn:aws:s3:::x"})
    with pytest.raises(ValueError, match=r"blockDeviceMappings\[0\]\.ebs\.colour: the emulated provider knows no"):
        wire.checked(RECIPE[1], RECIPE[2] | {"blockDeviceMappings": [{"ebs": {"colour": "red"}}]})
    with pytest.raises(grpc.RpcError, match="knows no function aws:ec2/getInstance:getInstance"):
        wire.invoke("aws:ec2/getInstance:getInstance", {})
    with pytest.raises(ValueError, match="images: the emulated provider knows no such input"):
        wire.invoke("aws:ec2/getVpc:getVpc", {"images": []})


def test_all_that_is_wrong_is_told_at_once(wire: Wire) -> None:
    given = {"name": "kit", "data": "a", "uri": "s3://b/c", "skipDestroy": "yes"}
    with pytest.raises(ValueError, match="platform: it is required") as refused:
        wire.checked(COMPONENT[1], given)
    for part in (
        "version: it is required",
        "data: it conflicts with uri",
        "skipDestroy: it must be boolean, not 'yes'",
    ):
        assert part in str(refused.value)


def test_what_aws_refuses_is_told_as_aws_says_it(wire: Wire) -> None:
    with pytest.raises(grpc.RpcError, match=r"InvalidParameterValueException.*kit/1\.0\.0/1 is not there"):
        wire.made(
            RECIPE[1],
            **RECIPE[2]
            | {"components": [{"componentArn": "arn:aws:imagebuilder:eu-west-3:123456789012:component/kit/1.0.0/1"}]},
        )


def test_an_account_that_is_not_allowed_is_refused(wire: Wire) -> None:
    with pytest.raises(grpc.RpcError, match="AWS account ID not allowed: 123456789012"):
        wire.configure(region="eu-west-3", allowedAccountIds='["999999999999"]')
    with pytest.raises(grpc.RpcError, match="endpoints: the emulated provider knows no such setting"):
        wire.configure(region="eu-west-3", endpoints="[]")


# -- the rules that surprise -------------------------------------------------------------------------------------------


def test_a_recipe_with_an_x_has_the_number_that_aws_gives_and_no_diff(wire: Wire) -> None:
    _, component = wire.made(COMPONENT[1], **COMPONENT[2])
    given = {**RECIPE[2], "components": [{"componentArn": component["arn"]}]}
    inputs = wire.checked(RECIPE[1], given)
    identity, state = wire.create(RECIPE[1], inputs)

    assert identity.endswith(":image-recipe/iris/1.2.0")
    assert wire.read(RECIPE[1], identity, inputs, state) == (identity, inputs, state)
    assert not wire.diff(RECIPE[1], {**inputs, "version": "1.2.0"}, inputs).diffs
    assert wire.diff(RECIPE[1], {**inputs, "version": "1.3.0"}, inputs).replaces == ["version"]


def test_a_component_that_is_kept_is_only_forgotten(wire: Wire, cloud: Cloud) -> None:
    identity, state = wire.made(COMPONENT[1], **COMPONENT[2], skipDestroy=True)
    wire.delete(COMPONENT[1], identity, state)
    assert wire.read(COMPONENT[1], identity, {}, state)[0] == identity
    assert not cloud.calls("DeleteComponent")


def test_a_pipeline_must_go_before_its_recipe(wire: Wire) -> None:
    _, component = wire.made(COMPONENT[1], **COMPONENT[2])
    identity, recipe = wire.made(RECIPE[1], **{**RECIPE[2], "components": [{"componentArn": component["arn"]}]})
    _, infrastructure = wire.made(INFRASTRUCTURE[1], **INFRASTRUCTURE[2])
    assert infrastructure["terminateInstanceOnFailure"] is False  # the provider's own default, against AWS's
    kind = "aws:imagebuilder/imagePipeline:ImagePipeline"
    arns = {"imageRecipeArn": recipe["arn"], "infrastructureConfigurationArn": infrastructure["arn"]}
    pipeline, state = wire.made(kind, name="iris", **arns)

    with pytest.raises(grpc.RpcError, match="ResourceDependencyException"):
        wire.delete(RECIPE[1], identity, recipe)

    wire.delete(kind, pipeline, state)
    wire.delete(RECIPE[1], identity, recipe)


def test_a_bucket_goes_only_when_it_is_empty_or_was_to_be_emptied(wire: Wire, cloud: Cloud) -> None:
    name, state = wire.made(BUCKET[1], **BUCKET[2])
    put_object(cloud, name)
    with pytest.raises(grpc.RpcError, match="BucketNotEmpty"):
        wire.delete(BUCKET[1], name, state)
    wire.delete(BUCKET[1], name, {**state, "forceDestroy": True})
    assert wire.read(BUCKET[1], name, {}, state)[0] == ""


def test_a_bucket_for_tls_alone_can_be_used_and_a_closed_one_cannot(wire: Wire, cloud: Cloud) -> None:
    wire.made(BUCKET[1], **BUCKET[2])
    arn = "arn:aws:s3:::an-event"
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": [arn, f"{arn}/*"]}
    without_tls = denied | {"Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    kind = "aws:s3/bucketPolicy:BucketPolicy"
    wire.made(kind, bucket="an-event", policy=json.dumps({"Version": "2012-10-17", "Statement": [without_tls]}))
    put_object(cloud, "an-event")
    wire.made(kind, bucket="an-event", policy=json.dumps({"Version": "2012-10-17", "Statement": [denied]}))
    with pytest.raises(ClientError, match="Forbidden"):
        put_object(cloud, "an-event")


def test_versioning_cannot_be_undone(wire: Wire) -> None:
    wire.made(BUCKET[1], **BUCKET[2])
    kind = "aws:s3/bucketVersioning:BucketVersioning"
    on = wire.checked(kind, {"bucket": "an-event", "versioningConfiguration": {"status": "Enabled"}})
    off = wire.checked(kind, {"bucket": "an-event", "versioningConfiguration": {"status": "Disabled"}})
    with pytest.raises(grpc.RpcError, match="cannot be updated from 'Enabled'"):
        wire.diff(kind, on, off)


def test_the_name_of_a_deleted_secret_stays_taken_unless_it_goes_at_once(wire: Wire) -> None:
    kind = "aws:secretsmanager/secret:Secret"
    identity, state = wire.made(kind, name="data")
    assert state["recoveryWindowInDays"] == 30
    wire.delete(kind, identity, state)
    with pytest.raises(grpc.RpcError, match="CreateSecret operation"):
        wire.made(kind, name="data")
    identity, state = wire.made(kind, name="other", recoveryWindowInDays=0)
    wire.delete(kind, identity, state)
    assert wire.made(kind, name="other")[0]


def test_a_new_group_lets_nothing_out(wire: Wire, cloud: Cloud) -> None:
    identity, _ = wire.made(GROUP[1], **GROUP[2])
    (found,) = client(cloud, "ec2").describe_security_groups(GroupIds=[identity])["SecurityGroups"]
    assert found["IpPermissionsEgress"] == []


def test_changed_data_of_a_launch_template_is_a_new_version_that_may_be_the_default(wire: Wire) -> None:
    kind = "aws:ec2/launchTemplate:LaunchTemplate"
    for follows, default in ((True, 2), (False, 1)):
        given = {"name": f"workers {follows}", "instanceType": "t3.medium", "updateDefaultVersion": follows}
        old = wire.checked(kind, given)
        identity, state = wire.create(kind, old)
        new = wire.checked(kind, {**given, "instanceType": "t3.large", "tags": {"a": "b"}}, old)
        after = wire.update(kind, identity, old, state, new)
        assert (after["latestVersion"], after["defaultVersion"]) == (2, default)


# -- names, tags, drift, previews --------------------------------------------------------------------------------------


def test_a_name_of_its_own_is_kept_and_lets_the_new_one_come_first(wire: Wire) -> None:
    given = {key: value for key, value in COMPONENT[2].items() if key != "name"}
    first = wire.checked(COMPONENT[1], given)
    prefix, _, digits = first["name"].rpartition("-")
    assert (prefix, len(digits)) == ("thing", 7)
    again = wire.checked(COMPONENT[1], {**given, "description": "new"}, first)
    assert again["name"] == first["name"]
    assert not wire.diff(COMPONENT[1], first, again).deleteBeforeReplace

    named = wire.checked(COMPONENT[1], {**given, "name": "kit"})
    other = wire.checked(COMPONENT[1], {**given, "name": "kit", "description": "new"}, named)
    assert wire.diff(COMPONENT[1], named, other).deleteBeforeReplace


def test_default_tags_alone_update_and_never_replace(wire: Wire) -> None:
    before = wire.checked(COMPONENT[1], COMPONENT[2] | {"tags": {"ramp-cloud:event": "own"}})
    assert before["tagsAll"] == {"ramp-cloud:event": "own"}
    wire.configure(region="eu-west-3", defaultTags=json.dumps({"tags": {**DEFAULT_TAGS, "team": "x"}}))
    after = wire.checked(COMPONENT[1], COMPONENT[2] | {"tags": {"ramp-cloud:event": "own"}}, before)
    change = wire.diff(COMPONENT[1], before, after)
    assert (list(change.diffs), list(change.replaces)) == (["tagsAll"], [])


def test_what_somebody_changed_by_hand_is_seen(wire: Wire, cloud: Cloud) -> None:
    kind = "aws:cloudwatch/logGroup:LogGroup"
    inputs = wire.checked(kind, {"name": "/aws/imagebuilder/iris", "retentionInDays": 30})
    identity, state = wire.create(kind, inputs)
    client(cloud, "logs").put_retention_policy(logGroupName=identity, retentionInDays=7)
    _, drifted, seen = wire.read(kind, identity, inputs, state)
    assert (drifted["retentionInDays"], seen["retentionInDays"]) == (7, 7)
    assert list(wire.diff(kind, drifted, inputs).diffs) == ["retentionInDays"]


def test_what_is_not_known_yet_passes_a_preview_and_replaces_where_it_may(wire: Wire) -> None:
    given = {**RECIPE[2], "components": [{"componentArn": UNKNOWN}]}
    inputs = wire.checked(RECIPE[1], given)
    identity, planned = wire.create(RECIPE[1], inputs, preview=True)
    assert (identity, planned["arn"], planned["name"]) == ("", UNKNOWN, "iris")
    known = {**inputs, "components": [{"componentArn": "arn:aws:imagebuilder:eu-west-3:1:component/kit/1.0.0/1"}]}
    assert wire.diff(RECIPE[1], known, inputs).replaces == ["components"]
    assert wire.invoke("aws:ec2/getSubnet:getSubnet", {"id": UNKNOWN})["availabilityZone"] == UNKNOWN


def test_invokes_tell_of_the_account(wire: Wire) -> None:
    assert wire.invoke("aws:index/getCallerIdentity:getCallerIdentity", {})["accountId"] == "123456789012"
    assert wire.invoke("aws:index/getPartition:getPartition", {})["partition"] == "aws"
    assert wire.invoke("aws:index/getRegion:getRegion", {})["region"] == "eu-west-3"
    vpc = wire.invoke("aws:ec2/getVpc:getVpc", {"default": True})
    assert vpc["default"] is True
    subnets = wire.invoke("aws:ec2/getSubnets:getSubnets", {"filters": [{"name": "vpc-id", "values": [vpc["id"]]}]})
    subnet = wire.invoke("aws:ec2/getSubnet:getSubnet", {"id": subnets["ids"][0]})
    assert subnet["availabilityZone"].startswith("eu-west-3")
    assert wire.invoke("aws:ec2/getSubnets:getSubnets", {"tags": {"no": "such"}})["ids"] == []
    with pytest.raises(grpc.RpcError, match="no matching EC2 VPC found"):
        wire.invoke("aws:ec2/getVpc:getVpc", {"tags": {"no": "such"}})


def test_an_image_is_not_looked_for_without_its_owner(wire: Wire) -> None:
    by_name = [{"name": "name", "values": ["base"]}]
    token = "aws:ec2/getAmi:getAmi"  # noqa: S105 - the name of a function
    with pytest.raises(grpc.RpcError, match="mostRecent without owners"):
        wire.invoke(token, {"mostRecent": True, "filters": by_name})
    assert wire.invoke(token, {"mostRecent": True, "owners": ["self"], "filters": by_name})["id"] == BASE
    with pytest.raises(grpc.RpcError, match="no results"):
        wire.invoke(token, {"owners": ["self"], "filters": [{"name": "name", "values": ["none"]}]})


# -- through Pulumi ----------------------------------------------------------------------------------------------------

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


def client(cloud: Cloud, service: str) -> Any:
    """Return a client of the emulated AWS."""
    return Account("eu-west-3", cloud.aws.environment).client(service)


def put_object(cloud: Cloud, bucket: str) -> None:
    """Put something into a bucket."""
    client(cloud, "s3").put_object(Bucket=bucket, Key="kits/iris", Body=b"x")
