"""EC2: security groups and their rules."""

from collections.abc import Collection
from typing import Any

from tests.infra.provider.services.base import Account, Resource, Values, as_map, gone_is_fine, half_made
from tests.infra.provider.services.ec2 import described, specifications, tag

_GROUP_GONE = ("InvalidGroup.NotFound", "InvalidGroupId.Malformed")
_RULE_GONE = ("InvalidSecurityGroupRuleId.NotFound", "InvalidPermission.NotFound", *_GROUP_GONE)
_ANYTHING = -1  # a port, or the protocol "-1"
_SOURCES = {
    "cidrIpv4": "CidrIpv4",
    "cidrIpv6": "CidrIpv6",
    "prefixListId": "PrefixListId",
    "referencedSecurityGroupId": "ReferencedGroupId",
}


class _Group:
    def create(self, account: Account, inputs: Values) -> str:
        vpc = inputs.get("vpcId") or _default_vpc(account)
        made = account.call(
            "ec2",
            "create_security_group",
            GroupName=inputs["name"],
            Description=inputs["description"],
            VpcId=vpc,
            TagSpecifications=specifications("security-group", inputs["tagsAll"]),
        )
        name = str(made["GroupId"])
        with half_made(name):
            # AWS lets everything out of a new group; the provider takes that away at once.
            (found,) = account.call("ec2", "describe_security_groups", GroupIds=[name])["SecurityGroups"]
            if found["IpPermissionsEgress"]:
                everything = found["IpPermissionsEgress"]
                account.call("ec2", "revoke_security_group_egress", GroupId=name, IpPermissions=everything)
        return name

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = described(account, "describe_security_groups", "SecurityGroups", _GROUP_GONE, GroupIds=[name])
        return found and {
            "arn": f"arn:aws:ec2:{account.region}:{account.id}:security-group/{name}",
            "description": found["Description"],
            "name": found["GroupName"],
            "ownerId": found["OwnerId"],
            "tagsAll": as_map(found.get("Tags")),
            "vpcId": found["VpcId"],
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        tag(account, name, state, inputs)  # revokeRulesOnDelete is only noted

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(*_GROUP_GONE):
            if state.get("revokeRulesOnDelete"):
                _revoke_all(account, name)
            account.call("ec2", "delete_security_group", GroupId=name)


class _Rule:
    """A rule of one direction.

    Args:
        way: ingress or egress.
    """

    def __init__(self, way: str) -> None:
        self._way = way

    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "ec2",
            f"authorize_security_group_{self._way}",
            GroupId=inputs["securityGroupId"],
            IpPermissions=[_permission(inputs)],
        )
        (rule,) = made["SecurityGroupRules"]
        name = str(rule["SecurityGroupRuleId"])
        with half_made(name):
            tag(account, name, {}, inputs)
        return name

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = described(
            account,
            "describe_security_group_rules",
            "SecurityGroupRules",
            _RULE_GONE,
            Filters=[{"Name": "security-group-rule-id", "Values": [name]}],
        )
        if found is None:
            return None
        # Of ports that the program leaves out, AWS's -1 is not noted.
        ports = {key: found.get(key[:1].upper() + key[1:]) for key in ("fromPort", "toPort")}
        tags = account.call("ec2", "describe_tags", Filters=[{"Name": "resource-id", "Values": [name]}])["Tags"]
        return {
            **{key: value for key, value in ports.items() if value not in (None, _ANYTHING)},
            "arn": f"arn:aws:ec2:{account.region}:{account.id}:security-group-rule/{name}",
            "cidrIpv4": found.get("CidrIpv4"),
            "cidrIpv6": found.get("CidrIpv6"),
            "description": found.get("Description"),
            "ipProtocol": str(found["IpProtocol"]),
            "prefixListId": found.get("PrefixListId"),
            "referencedSecurityGroupId": found.get("ReferencedGroupInfo", {}).get("GroupId"),
            "securityGroupId": found["GroupId"],
            "securityGroupRuleId": name,
            "tagsAll": as_map(tags),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if set(changed) - {"tagsAll"}:
            rule = {
                "IpProtocol": inputs["ipProtocol"],
                "FromPort": inputs.get("fromPort", _ANYTHING),
                "ToPort": inputs.get("toPort", _ANYTHING),
                "Description": inputs.get("description", ""),
                **{theirs: inputs[ours] for ours, theirs in _SOURCES.items() if inputs.get(ours)},
            }
            account.call(
                "ec2",
                "modify_security_group_rules",
                GroupId=inputs["securityGroupId"],
                SecurityGroupRules=[{"SecurityGroupRuleId": name, "SecurityGroupRule": rule}],
            )
        tag(account, name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(*_RULE_GONE):
            group = state["securityGroupId"]
            operation = f"revoke_security_group_{self._way}"
            account.call("ec2", operation, GroupId=group, SecurityGroupRuleIds=[name])


def _permission(inputs: Values) -> Values:
    note = {"Description": inputs["description"]} if inputs.get("description") else {}
    ranges: dict[str, Any] = {
        "IpRanges": ("CidrIp", inputs.get("cidrIpv4")),
        "Ipv6Ranges": ("CidrIpv6", inputs.get("cidrIpv6")),
        "PrefixListIds": ("PrefixListId", inputs.get("prefixListId")),
        "UserIdGroupPairs": ("GroupId", inputs.get("referencedSecurityGroupId")),
    }
    return {
        "IpProtocol": inputs["ipProtocol"],
        **({"FromPort": inputs["fromPort"]} if "fromPort" in inputs else {}),
        **({"ToPort": inputs["toPort"]} if "toPort" in inputs else {}),
        **{key: [{name: value, **note}] for key, (name, value) in ranges.items() if value},
    }


def _revoke_all(account: Account, name: str) -> None:
    (found,) = account.call("ec2", "describe_security_groups", GroupIds=[name])["SecurityGroups"]
    for way, key in (("ingress", "IpPermissions"), ("egress", "IpPermissionsEgress")):
        if found[key]:
            account.call("ec2", f"revoke_security_group_{way}", GroupId=name, IpPermissions=found[key])


def _default_vpc(account: Account) -> str:
    default = [{"Name": "is-default", "Values": ["true"]}]
    return str(account.call("ec2", "describe_vpcs", Filters=default)["Vpcs"][0]["VpcId"])


RESOURCES: dict[str, Resource] = {
    "aws:ec2/securityGroup:SecurityGroup": _Group(),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": _Rule("ingress"),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": _Rule("egress"),
}
