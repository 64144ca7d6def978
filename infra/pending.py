"""What became of things that a run of Pulumi was making when it was killed: those that AWS has belong to the stack.

Pulumi notes what it begins to make, and its id only afterwards. Most ids follow from what was asked for; the others
are looked for. What is given an id here need not be there: the `pulumi refresh` that follows drops it then.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from image_builder.builds import pages
from runner.aws.session import AwsSession

Values = Mapping[str, Any]

_SLUG = re.compile(r"[^a-z0-9_-]")
_MADE = "creating"
# Type -> its id, where that is made of the inputs alone.
_IDS = {
    "cloudwatch/logGroup": "{name}",
    "ec2/keyPair": "{keyName}",
    "iam/instanceProfile": "{name}",
    "iam/role": "{name}",
    "iam/rolePolicy": "{role}:{name}",
    "iam/rolePolicyAttachment": "{role}/{policyArn}",
    "s3/bucket": "{bucket}",
    "s3/bucketLifecycleConfiguration": "{bucket}",
    "s3/bucketOwnershipControls": "{bucket}",
    "s3/bucketPolicy": "{bucket}",
    "s3/bucketPublicAccessBlock": "{bucket}",
    "s3/bucketServerSideEncryptionConfiguration": "{bucket}",
    "budgets/budget": "{account}:{name}",
    "iam/policy": "arn:{partition}:iam::{account}:policy/{name}",
    "iam/openIdConnectProvider": "arn:{partition}:iam::{account}:oidc-provider/{host}",
    "ecs/cluster": "arn:{partition}:ecs:{region}:{account}:cluster/{name}",
    "imagebuilder/component": "arn:{partition}:imagebuilder:{region}:{account}:component/{slug}/{version}/1",
    "imagebuilder/distributionConfiguration": (
        "arn:{partition}:imagebuilder:{region}:{account}:distribution-configuration/{slug}"
    ),
    "imagebuilder/imagePipeline": "arn:{partition}:imagebuilder:{region}:{account}:image-pipeline/{slug}",
    "imagebuilder/infrastructureConfiguration": (
        "arn:{partition}:imagebuilder:{region}:{account}:infrastructure-configuration/{slug}"
    ),
    "imagebuilder/lifecyclePolicy": "arn:{partition}:imagebuilder:{region}:{account}:lifecycle-policy/{slug}",
}


def is_unsettled(deployment: Values) -> bool:
    """Whether a run was killed while it did something."""
    return bool(deployment.get("pending_operations"))


def with_made(deployment: Values, session: AwsSession) -> dict[str, Any]:
    """Return a stack's state with what was being made in it, as far as AWS may have it.

    The operations stay noted, so that whatever stops us now can be repeated; `pulumi refresh` clears them.

    Args:
        deployment: as `pulumi stack export` gives it.
        session: of the stack's region.

    Raises:
        RampCloudError: AWS does not answer, or refuses.
    """
    found = copy.deepcopy(dict(deployment))
    resources: list[dict[str, Any]] = found.setdefault("resources", [])
    begun = [each["resource"] for each in found.get("pending_operations") or () if each.get("type") == _MADE]
    here = _Here(session) if begun else None
    for raw in begun:
        identity = here.identity(raw["type"], raw.get("inputs") or {}) if here else None
        same = [each for each in resources if each["urn"] == raw["urn"] and not each.get("delete")]
        if identity is None or identity in {each.get("id") for each in same}:
            continue
        for replaced in same:
            replaced["delete"] = True  # as Pulumi notes what another has taken the place of
        resources.append({**raw, "id": identity, "outputs": dict(raw.get("inputs") or {})})
    return found


class _Here:
    """An account, in which things are found by what was asked for."""

    def __init__(self, session: AwsSession) -> None:
        self._session = session
        who = session.call("sts", "get_caller_identity")
        self._account, self._partition = str(who["Account"]), str(who["Arn"]).split(":")[1]
        self._search: dict[str, Callable[[Values], str | None]] = {
            "ec2/securityGroup": self._group,
            "ec2/launchTemplate": self._template,
            "vpc/securityGroupEgressRule": lambda given: self._rule(given, outgoing=True),
            "vpc/securityGroupIngressRule": lambda given: self._rule(given, outgoing=False),
            "imagebuilder/imageRecipe": self._recipe,
            "secretsmanager/secret": self._secret,
        }

    def identity(self, kind: str, given: Values) -> str | None:
        """Return the id of a resource; None when AWS has none, or when it can be made again without harm."""
        short = kind.removeprefix("aws:").rpartition(":")[0]
        if short in self._search:
            return self._search[short](given)
        if short not in _IDS:
            return None
        more = {
            "account": self._account,
            "partition": self._partition,
            "region": self._session.region(),
            "slug": _SLUG.sub("-", str(given.get("name", "")).lower()),
            "host": str(given.get("url", "")).removeprefix("https://"),
        }
        return _IDS[short].format_map({**more, **given})

    def _group(self, given: Values) -> str | None:
        wanted = {"group-name": given["name"], "vpc-id": given["vpcId"]}
        return self._only("describe_security_groups", "SecurityGroups", "GroupId", wanted)

    def _template(self, given: Values) -> str | None:
        wanted = {"launch-template-name": given["name"]}
        return self._only("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId", wanted)

    def _only(self, operation: str, member: str, key: str, wanted: Mapping[str, str]) -> str | None:
        filters = [{"Name": name, "Values": [value]} for name, value in wanted.items()]
        found = self._session.call("ec2", operation, Filters=filters)[member]
        return str(found[0][key]) if found else None

    def _rule(self, given: Values, *, outgoing: bool) -> str | None:
        """Return the rule of a group that says the same: AWS takes no second one."""
        keys = {"CidrIpv4": "cidrIpv4", "CidrIpv6": "cidrIpv6", "IpProtocol": "ipProtocol", "FromPort": "fromPort"}
        filters = [{"Name": "group-id", "Values": [given["securityGroupId"]]}]
        for rule in self._session.call("ec2", "describe_security_group_rules", Filters=filters)["SecurityGroupRules"]:
            is_all = rule.get("IpProtocol") == "-1"  # AWS gives it ports of its own
            says = {ours: rule.get(theirs) for theirs, ours in keys.items() if not (is_all and theirs == "FromPort")}
            group = rule.get("ReferencedGroupInfo", {}).get("GroupId")
            fits = all(given.get(ours) == value for ours, value in says.items())
            if rule["IsEgress"] == outgoing and fits and given.get("referencedSecurityGroupId") == group:
                return str(rule["SecurityGroupRuleId"])
        return None

    def _recipe(self, given: Values) -> str | None:
        """Return the newest recipe of a version with an ``x`` that has the same components."""
        wanted = [each["componentArn"] for each in given["components"]]
        filters = [{"name": "name", "values": [given["name"]]}]
        listed = pages(self._session, "list_image_recipes", "imageRecipeSummaryList", owner="Self", filters=filters)
        family = str(given["version"]).removesuffix("x")
        arns = [each["arn"] for each in listed]
        fitting = [arn for arn in arns if arn.rpartition("/")[2].startswith(family)]
        for arn in sorted(fitting, key=lambda arn: int(arn.rpartition(".")[2]), reverse=True):
            recipe = self._session.call("imagebuilder", "get_image_recipe", imageRecipeArn=arn)["imageRecipe"]
            if [each["componentArn"] for each in recipe["components"]] == wanted:
                return str(arn)
        return None

    def _secret(self, given: Values) -> str | None:
        filters = [{"Key": "name", "Values": [given["name"]]}]
        listed = self._session.call("secretsmanager", "list_secrets", Filters=filters)["SecretList"]
        return next((str(each["ARN"]) for each in listed if each["Name"] == given["name"]), None)
