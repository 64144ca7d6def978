"""The roles of a stack: who may take them, what they may do, and that instances are given these and no others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import policies
from infra.access import names_of
from infra.settings import Place
from infra.statements import Names, merged
from tests.infra.declaring import ACCOUNT, Declared, Made, StackEvent

PROVIDER = f"arn:aws:iam::{ACCOUNT}:oidc-provider/token.actions.githubusercontent.com"
CI = {"github": "lab/challenge"}


@pytest.fixture
def stack(tmp_path: Path) -> Callable[..., StackEvent]:
    """Return a maker of events with a stack; keyword arguments are keys of ``infra``."""
    return lambda **infra: StackEvent(tmp_path / "event", **infra)


def roles(made: Declared) -> dict[str, Made]:
    """Return the roles by the end of their names."""
    return {role["name"].rpartition("-")[2]: role for role in made.all("iam/role:Role")}


def statements(text: str) -> list[dict[str, Any]]:
    """Return the statements of a policy."""
    found: list[dict[str, Any]] = json.loads(text)["Statement"]
    return found


def names(event: StackEvent, **keys: Any) -> Names:
    """Return what the policies of an event are about."""
    settings = event.settings(**keys)
    return names_of(settings, settings.place(account=ACCOUNT, partition="aws"))


def attached(made: Declared, role: str) -> list[str]:
    """Return the policies attached to a role, by what their ARNs end with."""
    return sorted(
        each["policyArn"].rpartition("/")[2]
        for each in made.all("iam/rolePolicyAttachment:RolePolicyAttachment")
        if each["role"] == role
    )


def test_instances_of_an_event_have_a_role_without_rights(stack: Callable[..., StackEvent]) -> None:
    event = stack()
    made = event.declare()
    worker = roles(made)["worker"]
    (trust,) = statements(worker["assumeRolePolicy"])
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert attached(made, worker["name"]) == []
    assert [each for each in made.all("iam/rolePolicy:RolePolicy") if each["role"] == worker["name"]] == []
    profile = made.one("iam/instanceProfile:InstanceProfile", "worker")
    assert profile["role"] == profile["name"] == worker["name"]
    assert made.outputs["instance_profile"] == worker["name"]


def test_instances_that_build_have_what_image_builder_needs_and_the_kit(stack: Callable[..., StackEvent]) -> None:
    event = stack()
    made = event.declare()
    build = roles(made)["build"]
    assert attached(made, build["name"]) == ["AmazonSSMManagedInstanceCore", "EC2InstanceProfileForImageBuilder"]
    own = made.one("iam/rolePolicy:RolePolicy", "build")
    assert own["role"] == build["name"]
    assert json.loads(own["policy"]) == policies.image_build(names(event))
    assert made.outputs["image_profile"] == build["name"]


def test_whoever_runs_the_event_finds_two_policies_to_attach(stack: Callable[..., StackEvent]) -> None:
    event = stack()
    made = event.declare()
    found = {policy.name: json.loads(policy["policy"]) for policy in made.all("iam/policy:Policy")}
    wanted = names(event)
    assert found == {"runner": policies.runner(wanted), "images": policies.images(wanted)}
    assert made.one("iam/policy:Policy", "runner")["name"] == f"{wanted.prefix}-runner"


def test_without_an_image_nothing_builds(stack: Callable[..., StackEvent]) -> None:
    event = stack(**CI)
    event.has_image = False
    made = event.declare()
    assert set(roles(made)) == {"worker"}
    assert [policy.name for policy in made.all("iam/policy:Policy")] == ["runner"]
    assert "image_profile" not in made.outputs or made.outputs["image_profile"] is None


def test_old_images_are_removed_by_a_role_of_image_builder(stack: Callable[..., StackEvent]) -> None:
    event = stack()
    event.image["keep"] = 3
    made = event.declare()
    cleaner = roles(made)["lifecycle"]
    (trust,) = statements(cleaner["assumeRolePolicy"])
    assert trust["Principal"] == {"Service": "imagebuilder.amazonaws.com"}
    assert attached(made, cleaner["name"]) == ["EC2ImageBuilderLifecycleExecutionPolicy"]


def test_github_takes_roles_without_a_key(stack: Callable[..., StackEvent]) -> None:
    event = stack(**CI, github_branch="stable")
    made = event.declare()
    provider = made.one("iam/openIdConnectProvider:OpenIdConnectProvider")
    assert provider["url"] == "https://token.actions.githubusercontent.com"
    assert provider["clientIdLists"] == ["sts.amazonaws.com"]
    subjects = {
        kind: statements(role["assumeRolePolicy"])[0]["Condition"]["StringEquals"]
        for kind, role in roles(made).items()
        if kind in ("ci", "preview")
    }
    github = "token.actions.githubusercontent.com"
    assert subjects == {
        "ci": {f"{github}:aud": "sts.amazonaws.com", f"{github}:sub": "repo:lab/challenge:ref:refs/heads/stable"},
        "preview": {f"{github}:aud": "sts.amazonaws.com", f"{github}:sub": "repo:lab/challenge:pull_request"},
    }


def test_ci_has_the_rights_of_the_tasks_and_of_up(stack: Callable[..., StackEvent]) -> None:
    event = stack(**CI, github_provider=PROVIDER)
    made = event.declare()
    wanted = names(event)
    assert made.all("iam/openIdConnectProvider:OpenIdConnectProvider") == []
    ci, preview = roles(made)["ci"], roles(made)["preview"]
    assert statements(ci["assumeRolePolicy"])[0]["Principal"] == {"Federated": PROVIDER}
    assert len(attached(made, ci["name"])) == 2
    inline = {each["role"]: json.loads(each["policy"]) for each in made.all("iam/rolePolicy:RolePolicy")}
    assert inline[ci["name"]] == merged(policies.preview(wanted), policies.up(wanted))
    assert inline[preview["name"]] == policies.preview(wanted)
    assert attached(made, preview["name"]) == []


def test_without_a_repository_nobody_else_is_trusted(stack: Callable[..., StackEvent]) -> None:
    made = stack().declare()
    assert set(roles(made)) == {"worker", "build"}
    assert made.all("iam/openIdConnectProvider:OpenIdConnectProvider") == []


def test_what_config_says_of_the_data_reaches_the_policy(stack: Callable[..., StackEvent]) -> None:
    event = stack()
    event.image |= {"data": "s3", "data_source": "s3://the-data/iris"}
    event.image |= {"base": "ami-0123456789abcdef0", "regions": ["eu-west-1", "eu-west-3"]}
    found = names(event)
    assert (found.data_source, found.data_secret) == ("s3://the-data/iris", None)
    assert (found.base, found.image_regions) == ("ami-0123456789abcdef0", ("eu-west-1", "eu-west-3"))
    event.image |= {"data": "osf", "data_source": None, "data_secret": "ramp/iris/osf"}
    assert names(event).data_secret == "ramp/iris/osf"  # noqa: S105 - the name of one


def test_names_of_roles_fit_into_what_iam_takes(stack: Callable[..., StackEvent]) -> None:
    place: Place = stack().settings(event_name="a-very-long-event-" * 4).place(account=ACCOUNT, partition="aws")
    longest = max(len(f"{place.prefix}-{kind}") for kind in ("worker", "build", "lifecycle", "ci", "preview"))
    assert longest <= 64
