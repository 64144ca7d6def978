"""What a launch asks for, read from the call and the launch template that it names, and refused with AWS's codes."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.iam.models import iam_backends

USER_DATA_BYTES = 16_384
_IMAGE_GB = 8
_TAGS, _KEY, _VALUE = 50, 128, 256  # what AWS takes at most: tags, characters of a key, of a value


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """What is to be launched, from the call and the launch template that it names."""

    image: str
    instance_type: str
    subnet: str = ""
    zone: str = ""
    key_name: str = ""
    groups: tuple[str, ...] = ()
    user_data: str = ""  # base64
    profile: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    devices: Sequence[Mapping[str, Any]] = ()
    shutdown: str = "stop"
    market: str = "on-demand"
    max_price: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    volume_tags: Mapping[str, str] = field(default_factory=dict)
    public: bool = True
    token: str = ""


def read_request(parameters: Mapping[str, Any], template: Mapping[str, Any]) -> LaunchRequest:
    """Read the parameters of a launch; those of the call go before those of the template, tags come from both."""
    data = dict(template) | {name: value for name, value in parameters.items() if value not in (None, "", [], {})}
    interface: Mapping[str, Any] = next(iter(data.get("NetworkInterfaces", ())), {})
    market = data.get("InstanceMarketOptions", {})
    price = market.get("SpotOptions", {}).get("MaxPrice") or data.get("MaxPrice")
    placement = data.get("Placement", {}).get("AvailabilityZone", "") or data.get("AvailabilityZone", "")
    return LaunchRequest(
        image=data.get("ImageId", ""),
        instance_type=data.get("InstanceType", "m1.small"),
        subnet=data.get("SubnetId", "") or interface.get("SubnetId", ""),
        zone=placement,
        key_name=data.get("KeyName", ""),
        groups=tuple(data.get("SecurityGroupIds", ()) or interface.get("Groups", ())),
        user_data=str(data.get("UserData", "")),
        profile=data.get("IamInstanceProfile", {}),
        metadata=data.get("MetadataOptions", {}),
        devices=[_sized(device) for device in data.get("BlockDeviceMappings", ())],
        shutdown=data.get("InstanceInitiatedShutdownBehavior", "stop"),
        market="spot" if market.get("MarketType") == "spot" else "on-demand",
        max_price=float(price) if price else None,
        tags=tags_for(template.get("TagSpecifications"), "instance")
        | tags_for(parameters.get("TagSpecifications"), "instance"),
        volume_tags=tags_for(template.get("TagSpecifications"), "volume")
        | tags_for(parameters.get("TagSpecifications"), "volume"),
        token=parameters.get("ClientToken") or "",
        public=bool(interface.get("AssociatePublicIpAddress", True)),
    )


def template_of(backend: EC2Backend, named: Mapping[str, Any]) -> tuple[dict[str, Any], str, int]:
    """Return the data, id and version of the launch template that a call names; nothing when it names none.

    Raises:
        EC2ClientError: there is none of that name, id or version.
    """
    if not named:
        return {}, "", 0
    if "LaunchTemplateId" in named:
        template = backend.get_launch_template(named["LaunchTemplateId"])
    else:
        template = backend.get_launch_template_by_name(named.get("LaunchTemplateName", ""))
    version = template.get_version(named.get("Version") or "$Default")
    return dict(version.data), template.id, version.number


def with_template_tags(request: LaunchRequest, template: str, version: int) -> LaunchRequest:
    """Add the tags that AWS itself sets on what comes from a launch template."""
    own = {"aws:ec2launchtemplate:id": template, "aws:ec2launchtemplate:version": str(version)} if template else {}
    return replace(request, tags={**request.tags, **own})


def tags_for(specifications: Sequence[Mapping[str, Any]] | None, kind: str) -> dict[str, str]:
    """Return the tags that a call's TagSpecifications have for a kind of resource."""
    return {
        tag["Key"]: tag.get("Value", "")
        for specification in specifications or ()
        if specification.get("ResourceType") == kind
        for tag in specification.get("Tags", ())
    }


def refuse(code: str, message: str) -> NoReturn:
    """Answer with an error of AWS's."""
    raise EC2ClientError(code, message)


def check_request(backend: EC2Backend, request: LaunchRequest) -> None:
    """Check that everything that a launch names exists and is within bounds.

    Raises:
        EC2ClientError: as AWS refuses it.
    """
    _check_image(backend, request.image)
    _check_names(backend, request)
    _check_tags(request)
    if len(base64.b64decode(request.user_data)) > USER_DATA_BYTES:
        refuse("InvalidParameterValue", f"User data is limited to {USER_DATA_BYTES} bytes")


def _check_image(backend: EC2Backend, image: str) -> None:
    if not image:
        refuse("MissingParameter", "The request must contain the parameter ImageId")
    if not image.startswith("ami-"):
        refuse("InvalidAMIID.Malformed", f'Invalid id: "{image}" (expecting "ami-...")')
    known = backend.amis.get(image)
    if known is None or not (known.owner_id == backend.account_id or known.is_public):
        refuse("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
    if known.state != "available":
        refuse("InvalidAMIID.Unavailable", f"The image ID '{image}' is not available: its state is {known.state}")


def _check_names(backend: EC2Backend, request: LaunchRequest) -> None:
    if request.key_name and request.key_name not in backend.key_pairs:
        refuse("InvalidKeyPair.NotFound", f"The key pair '{request.key_name}' does not exist")
    for group in request.groups:
        if backend.get_security_group_from_id(group) is None:
            refuse("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
    if request.instance_type not in INSTANCE_TYPES:
        refuse("InvalidParameterValue", f"Invalid value '{request.instance_type}' for InstanceType.")
    if request.profile:
        profiles = iam_backends[backend.account_id]["aws"].instance_profiles.values()
        named = request.profile.get("Name") or request.profile.get("Arn")
        if not any(named in {known.name, known.arn} for known in profiles):
            refuse("InvalidParameterValue", f"Value ({named}) for parameter iamInstanceProfile is invalid.")


def _check_tags(request: LaunchRequest) -> None:
    if len(request.tags) > _TAGS:
        refuse("TagLimitExceeded", f"More than {_TAGS} tags specified")
    for key, value in request.tags.items():
        if key.lower().startswith("aws:") and not key.startswith("aws:ec2"):
            refuse("InvalidParameterValue", f"Value ( {key} ) for parameter key is invalid. 'aws:' is reserved.")
        if not key or len(key) > _KEY or len(value) > _VALUE:
            refuse(
                "InvalidParameterValue", f"Tag {key[:_KEY]!r}: a key has at most {_KEY} characters, a value {_VALUE}"
            )


def _sized(device: Mapping[str, Any]) -> dict[str, Any]:
    """Give a volume the size of its image's snapshot when the call names none, as AWS does; moto wants one."""
    return {**device, "Ebs": {"VolumeSize": _IMAGE_GB, **device.get("Ebs", {})}}
