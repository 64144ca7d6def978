"""EC2: key pairs and launch templates, and what the other modules of EC2 share."""

import copy
from collections.abc import Collection
from typing import Any

from botocore.exceptions import ClientError

from tests.infra.provider.services.base import (
    Account,
    Resource,
    Values,
    as_map,
    as_pairs,
    camel,
    code_of,
    gone_is_fine,
    pascal,
    tag_changes,
)

_TEMPLATE_GONE = ("InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException")
# What of a launch template is no part of its data.
_OUTSIDE = frozenset({"name", "namePrefix", "description", "defaultVersion", "updateDefaultVersion", "tags", "tagsAll"})
_QUIET = _OUTSIDE - {"description"} | {"region"}  # of these none makes a new version
_FLAGS = ("encrypted", "deleteOnTermination")  # of a volume: strings in Pulumi, booleans in AWS


def specifications(kind: str, tags: dict[str, str]) -> list[Values] | None:
    """Return the tags of a new resource as EC2 takes them."""
    return [{"ResourceType": kind, "Tags": as_pairs(tags)}] if tags else None


def tag(account: Account, name: str, state: Values, inputs: Values) -> None:
    """Bring the tags of a resource of EC2 up to date."""
    gone, new = tag_changes(state, inputs)
    if gone:
        account.call("ec2", "delete_tags", Resources=[name], Tags=[{"Key": key} for key in gone])
    if new:
        account.call("ec2", "create_tags", Resources=[name], Tags=as_pairs(new))


class _KeyPair:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "ec2",
            "import_key_pair",
            KeyName=inputs["keyName"],
            PublicKeyMaterial=inputs["publicKey"].strip().encode(),
            TagSpecifications=specifications("key-pair", inputs["tagsAll"]),
        )
        return str(made["KeyName"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            (found,) = account.call("ec2", "describe_key_pairs", KeyNames=[name])["KeyPairs"]
        except ClientError as error:
            if code_of(error) == "InvalidKeyPair.NotFound":
                return None
            raise
        return {
            "arn": f"arn:aws:ec2:{account.region}:{account.id}:key-pair/{name}",
            "fingerprint": found["KeyFingerprint"],
            "keyName": name,
            "keyPairId": found["KeyPairId"],
            "keyType": found.get("KeyType"),
            "tagsAll": as_map(found.get("Tags")),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        tag(account, state["keyPairId"], state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        account.call("ec2", "delete_key_pair", KeyName=name)


class _LaunchTemplate:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "ec2",
            "create_launch_template",
            LaunchTemplateName=inputs["name"],
            VersionDescription=inputs.get("description"),
            LaunchTemplateData=_data(inputs),
            TagSpecifications=specifications("launch-template", inputs["tagsAll"]),
        )
        return str(made["LaunchTemplate"]["LaunchTemplateId"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            found = account.call("ec2", "describe_launch_templates", LaunchTemplateIds=[name])["LaunchTemplates"]
            if not found:
                return None
            latest = account.call(
                "ec2", "describe_launch_template_versions", LaunchTemplateId=name, Versions=["$Latest"]
            )["LaunchTemplateVersions"][0]
        except ClientError as error:
            if code_of(error) in _TEMPLATE_GONE:
                return None
            raise
        return {
            **_shown(latest["LaunchTemplateData"]),
            "arn": f"arn:aws:ec2:{account.region}:{account.id}:launch-template/{name}",
            "defaultVersion": found[0]["DefaultVersionNumber"],
            "description": latest.get("VersionDescription"),
            "latestVersion": found[0]["LatestVersionNumber"],
            "name": found[0]["LaunchTemplateName"],
            "tagsAll": as_map(found[0].get("Tags")),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        default = inputs.get("defaultVersion") if "defaultVersion" in changed else None
        if set(changed) - _QUIET:
            made = account.call(
                "ec2",
                "create_launch_template_version",
                LaunchTemplateId=name,
                VersionDescription=inputs.get("description"),
                LaunchTemplateData=_data(inputs),
            )
            if inputs.get("updateDefaultVersion"):
                default = made["LaunchTemplateVersion"]["VersionNumber"]
        elif inputs.get("updateDefaultVersion") and "updateDefaultVersion" in changed:
            default = state["latestVersion"]
        if default is not None:
            account.call("ec2", "modify_launch_template", LaunchTemplateId=name, DefaultVersion=str(default))
        tag(account, name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(*_TEMPLATE_GONE):
            account.call("ec2", "delete_launch_template", LaunchTemplateId=name)


def _data(inputs: Values) -> Values:
    """Return the data of a template as EC2 takes it."""
    values = copy.deepcopy({key: value for key, value in inputs.items() if key not in _OUTSIDE | {"region"}})
    for mapping in values.get("blockDeviceMappings", ()):
        ebs = mapping.get("ebs", {})
        ebs.update({key: ebs[key] == "true" for key in _FLAGS if ebs.get(key)})
    if "ebsOptimized" in values:
        values["ebsOptimized"] = values["ebsOptimized"] == "true"
    if "vpcSecurityGroupIds" in values:
        values["securityGroupIds"] = values.pop("vpcSecurityGroupIds")
    if "tagSpecifications" in values:
        values["tagSpecifications"] = [
            {"resourceType": each["resourceType"], "tags": [{"key": k, "value": v} for k, v in each["tags"].items()]}
            for each in values["tagSpecifications"]
        ]
    return dict(pascal(values))


def _shown(data: Values) -> Values:
    """Return the data of a template as Pulumi has it."""
    values = dict(camel(data))
    for mapping in values.get("blockDeviceMappings", ()):
        ebs = mapping.get("ebs", {})
        ebs.update({key: str(ebs[key]).lower() for key in _FLAGS if key in ebs})
    if "ebsOptimized" in values:
        values["ebsOptimized"] = str(values["ebsOptimized"]).lower()
    if "securityGroupIds" in values:
        values["vpcSecurityGroupIds"] = values.pop("securityGroupIds")
    # moto adds the template's own tags, which are none of its data.
    given = [each for each in values.pop("tagSpecifications", ()) if each["resourceType"] != "launch-template"]
    if given:
        values["tagSpecifications"] = given
    for each in given:
        each["tags"] = {pair["key"]: pair["value"] for pair in each["tags"]}
    return values


RESOURCES: dict[str, Resource] = {
    "aws:ec2/keyPair:KeyPair": _KeyPair(),
    "aws:ec2/launchTemplate:LaunchTemplate": _LaunchTemplate(),
}


def described(account: Account, operation: str, key: str, missing: Collection[str], **parameters: Any) -> Values | None:
    """Return the one thing that a Describe call finds, None when there is none (any more).

    Raises:
        ClientError: something else is wrong.
    """
    try:
        found = account.call("ec2", operation, **parameters)[key]
    except ClientError as error:
        if code_of(error) in missing:
            return None
        raise
    return dict(found[0]) if found else None
