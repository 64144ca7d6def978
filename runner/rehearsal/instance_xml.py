"""Instances as EC2's answers write them, and the filters that choose among them.

moto's serialiser takes 5 ms for one instance, and a thousand are asked for at once; this takes a hundredth of that.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from moto.ec2.models.instances import Instance, Reservation

from runner.rehearsal.launch_request import refuse

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
# Filter name -> the values that an instance has; a filter's own values may have * and ?.
_FILTERS: dict[str, Callable[[Instance], Iterable[str | None]]] = {
    "architecture": lambda instance: [instance.architecture],
    "availability-zone": lambda instance: [instance.availability_zone],
    "client-token": lambda instance: [instance.client_token],
    "image-id": lambda instance: [instance.image_id],
    "instance-id": lambda instance: [instance.id],
    "instance-lifecycle": lambda instance: [instance.lifecycle],
    "instance-state-code": lambda instance: [str(instance.state_code)],
    "instance-state-name": lambda instance: [instance.state],
    "instance-type": lambda instance: [instance.instance_type],
    "instance.group-id": lambda instance: [group.id for group in instance.security_groups],
    "ip-address": lambda instance: [instance.public_ip],
    "key-name": lambda instance: [instance.key_name],
    "private-ip-address": lambda instance: [instance.private_ip_address],
    "state-reason-code": lambda instance: [instance.state_reason.code],
    "subnet-id": lambda instance: [instance.subnet_id],
    "tag-key": lambda instance: tags_of(instance).keys(),
    "vpc-id": lambda instance: [instance.vpc_id],
}


def tags_of(instance: Instance) -> Mapping[str, str]:
    """Return an instance's tags."""
    tags: Mapping[str, str] = instance.ec2_backend.tags.get(instance.id, {})
    return tags


def matcher(filters: Mapping[str, Sequence[str]]) -> Callable[[Instance], bool]:
    """Return what tells whether an instance passes all filters of a call.

    Raises:
        EC2ClientError: there is no such filter.
    """
    tests: list[tuple[Callable[[Instance], Iterable[str | None]], re.Pattern[str]]] = []
    for name, values in filters.items():
        if name.startswith("tag:"):
            tests.append((_tag_getter(name.removeprefix("tag:")), _pattern(values)))
        elif name in _FILTERS:
            tests.append((_FILTERS[name], _pattern(values)))
        else:
            refuse("InvalidParameterValue", f"The filter '{name}' is invalid")
    return lambda instance: all(
        any(value is not None and pattern.fullmatch(value) for value in values(instance)) for values, pattern in tests
    )


def _tag_getter(key: str) -> Callable[[Instance], Iterable[str | None]]:
    return lambda instance: [tags_of(instance).get(key)]


def _pattern(values: Sequence[str]) -> re.Pattern[str]:
    """Return what matches any of these values, * and ? being wildcards unless a backslash stands before them."""
    parts = []
    for value in values:
        pieces = re.split(r"(\\.|\*|\?)", value)
        wild = {"*": ".*", "?": "."}
        parts.append(
            "".join(wild.get(piece) or re.escape(piece[1:] if piece.startswith("\\") else piece) for piece in pieces)
        )
    return re.compile("|".join(parts), re.DOTALL)


def run_instances_xml(reservation: Reservation, *, again: bool) -> str:
    """Return the answer to RunInstances, in which every instance is pending unless the call is made again."""
    answer = _reservation(reservation, reservation.instances)
    if not again:
        pending = {
            "instanceState": {"code": 0, "name": "pending"},
            "stateReason": None,
            "ipAddress": None,
            "dnsName": "",
        }
        answer["instancesSet"] = [instance | pending for instance in answer["instancesSet"]]
    return _document("RunInstances", answer)


def describe_instances_xml(pairs: Iterable[tuple[Reservation, Instance]], next_token: str) -> str:
    """Return the answer to DescribeInstances."""
    grouped: dict[str, tuple[Reservation, list[Instance]]] = {}
    for reservation, instance in pairs:
        grouped.setdefault(reservation.id, (reservation, []))[1].append(instance)
    found = {"reservationSet": [_reservation(*group) for group in grouped.values()], "nextToken": next_token or None}
    return _document("DescribeInstances", found)


def _document(action: str, content: Mapping[str, Any]) -> str:
    return f'<{action}Response xmlns="{_NAMESPACE}"><requestId>rehearsal</requestId>{_xml(content)}</{action}Response>'


def _xml(value: Any) -> str:
    """Write wire names and values as XML; what is None is left out."""
    if isinstance(value, Mapping):
        return "".join([f"<{name}>{_xml(part)}</{name}>" for name, part in value.items() if part is not None])
    if isinstance(value, list):
        return "".join([f"<item>{_xml(part)}</item>" for part in value])
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape(value) if isinstance(value, str) else str(value)


def _reservation(reservation: Reservation, instances: Iterable[Instance]) -> dict[str, Any]:
    return {
        "reservationId": reservation.id,
        "ownerId": reservation.owner_id,
        "groupSet": [],
        "instancesSet": [_described(instance) for instance in instances],
    }


def _described(instance: Instance) -> dict[str, Any]:
    address, public, reason = instance.private_ip_address, instance.public_ip, instance.state_reason
    groups = [{"groupId": group.id, "groupName": group.name} for group in instance.security_groups]
    tags = [{"key": key, "value": value} for key, value in tags_of(instance).items()]
    return {
        "instanceId": instance.id,
        "imageId": instance.image_id,
        "instanceState": {"code": instance.state_code, "name": instance.state},
        "stateReason": {"code": reason.code, "message": reason.message} if reason.code else None,
        "reason": instance.state_transition_reason or "",
        "privateDnsName": instance.private_dns_name if address else "",
        "dnsName": instance.public_dns_name if public else "",
        "privateIpAddress": address,
        "ipAddress": public,
        "keyName": instance.key_name,
        "amiLaunchIndex": instance.ami_launch_index,
        "instanceType": instance.instance_type,
        "launchTime": instance.launch_time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "placement": {"availabilityZone": instance.availability_zone, "groupName": "", "tenancy": "default"},
        "monitoring": {"state": instance.monitoring_state},
        "subnetId": instance.subnet_id if address else None,
        "vpcId": instance.vpc_id if address else None,
        "groupSet": groups if address else [],
        "architecture": instance.architecture,
        "rootDeviceType": instance.root_device_type,
        "rootDeviceName": instance.root_device_name,
        "blockDeviceMapping": _devices(instance),
        "virtualizationType": "hvm",
        "hypervisor": instance.hypervisor,
        "clientToken": instance.client_token or "",
        "instanceLifecycle": instance.lifecycle,
        "tagSet": tags,
        "networkInterfaceSet": [_interface(instance, address, public, groups)] if address else [],
        "iamInstanceProfile": _profile(instance),
        "ebsOptimized": bool(instance.ebs_optimized),
        "sourceDestCheck": True,
        "metadataOptions": _metadata(instance),
    }


def _devices(instance: Instance) -> list[dict[str, Any]]:
    return [
        {
            "deviceName": name,
            "ebs": {
                "volumeId": device.volume_id,
                "status": "attached",
                "attachTime": instance.launch_time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "deleteOnTermination": bool(device.delete_on_termination),
            },
        }
        for name, device in instance.get_block_device_mapping
    ]


def _interface(instance: Instance, address: str, public: str | None, groups: list[dict[str, Any]]) -> dict[str, Any]:
    card = instance.nics[0]
    association = {"publicIp": public, "publicDnsName": instance.public_dns_name, "ipOwnerId": "amazon"}
    return {
        "networkInterfaceId": card.id,
        "subnetId": instance.subnet_id,
        "vpcId": instance.vpc_id,
        "privateIpAddress": address,
        "status": "in-use",
        "groupSet": groups,
        "association": association if public else None,
    }


def _profile(instance: Instance) -> dict[str, Any] | None:
    profile = instance.iam_instance_profile
    return {"arn": profile["Arn"], "id": profile["Id"]} if profile else None


def _metadata(instance: Instance) -> dict[str, Any]:
    options = instance.metadata_options
    return {
        "state": "applied",
        "httpTokens": options.http_tokens,
        "httpPutResponseHopLimit": options.http_put_response_hop_limit,
        "httpEndpoint": options.http_endpoint,
        "httpProtocolIpv6": options.http_protocol_ipv6,
        "instanceMetadataTags": options.instance_metadata_tags,
    }
