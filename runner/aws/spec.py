"""What is launched for an event, and how RunInstances and a launch template are told. Pure; no calls."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.aws.images import Image
from runner.aws.pools import Pool


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """What all instances of an event have in common.

    Args:
        image: see runner/aws/images.py.
        user_data: what cloud-init gets, not encoded; see runner/aws/boot.py.
        boot_minutes: minutes from its boot after which an instance ends itself, as ``user_data`` says.
        host_key: the public host key that ``user_data`` gives to the instance.
        security_groups: ids.
        key_name: EC2 key pair of the login user.
        instance_profile: name or ARN of the role that instances have; None: they have none.
        launch_template: id or name of a template whose settings hold where this says nothing.
        volume_gb: size of the root volume in GiB; None: the image's own.
        tags: tags besides those of runner/aws/tags.py.
    """

    image: Image
    user_data: str = field(repr=False)  # holds the private host key
    boot_minutes: int
    host_key: str
    security_groups: tuple[str, ...]
    key_name: str | None = None
    instance_profile: str | None = None
    launch_template: str | None = None
    volume_gb: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def common_parameters(spec: LaunchSpec) -> dict[str, Any]:
    """Return what RunInstances and the data of a launch template call by the same names; user data is not among it.

    Everything that decides about safety or cost is explicit: account defaults and images can say otherwise.
    """
    ebs: dict[str, Any] = {"Encrypted": True, "DeleteOnTermination": True}
    if size := spec.volume_gb or spec.image.root_gib:
        ebs["VolumeSize"] = size
    parameters: dict[str, Any] = {
        "ImageId": spec.image.id,
        "InstanceInitiatedShutdownBehavior": "terminate",  # or the boot timer would only stop it
        # Hop limit 1 keeps containers away from the role's credentials; tokens keep away what can only make a GET.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": [{"DeviceName": spec.image.root_device, "Ebs": ebs}],
    }
    if spec.security_groups:
        parameters["SecurityGroupIds"] = list(spec.security_groups)
    if spec.key_name:
        parameters["KeyName"] = spec.key_name
    if spec.instance_profile:
        kind = "Arn" if spec.instance_profile.startswith("arn:") else "Name"
        parameters["IamInstanceProfile"] = {kind: spec.instance_profile}
    return parameters


def run_parameters(spec: LaunchSpec, pool: Pool) -> dict[str, Any]:
    """Return the parameters of RunInstances but for count, token and tags."""
    parameters = common_parameters(spec) | {"InstanceType": pool.instance_type, "UserData": spec.user_data}
    if pool.subnet:
        parameters["SubnetId"] = pool.subnet
    elif pool.zone:
        parameters["Placement"] = {"AvailabilityZone": pool.zone}
    if spec.launch_template:
        parameters["LaunchTemplate"] = template_reference(spec.launch_template)
    return parameters


def template_data(spec: LaunchSpec, base: Mapping[str, Any], volume_tags: list[dict[str, str]]) -> dict[str, Any]:
    """Return the data of our own launch template: ``base`` with everything that the spec says on top."""
    encoded = base64.b64encode(spec.user_data.encode()).decode()  # boto3 encodes it for RunInstances only
    tagged = [{"ResourceType": "volume", "Tags": volume_tags}]
    return {**base, **common_parameters(spec), "UserData": encoded, "TagSpecifications": tagged}


def template_reference(name: str) -> dict[str, str]:
    """Return how a call names a launch template, by id or by name."""
    return {"LaunchTemplateId" if name.startswith("lt-") else "LaunchTemplateName": name}


def fleet_override(pool: Pool, max_price: float | None) -> dict[str, str]:
    """Return a pool as one of CreateFleet's overrides. The price is USD per hour and instance."""
    override = {"InstanceType": pool.instance_type}
    if pool.subnet:
        override["SubnetId"] = pool.subnet
    elif pool.zone:
        override["AvailabilityZone"] = pool.zone
    if max_price is not None:
        override["MaxPrice"] = f"{max_price:.6f}".rstrip("0").rstrip(".")
    return override
