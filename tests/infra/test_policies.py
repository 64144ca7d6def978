"""Rights: every call that was seen is allowed, every right was needed by one, and what is another's stays his."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from moto.iam.aws_managed_policies import aws_managed_policies_data

from infra import policies
from infra.statements import Names
from runner.aws.tags import EVENT, IMAGE, OF_IMAGE, OWNER
from tests.infra.evaluation import Ask, allows, listed
from tests.infra.recording import DATA, PARAMETER, SECRET, Record, record

pytestmark = pytest.mark.xdist_group("rights")  # one recording, in one process

Policies = dict[str, list[Mapping[str, Any]]]
# Rights that the recorded life of an event does not come to need.
EXCEPTIONS = {
    ("CareForOwnInstances", "ec2:GetConsoleOutput"): "asked for where an instance does not boot, after a minute",
}
WHO = ["runner", "images", "up", "preview", "build", "build with a parameter"]
NAMES = Names(
    partition="aws",
    region="eu-west-1",
    account="123456789012",
    event="iris_aws",
    owner="the lab",
    bucket="ramp-iris-0123456789",
    prefix="ramp-iris-0a1b2c",
    image="iris",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return what AWS checked in an event's life."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        noted = record(tmp_path_factory.mktemp("rights"), patch)
    noted.asks["preview"] = list(_invokes(noted.names))
    noted.asks["up"] = [*_as_pulumi_does(noted.asks["up"]), *noted.asks["preview"]]
    # Image Builder's agent fetches the kit that was sent, for the action S3Download of a document.
    sent = [ask for ask in noted.asks["images"] if ask.action == "s3:PutObject"]
    noted.asks["build"] += [replace(ask, action="s3:GetObject") for ask in sent]
    return noted


def _as_pulumi_does(asks: list[Ask]) -> Iterator[Ask]:
    """Yield what Pulumi's provider asks in place of the emulation: it lists nothing, and reads all that it wrote."""
    for ask in asks:
        service, _, action = ask.action.partition(":")
        if not action.startswith("List"):
            yield ask
        if action.startswith(("Create", "Update")):
            kind = action.removeprefix("Create").removeprefix("Update")
            yield Ask(action=f"{service}:Get{kind}", resource=ask.resource)


def _invokes(names: Names) -> Iterator[Ask]:
    """Yield what the provider asks for the functions of the program: getVpcs, getSubnets and those of Image Builder."""
    looks = ("ec2:DescribeVpcs", "ec2:DescribeSubnets")
    looks += ("imagebuilder:ListComponents", "imagebuilder:ListInfrastructureConfigurations")
    for action in looks:
        yield Ask(action=action, resource="*", context={"aws:RequestedRegion": [names.region]})


def _managed() -> list[Mapping[str, Any]]:
    known = json.loads(aws_managed_policies_data)
    return [known[name]["Document"] for name in policies.BUILD_POLICIES]


def _own(names: Names) -> Policies:
    """Return our own policies by who has them."""
    runner, images = policies.runner(names), policies.images(names)
    by_secret: list[Mapping[str, Any]] = [policies.image_build(replace(names, data_source=DATA, data_secret=SECRET))]
    return {
        "runner": [runner],
        "images": [runner, images],
        "up": list(policies.ci(names).values()),
        "preview": [policies.preview(names)],
        "build": by_secret,
        "build with a parameter": [policies.image_build(replace(names, data_secret=f"ssm:{PARAMETER}"))],
    }


def _asks(seen: Record) -> dict[str, list[Ask]]:
    parameters = [ask for ask in seen.asks["build"] if ask.action.startswith("ssm:")]
    kits = [ask for ask in seen.asks["build"] if "/kits/" in ask.resource]
    others = [ask for ask in seen.asks["build"] if ask not in parameters]
    return {**seen.asks, "build": others, "build with a parameter": parameters + kits}


@pytest.mark.parametrize("who", WHO)
def test_every_call_is_allowed(seen: Record, who: str) -> None:
    asks = _asks(seen)[who]
    assert asks
    refused = [str(ask) for ask in asks if not allows(_own(seen.names)[who], ask)]
    assert refused == []


@pytest.mark.parametrize("who", WHO)
def test_every_right_is_needed(seen: Record, who: str) -> None:
    """Without any of its actions or resources, a policy refuses a call that was seen."""
    own = _own(seen.names)[who]
    known = {"images": 1, "up": 3}.get(who, 0)  # of the others, judged with them
    asks = _asks(seen)[who]
    idle = []
    for number, policy in enumerate(own):
        if number < known:
            continue
        for what, less in _reduced(policy):
            changed = [*own[:number], less, *own[number + 1 :]]
            if what not in EXCEPTIONS and all(allows(changed, ask) for ask in asks):
                idle.append(what)
    assert idle == []


def _reduced(policy: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield a policy without each action and without each resource of each statement that allows something."""
    for place, statement in enumerate(policy["Statement"]):
        if statement["Effect"] == "Deny":
            continue
        for key in ("Action", "Resource"):
            values = listed(statement[key])
            excepted = all((statement["Sid"], action) in EXCEPTIONS for action in listed(statement["Action"]))
            for value in [] if excepted else values:
                less = copy.deepcopy(dict(policy))
                less["Statement"][place][key] = [each for each in values if each != value]
                yield (statement["Sid"], value), less


def test_exceptions_are_about_rights_that_exist() -> None:
    names = replace(NAMES, data_secret=SECRET)
    rights = {
        (statement["Sid"], action)
        for policy in (policies.runner(names), policies.images(names), policies.image_build(names))
        for statement in policy["Statement"]
        for action in listed(statement["Action"])
    }
    assert set(EXCEPTIONS) - rights == set()


def test_builds_read_the_kit() -> None:
    """Component documents download it with S3Download, by the role of the building instance."""
    kit = Ask(action="s3:GetObject", resource=f"arn:aws:s3:::{NAMES.bucket}/kits/iris-0123.tar.gz")
    assert allows([policies.image_build(NAMES)], kit)
    assert not allows(_managed(), kit)


# -- what is another's -----------------------------------------------------------------------------------------------


def _ec2(kind: str, identity: str = "*", account: str = NAMES.account) -> str:
    return f"arn:aws:ec2:{NAMES.region}:{account}:{kind}/{identity}"


def _tagged(**tags: str) -> dict[str, list[str]]:
    return {f"aws:ResourceTag/{name}": [value] for name, value in tags.items()}


MINE, OTHERS = _tagged(**{OWNER: "the lab"}), _tagged(**{OWNER: "somebody else"})
REQUESTED = {f"aws:RequestTag/{OWNER}": ["the lab"], f"aws:RequestTag/{EVENT}": ["iris_aws"]}
PIPELINE = f"arn:aws:imagebuilder:{NAMES.region}:{NAMES.account}:image-pipeline"
# What is asked, in a way that is allowed and in others that are not.
CASES: dict[str, tuple[Ask, list[Ask]]] = {
    "an instance is ended": (
        Ask(action="ec2:TerminateInstances", resource=_ec2("instance", "i-1"), context=MINE),
        [
            Ask(action="ec2:TerminateInstances", resource=_ec2("instance", "i-1"), context=OTHERS),
            Ask(action="ec2:TerminateInstances", resource=_ec2("instance", "i-1")),
            Ask(action="ec2:StopInstances", resource=_ec2("instance", "i-1"), context=MINE),
        ],
    ),
    "an instance is launched": (
        Ask(action="ec2:RunInstances", resource=_ec2("instance"), context=REQUESTED),
        [
            Ask(action="ec2:RunInstances", resource=_ec2("instance")),
            Ask(
                action="ec2:RunInstances",
                resource=_ec2("instance"),
                context={**REQUESTED, f"aws:RequestTag/{EVENT}": ["another"]},
            ),
            Ask(
                action="ec2:RunInstances",
                resource=_ec2("instance").replace(NAMES.region, "us-east-1"),
                context=REQUESTED,
            ),
        ],
    ),
    "an image is launched": (
        Ask(action="ec2:RunInstances", resource=_ec2("image", "ami-1", ""), context={"ec2:Owner": [NAMES.account]}),
        [
            Ask(
                action="ec2:RunInstances", resource=_ec2("image", "ami-1", ""), context={"ec2:Owner": ["666666666666"]}
            ),
            Ask(action="ec2:CreateFleet", resource=_ec2("image", "ami-1", ""), context={"ec2:Owner": ["amazon"]}),
        ],
    ),
    "a security group is used": (
        Ask(action="ec2:RunInstances", resource=_ec2("security-group", "sg-1"), context=MINE),
        [Ask(action="ec2:RunInstances", resource=_ec2("security-group", "sg-1"), context=OTHERS)],
    ),
    "tags are given at launch": (
        Ask(
            action="ec2:CreateTags",
            resource=_ec2("instance"),
            context={**REQUESTED, "ec2:CreateAction": ["RunInstances"]},
        ),
        [
            # Whoever may tag anything makes it his own.
            Ask(action="ec2:CreateTags", resource=_ec2("instance", "i-1"), context={**REQUESTED, **OTHERS}),
            Ask(action="ec2:CreateTags", resource=_ec2("volume", "vol-1"), context=REQUESTED),
        ],
    ),
    "a role is given to instances": (
        Ask(
            action="iam:PassRole",
            resource=NAMES.role(NAMES.worker_role),
            context={"iam:PassedToService": ["ec2.amazonaws.com"]},
        ),
        [
            Ask(
                action="iam:PassRole",
                resource=NAMES.role("administrator"),
                context={"iam:PassedToService": ["ec2.amazonaws.com"]},
            ),
            Ask(
                action="iam:PassRole",
                resource=NAMES.role(NAMES.worker_role),
                context={"iam:PassedToService": ["lambda.amazonaws.com"]},
            ),
        ],
    ),
    "a kit is sent": (
        Ask(action="s3:PutObject", resource=f"arn:aws:s3:::{NAMES.bucket}/kits/a"),
        [
            Ask(action="s3:PutObject", resource="arn:aws:s3:::another/kits/a"),
            Ask(action="s3:PutObject", resource=f"arn:aws:s3:::{NAMES.bucket}/results/a"),
            Ask(action="s3:DeleteObject", resource=f"arn:aws:s3:::{NAMES.bucket}/kits/a"),
        ],
    ),
    "a build is started": (
        Ask(action="imagebuilder:StartImagePipelineExecution", resource=f"{PIPELINE}/iris"),
        [Ask(action="imagebuilder:StartImagePipelineExecution", resource=f"{PIPELINE}/iris-2")],
    ),
    "a component goes": (
        Ask(
            action="imagebuilder:DeleteComponent",
            resource=PIPELINE.replace("image-pipeline", "component/iris-kit/1.2.3/1"),
            context=MINE,
        ),
        # Of the image iris-2, whose name begins so.
        [
            Ask(
                action="imagebuilder:DeleteComponent",
                resource=PIPELINE.replace("image-pipeline", "component/iris-2-kit/1.2.3/1"),
                context=OTHERS,
            )
        ],
    ),
    "an image goes": (
        Ask(action="ec2:DeregisterImage", resource=_ec2("image", "ami-1", ""), context=MINE),
        [Ask(action="ec2:DeregisterImage", resource=_ec2("image", "ami-1", ""), context=OTHERS)],
    ),
    "a snapshot goes": (
        Ask(action="ec2:DeleteSnapshot", resource=_ec2("snapshot", "snap-1", ""), context=_tagged(**{IMAGE: "iris"})),
        [
            Ask(action="ec2:DeleteSnapshot", resource=_ec2("snapshot", "snap-1", ""), context=_tagged(**{IMAGE: "x"})),
            Ask(action="ec2:DeleteSnapshot", resource=_ec2("snapshot", "snap-1", "")),
        ],
    ),
    "a snapshot of Image Builder is marked": (
        Ask(
            action="ec2:CreateTags",
            resource=_ec2("snapshot", "snap-1", ""),
            context={"aws:ResourceTag/CreatedBy": ["EC2 Image Builder"], "aws:TagKeys": [IMAGE, OF_IMAGE]},
        ),
        [
            Ask(
                action="ec2:CreateTags",
                resource=_ec2("snapshot", "snap-1", ""),
                context={"aws:ResourceTag/CreatedBy": ["EC2 Image Builder"], "aws:TagKeys": [OWNER]},
            ),
            Ask(action="ec2:CreateTags", resource=_ec2("snapshot", "snap-1", ""), context={"aws:TagKeys": [IMAGE]}),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_anothers_stays_his(case: str) -> None:
    everything = list(policies.ci(NAMES).values())  # nobody has more
    allowed, refused = CASES[case]
    assert allows(everything, allowed)
    assert [str(ask) for ask in refused if allows(everything, ask)] == []


def test_ci_cannot_give_itself_rights() -> None:
    everything = list(policies.ci(NAMES).values())
    actions = {action for policy in everything for each in policy["Statement"] for action in listed(each["Action"])}
    assert {action for action in actions if action.startswith("iam:")} == {"iam:PassRole"}
    assert not any("*" in action for action in actions)


@pytest.mark.parametrize("base", ["ubuntu-24.04", "ami-0123456789abcdef0"])
def test_a_preview_changes_nothing(base: str) -> None:
    (statement,) = policies.preview(replace(NAMES, base=base))["Statement"]
    actions = listed(statement["Action"])
    assert ("ec2:DescribeImages" in actions) == base.startswith("ami-")
    assert [action for action in actions if not action.partition(":")[2].startswith(("Describe", "List", "Get"))] == []


# -- building instances ----------------------------------------------------------------------------------------------


def test_building_instances_read_the_named_secret_and_no_other() -> None:
    secrets = f"arn:aws:secretsmanager:{NAMES.region}:{NAMES.account}:secret:"
    mine = [policies.image_build(replace(NAMES, data_secret=SECRET)), *_managed()]
    read = "secretsmanager:GetSecretValue"
    assert allows(mine, Ask(action=read, resource=f"{secrets}{SECRET}-a1B2c3"))
    assert not allows(mine, Ask(action=read, resource=f"{secrets}{SECRET}-more-a1B2c3"))
    assert not allows(
        [policies.image_build(NAMES), *_managed()], Ask(action=read, resource=f"{secrets}{SECRET}-a1B2c3")
    )


@pytest.mark.parametrize("given", [f"ssm:{PARAMETER}", "ssm:ramp/iris/osf", "arn"])
def test_building_instances_read_the_named_parameter_and_no_other(given: str) -> None:
    """The managed policy that they must have allows every parameter of the account."""
    base = f"arn:aws:ssm:{NAMES.region}:{NAMES.account}:parameter/"
    named = f"{base}{PARAMETER.lstrip('/')}"
    mine = [policies.image_build(replace(NAMES, data_secret=named if given == "arn" else given)), *_managed()]
    assert allows(mine, Ask(action="ssm:GetParameter", resource=named))
    for action in ("ssm:GetParameter", "ssm:GetParameters"):
        other = Ask(action=action, resource=f"{base}production/password")
        assert allows(_managed(), other)
        assert not allows(mine, other)
        public = f"arn:aws:ssm:{NAMES.region}::parameter/aws/service/ami-amazon-linux-latest/a"
        assert allows(mine, Ask(action=action, resource=public))


def test_building_instances_write_their_log_by_the_managed_policy() -> None:
    log = f"arn:aws:logs:{NAMES.region}:{NAMES.account}:log-group:/aws/imagebuilder/iris:log-stream:1"
    assert allows([policies.image_build(NAMES), *_managed()], Ask(action="logs:PutLogEvents", resource=log))


@pytest.mark.parametrize(("source", "inside", "outside"), [(DATA, "iris/a", "iris2/a"), ("s3://the-data", "a", None)])
def test_building_instances_read_the_folder_of_the_data(source: str, inside: str, outside: str | None) -> None:
    mine = [policies.image_build(replace(NAMES, data_source=source))]
    bucket = "arn:aws:s3:::the-data"
    assert allows(mine, Ask(action="s3:GetObject", resource=f"{bucket}/{inside}"))
    if outside:
        assert not allows(mine, Ask(action="s3:GetObject", resource=f"{bucket}/{outside}"))
        assert not allows(mine, Ask(action="s3:ListBucket", resource=bucket, context={"s3:prefix": ["other/"]}))
    assert not allows(mine, Ask(action="s3:GetObject", resource=f"arn:aws:s3:::another/{inside}"))
    assert not allows(mine, Ask(action="s3:PutObject", resource=f"{bucket}/{inside}"))


def test_a_script_as_data_source_gives_no_right() -> None:
    assert policies.image_build(replace(NAMES, data_source="prepare_data.py")) == policies.image_build(NAMES)


def test_instances_of_an_event_have_no_rights() -> None:
    assert policies.worker() is None


# -- form ------------------------------------------------------------------------------------------------------------


def test_github_is_trusted_for_one_branch_or_for_pull_requests() -> None:
    provider = f"arn:aws:iam::{NAMES.account}:oidc-provider/{policies.GITHUB}"
    (statement,) = policies.github_trust(provider, policies.github_subject("o/r", branch="main"))["Statement"]
    assert statement["Principal"] == {"Federated": provider}
    assert statement["Condition"] == {
        "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": "repo:o/r:ref:refs/heads/main",
        }
    }
    assert policies.github_subject("o/r", branch=None) == "repo:o/r:pull_request"


def test_policies_fit_into_what_aws_takes() -> None:
    """IAM counts characters without blanks: 6,144 of a policy, 10,240 of all that stand in a role."""
    longest = replace(
        NAMES,
        event="e" * 100,
        owner="o" * 120,
        bucket="b" * 63,
        prefix="p" * 42,
        image="i" * 80,
        image_regions=tuple(f"ap-southeast-{number}" for number in range(1, 6)),
        data_secret="s" * 400,
        data_source=f"s3://{'b' * 63}/{'d' * 400}",
    )
    documents = policies.ci(longest)
    sizes = {name: len(json.dumps(document, separators=(",", ":"))) for name, document in documents.items()}
    assert sizes["runner"] <= 6144
    assert sizes["images"] <= 6144
    assert sizes["preview"] + sizes["up"] <= 10_240
    assert len(json.dumps(policies.image_build(longest), separators=(",", ":"))) <= 10_240


def test_an_image_of_a_given_base_is_baked_from_it_alone() -> None:
    mine = [policies.runner(NAMES), policies.images(replace(NAMES, base="ami-0123456789abcdef0"))]
    owner = {"ec2:Owner": ["666666666666"]}
    base = Ask(action="ec2:RunInstances", resource=_ec2("image", "ami-0123456789abcdef0", ""), context=owner)
    assert allows(mine, base)
    assert not allows(mine, replace(base, resource=_ec2("image", "ami-1", "")))
