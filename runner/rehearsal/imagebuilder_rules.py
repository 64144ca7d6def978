"""What the emulated Image Builder checks before it takes a resource, and what it adds to one."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from moto.core.exceptions import ServiceException
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.ssm.models import ssm_backends

from runner.rehearsal import awstoe
from runner.rehearsal.account import ACCOUNT
from runner.rehearsal.imagebuilder_store import Store, is_amazons
from runner.rehearsal.imagebuilder_wire import Refused

INLINE = 16_000  # characters of a document that CreateComponent takes itself
_TESTS_MINUTES, _DISTRIBUTION_MINUTES = 720, 720
_SCHEDULE = re.compile(r"rate\(\d+ (minute|hour|day)s?\)|cron\((\S+ ){4,5}\S+\)")
_NOT_EMULATED = {
    "Distribution": (
        "containerDistributionConfiguration",
        "licenseConfigurationArns",
        "launchTemplateConfigurations",
        "s3ExportConfiguration",
        "fastLaunchConfigurations",
    ),
    "Ami": ("targetAccountIds", "launchPermission", "kmsKeyId"),
    "Pipeline": ("containerRecipeArn", "workflows", "imageScanningConfiguration"),
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Checks of one region's account. Each method gives the resource's values as Get will show them.

    Raises, all of them:
        Refused: as AWS refuses it.
    """

    region: str
    store: Store

    def of(self, kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return the check of a kind of resource."""
        return {
            "Component": self.component,
            "ImageRecipe": self.recipe,
            "InfrastructureConfiguration": self.infrastructure,
            "DistributionConfiguration": self.distribution,
            "ImagePipeline": self.pipeline,
            "LifecyclePolicy": self.policy,
        }[kind]

    def component(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check a component; its document is read, from S3 when ``uri`` says so."""
        if ("data" in given) == ("uri" in given):
            no("InvalidParameterCombinationException", "Specify exactly one of 'data' and 'uri'.")
        text = given.get("data") or self._from_s3(given["uri"])
        try:
            document = awstoe.parse(text)
        except awstoe.DocumentRefused as error:
            where = "data" if "data" in given else "uri"
            no("InvalidRequestException", f"The value supplied for parameter '{where}' is not valid. {error}")
        parameters = [
            {"name": name, "type": "String"}
            | ({"defaultValue": [default]} if default is not None else {})
            | ({"description": document.descriptions[name]} if document.descriptions[name] else {})
            for name, default in document.parameters.items()
        ]
        kept = {name: value for name, value in given.items() if name != "uri"}
        return {
            **kept,
            "data": text,
            "type": document.kind,
            "state": {"status": "ACTIVE"},
            "encrypted": True,
            "owner": ACCOUNT,
            **({"parameters": parameters} if parameters else {}),
        }

    def recipe(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check a recipe: its components with their parameters, and its parent image."""
        platform = "Linux"
        for number, chosen in enumerate(given.get("components", ())):
            arn = chosen["componentArn"]
            if is_amazons(arn):
                continue
            component = self.store.find(arn)
            if component is None:
                where = f"components[{number}].componentArn"
                no(
                    "InvalidParameterValueException",
                    f"The value supplied for '{where}' is not valid: {arn} is not there.",
                )
            platform = component.values["platform"]
            self._check_parameters(chosen, component.values.get("parameters", ()))
        self._check_parent(given["parentImage"])
        return {**given, "platform": platform, "type": "AMI", "owner": ACCOUNT}

    def infrastructure(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check an infrastructure configuration: everything in EC2 and IAM that it names."""
        backend = self._ec2()
        profile = given["instanceProfileName"]
        if profile not in {known.name for known in iam_backends[ACCOUNT]["aws"].instance_profiles.values()}:
            _invalid(
                "instanceProfileName",
                "The provided instance profile does not exist. Please specify a different one and try again.",
            )
        for instance_type in given.get("instanceTypes", ()):
            if instance_type not in INSTANCE_TYPES:
                _invalid("instanceTypes", f"The instance type '{instance_type}' does not exist.")
        for group in given.get("securityGroupIds", ()):
            if backend.get_security_group_from_id(group) is None:
                _invalid("securityGroupIds", f"The security group '{group}' does not exist.")
        subnets = {name for by_zone in backend.subnets.values() for name in by_zone}
        if "subnetId" in given and given["subnetId"] not in subnets:
            _invalid("subnetId", f"The subnet '{given['subnetId']}' does not exist.")
        if "keyPair" in given and given["keyPair"] not in backend.key_pairs:
            _invalid("keyPair", f"The key pair '{given['keyPair']}' does not exist.")
        return {"terminateInstanceOnFailure": True, **given}

    def distribution(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check a distribution configuration: known regions, each once, and only what is emulated."""
        regions = [each["region"] for each in given["distributions"]]
        for twice in sorted({region for region in regions if regions.count(region) > 1}):
            _invalid("distributions", f"The region {twice} is there more than once.")
        for region in regions:
            if region not in set(ec2_backends[ACCOUNT].regions):
                _invalid("distributions", f"The region {region} does not exist.")
        for each in given["distributions"]:
            _emulated(each, "Distribution")
            _emulated(each.get("amiDistributionConfiguration", {}), "Ami")
        return {"timeoutMinutes": _DISTRIBUTION_MINUTES, **given}

    def pipeline(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check a pipeline: what it names is there, and its schedule is one."""
        _emulated(given, "Pipeline")
        if "imageRecipeArn" not in given:
            no(
                "InvalidParameterCombinationException",
                "Specify exactly one of 'imageRecipeArn' and 'containerRecipeArn'.",
            )
        self.check_references(given)
        expression = given.get("schedule", {}).get("scheduleExpression")
        if expression is not None and not _SCHEDULE.fullmatch(expression):
            _invalid(
                "schedule.scheduleExpression", f"'{expression}' is neither cron(...) of 5 or 6 fields nor rate(...)."
            )
        schedule = {"timezone": "UTC", "pipelineExecutionStartCondition": "EXPRESSION_MATCH_ONLY"}
        tests = {"imageTestsEnabled": True, "timeoutMinutes": _TESTS_MINUTES}
        return {
            "status": "ENABLED",
            "enhancedImageMetadataEnabled": True,
            **given,
            "platform": self.store.get(given["imageRecipeArn"]).values["platform"],
            "imageTestsConfiguration": {**tests, **given.get("imageTestsConfiguration", {})},
            **({"schedule": {**schedule, **given["schedule"]}} if "schedule" in given else {}),
        }

    def policy(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check a lifecycle policy."""
        selection = given["resourceSelection"]
        if ("recipes" in selection) == ("tagMap" in selection):
            no("InvalidParameterCombinationException", "Specify exactly one of 'recipes' and 'tagMap'.")
        for number, detail in enumerate(given["policyDetails"]):
            if (detail["filter"]["type"] == "AGE") != ("unit" in detail["filter"]):
                _invalid(f"policyDetails[{number}].filter.unit", "AGE needs a unit, COUNT has none.")
        return {"status": "ENABLED", **given}

    def check_references(self, given: Mapping[str, Any]) -> None:
        """Check that recipe, infrastructure and distribution of a pipeline or an image are there."""
        for name in ("imageRecipeArn", "infrastructureConfigurationArn", "distributionConfigurationArn"):
            arn = given.get(name)
            if arn and not is_amazons(arn) and self.store.find(arn) is None:
                no("ResourceNotFoundException", f"The resource with ARN '{arn}' could not be found ({name}).")

    def _check_parameters(self, chosen: Mapping[str, Any], declared: Any) -> None:
        names = {each["name"] for each in declared}
        given = {each["name"]: each["value"] for each in chosen.get("parameters", ())}
        for unknown in sorted(given.keys() - names):
            _invalid("components.parameters", f"{chosen['componentArn']} has no parameter '{unknown}'.")
        for missing in sorted(
            each["name"] for each in declared if "defaultValue" not in each and each["name"] not in given
        ):
            _invalid("components.parameters", f"{chosen['componentArn']} needs the parameter '{missing}'.")

    def _check_parent(self, parent: str) -> None:
        if parent.startswith("arn:"):
            if not is_amazons(parent) and self.store.find(parent) is None:
                _invalid("parentImage", f"The image {parent} does not exist.")
        elif parent.startswith("ssm:"):
            image_in_ssm(self.region, parent.removeprefix("ssm:"))
        elif not parent.startswith("ami-") or parent not in self._ec2().amis:
            _invalid("parentImage", f"The AMI '{parent}' does not exist or is not one that you may use.")

    def _from_s3(self, uri: str) -> str:
        try:
            found = s3_objects(uri)
        except LookupError as error:
            _invalid("uri", f"The object {uri} could not be read: {error}")
        if len(found) != 1:
            _invalid("uri", f"The object {uri} does not exist.")
        return next(iter(found.values())).decode()

    def _ec2(self) -> EC2Backend:
        return ec2_backends[ACCOUNT][self.region]


def image_in_ssm(region: str, parameter: str) -> str:
    """Return the AMI that a parameter, named or given by its ARN, leads to.

    Raises:
        Refused: there is none.
    """
    name = parameter.partition(":parameter")[2] or parameter
    found = ssm_backends[ACCOUNT][region].get_parameter(name)
    if found is None or not str(found.value).startswith("ami-"):
        _invalid("parentImage", f"The SSM parameter '{name}' does not exist or holds no AMI id.")
    return str(found.value)


def s3_objects(uri: str) -> dict[str, bytes]:
    """Return what an s3:// address stands for: key -> content; those below a prefix for one that ends in ``*``.

    Raises:
        LookupError: it is no such address, or there is no such bucket.
    """
    address = urlsplit(uri)
    if address.scheme != "s3":
        msg = f"{uri} does not begin with s3://"
        raise LookupError(msg)
    backend, key = s3_backends[ACCOUNT]["aws"], address.path.lstrip("/")
    try:
        bucket = backend.get_bucket(address.netloc)
    except ServiceException as error:
        msg = f"there is no bucket {address.netloc}"
        raise LookupError(msg) from error
    if key.endswith("*"):
        return {name: each.value for name, each in bucket.keys.items() if name.startswith(key[:-1])}
    return {key: bucket.keys[key].value} if key in bucket.keys else {}


def no(code: str, message: str) -> NoReturn:
    """Refuse a call with one of the service's errors."""
    raise Refused(code, message)


def _invalid(parameter: str, why: str) -> NoReturn:
    no("InvalidParameterValueException", f"The value supplied for parameter '{parameter}' is not valid. {why}")


def _emulated(given: Mapping[str, Any], what: str) -> None:
    for name in _NOT_EMULATED[what]:
        if name in given:
            no("ServiceUnavailableException", f"a rehearsal does not emulate {name}; leave it out")
