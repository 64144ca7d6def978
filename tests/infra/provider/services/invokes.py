"""What a program may look up: networks, images, and whose account it is."""

from collections.abc import Callable
from typing import Any

from tests.infra.provider.services.base import Account, Refused, Values, as_map

_PARTITION = "aws"


def _filters(given: Values, names: dict[str, str]) -> list[Values]:
    """Return the filters of a Describe call: those given, tags, and arguments that are filters by themselves."""
    found = [{"Name": each["name"], "Values": each["values"]} for each in given.get("filters", ())]
    found += [{"Name": f"tag:{key}", "Values": [value]} for key, value in given.get("tags", {}).items()]
    return found + [{"Name": theirs, "Values": [given[ours]]} for ours, theirs in names.items() if given.get(ours)]


def _one(found: list[Values], what: str) -> Values:
    if len(found) != 1:
        why = "no matching" if not found else "multiple"
        msg = f"{why} EC2 {what} found{'' if not found else '; use additional constraints'}"
        raise Refused(msg)
    return found[0]


def _vpc(account: Account, given: Values) -> Values:
    filters = _filters(given, {"cidrBlock": "cidr", "dhcpOptionsId": "dhcp-options-id", "state": "state"})
    if given.get("default"):
        filters.append({"Name": "isDefault", "Values": ["true"]})
    ids = [given["id"]] if given.get("id") else None
    found = _one(account.call("ec2", "describe_vpcs", VpcIds=ids, Filters=filters or None)["Vpcs"], "VPC")
    name = found["VpcId"]
    shown: Values = {}
    for key in ("EnableDnsSupport", "EnableDnsHostnames"):
        attribute = key[:1].lower() + key[1:]
        answer = account.call("ec2", "describe_vpc_attribute", VpcId=name, Attribute=attribute)
        shown[attribute] = answer[key]["Value"]
    return shown | {
        "id": name,
        "arn": f"arn:{_PARTITION}:ec2:{account.region}:{account.id}:vpc/{name}",
        "cidrBlock": found["CidrBlock"],
        "default": found["IsDefault"],
        "dhcpOptionsId": found.get("DhcpOptionsId"),
        "instanceTenancy": found.get("InstanceTenancy"),
        "ownerId": found.get("OwnerId", account.id),
        "state": found["State"],
        "tags": as_map(found.get("Tags")),
    }


def _vpcs(account: Account, given: Values) -> Values:
    found = account.call("ec2", "describe_vpcs", Filters=_filters(given, {}) or None)["Vpcs"]
    return {"id": account.region, "ids": [each["VpcId"] for each in found]}


def _components(account: Account, given: Values) -> Values:
    pages = account.client("imagebuilder").get_paginator("list_components")
    wanted = {"owner": given.get("owner", "Self"), "filters": given.get("filters", [])}
    found = [each for page in pages.paginate(**wanted) for each in page["componentVersionList"]]
    names = sorted({each["name"] for each in found})
    return {"id": account.region, "arns": [each["arn"] for each in found], "names": names}


def _infrastructures(account: Account, given: Values) -> Values:
    pages = account.client("imagebuilder").get_paginator("list_infrastructure_configurations")
    found = [
        each
        for page in pages.paginate(filters=given.get("filters", []))
        for each in page["infrastructureConfigurationSummaryList"]
    ]
    return {"id": account.region, "arns": [each["arn"] for each in found], "names": [each["name"] for each in found]}


def _subnets(account: Account, given: Values) -> Values:
    found = account.call("ec2", "describe_subnets", Filters=_filters(given, {}) or None)["Subnets"]
    return {"id": account.region, "ids": [each["SubnetId"] for each in found]}


def _subnet(account: Account, given: Values) -> Values:
    ids = [given["id"]] if given.get("id") else None
    filters = _filters(given, {"vpcId": "vpc-id", "availabilityZone": "availabilityZone"})
    found = _one(account.call("ec2", "describe_subnets", SubnetIds=ids, Filters=filters or None)["Subnets"], "Subnet")
    return {
        "id": found["SubnetId"],
        "arn": found.get("SubnetArn"),
        "availabilityZone": found["AvailabilityZone"],
        "availabilityZoneId": found.get("AvailabilityZoneId"),
        "cidrBlock": found["CidrBlock"],
        "defaultForAz": found["DefaultForAz"],
        "mapPublicIpOnLaunch": found["MapPublicIpOnLaunch"],
        "ownerId": found.get("OwnerId"),
        "state": found["State"],
        "tags": as_map(found.get("Tags")),
        "vpcId": found["VpcId"],
    }


def _ami(account: Account, given: Values) -> Values:
    named = {each["name"] for each in given.get("filters", ())}
    if given.get("mostRecent") and not given.get("owners") and not named & {"image-id", "owner-id"}:
        msg = "mostRecent without owners could find anybody's image; set owners"
        raise Refused(msg)
    filters = _filters({"filters": given.get("filters", ())}, {})
    found = account.call("ec2", "describe_images", Owners=given.get("owners"), Filters=filters or None)["Images"]
    found = sorted(found, key=lambda image: image["CreationDate"], reverse=True)
    if not found or (len(found) > 1 and not given.get("mostRecent")):
        msg = (
            f"your query returned {'no results' if not found else 'more than one result'}; change your search criteria"
        )
        raise Refused(msg)
    image = found[0]
    return {
        "id": image["ImageId"],
        "imageId": image["ImageId"],
        "architecture": image["Architecture"],
        "creationDate": image["CreationDate"],
        "name": image["Name"],
        "ownerId": image["OwnerId"],
        "public": image["Public"],
        "rootDeviceName": image.get("RootDeviceName"),
        "state": image["State"],
        "tags": as_map(image.get("Tags")),
    }


def _caller(account: Account, _: Values) -> Values:
    found = account.call("sts", "get_caller_identity")
    return {"id": found["Account"], "accountId": found["Account"], "arn": found["Arn"], "userId": found["UserId"]}


def _partition(_: Account, __: Values) -> Values:
    return {"id": _PARTITION, "partition": _PARTITION, "dnsSuffix": "amazonaws.com"}


def _region(account: Account, _: Values) -> Values:
    return {"id": account.region, "name": account.region, "region": account.region}


CALLS: dict[str, Callable[[Account, Values], Any]] = {
    "aws:ec2/getVpc:getVpc": _vpc,
    "aws:ec2/getVpcs:getVpcs": _vpcs,
    "aws:ec2/getSubnets:getSubnets": _subnets,
    "aws:imagebuilder/getComponents:getComponents": _components,
    "aws:imagebuilder/getInfrastructureConfigurations:getInfrastructureConfigurations": _infrastructures,
    "aws:ec2/getSubnet:getSubnet": _subnet,
    "aws:ec2/getAmi:getAmi": _ami,
    "aws:index/getCallerIdentity:getCallerIdentity": _caller,
    "aws:index/getPartition:getPartition": _partition,
    "aws:index/getRegion:getRegion": _region,
}
