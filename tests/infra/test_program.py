"""The program as a whole: tags on everything, outputs that the runner reads, and what it says when it cannot begin."""

import dataclasses
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws
import pytest
import yaml
from pulumi.runtime.config import set_all_config

from infra import tags
from infra.program import declare
from runner.stack import StackOutputs, read
from tests.infra.declaring import ACCOUNT, Declared, StackEvent, in_a_stack, seed_base
from tests.infra.mocks import EmulatedMocks
from tests.rehearsing import Cloud

ROOT = Path(__file__).parents[2]
EVERYTHING: dict[str, Any] = {
    "egress": "open",
    "budget_usd": 20.0,
    "budget_mail": "me@example.org",
    "github": "me/iris",
    "make_secret": True,
    "dask": True,
    "guards": ["imdsv2", "private-images", "allowed-images"],
    "tags": {"team": "ramp"},
}
IMAGE = {"keep": 3, "schedule": "weekly", "data": "osf", "data_secret": "ramp/iris/osf"}


@pytest.fixture(scope="module")
def event(tmp_path_factory: pytest.TempPathFactory) -> StackEvent:
    event = StackEvent(tmp_path_factory.mktemp("stack") / "event", **EVERYTHING)
    event.image = dict(IMAGE)
    return event


@pytest.fixture(scope="module")
def everything(event: StackEvent) -> Declared:
    """An event with every option."""
    return event.declare()


# -- tags ------------------------------------------------------------------------------------------------------------


def test_all_of_it_is_made_by_the_provider_that_tags(everything: Declared) -> None:
    (way,) = [each for each in everything.made if each.kind == "pulumi:providers:aws" and each.name == "aws"]
    given = way["defaultTags"]
    given = json.loads(given) if isinstance(given, str) else given
    assert given["tags"] == {
        "team": "ramp",
        "ramp-cloud:project": "ramp-cloud",
        "ramp-cloud:event": "iris",
        "ramp-cloud:owner": f"iris/{ACCOUNT}",
        "ramp-cloud:expires": everything.outputs["expires"],
    }
    assert len(list(everything.of_aws())) > 40
    for each in everything.of_aws():
        assert each.provider.split("::")[-2] == "aws", each.name


def untagged(kind: type[Any], **inputs: Any) -> str:
    """Return what is said when a resource would be made in a stack with the tags of an event."""

    def program() -> pulumi.Output[Any]:
        way = aws.Provider("aws", region="eu-west-1")
        tags.enforce(way, {"ramp-cloud:owner": "me", "ramp-cloud:event": "iris"})
        options = pulumi.ResourceOptions(provider=inputs.pop("provider", way))
        kind("one", opts=options, **inputs)
        return pulumi.Output.from_input("")

    with pytest.raises(tags.Untagged) as told:
        in_a_stack(program)
    return str(told.value)


def test_nothing_is_made_beside_that_provider() -> None:
    assert untagged(aws.cloudwatch.LogGroup, provider=None) == (
        "aws:cloudwatch/logGroup:LogGroup one is made by another provider than the one that tags; give it a parent"
    )


def test_nothing_has_another_owner() -> None:
    told = untagged(aws.cloudwatch.LogGroup, tags={"ramp-cloud:owner": "you"})
    assert told == (
        "aws:cloudwatch/logGroup:LogGroup one has other tags than the stack's: ramp-cloud:owner; give it the stack's"
    )


def test_tags_that_are_handed_on_are_looked_at_too() -> None:
    wrong = {"ramp-cloud:owner": "me"}
    template = untagged(
        aws.ec2.LaunchTemplate,
        tag_specifications=[aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type="instance", tags=wrong)],
    )
    assert "tagSpecifications.tags without ramp-cloud:event; give it the stack's" in template
    assert "without ramp-cloud:owner" not in template
    builder = aws.imagebuilder
    nothing = untagged(builder.InfrastructureConfiguration, instance_profile_name="p")
    assert "resourceTags without ramp-cloud:owner, resourceTags without ramp-cloud:event" in nothing
    image = builder.DistributionConfigurationDistributionAmiDistributionConfigurationArgs(name="i", ami_tags=wrong)
    each = builder.DistributionConfigurationDistributionArgs(region="eu-west-1", ami_distribution_configuration=image)
    assert "amiTags without ramp-cloud:event" in untagged(builder.DistributionConfiguration, distributions=[each])


def test_keys_may_be_written_as_the_provider_has_them() -> None:
    told = untagged(aws.ec2.LaunchTemplate, tag_specifications=[{"resourceType": "instance", "tags": {"a": "b"}}])
    assert "tagSpecifications.tags without ramp-cloud:owner" in told


# -- outputs ---------------------------------------------------------------------------------------------------------


def test_the_runner_knows_every_name_that_it_needs(everything: Declared, tmp_path: Path) -> None:
    names = {item.name for item in dataclasses.fields(StackOutputs)} - {"ignored"}
    assert names <= everything.outputs.keys()
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(everything.outputs))
    found = read(file)
    assert found is not None
    assert {name: getattr(found, name) for name in names} == {name: everything.outputs[name] for name in names}
    further = ("ci_role", "dask_policy", "data_secret", "expires", "images_policy")
    assert found.ignored == (*further, "log_group", "preview_role", "runner_policy")


def test_what_is_not_made_is_not_exported(tmp_path: Path) -> None:
    plain = StackEvent(tmp_path / "event").declare()
    assert None not in plain.outputs.values()
    assert not {"ci_role", "dask_cluster", "data_secret"} & plain.outputs.keys()


def test_the_same_config_asks_for_the_same(event: StackEvent, everything: Declared) -> None:
    again = event.declare()
    assert sorted((each.kind, each.name, str(each.inputs)) for each in again.made) == sorted(
        (each.kind, each.name, str(each.inputs)) for each in everything.made
    )


def test_aws_is_only_asked_by_the_provider(everything: Declared) -> None:
    """The tests' guard against the network holds that nothing else is; here is all that is looked up."""
    assert {token.partition("/")[2] for token, _ in everything.calls} == {
        "getCallerIdentity:getCallerIdentity",
        "getVpcs:getVpcs",
        "getComponents:getComponents",
        "getInfrastructureConfigurations:getInfrastructureConfigurations",
        "getSubnets:getSubnets",
        "getSubnet:getSubnet",
    }


# -- the way in ------------------------------------------------------------------------------------------------------


def begin(config: Mapping[str, str]) -> str:
    """Return what `pulumi up` says when it ends at once."""
    set_all_config(dict(config))

    def program() -> pulumi.Output[Any]:
        runpy.run_path(str(ROOT / "infra" / "__main__.py"), run_name="__main__")
        return pulumi.Output.from_input("")

    try:
        with pytest.raises(pulumi.RunError) as told:
            in_a_stack(program)
    finally:
        set_all_config({})
    return str(told.value)


def test_a_stack_without_an_event_is_told_how_to_name_one() -> None:
    assert begin({}) == "which event? pulumi config set ramp-cloud:event PATH/TO/config.yml"


def test_problems_of_the_config_are_told_without_a_traceback(tmp_path: Path) -> None:
    assert "nowhere.yml" in begin({"ramp-cloud:event": str(tmp_path / "nowhere.yml")})
    event = StackEvent(tmp_path / "event", expires=None)
    file = event.write(region_name=None)
    assert "region_name: is missing" in begin({"ramp-cloud:event": str(file)})


def test_a_relative_path_starts_at_the_project() -> None:
    told = begin({"ramp-cloud:event": "examples/iris/config.yml"})
    assert told.startswith(f"{ROOT}/examples/iris/config.yml: worker_type local needs nothing in AWS")


def test_the_project_names_its_program_and_its_python() -> None:
    project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
    assert (project["name"], project["main"]) == ("ramp-cloud", "infra/")
    assert project["runtime"] == {"name": "python", "options": {"toolchain": "pip", "virtualenv": "infra/venv"}}
    assert project["config"] == {"ramp-cloud:event": {"type": "string", "description": "config.yml of the event"}}


# -- made in the emulated AWS ----------------------------------------------------------------------------------------


def test_all_of_it_can_be_made(cloud: Cloud, tmp_path: Path) -> None:
    event = StackEvent(tmp_path / "event", **EVERYTHING)
    event.image = dict(IMAGE)
    seed_base(cloud)
    region = cloud.keys["region_name"]
    wanted = event.settings(region_name=region)
    outputs: dict[str, Any] = {}
    made = EmulatedMocks(cloud.aws.environment)
    in_a_stack(lambda: pulumi.Output.all(**declare(wanted)).apply(outputs.update), answers=made)
    assert outputs["region"] == region
    assert outputs["image_pipeline"].startswith(f"arn:aws:imagebuilder:{region}:")
    assert all(zone.startswith(region) for zone in outputs["subnets"].values())
    tagged = [each for each in made.made.values() if "tagsAll" in each]
    assert len(tagged) > 20
    for each in tagged:
        assert {*tags.REQUIRED, "team"} <= each["tagsAll"].keys()
