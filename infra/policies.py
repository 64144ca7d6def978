"""The policy documents of an event's roles: what each may do, and nothing else. Pure: names in, JSON objects out.

Where AWS knows no narrower resource than ``*``, as for most of what only looks, the region narrows it. Each right is
held by a test against the calls that were seen: one that is missing fails it, and so does one that nobody needs.
"""

import re
from collections.abc import Mapping

from image_builder.recipe import BASES
from infra.statements import Document, Names, allow, giving, look, own, policy, requested
from runner.aws.tags import IMAGE, OF_IMAGE

BUILD_POLICIES = ("EC2InstanceProfileForImageBuilder", "AmazonSSMManagedInstanceCore")
LIFECYCLE_POLICY = "service-role/EC2ImageBuilderLifecycleExecutionPolicy"
GITHUB = "token.actions.githubusercontent.com"
AUDIENCE = "sts.amazonaws.com"  # what GitHub's token must be made for; aws-actions/configure-aws-credentials asks so
_EC2 = "ec2.amazonaws.com"
# Owners of the bases that an image may start from, by the alias that AWS gives them and by their accounts.
_BASE_OWNERS = {"ubuntu": ["amazon", "099720109477"], "amazon": ["amazon", "137112412989"]}
_CREATED_BY = {"aws:ResourceTag/CreatedBy": "EC2 Image Builder"}  # Image Builder gives it to what it makes


# -- who may be what -------------------------------------------------------------------------------------------------


def ec2_trust() -> Document:
    """Return the trust of a role that instances have."""
    return service_trust("ec2")


def service_trust(service: str) -> Document:
    """Return the trust of a role that one of AWS's services takes, such as ``imagebuilder``."""
    return policy(_trust({"Service": f"{service}.amazonaws.com"}, "sts:AssumeRole"))


def github_trust(provider: str, subject: str) -> Document:
    """Return the trust of a role that GitHub's workflows take without a key.

    Args:
        provider: ARN of the account's OpenID Connect provider for GitHub.
        subject: exactly which workflows, see ``github_subject``; no pattern, so that nothing else can fit.
    """
    wanted = {"StringEquals": {f"{GITHUB}:aud": AUDIENCE, f"{GITHUB}:sub": subject}}
    return policy(_trust({"Federated": provider}, "sts:AssumeRoleWithWebIdentity") | {"Condition": wanted})


def github_subject(repository: str, *, branch: str | None) -> str:
    """Return how GitHub names the workflows of a branch of "owner/repo", or with None those of its pull requests."""
    return f"repo:{repository}:" + (f"ref:refs/heads/{branch}" if branch else "pull_request")


def _trust(principal: Mapping[str, str], action: str) -> Document:
    return {"Effect": "Allow", "Principal": dict(principal), "Action": action}


# -- instances -------------------------------------------------------------------------------------------------------


def worker() -> Document | None:
    """Return what instances of an event may do: nothing. Whoever submits code would have that right as well."""
    return None


def image_build(names: Names) -> Document:
    """Return what building instances may do besides ``BUILD_POLICIES``, which allow the logs of Image Builder."""
    kits = f"arn:{names.partition}:s3:::{names.bucket}/kits/*"
    statements = [allow("ReadKits", "s3:GetObject", kits)]
    secret = names.data_secret or ""
    if secret and not _is_parameter(secret):
        statements.append(allow("ReadSecret", "secretsmanager:GetSecretValue", _secret(names, secret)))
    # AmazonSSMManagedInstanceCore allows every parameter of the account, where others may keep their secrets.
    readable = [f"arn:{names.partition}:ssm:{names.region}::parameter/aws/*"]
    if secret and _is_parameter(secret):
        readable.insert(0, _parameter(names, secret))
        statements.append(allow("ReadParameter", "ssm:GetParameter", readable[0]))
    source = re.fullmatch(r"s3://([^/]+)/?(.*)", names.data_source or "")
    if source:
        bucket, prefix = source.groups()
        whole = f"arn:{names.partition}:s3:::{bucket}"
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        listed = {"Condition": {"StringLike": {"s3:prefix": f"{folder}*"}}}
        statements.append(allow("ReadData", "s3:GetObject", f"{whole}/{folder}*"))
        statements.append(allow("ListData", "s3:ListBucket", whole) | listed)
    forbidden = {
        "Sid": "NoOtherParameters",
        "Effect": "Deny",
        "Action": ["ssm:GetParameter", "ssm:GetParameters"],
        "NotResource": readable,
    }
    return policy(*statements, forbidden)


def _is_parameter(secret: str) -> bool:
    return secret.startswith("ssm:") or re.match(r"arn:[^:]*:ssm:", secret) is not None


def _parameter(names: Names, secret: str) -> str:
    if secret.startswith("arn:"):
        return secret
    name = secret.removeprefix("ssm:").lstrip("/")
    return f"arn:{names.partition}:ssm:{names.region}:{names.account}:parameter/{name}"


def _secret(names: Names, secret: str) -> str:
    """Return the ARN of a secret: AWS adds a hyphen and six characters to the name that it was given."""
    if secret.startswith("arn:"):
        return secret if re.search(r"-[A-Za-z0-9]{6}$", secret) else f"{secret}-??????"
    return f"arn:{names.partition}:secretsmanager:{names.region}:{names.account}:secret:{secret}-??????"


# -- whoever runs the event ------------------------------------------------------------------------------------------


def runner(names: Names) -> Document:
    """Return what `run-event`, `doctor` and `sweep` need.

    Launches carry the tags of the event. What is there is cared for by its owner tag alone: sweep ends what other
    events of the owner left, and AWS refuses a call for several instances when one of them is not allowed.
    """
    looks = [
        *("AvailabilityZones", "Images", "InstanceTypeOfferings", "InstanceTypes", "Instances", "KeyPairs"),
        *("LaunchTemplateVersions", "LaunchTemplates", "SecurityGroups", "Subnets", "Vpcs"),
    ]
    launch = ["ec2:RunInstances", "ec2:CreateFleet"]
    created = ["RunInstances", "CreateFleet", "CreateLaunchTemplate"]
    made = names.ec2("instance", "volume", "fleet", "launch-template")
    quotas = f"arn:{names.partition}:servicequotas:{names.region}:{names.account}:ec2/*"
    own_images = {"StringEquals": {"ec2:Owner": names.account}}
    care = names.ec2("instance", "launch-template")
    return policy(
        # Nothing that describes knows a resource.
        look("Look", [f"ec2:Describe{kind}" for kind in looks], names.regions),
        allow("LookAtQuotas", "servicequotas:GetServiceQuota", quotas),
        allow("LaunchWhatIsTagged", [*launch, "ec2:CreateLaunchTemplate"], made, requested(names)),
        allow("LaunchFromOwnImages", launch, names.images("image"), own_images),
        allow("LaunchWithOwn", launch, names.ec2("key-pair", "launch-template", "security-group"), own(names)),
        # The network may be the account's default one, which nobody has tagged; an image's snapshots need no tag.
        allow("LaunchInto", launch, names.ec2("network-interface", "subnet") + names.images("snapshot")),
        allow("TagAtLaunch", "ec2:CreateTags", made, requested(names, {"ec2:CreateAction": created})),
        allow("CareForOwnInstances", ["ec2:GetConsoleOutput", "ec2:TerminateInstances"], care[:1], own(names)),
        allow("CareForOwnTemplates", "ec2:DeleteLaunchTemplate", care[1:], own(names)),
        allow("MarkOwnInstances", "ec2:CreateTags", care[:1], own(names)),
        giving("GiveNoRights", names.role(names.worker_role), _EC2),
    )


# -- whoever builds its image ----------------------------------------------------------------------------------------


def images(names: Names) -> Document:
    """Return what `build-image`, `bake-image`, `test-image`, `images` and `prune-images` need besides ``runner``."""
    build, every = names.builder("image", "/*"), names.builder("component", "-*")
    recipe, pipeline = names.builder("image-recipe", "/*"), names.builder("image-pipeline")
    wanted = [names.builder("distribution-configuration"), build, pipeline, recipe, every]
    executions = f"arn:{names.partition}:imagebuilder:{names.region}:{names.account}:workflow-execution/*"
    logs = f"arn:{names.partition}:logs:{names.region}:{names.account}:log-group:/aws/imagebuilder/{names.image}"
    anywhere = {"everywhere": True}
    both = names.images("image", "snapshot", **anywhere)
    snapshots = names.images("snapshot", **anywhere)
    marked = {"StringEquals": {f"aws:ResourceTag/{IMAGE}": names.image}}
    marking = {"StringEquals": _CREATED_BY, "ForAllValues:StringEquals": {"aws:TagKeys": [IMAGE, OF_IMAGE]}}
    return policy(
        # None of these knows a resource.
        look(
            "LookForBuilds",
            [f"imagebuilder:List{kind}" for kind in ("Components", "ImagePipelines", "ImageRecipes", "Images")],
            (names.region,),
        ),
        look("LookForSnapshots", "ec2:DescribeSnapshots", names.regions),
        allow("LookAtBuilds", [f"imagebuilder:{action}" for action in _LOOKS_AT_BUILDS], wanted),
        allow("LookAtFailures", [f"imagebuilder:{action}" for action in _LOOKS_AT_FAILURES], [build, executions]),
        allow("FollowLogs", "logs:GetLogEvents", f"{logs}:log-stream:*"),
        *_bases(names),
        # What a pipeline builds has no tags of ours; its name is the image's.
        allow("Build", [f"imagebuilder:{action}" for action in _BUILDS], [pipeline, build]),
        allow("SendKits", ["s3:GetObject", "s3:PutObject"], f"arn:{names.partition}:s3:::{names.bucket}/kits/*"),
        allow("CareForOwn", list(_CARES), [*both, *names.ec2("instance"), recipe, every], own(names)),
        # Image Builder gives snapshots no tags of ours, so they are marked before their image goes.
        allow("MarkBuilt", "ec2:CreateTags", snapshots, marking),
        allow("PruneSnapshots", "ec2:DeleteSnapshot", snapshots, marked),
        allow("Bake", "ec2:CreateImage", names.images("image", "snapshot"), requested(names)),
        allow(
            "TagAtBaking",
            "ec2:CreateTags",
            names.images("image", "snapshot"),
            requested(names, {"ec2:CreateAction": "CreateImage"}),
        ),
        giving("BakeWithRole", names.role(names.build_role), _EC2),
    )


_LOOKS_AT_BUILDS = (
    "GetDistributionConfiguration",
    "GetImage",
    "GetImagePipeline",
    "GetImageRecipe",
    "ListComponentBuildVersions",
    "ListImageBuildVersions",
    "ListImagePipelineImages",
)
_LOOKS_AT_FAILURES = ("ListWorkflowExecutions", "ListWorkflowStepExecutions")


_BUILDS = ("StartImagePipelineExecution", "CancelImageCreation", "DeleteImage")
# Of tasks that bake, accept and prune. Together, since a policy has at most 6,144 characters.
_CARES = (
    *("ec2:CreateImage", "ec2:CreateTags", "ec2:DeleteTags", "ec2:DeregisterImage"),
    *("imagebuilder:DeleteComponent", "imagebuilder:DeleteImageRecipe"),
)


def _bases(names: Names) -> list[Document]:
    launch = "ec2:RunInstances"
    if names.base.startswith("ami-"):
        return [allow("BakeFromBase", launch, f"arn:{names.partition}:ec2:{names.region}::image/{names.base}")]
    parameter = BASES[names.base].removeprefix("ssm:/")
    owners = {"StringEquals": {"ec2:Owner": _BASE_OWNERS[names.base.partition("-")[0]]}}
    return [
        allow("FindBase", "ssm:GetParameter", f"arn:{names.partition}:ssm:{names.region}::parameter/{parameter}"),
        allow("BakeFromBase", launch, names.images("image"), owners),
    ]


# -- CI --------------------------------------------------------------------------------------------------------------


def preview(names: Names) -> Document:
    """Return what `pulumi preview` needs: the looks of the program and nothing that changes anything."""
    looks = ["ec2:DescribeSubnets", "ec2:DescribeVpcs"]
    looks += ["imagebuilder:ListComponents", "imagebuilder:ListInfrastructureConfigurations"]  # for versions in use
    if names.base.startswith("ami-"):
        looks.append("ec2:DescribeImages")  # for the name of its root device
    return policy(look("LookAround", looks, (names.region,)))


def up(names: Names) -> Document:
    """Return what `pulumi up` needs for a changed kit, besides ``runner``, ``images`` and ``preview``.

    Whoever may change roles may give himself any right. So CI may not: a change of roles, network or bucket is for a
    person.
    """
    every, recipe = names.builder("component", "-*"), names.builder("image-recipe", "/*")
    pipeline, distribution = names.builder("image-pipeline"), names.builder("distribution-configuration")
    infrastructure = names.builder("infrastructure-configuration")
    return policy(
        allow("MakeComponents", ["imagebuilder:CreateComponent", "imagebuilder:TagResource"], every, requested(names)),
        allow("MakeRecipes", ["imagebuilder:CreateImageRecipe", "imagebuilder:TagResource"], recipe, requested(names)),
        allow("LookAtComponents", "imagebuilder:GetComponent", every),
        allow("LookAtMachines", "imagebuilder:GetInfrastructureConfiguration", infrastructure),
        allow("ChangePipeline", "imagebuilder:UpdateImagePipeline", pipeline, own(names)),
        allow("ChangeMachines", "imagebuilder:UpdateInfrastructureConfiguration", infrastructure, own(names)),
        allow("ChangeDistribution", "imagebuilder:UpdateDistributionConfiguration", distribution, own(names)),
        giving("BuildWithRole", names.role(names.build_role), "imagebuilder.amazonaws.com"),
    )


def ci(names: Names) -> dict[str, Document]:
    """Return everything that CI may do on the main branch, by the name of the policy."""
    return {"runner": runner(names), "images": images(names), "preview": preview(names), "up": up(names)}
