"""Calls that were seen on an emulated AWS, and what AWS checks for each: action, resource and condition keys.

Which resources an action is checked against is AWS's service authorization reference, as far as it is needed here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.infra.evaluation import Ask

ACCOUNT, PARTITION = "123456789012", "aws"
# Actions that know no resource, and so no tags either.
_LOOKS = re.compile(
    r"ec2:Describe.*|imagebuilder:List(Components|ImagePipelines|ImageRecipes|Images|[A-Z][a-z]+Configurations)"
)
# In Image Builder: the parameter that names what an action is about.
_ABOUT = {
    "StartImagePipelineExecution": "imagePipelineArn",
    "ListImagePipelineImages": "imagePipelineArn",
    "ListImageBuildVersions": "imageVersionArn",
    "ListComponentBuildVersions": "componentVersionArn",
    "ListWorkflowExecutions": "imageBuildVersionArn",
    "GetImage": "imageBuildVersionArn",
    "DeleteImage": "imageBuildVersionArn",
    "CancelImageCreation": "imageBuildVersionArn",
    "GetComponent": "componentBuildVersionArn",
    "DeleteComponent": "componentBuildVersionArn",
}
_MADE = {"CreateComponent": "component", "CreateImageRecipe": "image-recipe"}
_KINDS = {"ami": "image", "i": "instance", "snap": "snapshot", "lt": "launch-template", "vol": "volume"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One call as the emulation told of it; see runner/rehearsal/told.py."""

    service: str
    action: str
    region: str
    caller: str
    parameters: Mapping[str, Any]
    found: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> "Seen":
        """Read it from the state of a rehearsal."""
        return cls(action=call["action"], **call["told"])


@dataclass
class Reader:
    """Turns calls into what AWS checks. Calls must come in their order: a fleet launches what a template says.

    Args:
        roles: the role of each instance profile, both by name.
    """

    roles: Mapping[str, str]
    _templates: dict[str, Seen] = field(default_factory=dict)

    def asks(self, seen: Seen) -> Iterator[Ask]:
        """Yield everything that AWS checks for a call."""
        action = f"{seen.service}:{seen.action}"
        always = {"aws:RequestedRegion": [seen.region]}
        if action == "sts:GetCallerIdentity":  # everybody may ask who he is
            return
        if _LOOKS.fullmatch(action):
            yield Ask(action=action, resource="*", context=always)
            return
        read: Callable[[Seen], Iterator[Ask]] | None = getattr(self, f"_{seen.action.lower()}", None)
        for ask in read(seen) if read else getattr(self, f"_of_{seen.service}")(seen):
            yield Ask(action=ask.action, resource=ask.resource, context={**always, **ask.context})

    # -- EC2 ---------------------------------------------------------------------------------------------------------

    def _runinstances(self, seen: Seen) -> Iterator[Ask]:
        yield from self._launch(seen, "RunInstances", seen.parameters, "")
        yield from _tagging(seen, "RunInstances", _specified(seen.parameters, "TagSpecification"))

    def _createlaunchtemplate(self, seen: Seen) -> Iterator[Ask]:
        self._templates[seen.parameters["LaunchTemplateName"]] = seen
        specified = _specified(seen.parameters, "TagSpecification")
        context = _requested(specified.get("launch-template", {}))
        yield Ask(action="ec2:CreateLaunchTemplate", resource=_new(seen, "launch-template"), context=context)
        yield from _tagging(seen, "CreateLaunchTemplate", specified)

    def _createfleet(self, seen: Seen) -> Iterator[Ask]:
        template = seen.parameters["LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateId"]
        made = self._templates[seen.found[template]["name"]]
        data = made.parameters
        specified = _specified(seen.parameters, "TagSpecification")
        fleet = _requested(specified["fleet"])
        yield Ask(action="ec2:CreateFleet", resource=_new(seen, "fleet"), context=fleet)
        merged = {**data, "LaunchTemplateId": template}
        told = replace(seen, found={**made.found, **seen.found})
        tags = {**_specified(data, "LaunchTemplateData.TagSpecification"), **specified}
        # An instant fleet launches as its caller would, with the same checks.
        for action in ("CreateFleet", "RunInstances"):
            yield from self._launch(told, action, merged, "LaunchTemplateData.", tags)
        yield from _tagging(seen, "CreateFleet", specified)

    def _launch(
        self,
        seen: Seen,
        action: str,
        given: Mapping[str, str],
        prefix: str,
        tags: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Iterator[Ask]:
        name = f"ec2:{action}"
        tags = tags or _specified(given, "TagSpecification")
        for kind in ("instance", "volume"):
            yield Ask(action=name, resource=_new(seen, kind), context=_requested(tags.get(kind, {})))
        image = given[f"{prefix}ImageId"]
        facts = seen.found[image]
        yield Ask(action=name, resource=_arn(seen, image), context=_owned(facts))
        yield Ask(action=name, resource=_arn(seen, facts["snapshot"]))
        for kind in ("network-interface", "subnet"):
            yield Ask(action=name, resource=_new(seen, kind))
        for key, value in given.items():
            if re.fullmatch(rf"{re.escape(prefix)}SecurityGroupId\.\d+", key):
                yield Ask(action=name, resource=_arn(seen, value, "security-group"), context=_tags(seen, value))
        if key_name := given.get(f"{prefix}KeyName"):
            yield Ask(action=name, resource=_arn(seen, key_name, "key-pair"), context=_tags(seen, key_name))
        if template := given.get("LaunchTemplate.LaunchTemplateId") or given.get("LaunchTemplateId"):
            yield Ask(action=name, resource=_arn(seen, template), context=_tags(seen, template))
        if profile := given.get(f"{prefix}IamInstanceProfile.Name"):
            role = f"arn:{PARTITION}:iam::{ACCOUNT}:role/{self.roles[profile]}"
            yield Ask(action="iam:PassRole", resource=role, context={"iam:PassedToService": ["ec2.amazonaws.com"]})

    def _createimage(self, seen: Seen) -> Iterator[Ask]:
        specified = _specified(seen.parameters, "TagSpecification")
        for kind in ("image", "snapshot"):
            context = _requested(specified.get(kind, {}))
            yield Ask(action="ec2:CreateImage", resource=_new(seen, kind), context=context)
        instance = seen.parameters["InstanceId"]
        yield Ask(action="ec2:CreateImage", resource=_arn(seen, instance), context=_tags(seen, instance))
        yield from _tagging(seen, "CreateImage", specified)

    def _createtags(self, seen: Seen) -> Iterator[Ask]:
        context = _requested(_flat_tags(seen.parameters, "Tag"))
        for identity in seen.found.keys() & set(seen.parameters.values()):
            asked = {**context, **_tags(seen, identity)}
            yield Ask(action=f"ec2:{seen.action}", resource=_arn(seen, identity), context=asked)

    _deletetags = _createtags

    def _of_ec2(self, seen: Seen) -> Iterator[Ask]:
        """Yield the checks of an action that is about what it names."""
        named = [value for value in seen.parameters.values() if value.partition("-")[0] in _KINDS]
        assert named, seen
        for value in named:
            yield Ask(action=f"ec2:{seen.action}", resource=_arn(seen, value), context=_tags(seen, value))

    # -- other services ----------------------------------------------------------------------------------------------

    def _of_imagebuilder(self, seen: Seen) -> Iterator[Ask]:
        action = f"imagebuilder:{seen.action}"
        base = f"arn:{PARTITION}:imagebuilder:{seen.region}:{ACCOUNT}"
        if kind := _MADE.get(seen.action):
            name = re.sub(r"[^a-z0-9_-]", "-", seen.parameters["name"].lower())
            made = f"{base}:{kind}/{name}/{seen.parameters['semanticVersion']}" + "/1" * (kind == "component")
            context = _requested(seen.parameters["tags"])
            for each in (action, "imagebuilder:TagResource"):
                yield Ask(action=each, resource=made, context=context)
            return
        if seen.action == "ListWorkflowStepExecutions":
            execution = seen.parameters["workflowExecutionId"]
            yield Ask(action=action, resource=f"{base}:workflow-execution/{execution}")
            return
        own = re.sub(r"^(Get|Update|Delete)", "", seen.action)
        parameter = _ABOUT.get(seen.action, f"{own[0].lower()}{own[1:]}Arn")
        arn = seen.parameters[parameter]
        resource = f"{arn}/*" if seen.action.endswith("BuildVersions") else arn
        yield Ask(action=action, resource=resource, context=_tags(seen, arn))
        if seen.action == "StartImagePipelineExecution":
            yield Ask(action="imagebuilder:GetImagePipeline", resource=arn)
        if seen.action == "UpdateImagePipeline":
            for key, value in seen.parameters.items():
                if key.endswith("Arn") and key != parameter:
                    yield Ask(action=f"imagebuilder:Get{key[0].upper()}{key[1:-3]}", resource=value)
        if profile := seen.parameters.get("instanceProfileName"):
            role = f"arn:{PARTITION}:iam::{ACCOUNT}:role/{self.roles[profile]}"
            context = {"iam:PassedToService": ["imagebuilder.amazonaws.com"]}
            yield Ask(action="iam:PassRole", resource=role, context=context)

    def _of_s3(self, seen: Seen) -> Iterator[Ask]:
        bucket, key = seen.parameters["Bucket"], seen.parameters["Key"]
        whole = f"arn:{PARTITION}:s3:::{bucket}"
        if key:
            verb = "Get" if seen.action == "HeadObject" else seen.action.removesuffix("Object")
            yield Ask(action=f"s3:{verb}Object", resource=f"{whole}/{key}")
        else:
            yield Ask(action="s3:ListBucket", resource=whole, context={"s3:prefix": [seen.parameters["Prefix"]]})

    def _of_ssm(self, seen: Seen) -> Iterator[Ask]:
        name = seen.parameters["Name"].lstrip("/")
        account = "" if name.startswith("aws/") else ACCOUNT
        arn = f"arn:{PARTITION}:ssm:{seen.region}:{account}:parameter/{name}"
        yield Ask(action=f"ssm:{seen.action}", resource=arn)

    def _of_secretsmanager(self, seen: Seen) -> Iterator[Ask]:
        arn = f"arn:{PARTITION}:secretsmanager:{seen.region}:{ACCOUNT}:secret:{seen.parameters['SecretId']}-a1B2c3"
        yield Ask(action=f"secretsmanager:{seen.action}", resource=arn)

    def _of_servicequotas(self, seen: Seen) -> Iterator[Ask]:
        code = f"{seen.parameters['ServiceCode']}/{seen.parameters['QuotaCode']}"
        yield Ask(
            action=f"servicequotas:{seen.action}",
            resource=f"arn:{PARTITION}:servicequotas:{seen.region}:{ACCOUNT}:{code}",
        )

    def _of_logs(self, seen: Seen) -> Iterator[Ask]:
        group, stream = seen.parameters["logGroupName"], seen.parameters["logStreamName"]
        arn = f"arn:{PARTITION}:logs:{seen.region}:{ACCOUNT}:log-group:{group}:log-stream:{stream}"
        yield Ask(action=f"logs:{seen.action}", resource=arn)


def _new(seen: Seen, kind: str) -> str:
    """Return how AWS names what does not exist yet."""
    account = "" if kind in ("image", "snapshot") else ACCOUNT
    return f"arn:{PARTITION}:ec2:{seen.region}:{account}:{kind}/*"


def _arn(seen: Seen, identity: str, kind: str = "") -> str:
    kind = kind or _KINDS[identity.partition("-")[0]]
    return _new(seen, kind).removesuffix("*") + identity


def _tags(seen: Seen, identity: str) -> dict[str, list[str]]:
    tags = seen.found.get(identity, {}).get("tags", {})
    return {f"aws:ResourceTag/{name}": [value] for name, value in tags.items()}


def _owned(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"ec2:Owner": [str(facts["owner"])]}


def _requested(tags: Mapping[str, str]) -> dict[str, list[str]]:
    return {**{f"aws:RequestTag/{name}": [value] for name, value in tags.items()}, "aws:TagKeys": list(tags)}


def _tagging(seen: Seen, created_by: str, specified: Mapping[str, Mapping[str, str]]) -> Iterator[Ask]:
    """Yield the checks for the tags that a call gives to what it makes."""
    for kind, tags in specified.items():
        context = {**_requested(tags), "ec2:CreateAction": [created_by]}
        yield Ask(action="ec2:CreateTags", resource=_new(seen, kind), context=context)


def _specified(given: Mapping[str, str], prefix: str) -> dict[str, dict[str, str]]:
    """Return the tags that a call gives, by the kind of what gets them."""
    found = {}
    for name, kind in given.items():
        start = re.fullmatch(rf"({re.escape(prefix)}\.\d+)\.ResourceType", name)
        if start:
            found[kind] = _flat_tags(given, f"{start[1]}.Tag")
    return found


def _flat_tags(given: Mapping[str, str], prefix: str) -> dict[str, str]:
    keys = {name: value for name, value in given.items() if re.fullmatch(rf"{re.escape(prefix)}\.\d+\.Key", name)}
    return {value: given.get(f"{name.removesuffix('Key')}Value", "") for name, value in keys.items()}
