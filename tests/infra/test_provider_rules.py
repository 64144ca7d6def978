"""The emulated `aws` provider: what it refuses, the rules that surprise, names, tags, drift and what it looks up."""

import json

import grpc
import pytest
from botocore.exceptions import ClientError

from tests.infra.provider.rules import UNKNOWN
from tests.infra.provider_cases import BUCKET, COMPONENT, GROUP, INFRASTRUCTURE, RECIPE
from tests.infra.wire import BASE, DEFAULT_TAGS, Wire, client, put_object
from tests.rehearsing import Cloud

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
